"""Which path a configuration takes, in words, and what is said of one that was not meant."""

from __future__ import annotations

import pytest

from qfleet.common.types import EnvironmentSpec
from qfleet.run import learner_path
from qfleet.run.learner_path import PathAndReason, intended_path, reason_of
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import load_config

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
NO_PACKAGE = (
    "no compiled package fits these settings; `--learner.compile required` builds one first"
)


@pytest.mark.parametrize(
    ("changes", "is_cached", "expected"),
    [
        ({"learner.compile": "off"}, True, ("eager", "learner.compile off")),
        (
            {"learner.compile": "off", "learner.device": "cuda"},
            True,
            ("eager", "learner.compile off"),
        ),
        ({"learner.device": "cuda"}, False, ("cuda graph", "a GPU")),
        ({}, True, ("compiled", "a package fits")),
        ({}, False, ("eager", NO_PACKAGE)),
        ({"learner.batch_size": 128}, False, ("eager", NO_PACKAGE)),
        ({"learner.compile": "required"}, False, ("compiled", "learner.compile required")),
    ],
)
def test_intended_path_and_its_reason(monkeypatch, changes, is_cached, expected):
    monkeypatch.setattr(learner_path, "has_fast_form", lambda *_: is_cached)
    gpus = 1 if "learner.device" in changes else 0
    wanted = load_config("cartpole", [], {"actors.count": 1, "learner.device": "cpu", **changes})
    config = resolve_config(wanted, SPEC, cpus=2, gpus=gpus)

    assert intended_path(config, SPEC) == expected


@pytest.mark.parametrize(
    ("taken", "intended", "reason"),
    [
        ("eager", "eager", "why"),
        ("compiled", "eager", "from the moment its package was built beside the run"),
        ("eager", "compiled", "meant to be compiled: a message above says why not"),
        ("eager", "cuda graph", "meant to be cuda graph: a message above says why not"),
    ],
)
def test_reason_of_the_path_that_was_taken(taken, intended, reason):
    assert reason_of(taken, PathAndReason(intended, "why")) == reason

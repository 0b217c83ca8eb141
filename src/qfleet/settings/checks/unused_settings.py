"""Settings of the user's own that another one leaves without effect: refused, not ignored.

Called while a configuration is loaded. Only what a flag or an argument says is held against this:
a preset, a file with every key, or what all arms of a study share may carry what is turned off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from qfleet.settings.config import Config
from qfleet.settings.problems import Problem
from qfleet.settings.yaml_settings import Setting


class _Rule(NamedTuple):
    keys: tuple[str, ...]
    is_unused: Callable[[Config], bool]
    reason: str
    remedy: str


_RULES = (
    _Rule(
        ("network.normalization", "network.hidden_sizes"),
        lambda config: config.network.factory is not None,
        "is of the built-in networks, and network.factory brings its own",
        "give it to the factory through network.kwargs",
    ),
    _Rule(
        (
            "actors.epsilon_schedule",
            "actors.epsilon_start",
            "actors.epsilon_end",
            "actors.epsilon_decay_env_steps",
            "actors.epsilon_decay_episodes",
            "actors.epsilon_base",
            "actors.epsilon_ladder_exponent",
        ),
        lambda config: config.network.noisy,
        "has no effect: with network.noisy ε is 0, the network's noise explores",
        "leave one of the two out",
    ),
    _Rule(
        ("learner.momentum",),
        lambda config: config.learner.optimizer != "sgd",
        "is of learner.optimizer sgd",
        "leave it out, or set learner.optimizer sgd",
    ),
    _Rule(
        ("learner.huber_delta",),
        lambda config: config.learner.loss != "huber" or config.network.distribution == "c51",
        "is of learner.loss huber, and not of c51's loss",
        "leave it out",
    ),
    _Rule(
        (
            "replay.priority_exponent",
            "replay.priority_epsilon",
            "replay.importance_sampling_exponent",
            "replay.importance_sampling_end_learner_steps",
        ),
        lambda config: config.replay.sampling == "uniform",
        "is of prioritized replay",
        "set replay.sampling prioritized or rank",
    ),
)


def unused_settings(config: Config, settings: Sequence[Setting]) -> Iterator[Problem]:
    """One problem for each key of the user's own words that changes nothing.

    Args:
        config: The whole of it.
        settings: All settings in order.
    """
    own = {s.key: s for s in settings if s.origin == "argument" or s.origin.startswith("--")}
    for rule in _RULES:
        if rule.is_unused(config):
            for key in rule.keys:
                if key in own:
                    said = own[key]
                    yield Problem(key, said.value, rule.reason, rule.remedy, said.origin)

"""Lockstep over real processes gives the bits of the local runtime."""

from __future__ import annotations

import os
import signal
import textwrap

import pytest

from qfleet.training import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]

PARTS = """
    import gymnasium
    from torch import nn

    def make_env(length=0.5, render_mode=None):
        env = gymnasium.make("CartPole-v1", render_mode=render_mode)
        env.unwrapped.length = length
        return env

    def make_network(n_inputs, n_actions, width=8):
        return nn.Sequential(nn.Linear(n_inputs, width), nn.Tanh(), nn.Linear(width, n_actions))
"""
VARIANTS = {
    "one-actor-custom-parts": {
        "env__factory": "my_parts:make_env",
        "env__kwargs": {"length": 1.0},
        "network__factory": "my_parts:make_network",
        "network__kwargs": {"width": 12},
    },
    "three-actors-two-shards-rainbow": {
        "network__dueling": True,
        "network__noisy": True,
        "network__distribution": "c51",
        "network__value_min": 0,
        "network__value_max": 100,
        "network__atoms": 11,
        "actors__count": 3,
        "replay__shards": 2,
        "replay__sampling": "prioritized",
    },
    "pixels-iqn": {
        "env__observation": "pixels",
        "env__renderer": "fast",
        "env__frame_size": 36,
        "network__kind": "small",
        "network__normalization": "batch",
        "network__distribution": "iqn",
        "actors__count": 2,
        "actors__n_step": 3,
        "replay__shards": 2,
        "replay__sampling": "prioritized",
        "replay__capacity": 600,
    },
    "munchausen-batch-norm-radam-rank-and-an-empty-shard": {
        "network__normalization": "batch",
        "learner__munchausen": True,
        "learner__double_q": False,
        "actors__n_step": 1,
        "learner__loss": "mse",
        "learner__optimizer": "radam",
        "learner__learning_rate_schedule": "cosine",
        "replay__sampling": "rank",
        "replay__shards": 2,
    },
}
COMPARED = (
    *("params_sha256", "env_steps", "learner_steps", "target_syncs", "params_version"),
    *("accounting", "samples_per_insert", "eval_return_mean", "eval_return_std", "status"),
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_lockstep_on_ray_equals_the_local_runtime(tmp_path, config, outcomes, changes):
    (tmp_path / "my_parts.py").write_text(textwrap.dedent(PARTS))
    reports = {"local": [], "ray": []}
    summaries = {
        runtime: train(
            config(runtime=runtime, run__schedule="lockstep", **changes),
            reports[runtime].append,
            run_dir=tmp_path / runtime,
        )
        for runtime in reports
    }
    for name in COMPARED:
        ours, theirs = (getattr(summaries[runtime], name) for runtime in ("ray", "local"))
        assert ours == theirs, name
    assert reports["ray"] == reports["local"]
    assert [report.learner_step for report in reports["ray"]] == [200, 400]
    assert summaries["ray"].accounting.is_balanced
    local, on_ray = (found.outcome.target_syncs for found in outcomes)
    assert on_ray == local
    # One target at the start and one every 20 updates; every actor acted with each of them, but
    # for the one after the last round.
    versions = [version for _, version in on_ray["syncs"]]
    assert len(versions) == 21
    assert set(map(tuple, on_ray["acknowledged"].values())) == {tuple(versions[:-1])}
    assert len(on_ray["acknowledged"]) == summaries["ray"].actors


@pytest.mark.timeout(120)
def test_lockstep_whose_learner_is_killed_ends_with_the_same_bits(
    tmp_path, config, outcomes, capsys, ray_started
):
    straight = train(config(runtime="local"), run_dir=tmp_path / "local")
    seen = []

    def kill_learner_once(report):
        seen.append(report)
        if len(seen) == 1:
            [name] = [n for n in ray_started.util.list_named_actors() if n.endswith("/learner")]
            os.kill(ray_started.get(ray_started.get_actor(name).ready.remote()), signal.SIGKILL)

    killed = train(
        config(runtime="ray", run__schedule="lockstep", run__checkpoint_period_s=1e-9),
        kill_learner_once,
        run_dir=tmp_path / "ray",
    )
    assert outcomes[-1].outcome.role_restarts == 1
    assert "all roles start again from learner step" in capsys.readouterr().out
    assert (killed.status, killed.exit_code) == ("finished", 0)
    assert killed.params_sha256 == straight.params_sha256
    assert killed.env_steps == straight.env_steps
    assert killed.accounting.is_balanced

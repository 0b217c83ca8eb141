from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.common.capture_stream import decode_capture, encode_capture
from qfleet.common.stage_clock import StageClock
from qfleet.common.types import (
    EnvironmentSpec,
    PriorityUpdate,
    ReplaySample,
    ReplayStats,
    ShardSample,
)
from qfleet.learner.block_runner import BlockPlanner, run_blocks
from qfleet.learner.learner import Learner
from qfleet.learner.plan import LearnerPlan
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans

torch.set_num_threads(1)  # these networks are too small for more

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
K, B = 2, 8


def configuration(*, sampling: str = "prioritized", **run: Any) -> LearnerPlan:
    config = Config(
        network={"hidden_sizes": (8,)},
        replay={"sampling": sampling, "importance_sampling_exponent": 0.4, "shards": 2},
        learner={
            "batch_size": B,
            "updates_per_call": K,
            "target_update_period_learner_steps": 4,
            "publish_period_learner_steps": 2,
        },
        run=run,
        runtime="local",
    )
    return run_plans(resolve_config(config, None, cpus=2, gpus=0)).learner


class FakeReplay:
    """Shards of 50 known items each; writes down every call."""

    def __init__(self, masses: list[float], events: list[str]) -> None:
        self.masses, self.events = masses, events
        self.draws: list[list[int]] = []
        self.parts: list[list[ShardSample]] = []
        self.updates: list[dict[int, PriorityUpdate]] = []
        self._rng = np.random.default_rng(0)

    def stats(self) -> list[ReplayStats]:
        self.events.append("stats")
        env_steps = 100 * (1 + len(self.updates))
        return [ReplayStats(50, 50, 0, 0, mass, 0, 0, 0, 0, env_steps, 0) for mass in self.masses]

    def sample(self, draws: list[int]) -> list[ShardSample]:
        self.events.append("sample")
        self.draws.append(draws)
        parts = []
        for shard, n in enumerate(draws):
            if n:
                keys = self._rng.integers(0, 50, n)
                observations = self._rng.normal(size=(2, n, 4)).astype(np.float32)
                columns = {
                    "observation": observations[0],
                    "action": (keys % 2).astype(np.int32),
                    "n_step_return": keys.astype(np.float32),
                    "bootstrap_discount": np.full(n, 0.9, np.float32),
                    "next_observation": observations[1],
                }
                probabilities = (keys + 1) / 1_275
                stats = ReplayStats(50, 50, 0, 0, self.masses[shard], 0, 0, 0, 0)
                parts.append(ShardSample(shard, columns, keys, probabilities, stats, 0.0))
        self.parts.append(parts)
        return parts

    def update_priorities(self, updates: dict[int, PriorityUpdate]) -> None:
        self.events.append("priorities")
        self.updates.append(updates)


class Spy:
    """A learner that writes down its blocks."""

    def __init__(self, plan: LearnerPlan, events: list[str]) -> None:
        self.core = Learner(plan, SPEC)
        self.samples: list[ReplaySample] = []
        self.errors: list[np.ndarray] = []
        self.env_steps: list[int] = []
        update_block = self.core.update_block

        def spied(sample: ReplaySample) -> np.ndarray:
            events.append("update")
            self.samples.append(sample)
            self.env_steps.append(self.core.fleet_env_steps)
            self.errors.append(update_block(sample))
            return self.errors[-1]

        self.core.update_block = spied


def run(plan: LearnerPlan, masses: list[float], n_blocks: int) -> tuple[Spy, FakeReplay, list[str]]:
    events: list[str] = []
    spy, replay = Spy(plan, events), FakeReplay(masses, events)
    run_blocks(spy.core, BlockPlanner(plan), replay, n_blocks, StageClock())
    return spy, replay, events


def test_run_blocks_draws_each_block_after_the_priorities_of_the_one_before():
    spy, _, events = run(configuration(), [1.0, 3.0], 3)

    assert events == ["stats", "sample", "update", "priorities"] * 3
    assert spy.core.learner_steps == 3 * K


def test_run_blocks_asks_for_k_batches_split_by_mass():
    _, replay, _ = run(configuration(), [1.0, 3.0], 20)

    assert all(sum(draws) == K * B for draws in replay.draws)
    assert len({tuple(draws) for draws in replay.draws}) > 1
    mean = np.mean(replay.draws, axis=0)  # standard error √(16·3/16/20) ≈ 0.39
    np.testing.assert_allclose(mean, [4.0, 12.0], atol=1.6)


def test_run_blocks_tells_the_learner_the_fleets_env_steps():
    spy, _, _ = run(configuration(), [1.0, 1.0], 3)

    assert spy.env_steps == [200, 400, 600]


def test_run_blocks_sends_td_errors_back_to_the_shard_and_key_that_were_drawn():
    spy, replay, _ = run(configuration(), [1.0, 3.0], 3)

    for sample, errors, updates in zip(spy.samples, spy.errors, replay.updates, strict=True):
        expected: dict[int, list[tuple[int, float]]] = {}
        for k in range(K):
            for b in range(B):
                expected.setdefault(int(sample.shards[k, b]), []).append(
                    (int(sample.item_keys[k, b]), float(errors[k, b]))
                )
        got = {
            shard: list(zip(u.item_keys.tolist(), u.td_errors_abs.tolist(), strict=True))
            for shard, u in updates.items()
        }
        assert got == expected


def test_run_blocks_sample_holds_the_drawn_items_and_weights_of_the_current_exponent():
    plan = configuration(max_learner_steps=3 * K)
    spy, replay, _ = run(plan, [1.0, 3.0], 3)

    for block, (sample, parts) in enumerate(zip(spy.samples, replay.parts, strict=True)):
        drawn = sorted((p.shard, key) for p in parts for key in p.item_keys.tolist())
        pairs = zip(sample.shards.ravel().tolist(), sample.item_keys.ravel().tolist(), strict=True)
        assert sorted(pairs) == drawn
        np.testing.assert_array_equal(sample.columns["n_step_return"], sample.item_keys)
        beta = 0.4 + 0.6 * block / 3
        share = np.where(sample.shards == 0, 0.25, 0.75)
        weights = (100 * (sample.item_keys + 1) / 1_275 * share) ** -beta
        expected = weights / weights.max(axis=1, keepdims=True)
        np.testing.assert_allclose(sample.is_weights, expected, rtol=1e-5)


def test_run_blocks_uniform_replay_has_unit_weights_and_no_updates():
    spy, replay, events = run(configuration(sampling="uniform"), [50.0, 50.0], 2)

    assert all((sample.is_weights == 1.0).all() for sample in spy.samples)
    assert replay.updates == [{}, {}]
    assert events.count("priorities") == 2


def test_run_blocks_an_empty_second_shard_is_never_asked():
    spy, replay, _ = run(configuration(), [2.0, 0.0], 2)

    assert replay.draws == [[K * B, 0]] * 2
    assert [list(u) for u in replay.updates] == [[0], [0]]
    np.testing.assert_array_equal(spy.samples[0].item_keys.ravel(), replay.parts[0][0].item_keys)


@pytest.mark.parametrize(
    ("end", "step", "expected"),
    [(100, 0, 0.4), (100, 50, 0.7), (100, 100, 1.0), (100, 150, 1.0), (None, 50, 0.4)],
)
def test_importance_exponent_rises_to_one_at_its_end_whatever_the_budget(end, step, expected):
    plan = replace(
        configuration(max_learner_steps=1_000_000),
        importance_sampling_end_learner_steps=end,
    )
    learner = Learner(plan, SPEC)
    learner.learner_steps = step

    assert BlockPlanner(plan).importance_exponent(learner) == pytest.approx(expected)


def test_importance_exponent_of_uniform_replay_is_none():
    plan = configuration(sampling="uniform", max_learner_steps=10)

    assert BlockPlanner(plan).importance_exponent(Learner(plan, SPEC)) is None


def test_priority_updates_keep_draw_order_so_that_a_keys_later_entry_wins():
    keys = np.array([[5, 6, 5, 7], [5, 9, 6, 5]])
    shards = np.array([[0, 1, 0, 1], [1, 0, 1, 0]], np.int32)
    errors = np.arange(8.0).reshape(2, 4)
    sample = ReplaySample({}, keys, shards, np.ones((2, 4), np.float32))

    updates = BlockPlanner(configuration()).priority_updates(sample, errors)

    assert list(updates) == [0, 1]
    assert updates[0].item_keys.tolist() == [5, 5, 9, 5]
    assert updates[0].td_errors_abs.tolist() == [0.0, 2.0, 5.0, 7.0]
    assert updates[1].item_keys.tolist() == [6, 7, 5, 6]
    assert updates[1].td_errors_abs.tolist() == [1.0, 3.0, 4.0, 6.0]


def test_planner_capture_restore_continues_its_stream():
    plan = configuration()
    planner, resumed = BlockPlanner(plan), BlockPlanner(plan)
    stats = FakeReplay([1.0, 3.0], []).stats()
    for _ in range(3):
        planner.split(stats)

    resumed.restore(decode_capture(b"".join(encode_capture(planner.capture()))))

    assert [resumed.split(stats) for _ in range(5)] == [planner.split(stats) for _ in range(5)]

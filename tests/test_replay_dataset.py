"""A stored replay memory as the chapter's Dataset: the same rows, drawn in the same proportions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler

import qfleet
from qfleet.common.capture_stream import decode_capture
from qfleet.common.envs import describe_environment
from qfleet.common.errors import CheckpointError, ConfigError
from qfleet.common.networks import build_network, to_arrays
from qfleet.common.seeding import seed_int
from qfleet.common.types import ChunkId, EnvironmentSpec, TransitionChunk
from qfleet.learner.learner import Learner
from qfleet.learner.sampling import assemble
from qfleet.replay_server.build import build_shard
from qfleet.replay_server.plan import ReplayPlan
from qfleet.replay_server.replay_shard import ReplayShard
from qfleet.run_files.checkpoint import write_checkpoint
from qfleet.run_files.checkpoint_reader import read_checkpoint
from qfleet.settings.config import Config
from qfleet.settings.config_loading import load_config
from qfleet.settings.plans import run_plans

BATCH, UPDATES = 32, 1_000
SIGNIFICANCE = 1e-3
TINY = {
    "runtime": "local",
    "learner.compile": "off",
    "eval.episodes": 1,
    "eval.confirm_episodes": 1,
    "eval.solved_at_return": 1000,
    "metrics.console": "none",
}


@pytest.fixture(scope="module")
def course_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tutorial-state` after twelve episodes of few updates: some hundred transitions."""
    changes = {
        "learner.updates_per_episode": 50,
        "learner.publish_period_learner_steps": 50,
        "eval.period_learner_steps": 600,
        "run.max_episodes": 12,
        "run.dir": str(tmp_path_factory.mktemp("course") / "run"),
    }
    result = qfleet.train(qfleet.Config.preset("tutorial-state", {**TINY, **changes}))
    return Path(result.run_dir)


def restored_shard(run: Path, shard: int = 0) -> tuple[ReplayShard, Config, EnvironmentSpec]:
    """The replay server's core with the same memory."""
    config = load_config(None, [run / "config.yaml"], {})
    spec = describe_environment(config.env)
    core = build_shard(run_plans(config).replay, spec, run_id="r", shard=shard)
    stream = core.restoring()
    stream.take(read_checkpoint(run / "latest").open(f"replay-{shard}.qflt"))
    stream.end()
    return core, config, spec


def test_items_are_the_shards_rows_oldest_first(course_run: Path) -> None:
    dataset = qfleet.ReplayDataset(course_run)
    shard, _, _ = restored_shard(course_run)
    rows = shard._storage.gather(np.arange(shard.size))  # never full: slots are in order of age

    assert isinstance(dataset, Dataset)
    assert len(dataset) == shard.size > 100
    observations, actions, rewards, nexts, ended = zip(*dataset, strict=True)
    np.testing.assert_array_equal(observations, rows["observation"])
    np.testing.assert_array_equal(actions, rows["action"])
    np.testing.assert_array_equal(rewards, rows["n_step_return"])
    np.testing.assert_array_equal(nexts, rows["next_observation"])
    np.testing.assert_array_equal(ended, rows["bootstrap_discount"] == 0.0)
    assert sum(ended) == 12
    assert {type(action) for action in actions} == {np.int64}


def test_items_chain_as_the_chapters_deque_does(course_run: Path) -> None:
    """Played by one actor in one environment: s′ of an item is s of the next, within an episode."""
    dataset = qfleet.ReplayDataset(course_run)
    for (_, _, reward, following, ended), (observation, *_) in zip(
        (dataset[i] for i in range(len(dataset) - 1)),
        (dataset[i] for i in range(1, len(dataset))),
        strict=True,
    ):
        assert reward == 1.0
        assert ended != np.array_equal(following, observation)


def test_columns_choose_what_an_item_holds(course_run: Path) -> None:
    names = ("bootstrap_discount", "terminated", "action")
    dataset = qfleet.ReplayDataset(course_run, names)

    discounts, ended, _ = zip(*dataset, strict=True)

    np.testing.assert_array_equal(discounts, np.where(ended, 0, np.float32(0.99)))
    with pytest.raises(ConfigError, match=r"columns must be among observation, .*, got reward"):
        qfleet.ReplayDataset(course_run, ("reward",))


def test_index_beyond_the_end_is_refused_and_a_negative_one_counts_from_there(
    course_run: Path,
) -> None:
    dataset = qfleet.ReplayDataset(course_run)

    np.testing.assert_array_equal(dataset[-1][0], dataset[len(dataset) - 1][0])
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match=f"below {len(dataset)}, got {index}"):
            dataset[index]


def through_dataset(run: Path, seed: int) -> Iterator[list[torch.Tensor]]:
    """The chapter's own lines."""
    dataset = qfleet.ReplayDataset(run)
    sampler = RandomSampler(
        dataset,
        num_samples=BATCH * UPDATES,
        replacement=True,
        generator=torch.Generator().manual_seed(seed),
    )
    return iter(DataLoader(dataset, batch_size=BATCH, sampler=sampler))


def counts_of(drawn: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """How often each row of `memory` [N, 4] is among `drawn` [n, 4]."""
    place = {row.tobytes(): number for number, row in enumerate(memory)}
    assert len(place) == len(memory), "a state that occurs twice could not be told apart"
    return np.bincount([place[row.tobytes()] for row in drawn], minlength=len(memory))


def test_a_thousand_updates_through_dataset_and_server_draw_alike_and_learn_alike(
    course_run: Path,
) -> None:
    """Once as the chapter trains, in plain PyTorch; once by the learner from the replay server."""
    shard, config, spec = restored_shard(course_run)
    memory = shard._storage.gather(np.arange(shard.size))["observation"]
    plan = run_plans(config).learner
    learner = Learner(plan, spec)
    network_seed = seed_int(plan.seed, "learner.network")
    online, target = (build_network(plan.network, spec, network_seed) for _ in range(2))
    optimizer = torch.optim.SGD(online.parameters(), lr=1.0e-3, momentum=0.9)
    online.train()
    target.eval()

    drawn_by_dataset = []
    for s0, a0, reward, s1, ended in through_dataset(course_run, seed=0):
        drawn_by_dataset.append(s0.numpy())
        q_taken = online(s0).gather(1, a0.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            wanted = reward + 0.99 * target(s1).max(dim=1).values * ~ended
        optimizer.zero_grad()
        functional.mse_loss(q_taken, wanted).backward()
        optimizer.step()
    drawn_by_server = []
    for _ in range(UPDATES // plan.updates_per_call):
        part = shard.sample(plan.updates_per_call * BATCH, 0.0)
        block = assemble([part], [1.0], plan.updates_per_call, None, np.random.default_rng(0))
        learner.update_block(block)
        drawn_by_server.append(part.columns["observation"])

    by_dataset = counts_of(np.concatenate(drawn_by_dataset), memory)
    by_server = counts_of(np.concatenate(drawn_by_server), memory)
    assert by_dataset.sum() == by_server.sum() == BATCH * UPDATES
    assert stats.chisquare(by_dataset).pvalue > SIGNIFICANCE
    assert stats.chisquare(by_server).pvalue > SIGNIFICANCE
    assert stats.chi2_contingency([by_dataset, by_server]).pvalue > SIGNIFICANCE
    assert not np.array_equal(by_dataset, by_server)
    served = build_network(plan.network, spec, network_seed)
    served.load_state_dict({k: torch.tensor(v) for k, v in learner.params().items()})
    with torch.no_grad():
        rows = torch.from_numpy(memory)
        ours, theirs = served.eval()(rows).numpy(), online.eval()(rows).numpy()
    assert set(to_arrays(dict(served.state_dict()))) == set(to_arrays(dict(online.state_dict())))
    assert 0.9 < theirs.mean() < 1.1  # one reward and a target that has not learned yet
    assert np.abs(ours - theirs).mean() < 0.1


PLAN = ReplayPlan(
    seed=3,
    num_cpus=0.5,
    capacity=8,
    sampling="uniform",
    compression="none",
    priority_exponent=0.0,
    priority_epsilon=1e-6,
    min_size_to_sample=1,
    samples_per_insert=None,
    limiter_tolerance_samples=1,
    largest_chunk_transitions=1,
    largest_request_samples=1,
)


def test_a_full_ring_begins_with_the_oldest_and_shards_follow_one_another(tmp_path: Path) -> None:
    """Two shards of eight rows, the first written around its end."""
    spec = EnvironmentSpec("E", (1,), "<f4", 2, None, None)
    files = {}
    for number, rows in enumerate((11, 3)):
        shard = build_shard(PLAN, spec, run_id="r", shard=number)
        shard.insert(numbered_chunk(rows, 100 * number), 0.0)
        files[f"replay-{number}.qflt"] = shard.freeze().pieces()
    path = write_checkpoint(
        tmp_path / "checkpoints", learner_step=1, generation=1, files=files, manifest={}
    )

    dataset = qfleet.ReplayDataset(path, ("n_step_return",))

    assert [int(item[0]) for item in dataset] == [*range(3, 11), 100, 101, 102]
    assert dataset.path == path


def numbered_chunk(rows: int, first: int) -> TransitionChunk:
    numbers = np.arange(first, first + rows)
    columns = {
        "observation": numbers.astype("<f4")[:, None],
        "action": np.zeros(rows, "<i4"),
        "n_step_return": numbers.astype("<f4"),
        "bootstrap_discount": np.ones(rows, "<f4"),
        "next_observation": numbers.astype("<f4")[:, None] + 1,
    }
    return TransitionChunk(ChunkId("r", 0, 0, 0), columns, None, 0, rows)


def test_pixels_come_as_whole_stacks_from_frames_that_are_kept_once(tmp_path: Path) -> None:
    changes = {
        "actors.envs_per_actor": 1,
        "actors.n_step": 1,
        "env.frame_stack": 3,
        "env.frame_size": 36,
        "network.hidden_sizes": [8],
        "replay.capacity": 60,
        "replay.min_size_to_sample": 40,
        "learner.batch_size": 4,
        "learner.target_update_period_learner_steps": 40,
        "eval.period_learner_steps": 400,
        "actors.max_chunk_transitions": "auto",
        "run.max_learner_steps": 80,
        "run.dir": str(tmp_path / "run"),
    }
    run = qfleet.train(qfleet.Config.preset("cartpole-pixels", {**TINY, **changes})).run_dir

    dataset = qfleet.ReplayDataset(run)

    shard, _, _ = restored_shard(Path(run))
    keys = np.arange(shard._storage.appended - shard.size, shard._storage.appended)
    rows = shard._unfolded(shard._storage.gather(shard._storage.slots_of(keys)))
    observations, _, _, nexts, ended = zip(*dataset, strict=True)
    assert shard.size == 60 < shard._storage.appended
    assert observations[0].shape == (3, 18, 36)
    assert observations[0].dtype == np.uint8
    np.testing.assert_array_equal(observations, rows["observation"])
    np.testing.assert_array_equal(nexts, rows["next_observation"])
    np.testing.assert_array_equal(ended, rows["bootstrap_discount"] == 0.0)
    for observation, following in zip(observations, nexts, strict=True):
        np.testing.assert_array_equal(observation[1:], following[:-1])
    frames = decode_capture(read_checkpoint(Path(run) / "latest").open("replay-0.qflt")).arrays[
        "frames"
    ]
    assert len(frames) < 2 * len(dataset)
    batch = next(iter(DataLoader(dataset, batch_size=7)))
    assert batch[0].shape == (7, 3, 18, 36)


def test_what_holds_no_memory_is_refused_with_its_reason(
    course_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="nowhere is no run"):
        qfleet.ReplayDataset("nowhere")
    with pytest.raises(CheckpointError, match=r"best holds no replay memory; .* RUN/latest"):
        qfleet.ReplayDataset(course_run / "best")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text((course_run / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match="run has no checkpoint that is intact"):
        qfleet.ReplayDataset(tmp_path / "run")
    shard, _, _ = restored_shard(course_run)
    path = write_checkpoint(
        tmp_path / "run" / "checkpoints",
        learner_step=1,
        generation=1,
        files={"replay-0.qflt": shard.freeze(contents=False).pieces()},
        manifest={},
    )
    with pytest.raises(CheckpointError, match=r"no transitions: .*run.checkpoint_replay none"):
        qfleet.ReplayDataset(path)


def test_memory_that_is_damaged_or_of_another_format_is_refused(
    course_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(
        tmp_path / "checkpoints",
        learner_step=1,
        generation=1,
        files={"replay-0.qflt": [b"no capture"]},
        manifest={},
    )
    with pytest.raises(CheckpointError, match=r"replay-0\.qflt is damaged: "):
        qfleet.ReplayDataset(path)
    monkeypatch.setattr("qfleet.replay_dataset.FORMAT_VERSION", 99)
    with pytest.raises(CheckpointError, match=r"of format \d+, of an older qfleet: .* format 99"):
        qfleet.ReplayDataset(course_run)


def test_run_is_found_by_its_name_and_left_out_it_is_the_latest(
    course_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(course_run)
    (tmp_path / "runs" / "latest").symlink_to("mine")
    monkeypatch.chdir(tmp_path)

    paths = {str(qfleet.ReplayDataset(run).path) for run in (None, "mine", "runs/mine/latest")}

    assert paths == {str((course_run / "latest").resolve())}

"""Rows, episodes and TensorBoard events, and what a killed process leaves."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qfleet.run_files import metrics
from qfleet.run_files.durable import DiskWatch
from qfleet.run_files.metrics import MetricsWriter, read_metrics, read_monitor


def make_writer(run_dir: Path, tensorboard: bool = False) -> MetricsWriter:
    return MetricsWriter(run_dir, env_id="CartPole-v1", t_start_s=1000.5, tensorboard=tensorboard)


def test_metric_units_cover_every_name_and_the_promised_ones() -> None:
    promised = {
        "rollout/return_mean",
        "rollout/length_mean",
        "rollout/epsilon",
        "eval/return_mean",
        "learner/loss",
        "learner/q_mean",
        "learner/td_error_abs_mean",
        "learner/grad_norm",
        "learner/learner_steps_per_s",
        "actor/env_steps_per_s",
        "actor/params_lag_learner_steps",
        "replay/size",
        "replay/samples_per_insert",
        "replay/sample_age_s",
    }

    names = {v for k, v in vars(metrics).items() if k.isupper() and isinstance(v, str) and "/" in v}

    assert names == set(metrics.METRIC_UNITS)
    assert promised <= names
    assert {name for name in names - promised if not name.startswith("time/")} == set()


def test_write_row_is_readable_before_close(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)

    writer.write({metrics.LEARNER_LOSS: 0.25}, env_steps=64, learner_steps=8, wall_s=1.5)

    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"env_steps": 64, "learner_steps": 8, "wall_s": 1.5, "learner/loss": 0.25}\n'
    writer.close()
    writer.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_write_not_finite_value_is_null_in_valid_json(tmp_path: Path, value: float) -> None:
    writer = make_writer(tmp_path)

    writer.write({"learner/loss": value, "replay/size": 3}, env_steps=1, learner_steps=0, wall_s=0)

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (row["learner/loss"], row["replay/size"]) == (None, 3.0)
    writer.close()


def test_monitor_is_in_stable_baselines3_format_and_grows_on_resume(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    writer.write_episode(21.0, 21, 0.25)
    writer.close()
    writer = make_writer(tmp_path)
    writer.write_episode(-0.1, 9, 3.0)
    writer.close()

    lines = (tmp_path / "monitor.csv").read_text().splitlines()

    assert lines == [
        '#{"t_start": 1000.5, "env_id": "CartPole-v1"}',
        "r,l,t",
        "21.0,21,0.250000",
        "-0.1,9,3.000000",
    ]
    assert read_monitor(tmp_path) == [(21.0, 21, 0.25), (-0.1, 9, 3.0)]


def test_reopening_cuts_off_the_half_written_line(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    writer.write({}, env_steps=1, learner_steps=0, wall_s=0.1)
    writer.write_episode(1.0, 1, 0.1)
    writer.close()
    for name, torn in (("metrics.jsonl", '{"env_steps": 2, "lea'), ("monitor.csv", "2.0,")):
        with open(tmp_path / name, "a") as file:
            file.write(torn)

    assert [row["env_steps"] for row in read_metrics(tmp_path)] == [1]
    assert read_monitor(tmp_path) == [(1.0, 1, 0.1)]

    writer = make_writer(tmp_path)
    writer.write({}, env_steps=3, learner_steps=0, wall_s=0.2)
    writer.write_episode(3.0, 1, 0.2)
    writer.close()
    assert [row["env_steps"] for row in read_metrics(tmp_path)] == [1, 3]
    assert read_monitor(tmp_path) == [(1.0, 1, 0.1), (3.0, 1, 0.2)]


def test_readers_without_files_return_nothing(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    assert read_monitor(tmp_path) == []


def test_tensorboard_reads_every_scalar_at_its_env_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = make_writer(tmp_path, tensorboard=True)
    for step in (100, 200):
        row = {metrics.REPLAY_SIZE: step / 2, metrics.LEARNER_LOSS: float("nan")}
        writer.write(row, env_steps=step, learner_steps=step // 4, wall_s=step / 100)
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()  # before close: rows are flushed

    events = accumulator.Scalars("replay/size")
    assert [(e.step, e.value, e.wall_time) for e in events] == [
        (100, 50.0, 1001.5),
        (200, 100.0, 1002.5),
    ]
    assert set(accumulator.Tags()["scalars"]) == {
        "replay/size",
        "time/wall_s",
        "time/learner_steps",
    }
    writer.close()


def test_tensorboard_forgets_points_beyond_the_resumed_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    writer = make_writer(first, tensorboard=True)
    for step in (100, 200, 300):
        writer.write({"replay/size": 1.0}, env_steps=step, learner_steps=0, wall_s=0.0)
    writer.close()
    resumed = MetricsWriter(second, env_id="x", t_start_s=2000.0)
    resumed.forget_beyond(200)
    resumed.write({"replay/size": 2.0}, env_steps=250, learner_steps=0, wall_s=0.0)
    resumed.close()
    # Two writers within one second would share a file's time stamp; names fix the order here.
    next(first.glob("events*")).rename(tmp_path / "events.out.tfevents.1.a")
    next(second.glob("events*")).rename(tmp_path / "events.out.tfevents.2.b")

    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()

    points = [(e.step, e.value) for e in accumulator.Scalars("replay/size")]
    assert points == [(100, 1.0), (200, 1.0), (250, 2.0)]


def test_writer_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from qfleet.run_files.metrics import MetricsWriter;"
        f"w = MetricsWriter(Path({str(tmp_path)!r}), env_id='x', t_start_s=0.0);"
        "w.write({'a/b': 1.0}, env_steps=1, learner_steps=1, wall_s=1.0); w.close();"
        "print([m for m in ('torch', 'ray', 'tensorflow') if m in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(metrics.__file__).parents[2])},
    )

    assert done.stdout.strip() == "[]"


def test_forget_beyond_drops_the_rows_that_a_resume_has_undone(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    for step in (100, 300, 200, 400):  # an evaluation's row stands at its own, earlier step
        writer.write({"replay/size": 1.0}, env_steps=step, learner_steps=0, wall_s=0.0)

    writer.forget_beyond(300)
    writer.write({"replay/size": 2.0}, env_steps=350, learner_steps=0, wall_s=0.0)
    writer.close()

    assert [row["env_steps"] for row in read_metrics(tmp_path)] == [100, 300, 200, 350]
    writer = make_writer(tmp_path)
    writer.forget_beyond(0)
    writer.close()
    assert read_metrics(tmp_path) == []


def test_rows_wait_while_the_disk_is_full_and_follow_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, said = DiskWatch(), []
    watch.listen(said.append)
    writer = MetricsWriter(tmp_path, env_id="x", t_start_s=0.0, tensorboard=True, watch=watch)

    def row(step: int) -> None:
        writer.write_episode(float(step), step, 0.0)
        writer.write({"replay/size": 1.0}, env_steps=step, learner_steps=0, wall_s=0.0)

    row(100)
    with full_disk(monkeypatch, room_bytes=30):
        row(200)
        row(300)
        assert [row["env_steps"] for row in read_metrics(tmp_path)] == [100]
        assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")  # none is half written
    row(400)
    writer.close()

    assert [row["env_steps"] for row in read_metrics(tmp_path)] == [100, 200, 300, 400]
    assert [length for _, length, _ in read_monitor(tmp_path)] == [100, 200, 300, 400]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert [e.step for e in accumulator.Scalars("replay/size")] == [100, 200, 300, 400]
    cannot = [text for text in said if "cannot be written" in text]
    assert len(cannot) == 3  # once for each file
    assert all("training goes on" in text and "No space left" in text for text in cannot)
    assert sorted(text for text in said if text not in cannot) == sorted(
        text.split(" cannot")[0] + " is written again" for text in cannot
    )
    assert watch.failures == 6


def test_what_waits_for_a_full_disk_is_bounded_and_what_was_lost_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qfleet.run_files.durable.MAX_WAITING_BYTES", 300)
    watch, said = DiskWatch(), []
    watch.listen(said.append)
    writer = MetricsWriter(tmp_path, env_id="x", t_start_s=0.0, tensorboard=False, watch=watch)
    with full_disk(monkeypatch):
        for step in range(100):
            writer.write({"replay/size": 1.0}, env_steps=step, learner_steps=0, wall_s=0.0)
    writer.close()

    kept = [row["env_steps"] for row in read_metrics(tmp_path)]
    assert kept == list(range(len(kept)))
    assert 2 <= len(kept) <= 10
    assert said[-1] == f"metrics.jsonl is written again; {100 - len(kept)} of its records were lost"


@contextlib.contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, room_bytes: int = 0) -> Iterator[None]:
    real = os.write

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal room_bytes
        if room_bytes == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n_bytes = real(descriptor, data[:room_bytes])
        room_bytes -= n_bytes
        return n_bytes

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        yield

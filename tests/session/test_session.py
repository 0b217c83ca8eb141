"""The bookkeeping of a run: what is due when, what is written, and how it all comes back."""

from __future__ import annotations

import errno
import json
from types import SimpleNamespace

import pytest

from qfleet.common.errors import CheckpointError
from qfleet.common.reports import EvaluationReport, LearnerStats
from qfleet.common.types import EnvironmentSpec, EpisodeSummary, ReplayStats
from qfleet.fleets.fleet import ActorReport, FleetReport
from qfleet.run.stop_signals import StopSignal
from qfleet.run_files import checkpoint
from qfleet.run_files.checkpoint_reader import read_checkpoint
from qfleet.run_files.identity import RunIdentity
from qfleet.run_files.run_directory import RunDirectory
from qfleet.session.session import Session
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import load_config

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)


class FakeConsole:
    def __init__(self):
        self.messages, self.episodes, self.statuses = [], [], []

    def message(self, text):
        self.messages.append(text)

    def episode_line(self, line):
        self.episodes.append(line)

    def update(self, status):
        self.statuses.append(status)


class FakeWriter:
    def __init__(self):
        self.rows, self.episodes = [], []

    def write(self, values, *, env_steps, learner_steps, wall_s):
        self.rows.append((values, env_steps, learner_steps, wall_s))

    def forget_beyond(self, env_steps):
        self.rows = [row for row in self.rows if row[1] <= env_steps]

    def write_fleet(self, tables):
        self.fleet = tables

    def write_episode(self, episode_return, length_env_steps, wall_s):
        self.episodes.append((episode_return, length_env_steps, wall_s))


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def make_session(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directories = []

    def make(preset="cartpole", **changes):
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        config = load_config(preset, [], {"actors.count": 1, **overrides})
        config = resolve_config(config, None, cpus=2, gpus=0)
        directory = RunDirectory.create(config, str(tmp_path / f"run{len(directories)}"))
        directories.append(directory)
        session = Session(
            config,
            SPEC,
            directory,
            FakeWriter(),
            FakeConsole(),
            run_id="r1",
            stop=StopSignal(),
            clock=Clock(),
        )
        session.begin()
        return session

    yield make
    for directory in directories:
        directory.close()


def stats(size=0, inserted=0, sampled=0, env_steps=0, rejected=0):
    evicted = inserted - size
    return ReplayStats(
        size, inserted, sampled, evicted, float(size), 0, rejected, 0, 0, env_steps, 0
    )


def report(*shards, learner_steps=0, actors=(), episodes=(), incidents=(), loss=0.25):
    return FleetReport(
        shards=list(shards) or [stats()],
        learner=LearnerStats(learner_steps, 3, 2, loss, 1.5, 0.5, 2.0),
        actors=list(actors),
        episodes=list(episodes),
        incidents=list(incidents),
    )


def episode(episode_return=10.0, epsilon=0.1):
    return EpisodeSummary(0, 0, episode_return, int(episode_return), epsilon, True)


def evaluation(mean, confirm=None, step=500):
    std, n = (None, 0) if confirm is None else (1.0, 100)
    return EvaluationReport(4, step, 1600, mean, 2.0, 20, confirm, std, n)


# Why a run stops


def test_stop_reason_before_anything_is_none(make_session):
    assert make_session().stop_reason() is None


def test_stop_reason_names_the_first_of_several(make_session):
    session = make_session(
        replay__min_size_to_sample=8,
        run__max_env_steps=10,
        run__max_learner_steps=20,
        run__max_episodes=1,
        run__max_wall_s=5.0,
    )
    assert session.stop_reason() is None
    session.clock.now_s += 5.0
    assert session.stop_reason() == "max_wall_s"
    session.observe(report(stats(env_steps=9), learner_steps=19, episodes=[episode()]))
    assert session.stop_reason() == "max_episodes"
    session.observe(report(stats(env_steps=9), learner_steps=20))
    assert session.stop_reason() == "max_learner_steps"
    session.observe(report(stats(env_steps=4), stats(env_steps=6), learner_steps=20))
    assert session.stop_reason() == "max_env_steps"
    session.record_evaluation(evaluation(480.0, confirm=475.0), lambda: b"params")
    assert session.stop_reason() == "solved"
    session.stop.note(15, None)
    assert session.stop_reason() == "SIGTERM"


def test_stop_reason_of_a_solved_run_that_shall_go_on_is_none(make_session):
    session = make_session(eval__stop_when_solved=False)
    session.record_evaluation(evaluation(480.0, confirm=475.0), lambda: b"params")
    assert session.evaluations.tracker.confirmed is not None
    assert session.stop_reason() is None


def test_blocks_left_is_the_rest_of_the_update_budget(make_session):
    session = make_session(run__max_learner_steps=500)
    for learner_steps, blocks in ((0, 10), (50, 9), (449, 2), (451, 1), (500, 0), (550, 0)):
        session.observe(report(learner_steps=learner_steps))
        assert session.blocks_left(50) == blocks
    assert make_session(run__max_learner_steps=None).blocks_left(50) is None


def test_budget_fraction_is_the_one_nearest_to_its_end(make_session):
    session = make_session(run__max_env_steps=1000, run__max_learner_steps=100)
    session.observe(report(stats(env_steps=900), learner_steps=20))
    assert session.budgets.fraction() == 0.9
    session.observe(report(stats(env_steps=900), learner_steps=95))
    assert session.budgets.fraction() == 0.95
    assert make_session(run__max_learner_steps=None).budgets.fraction() is None


# Evaluations


def test_evaluation_due_once_per_period(make_session):
    session = make_session(eval__period_learner_steps=500)
    for learner_steps, due in ((0, False), (499, False), (500, True), (650, True)):
        session.observe(report(learner_steps=learner_steps))
        assert session.evaluation_due() is due
    request = session.evaluation_request()
    assert session.evaluation_due() is False
    session.observe(report(learner_steps=999))
    assert session.evaluation_due() is False
    session.observe(report(learner_steps=2600))
    assert session.evaluation_due() is True
    assert session.evaluation_request().seed != request.seed
    assert session.evaluation_due() is False


def test_record_evaluation_keeps_only_the_best_as_best(make_session):
    session = make_session()
    told = []
    session.evaluations.on_evaluation = told.append
    seen = [evaluation(10.0), evaluation(5.0, step=1000), evaluation(490.0, 480.0, step=1500)]
    for number, found in enumerate(seen):
        session.evaluation_request()
        session.record_evaluation(found, lambda number=number: f"params {number}".encode())
        best = read_checkpoint(session.directory.best_path)
        expected = {0: b"params 0", 1: b"params 0", 2: b"params 2"}[number]
        assert best.names == ["params.safetensors"]
        assert best.open("params.safetensors") == expected
    assert told == seen
    assert best.manifest["evaluation"]["confirm_return_mean"] == 480.0
    assert best.manifest["run_id"] == "r1"
    assert best.learner_step == 1500
    rows = [(row[0]["eval/return_mean"], row[1], row[2]) for row in session.writer.rows]
    assert rows == [(10.0, 1600, 500), (5.0, 1600, 1000), (490.0, 1600, 1500)]


# What is written and shown


def test_observe_writes_a_row_each_period_with_speeds(make_session):
    session = make_session(metrics__period_s=2.0)
    session.observe(report(stats(100, 100, 0, env_steps=100)))
    session.clock.now_s += 1.9
    session.observe(report(stats(200, 200, 800, env_steps=200), learner_steps=10))
    assert session.writer.rows == []
    session.clock.now_s += 0.1
    actors = [
        ActorReport(0, 250, 250, 0, params_learner_step=30),
        ActorReport(1, 250, 250, 0, params_learner_step=20),
    ]
    session.observe(
        report(
            stats(200, 300, 1500, env_steps=300),
            stats(100, 200, 500, env_steps=200),
            learner_steps=40,
            actors=actors,
            episodes=[episode(10.0, 0.4), episode(20.0, 0.2)],
        )
    )
    [(values, env_steps, learner_steps, wall_s)] = session.writer.rows
    assert (env_steps, learner_steps, wall_s) == (500, 40, 2.0)
    assert values == {
        "learner/loss": 0.25,
        "learner/q_mean": 1.5,
        "learner/td_error_abs_mean": 0.5,
        "learner/grad_norm": 2.0,
        "learner/learner_steps_per_s": 20.0,
        "actor/env_steps_per_s": 250.0,
        "replay/size": 300.0,
        "replay/sample_age_s": 0.0,
        "actor/params_lag_learner_steps": 15.0,
        "replay/samples_per_insert": 4.0,
        "rollout/return_mean": 15.0,
        "rollout/length_mean": 15.0,
        "rollout/epsilon": pytest.approx(0.3),
    }
    assert session.writer.episodes == [(10.0, 10, 2.0), (20.0, 20, 2.0)]


def test_epsilon_of_a_schedule_is_the_one_of_the_newest_episode_line(make_session):
    session = make_session(actors__epsilon_schedule="linear")
    session.observe(
        report(stats(env_steps=30), learner_steps=10, episodes=[episode(9, 0.4), episode(9, 0.2)])
    )

    session.write_row()

    assert session.writer.rows[-1][0]["rollout/epsilon"] == 0.2


def test_on_next_update_calls_once_when_the_learner_has_moved(make_session):
    session = make_session()
    session.observe(report(learner_steps=40))
    calls = []
    session.on_next_update(lambda: calls.append(session.learner_steps))
    for learner_steps in (40, 40, 50, 60):
        session.observe(report(learner_steps=learner_steps))
    assert calls == [50]


def test_first_evaluation_prepares_what_it_gives_to_film(make_session):
    session = make_session()
    prepared_with = []
    best = session.directory.best_path
    session.evaluations.artifacts = SimpleNamespace(
        prepare=lambda: prepared_with.append(best.is_dir())
    )
    session.observe(report(learner_steps=500))
    assert prepared_with == []
    session.record_evaluation(evaluation(100.0), lambda: b"params")
    session.record_evaluation(evaluation(50.0), lambda: b"params")
    assert prepared_with == [True]


def test_observe_shows_the_console_at_its_own_period(make_session):
    session = make_session()
    for _ in range(10):
        session.clock.now_s += 0.11
        session.observe(report(stats(5, 5, 10, env_steps=5), learner_steps=3))
    assert len(session.console.statuses) == 5
    status = session.console.statuses[-1]
    assert (status.env_steps, status.learner_steps, status.replay_size) == (5, 3, 5)
    assert status.samples_per_insert == 2.0
    assert status.eval_return_mean is None


@pytest.mark.parametrize(("preset", "lines"), [("tutorial-state", 2), ("cartpole", 0)])
def test_observe_prints_a_line_per_episode_only_in_the_courses_schedule(
    make_session, preset, lines
):
    session = make_session(preset)
    session.observe(report(stats(env_steps=30), learner_steps=1000, episodes=[episode(30.0)]))
    session.observe(report(stats(env_steps=50), learner_steps=2000, episodes=[episode(20.0)]))
    seen = [(e.episode, e.episode_return, e.learner_steps) for e in session.console.episodes]
    assert seen == [(1, 30.0, 1000), (2, 20.0, 2000)][:lines]
    assert session.counters.totals.episodes == 2


def test_rollout_means_are_over_the_last_hundred_episodes(make_session):
    session = make_session()
    session.observe(report(episodes=[episode(1000.0)] * 50 + [episode(7.0)] * 100))
    assert session.status().rollout_return_mean == 7.0
    assert session.counters.totals.episodes == 150


def test_incident_is_shown_once(make_session):
    session = make_session()
    session.observe(report(incidents=["a chunk was refused", "a chunk was refused"]))
    session.incident("a chunk was refused")
    session.incident("another")
    assert session.console.messages == ["a chunk was refused", "another"]
    assert session.progress.incidents == ["a chunk was refused", "another"]


# Checkpoints


def test_checkpoint_due_by_the_clock(make_session):
    session = make_session(run__checkpoint_period_s=10.0)
    session.clock.now_s += 9.9
    assert session.checkpoint_due() is False
    session.clock.now_s += 0.1
    assert session.checkpoint_due() is True
    session.save_checkpoint({}, b"params", 150)
    assert session.checkpoint_due() is False


def test_save_checkpoint_holds_one_cut_and_is_latest(make_session):
    session = make_session()
    session.observe(report(stats(env_steps=640), learner_steps=150))
    session.round_state = lambda: {"inserted": 7, "sampled": 8, "episodes": 9}
    session.save_checkpoint({"learner.qflt": [b"L"]}, b"params", 150)
    session.save_checkpoint({"learner.qflt": [b"M", b"N"]}, b"params", 150)
    names = sorted(p.name for p in session.directory.checkpoints_path.glob("ckpt-*"))
    assert names == ["ckpt-000000000150-1", "ckpt-000000000150-2"]
    latest = read_checkpoint(session.directory.latest_path)
    assert latest.path.name == "ckpt-000000000150-2"
    assert latest.open("learner.qflt") == b"MN"
    assert latest.open("params.safetensors") == b"params"
    state = json.loads(bytes(latest.open("session.json")))
    assert state["round"] == {"inserted": 7, "sampled": 8, "episodes": 9}
    wanted = {"run_id": "r1", "env_steps": 640, "schedule": "async", "replay": "full"}
    assert {key: latest.manifest[key] for key in wanted} == wanted


def test_save_checkpoint_that_fails_is_counted_and_the_next_one_works(make_session, monkeypatch):
    session = make_session()

    def full_disk(**_):
        raise CheckpointError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(session.directory, "write_checkpoint", full_disk)
        session.save_checkpoint({}, b"params", 150)
    assert session.checkpoints.failures == 1
    [message] = session.console.messages
    assert "no space left" in message
    assert "training goes on" in message
    session.save_checkpoint({}, b"params", 150)
    assert read_checkpoint(session.directory.latest_path).generation == 2


def test_generation_of_a_failed_write_is_not_given_again_by_another_process(
    make_session, monkeypatch
):
    session = make_session()
    session.save_checkpoint({}, b"params", 100)

    def endless():
        yield b"x"
        raise OSError(errno.ENOSPC, "No space left on device")

    session.save_checkpoint({"learner.qflt": endless()}, b"params", 150)
    # Another process of this run knows of the attempt, which left nothing else behind.
    assert RunIdentity(session.directory.path).next_generation() == 3


def test_save_checkpoint_closes_the_streams_that_a_full_disk_interrupts(make_session, monkeypatch):
    session, closed = make_session(), []

    def pieces():
        try:
            while True:
                yield b"x" * 1000
        finally:
            closed.append(True)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    real_open = open

    class Full:
        def __init__(self, file):
            self.file, self.room = file, 5000

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, block):
            self.room -= len(block)
            if self.room < 0:
                full(0)
            return self.file.write(block)

    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint,
            "open",
            lambda *arguments, **options: Full(real_open(*arguments, **options)),
            raising=False,
        )
        session.save_checkpoint({"replay-0.qflt": pieces()}, b"params", 150)
    assert closed == [True]
    assert session.checkpoints.failures == 1
    assert list(session.directory.checkpoints_path.iterdir()) == []


def test_capture_round_trip_through_json_is_exact(make_session):
    session = make_session()
    session.observe(report(stats(env_steps=10), learner_steps=600, episodes=[episode()] * 3))
    session.evaluation_request()
    session.record_evaluation(evaluation(480.0, confirm=476.0), lambda: b"params")
    session.counters.totals.eval_s, session.counters.totals.dropped = 1.5, 4
    session.clock.now_s += 7.25
    state = json.loads(json.dumps(session.capture()))
    assert (state["run_id"], state["episodes"], state["wall_s"]) == ("r1", 3, 7.25)

    resumed = make_session()
    resumed.restore(state)
    assert resumed.capture() == session.capture()
    resumed.observe(report(learner_steps=700))
    assert resumed.evaluation_due() is False
    assert resumed.evaluations.tracker == session.evaluations.tracker
    resumed.clock.now_s += 1.0
    assert resumed.capture()["wall_s"] == 8.25


def test_highest_params_version_never_goes_back(make_session):
    session = make_session()
    assert session.counters.highest_params_version == 0
    for version, highest in ((3, 3), (9, 9), (4, 9)):
        seen = report()
        learner = seen.learner._replace(params_version=version)
        session.observe(FleetReport(seen.shards, learner, []))
        assert session.counters.highest_params_version == highest
    # An evaluation may tell of a version before the learner's own counters do.
    session.record_evaluation(evaluation(20.0)._replace(params_version=12), lambda: b"")
    assert session.counters.highest_params_version == 12


# Episodes that are cut


def _cut_episode(length, terminated=False):
    return EpisodeSummary(0, 0, 1.0, length, 0.1, terminated)


def test_cut_episodes_of_actors_and_evaluations_are_told_once(make_session):
    session = make_session(eval__max_episode_steps=50)

    session.observe(report(episodes=[_cut_episode(49), _cut_episode(50, terminated=True)]))
    assert session.progress.incidents == []
    session.observe(report(episodes=[_cut_episode(50), _cut_episode(50)]))
    session.record_evaluation(evaluation(50.0)._replace(cut_episodes=3), lambda: b"")

    assert session.progress.incidents == [
        "episodes were cut after 50 steps, before CartPole-v1 ended them: their returns are those "
        "of so many steps (eval.max_episode_steps)"
    ]


def test_episodes_that_the_environments_own_limit_ends_are_not_told_of(make_session):
    session = make_session(eval__max_episode_steps=500)

    session.observe(report(episodes=[_cut_episode(500)]))

    assert session.progress.incidents == []


def test_cut_episodes_of_an_evaluation_are_told(make_session):
    session = make_session(eval__max_episode_steps=50)

    session.record_evaluation(evaluation(50.0)._replace(confirm_cut_episodes=1), lambda: b"")

    assert len(session.progress.incidents) == 1

"""One tick of the asynchronous loop, with roles played by hand."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from qfleet.cluster import waits
from qfleet.cluster.answers import INSIST_S
from qfleet.cluster.polled_call import HESITATION_S, PolledCall
from qfleet.common.errors import MemoryLimitError
from qfleet.common.reports import LearnerStats
from qfleet.fleets import async_loop
from qfleet.fleets.async_loop import TELL_TIMEOUT_S, AsyncLoop
from qfleet.fleets.watches.actor_watch import ActorWatch
from qfleet.fleets.watches.rest_watch import RestWatch
from qfleet.fleets.watches.run_call import LOST_AFTER_S, RunCall
from qfleet.run import stop_signals
from qfleet.run.stop_signals import PATIENCE_S, StopSignal


@pytest.fixture
def loop(by_hand, hand_ray, monkeypatch):
    """A loop in the middle of a run whose only poll is of the learner."""
    hand_ray(async_loop)
    loop = AsyncLoop.__new__(AsyncLoop)
    loop.roles, loop.order = by_hand, []
    loop._learner_status, loop._shard_reports = None, {}
    loop._learner_run = RunCall(by_hand.learner.run.remote)

    def noting(name):
        return lambda *_: loop.order.append(name)

    loop._actors = SimpleNamespace(
        runs={}, writers=[0, 2], poll=noting("actors polled"), fill_slots=noting("actors replaced")
    )
    loop._evaluations = SimpleNamespace(
        due=by_hand.learner.await_evaluation.remote(),
        evaluating=None,
        go_on=noting("evaluator looked after"),
    )
    loop._shards = SimpleNamespace(
        polls={}, are_all_there=True, is_there=None, poll=lambda *_: [], go_on=noting("shards")
    )
    loop._rests = RestWatch(2)
    loop._hosts = SimpleNamespace(go_on=lambda *_: None)
    loop.checkpoint = noting("cut")
    return loop


@pytest.fixture
def session():
    return SimpleNamespace(
        incident=print,
        checkpoint_due=lambda: True,
        stop_reason=lambda: None,
        observe=print,
        scale_request=lambda: None,
    )


def test_no_cut_is_begun_while_a_role_says_nothing(loop, session, by_hand, hand_ray):
    ray = hand_ray()
    poll = PolledCall(by_hand.learner.status.remote, "the learner")
    began_s = ray.now_s
    while ray.now_s - began_s < HESITATION_S + 5.0:
        loop._tick(session, poll)
        if ray.now_s - began_s < HESITATION_S - 0.1:
            assert "cut" in loop.order
        loop.order.clear()
    loop._tick(session, poll)
    assert "cut" not in loop.order


def test_evaluator_has_its_place_before_any_actor_is_replaced(loop, session, by_hand):
    loop._tick(session, PolledCall(by_hand.learner.status.remote, "the learner"))
    assert loop.order == [
        "actors polled",
        "evaluator looked after",
        "shards",
        "actors replaced",
        "cut",
    ]


def test_learner_that_has_ended_ends_the_run_though_its_last_answer_is_lost(loop, session, by_hand):
    poll, said = PolledCall(by_hand.learner.status.remote, "the learner"), []
    by_hand.shards = [None, None]
    while not by_hand.learner.open("status"):
        said.append(loop._tick(session, poll))
    status = {"stats": [0] * len(LearnerStats._fields), "resting": [], "has_ended": True}
    status["has_begun"] = True
    by_hand.learner.open("status")[0].answer(status)
    assert loop._tick(session, poll) == "max_learner_steps"
    assert said == [None] * len(said)
    assert by_hand.learner.open("run")


def test_learner_that_has_not_heard_that_it_should_train_is_called_again(
    loop, session, by_hand, ray
):
    poll, by_hand.shards = PolledCall(by_hand.learner.status.remote, "the learner"), [None, None]
    status = {"stats": [0] * len(LearnerStats._fields), "resting": [], "has_ended": False}
    runs = []
    ray.now_s += 60.0  # it takes long to start: the call may be on its way all the same
    for has_begun in (False, False, True, True):
        while not by_hand.learner.open("status"):
            loop._tick(session, poll)
        by_hand.learner.open("status")[0].answer(status | {"has_begun": has_begun})
        loop._tick(session, poll)
        runs.append(len(by_hand.learner.open("run")))
        ray.now_s += 2 * LOST_AFTER_S
    assert runs == [1, 2, 2, 2]
    assert loop._learner_run.ref is by_hand.learner.open("run")[1]


def test_actors_last_words_are_missed_one_by_one_and_none_waits_for_a_lost_answer(
    loop, session, by_hand, ray
):
    """Actor 0's last answer is lost and comes with a second call; actor 1 has died."""
    said, taken = [], []
    session.incident = said.append
    loop._actors = ActorWatch(by_hand, SimpleNamespace(step_timeout_s=1, min_actors=1, actors=2), 0)
    loop._actors.take = lambda counters, is_final: taken.append((counters, is_final))
    runs = {by_hand.actors[s].run.remote(): s for s in (0, 1)}
    by_hand.actors[1].calls[0].answer(ray.dead)
    by_hand.actors[0].calls[0].answer(ray.lost)

    def serve():
        for call in by_hand.actors[0].open("run"):
            call.answer("last")
        for call in by_hand.actors[1].open("ping"):
            call.answer(ray.dead)

    ray.on_idle = serve
    began_s = ray.now_s
    loop._take_last_of_actors(session, runs, began_s + 5.0)
    assert taken == [("last", True)]
    assert ray.now_s - began_s <= 3 * INSIST_S
    [text] = said
    assert text.startswith("actor 1 ended before the run: ")


def test_actor_whose_loop_ended_by_an_error_at_the_last_moment_still_tells_its_counters(
    loop, session, by_hand, ray
):
    said, taken, actor = [], [], by_hand.actors[0]
    session.incident = said.append
    loop._actors = ActorWatch(by_hand, SimpleNamespace(step_timeout_s=1, min_actors=1, actors=2), 0)
    loop._actors.take = lambda counters, is_final: taken.append((counters, is_final))
    run = actor.run.remote()
    error = MemoryLimitError("it has grown")
    run.answer(ray.exceptions.RayTaskError("run", "Traceback\nit has grown", error))
    ray.on_idle = lambda: [call.answer("told") for call in actor.open("ping")]
    loop._take_last_of_actors(session, {run: 0}, ray.now_s + 5.0)
    assert taken == [("told", True)]
    assert said == ["actor 0 ended before the run: it has grown"]


def test_no_cut_is_begun_while_a_shard_is_on_its_way_back(loop, session, by_hand):
    loop._shards.are_all_there = False
    loop._tick(session, PolledCall(by_hand.learner.status.remote, "the learner"))
    assert "cut" not in loop.order


def test_request_for_other_actors_is_handed_on_and_told_once(loop, session, by_hand):
    asked, said, scaled = [8, 8, None], [], []
    loop._actors.wanted, loop._actors.scale = 2, scaled.append
    session.scale_request, session.incident = lambda: asked.pop(0), said.append
    learner = PolledCall(by_hand.learner.status.remote, "the learner")
    loop._tick(session, learner)
    loop._actors.wanted = 8
    loop._tick(session, learner)
    loop._tick(session, learner)
    assert (scaled, said) == ([8], ["scaled from 2 to 8 actors"])


def test_learner_is_told_of_shards_that_nobody_writes_to(loop, session, by_hand, monkeypatch):
    said, learner = [], by_hand.learner
    session.incident, by_hand.shards = said.append, [None, None]
    monkeypatch.setattr(AsyncLoop, "_learner_steps", 1)
    poll = PolledCall(learner.status.remote, "the learner")
    answers = [[], [], [1], [1]]
    for _ in range(50):
        loop._tick(session, poll)
        for call in learner.open("status")[: len(answers)]:
            call.answer({"resting": answers.pop(0), "has_begun": True, "has_ended": False})
    assert not answers
    told = [call.arguments for call in learner.calls if call.method == "let_rest"]
    assert told == [([1],), ([1],)]  # again until it says so
    assert said == ["no actor writes to replay shard 1: it rests, the others are drawn from"]


def test_actor_that_does_not_answer_at_the_end_costs_no_last_checkpoint(
    loop, session, by_hand, ray, monkeypatch
):
    """Its host may have gone a moment ago; the signal's patience is for one wait."""
    for module in (stop_signals, waits):
        monkeypatch.setattr(module, "time", async_loop.time)  # the clock by hand
    said, stop = [], StopSignal()
    session.incident = said.append
    stop.note(signal.SIGTERM, None)
    loop._actors.placed = {by_hand.actors[s].run.remote(): s for s in (0, 1)}
    loop._actors.take_final = loop._evaluations.take_last_due = lambda *_, **__: None

    def serve():
        """Everybody but actor 1 answers."""
        for handle in (by_hand.learner, by_hand.actors[0]):
            for call in [c for c in handle.calls if not c.outcome]:
                call.answer({"resting": [], "has_ended": True})

    ray.on_idle, began_s = serve, ray.now_s
    loop._newest_report = lambda: None
    with waits.asked_in_every_wait(stop.end_wait):
        loop._drain(session, PolledCall(by_hand.learner.status.remote, "the learner"))
    assert ray.now_s - began_s > TELL_TIMEOUT_S
    assert TELL_TIMEOUT_S < PATIENCE_S
    assert said == []

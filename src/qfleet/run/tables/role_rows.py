"""Every role of a run that goes on: its host, its rate and what it waits for.

Made by the session with each row of metrics, from two reports; shown by `qfleet status` and by
Ray's metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qfleet.common.stage_clock import INSERT_HELD, SAMPLE_HELD, WAIT
from qfleet.fleets.fleet import ActorReport, FleetReport
from qfleet.run_files.summary import RoleRow

UPDATES, INSERTS, ENV_STEPS = "updates/s", "inserts/s", "env steps/s"
WAITS_SHARE = 0.5
"""A role that waited for more than this share of the time is said to wait."""
IDLE = "something to evaluate"


class RoleRates:
    """What every role has done since the row before; owned by the session."""

    def __init__(self) -> None:
        self._before: tuple[float, FleetReport] | None = None

    def rows(self, report: FleetReport, now_s: float) -> list[RoleRow]:
        """Learner, shards, actors, evaluator; then those that are wanted and not there.

        Empty where all roles are one process.
        """
        if not report.hosts:
            return []
        before_s, before = self._before or (now_s, report)
        self._before = now_s, report
        span_s = max(1e-9, now_s - before_s)
        rows = [
            _learner_row(before, report, span_s),
            *_shard_rows(before, report, span_s),
            *_actor_rows(before, report, span_s),
            _evaluator_row(before, report, span_s),
        ]
        rows = [row for row in rows if row.role not in report.absent]
        return rows + [
            RoleRow(role=role, host="", pid=0, rate=0.0, unit="", waits_for=what)
            for role, what in report.absent.items()
        ]


def _row(report: FleetReport, role: str, done: float, unit: str, waits_for: str) -> RoleRow:
    host, pid = report.hosts.get(role, ("", 0))
    rate = round(max(0.0, done), 1)
    return RoleRow(role=role, host=host, pid=pid, rate=rate, unit=unit, waits_for=waits_for)


def _learner_row(before: FleetReport, report: FleetReport, span_s: float) -> RoleRow:
    done = report.learner.learner_steps - before.learner.learner_steps
    waited_s = _passed(before.learner_times, report.learner_times, WAIT)
    waits_for = ""
    if waited_s > WAITS_SHARE * span_s:
        held = [shard for shard, _, sample_s in _held(before, report) if sample_s > waited_s / 2]
        waits_for = "actors (the limiter keeps the ratio)" if held else "the replay shards"
    return _row(report, "learner", done / span_s, UPDATES, waits_for)


def _held(before: FleetReport, report: FleetReport) -> Iterator[tuple[int, float, float]]:
    """(shard, seconds of inserts held back, of samples held back)."""
    for shard, times in enumerate(report.shard_times):
        earlier = before.shard_times[shard] if shard < len(before.shard_times) else {}
        yield (
            shard,
            _passed(earlier, times, INSERT_HELD),
            _passed(earlier, times, SAMPLE_HELD),
        )


def _shard_rows(before: FleetReport, report: FleetReport, span_s: float) -> Iterator[RoleRow]:
    for shard, insert_s, sample_s in _held(before, report):
        earlier = before.shards[shard].inserted if shard < len(before.shards) else 0
        waits_for = ""
        if max(insert_s, sample_s) > WAITS_SHARE * span_s:
            waits_for = "the learner's draws" if insert_s > sample_s else "actors' transitions"
        if shard in report.resting:
            waits_for = "an actor; the others are drawn from"
        done = report.shards[shard].inserted - earlier
        yield _row(report, f"replay-{shard}", done / span_s, INSERTS, waits_for)


def _actor_rows(before: FleetReport, report: FleetReport, span_s: float) -> Iterator[RoleRow]:
    earlier = {(actor.slot, actor.incarnation): actor for actor in before.actors}
    for actor in report.actors:
        was = earlier.get((actor.slot, actor.incarnation), ActorReport(actor.slot, 0, 0, 0, 0))
        waited_s = _passed(was.times, actor.times, WAIT)
        shard = f"replay-{actor.slot % len(report.shards)}"
        waits_for = shard if waited_s > WAITS_SHARE * span_s else ""
        done = actor.env_steps - was.env_steps
        yield _row(report, f"actor-{actor.slot}", done / span_s, ENV_STEPS, waits_for)


def _evaluator_row(before: FleetReport, report: FleetReport, span_s: float) -> RoleRow:
    done = report.evaluator_steps - before.evaluator_steps
    waits_for = "" if done > 0 else IDLE
    return _row(report, "evaluator", done / span_s, ENV_STEPS, waits_for)


def _passed(before: Mapping[str, float], after: Mapping[str, float], stage: str) -> float:
    """Seconds of a stage; nothing where the counter went back, as of a role that was replaced."""
    return max(0.0, after.get(stage, 0.0) - before.get(stage, 0.0))

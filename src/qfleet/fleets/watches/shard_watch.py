"""The replay shards of an asynchronous run: their counters, and a new one for one that dies.

Called by the asynchronous loop once per tick; the rules are the supervisor's. One of several that
dies is restored alone from the last cut: the others answer the learner meanwhile, its actors keep
what it had not acknowledged, and what it took since that cut is lost and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from qfleet.cluster.answers import START_TIMEOUT_S, answer, ask
from qfleet.cluster.polled_call import PolledCall
from qfleet.cluster.ray_cluster import import_ray
from qfleet.cluster.roles import Roles
from qfleet.common.errors import CallLostError, RoleLostError, WaitTimeoutError
from qfleet.common.types import ReplayStats
from qfleet.fleets.cuts import restore_shard
from qfleet.fleets.supervisor import ShardSupervisor
from qfleet.fleets.watches.actor_watch import ActorWatch

Reports = Mapping[int, dict[str, Any]]
"""The newest counters by shard."""


class ShardRecord(Protocol):
    """What the watch asks of the run's bookkeeping."""

    def newest_cut(self) -> Mapping[str, memoryview] | None:
        """The roles' files of the last checkpoint; None without one."""
        ...

    def shard_rolled_back(self, slots: list[int]) -> None:
        """What these slots had stored since the last cut is lost."""
        ...

    def incident(self, text: str, whole_text: str = "") -> None:
        """Something that a user should see."""
        ...


class ReportQuestions(Protocol):
    """How a shard is asked for its counters and the episodes that were not told yet."""

    def ask_report(self, shard: int) -> Any:
        """The call's reference."""
        ...

    def began_anew(self, shard: int) -> None:
        """It numbers its episodes from 0 again."""
        ...


@dataclass
class _Return:
    """Of a shard that is lost and has not been handed back to the learner."""

    begins_at_s: float
    starting: Any = None
    """The question whether the new process is there."""
    is_restored: bool = False
    """It takes chunks, and fills to the size from which it may be drawn from."""


class ShardWatch:
    """Every shard's newest counters, and the way back of those that are lost."""

    def __init__(self, roles: Roles, actors: ActorWatch, questions: ReportQuestions) -> None:
        self._roles, self._actors, self._questions = roles, actors, questions
        self._min_size = roles.plans.replay.min_size_to_sample
        self._supervisor = ShardSupervisor(roles.plans.fleet.max_role_restarts)
        self.polls = {i: self._new_poll(i) for i in range(len(roles.shards))}
        self._returning: dict[int, _Return] = {}

    def _new_poll(self, index: int, *, is_new: bool = False) -> PolledCall:
        ask = partial(self._questions.ask_report, index)
        return PolledCall(ask, _who(index), has_answered=not is_new)

    def is_there(self, slot: int) -> bool:
        """Whether the shard of an actor slot takes chunks."""
        state = self._returning.get(slot % len(self._roles.shards))
        return state is None or state.is_restored

    @property
    def are_all_there(self) -> bool:
        """Whether a cut can be taken."""
        return all(state.is_restored for state in self._returning.values())

    @property
    def absent(self) -> dict[str, str]:
        """Shards that take no chunks, each with what it waits for."""
        lost = {i: state for i, state in self._returning.items() if not state.is_restored}
        return {
            f"replay-{index}": "its restart" if state.starting is None else "its start"
            for index, state in lost.items()
        }

    def poll(self, record: ShardRecord, now_s: float) -> Iterator[dict[str, Any]]:
        """Counters that have come; the loss of one of several shards is noted.

        Raises:
            RoleLostError, WaitTimeoutError: when the only one is lost, or one too often.
        """
        for index, poll in list(self.polls.items()):
            try:
                report = poll.poll(now_s)
            except (RoleLostError, WaitTimeoutError) as error:
                self._lose(index, error, record, now_s)
                continue
            if report is not None:
                yield report

    def lose_host(self, index: int, reason: str, record: ShardRecord, now_s: float) -> None:
        """The host of a shard is lost.

        Raises:
            RoleLostError: when it is the only one, or was lost too often.
        """
        if index in self.polls:
            self._lose(index, RoleLostError(f"{_who(index)} is lost: {reason}"), record, now_s)

    def _lose(
        self, index: int, error: RoleLostError | WaitTimeoutError, record: ShardRecord, now_s: float
    ) -> None:
        if len(self._roles.shards) == 1:
            raise error
        begins_at_s = self._supervisor.died(index, str(error), now_s)
        import_ray().kill(self._roles.shards[index], no_restart=True)
        self.polls.pop(index, None)
        self._returning[index] = _Return(begins_at_s)
        record.incident(f"{error}; the others go on while replay shard {index} is restored")

    def go_on(self, record: ShardRecord, reports: Reports, now_s: float) -> None:
        """The next step of each shard that is on its way back; never waits for a start."""
        for index, state in list(self._returning.items()):
            try:
                self._step(index, state, record, reports, now_s)
            except (RoleLostError, WaitTimeoutError) as error:
                self._lose(index, error, record, now_s)

    def _step(
        self,
        index: int,
        state: _Return,
        record: ShardRecord,
        reports: Reports,
        now_s: float,
    ) -> None:
        if state.is_restored:
            is_told = self.polls[index].has_answered
            if is_told and ReplayStats(*reports[index]["stats"]).size >= self._min_size:
                self._hand_over(index, draw=True)
                self._supervisor.served(index)
                del self._returning[index]
        elif state.starting is None:
            if now_s >= state.begins_at_s:
                state.starting = self._roles.create_shard(index).ready.remote()
        elif import_ray().wait([state.starting], timeout=0)[0]:
            self._has_started(index, state, record, reports.get(index))
        elif now_s - state.begins_at_s > START_TIMEOUT_S:
            raise WaitTimeoutError(
                f"driver waited {START_TIMEOUT_S:.0f} s for replay shard {index} to start again"
            )

    def _has_started(
        self, index: int, state: _Return, record: ShardRecord, last: dict[str, Any] | None
    ) -> None:
        shard = self._roles.shards[index]
        try:
            answer(state.starting, "driver", _who(index))
        except CallLostError:
            state.starting = shard.ready.remote()
            return
        name = self._roles.shard_names[index]
        self._roles.tells_place(name, shard, ask(shard.place.remote, "driver", _who(index)))
        if differing := self._roles.places.differing(name):
            raise RoleLostError(f"{_who(index)}: {differing}: install the same on every host")
        cut = record.newest_cut()
        if cut is not None:
            restore_shard(self._roles, index, cut)
        slots = self._actors.turn_to(index)
        played = {slot: steps for slot, _, steps, *_ in last["slots"]} if last else {}
        ask(partial(shard.take_over.remote, played, slots), "driver", _who(index))
        self._hand_over(index, draw=False)
        record.shard_rolled_back(list(slots))
        record.incident(
            f"replay shard {index} is there again, "
            + ("empty: there is no checkpoint yet" if cut is None else "as of the last checkpoint")
        )
        state.is_restored = True
        self._questions.began_anew(index)
        self.polls[index] = self._new_poll(index, is_new=True)

    def _hand_over(self, index: int, *, draw: bool) -> None:
        learner, shard = self._roles.learner, self._roles.shards[index]
        ask(lambda: learner.replace_shard.remote(index, shard, draw), "driver", "the learner")


def _who(index: int) -> str:
    return f"replay shard {index}"

"""The actors of an asynchronous run: their loops, their counters, their replacements.

Called by the asynchronous loop once per tick; the rules are the supervisor's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from qfleet.cluster.answers import answer, ask, first_line
from qfleet.cluster.plan import FleetPlan
from qfleet.cluster.polled_call import PolledCall
from qfleet.cluster.progress_watch import StandStill
from qfleet.cluster.ray_cluster import import_ray
from qfleet.cluster.roles import Roles, actor_name
from qfleet.common.errors import (
    EnvironmentFailedError,
    MemoryLimitError,
    RoleLostError,
    WaitTimeoutError,
)
from qfleet.fleets.fleet import ActorReport, Incident, make_actor_report
from qfleet.fleets.supervisor import ActorSupervisor
from qfleet.fleets.watches.room_watch import RoomWatch
from qfleet.fleets.watches.run_call import RunCall
from qfleet.fleets.watches.slot_roster import SlotRoster

PLACE_QUESTION_S = 5.0
"""An actor that does not answer within this after its creation may have no place."""
LAST_WORDS_S = 2.0
LEAVE_DRAIN_S = 30.0
"""For what an actor that leaves has on its way: its shard may hold it back for a while."""


class ActorWatch:
    """Every actor slot from its first incarnation to its last."""

    def __init__(self, roles: Roles, plan: FleetPlan, incarnation: int) -> None:
        self._roles, self._step_timeout_s = roles, plan.step_timeout_s
        self._supervisor = ActorSupervisor(plan.min_actors, incarnation)
        self._runs: dict[int, RunCall] = {}
        self._pings: dict[int, PolledCall] = {}
        self._steps: dict[int, StandStill] = {}
        self._newcomers: dict[int, int] = {}
        """Slots whose new actor has not answered yet, each with its incarnation."""
        self._reasons: dict[int, str] = {}
        """Why an actor was ended from here."""
        self._reports: dict[int, ActorReport] = {}
        self.ended: list[ActorReport] = []
        """The last that was heard of each actor that is gone."""
        self._failed_environments: set[int] = set()
        """Slots whose environment has failed before."""
        for slot in roles.actors:
            self._supervisor.add(slot)
        self._roster = SlotRoster(self._supervisor, plan.actors)
        self._room = RoomWatch(roles, plan.min_actors)

    @property
    def reports(self) -> list[ActorReport]:
        """The newest counters of every living actor, by slot."""
        return [self._reports[slot] for slot in sorted(self._reports)]

    @property
    def absent(self) -> dict[str, str]:
        """Slots without a living actor, each with what it waits for."""
        return {
            f"actor-{slot}": self._roster.why_absent(slot)
            for slot in sorted(self._supervisor.slots.keys() - self._reports.keys())
        }

    @property
    def runs(self) -> dict[Any, int]:
        """The calls of `run` under way, each with its slot."""
        return {run.ref: slot for slot, run in self._runs.items()}

    @property
    def placed(self) -> dict[Any, int]:
        """`runs` of actors that play; a newcomer that has not answered may have no place."""
        lacks, new = self._roster.lacks_room, self._newcomers
        return {ref: slot for ref, slot in self.runs.items() if slot not in new and not lacks(slot)}

    def start(self) -> None:
        """Let every actor play."""
        for slot in self._roles.actors:
            self._start_actor(slot)

    def scale(self, count: int) -> None:
        """There are to be so many actors: new ones come, the highest slots drain and leave."""
        self._roster.want(count)

    @property
    def writers(self) -> list[int]:
        """See `SlotRoster.writers`."""
        return self._roster.writers

    @property
    def wanted(self) -> int:
        """How many actors there are to be."""
        return self._roster.wanted

    def _start_actor(self, slot: int) -> None:
        actor, name = self._roles.actors[slot], self._name(slot)
        self._runs[slot] = RunCall(lambda: actor.run.remote(self._roles.shard_of(slot)))

        def ping() -> Any:
            return actor.ping.remote(self._roles.places.of(name) is None)

        self._pings[slot] = PolledCall(ping, f"actor {slot}", has_answered=False)
        self._steps[slot] = StandStill()

    def _name(self, slot: int) -> str:
        return actor_name(slot, self._supervisor.slots[slot].incarnation)

    def poll(self, incident: Incident, now_s: float) -> None:
        """Take counters that have come; an actor that says nothing or hangs is ended."""
        for slot, ping in list(self._pings.items()):
            try:
                result = ping.poll(now_s)
            except RoleLostError:
                continue  # its `run` ends with the same news, and that is where it is buried
            except WaitTimeoutError as error:
                if ping.has_answered or not self._waits_for_room(slot, now_s):
                    self._end(slot, str(error))
                else:
                    ping.excuse(now_s)
                continue
            if result is not None:
                self._heard(slot, result, incident, now_s)
            elif not ping.has_answered and ping.silent_s(now_s) > PLACE_QUESTION_S:
                self._waits_for_room(slot, now_s)
        self._room.observe(self._roster.without_room, len(self._roster.places), incident, now_s)

    def _heard(self, slot: int, counters: dict[str, Any], incident: Incident, now_s: float) -> None:
        if slot in self._newcomers:
            incident(self._arrival(slot, self._newcomers.pop(slot)))
        self.take(counters)
        self._runs[slot].repeat_unless(counters["has_begun"])
        self._roster.has_room(slot, True)
        if "place" in counters and not self._takes_place(slot, counters["place"]):
            return
        if slot in self._roster.leaving:  # said again in case the call was lost
            self._roles.actors[slot].request_stop.remote(LEAVE_DRAIN_S)
        elif tuple(counters["ladder"]) != self._roster.places.get(slot, ()):
            self._roles.actors[slot].set_ladder.remote(*self._roster.places[slot])
        report = self._reports[slot]
        still_s = self._steps[slot].observe(report.env_steps, report.is_stepping, now_s)
        if still_s > self._step_timeout_s:
            self._end(
                slot,
                f"its environments have been in one step or reset for {still_s:.0f} s after "
                f"{report.env_steps} env steps; run.step_timeout_s is {self._step_timeout_s:g}",
            )

    def _takes_place(self, slot: int, told: dict[str, Any]) -> bool:
        """Whether the actor's host has what the driver has; else it is ended."""
        name = self._name(slot)
        self._roles.tells_place(name, self._roles.actors[slot], told)
        differing = self._roles.places.differing(name)
        if differing:
            self._end(slot, f"{differing}: install the same on every host")
        return not differing

    def _arrival(self, slot: int, incarnation: int) -> str:
        is_first = incarnation == self._supervisor.first_incarnation
        return f"actor {slot} plays{'' if is_first else f' again (incarnation {incarnation})'}"

    def lose(self, slot: int, reason: str) -> None:
        """The host of an actor is lost: nobody waits until Ray sees it."""
        if slot in self._pings:
            self._end(slot, reason)

    def _end(self, slot: int, reason: str) -> None:
        """End an actor; its `run` then ends too, and there it is buried."""
        self._reasons[slot] = reason
        import_ray().kill(self._roles.actors[slot], no_restart=True)
        del self._pings[slot]

    def _waits_for_room(self, slot: int, now_s: float) -> bool:
        """Whether the cluster has no room for the actor of a slot."""
        lack = self._room.lack(now_s)
        self._roster.has_room(slot, lack is None)
        return lack is not None

    def take(self, counters: dict[str, Any], is_final: bool = False) -> None:
        """Keep an actor's newest counters; final ones came after its last step."""
        self._reports[counters["slot"]] = make_actor_report(counters, is_final)

    def bury(self, ref: Any, incident: Incident, learner_steps: int, now_s: float) -> None:
        """An actor's loop ended by itself: note why, fence the slot and plan its replacement."""
        run = self._runs.pop(slot := self.runs[ref])
        ray, whole_text = import_ray(), ""
        try:
            self.take(ray.get(ref, timeout=1.0), is_final=True)
            reason = "it was refused by the replay server"
        except ray.exceptions.ActorUnavailableError:
            self._runs[slot] = run
            run.repeat()
            return
        except ray.exceptions.RayActorError as error:
            reason = first_line(error)
        except ray.exceptions.RayTaskError as error:
            reason, whole_text = first_line(error), str(error)
            self._take_last(slot)
            if isinstance(error.cause, MemoryLimitError):
                reason, whole_text = str(error.cause), ""
            elif (
                isinstance(error.cause, EnvironmentFailedError) and slot not in self._roster.leaving
            ):
                reason = str(error.cause)
                self._environment_failed(slot, error.cause)
        reason = self._reasons.pop(slot, reason)
        last = self._forget(slot)
        if slot in self._roster.leaving:
            self._roster.has_left(slot)
            del self._roles.actors[slot]
            incident(f"actor {slot} has left; {self.wanted} are wanted", whole_text)
            return
        done = self._supervisor.died(slot, reason, last.env_steps, learner_steps, now_s)
        self._roster.spread()
        incident(done, whole_text)

    def _forget(self, slot: int) -> ActorReport:
        """End the process of a slot, keep the last that it told of and return it."""
        self._pings.pop(slot, None)
        self._newcomers.pop(slot, None)
        self._roles.gone(self._name(slot))
        incarnation = self._supervisor.slots[slot].incarnation
        unheard = ActorReport(slot, 0, 0, 0, 0, incarnation=incarnation)
        self.ended.append(last := self._reports.pop(slot, unheard))
        import_ray().kill(self._roles.actors[slot], no_restart=True)
        return last

    def _let_go(self, slot: int) -> None:
        """Ask an actor to drain and end; one that nobody has heard of has nothing to drain."""
        self._roster.leaves(slot)
        if slot not in self._runs:
            self._roster.has_left(slot)
            del self._roles.actors[slot]
        elif slot in self._reports:
            self._roles.actors[slot].request_stop.remote(LEAVE_DRAIN_S)
        elif slot in self._pings:
            self._end(slot, "it is not wanted any more")

    def _take_last(self, slot: int) -> None:
        """The counters of an actor whose loop raised: its process still answers."""
        with contextlib.suppress(WaitTimeoutError, RoleLostError):
            ping = self._roles.actors[slot].ping.remote()
            self.take(answer(ping, "driver", f"actor {slot}", LAST_WORDS_S), is_final=True)

    def take_final(self, slot: int, ref: Any, incident: Incident) -> None:
        """At the end of the run: what an actor's loop returned, or its process tells after it."""
        try:
            self.take(import_ray().get(ref, timeout=1.0), is_final=True)
        except import_ray().exceptions.RayError as error:
            incident(f"actor {slot} ended before the run: {first_line(error)}")
            self._take_last(slot)

    def _environment_failed(self, slot: int, error: EnvironmentFailedError) -> None:
        """Let a new actor try once more, unless its predecessor had not ended an episode either.

        Raises:
            EnvironmentFailedError: the second time.
        """
        has_ended_episodes = slot in self._reports and self._reports[slot].episodes > 0
        if slot in self._failed_environments and not has_ended_episodes:
            raise EnvironmentFailedError(
                f"{error}; actor {slot} failed twice without ending an episode in between"
            ) from error
        self._failed_environments.add(slot)

    def turn_to(self, shard: int) -> dict[int, int]:
        """A new process serves `shard`: its slots write there; returns their incarnations."""
        n_shards, slots = len(self._roles.shards), self._supervisor.slots
        for slot, actor in self._roles.actors.items():
            if slot % n_shards == shard:
                # One that is dead learns nothing; one that is starting is given it with `run`.
                actor.replace_shard.remote(self._roles.shards[shard])
        return {s: state.incarnation for s, state in slots.items() if s % n_shards == shard}

    def fill_slots(
        self, incident: Incident, now_s: float, may_fill: Callable[[int], bool] = lambda slot: True
    ) -> None:
        """New actors where it is time and the slot's shard is there; surplus ones are let go."""
        for slot in self._roster.surplus():
            self._let_go(slot)
        due = self._supervisor.due(now_s, may_fill)
        due |= {slot: self._supervisor.add(slot) for slot in self._roster.missing(may_fill)}
        if not due:
            return
        self._roster.spread()
        for slot, incarnation in due.items():
            fence = partial(self._roles.shard_of(slot).fence.remote, slot, incarnation)
            ask(fence, "driver", f"the replay shard to fence actor {slot}")
            self._roles.create_actor(slot, incarnation, self._roster.places.get(slot))
        for slot, incarnation in due.items():
            self._newcomers[slot] = incarnation
            self._start_actor(slot)

"""The actors of an asynchronous run: their loops, their counters, their replacements.

Called by the asynchronous loop once per tick; the rules are the supervisor's.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any, Protocol

from qfleet.cluster.plan import FleetPlan
from qfleet.cluster.polled_call import PolledCall
from qfleet.cluster.progress_watch import StandStill
from qfleet.cluster.ray_cluster import import_ray
from qfleet.cluster.roles import Roles, answer, ask, first_line
from qfleet.common.errors import (
    EnvironmentFailedError,
    MemoryLimitError,
    RoleLostError,
    WaitTimeoutError,
)
from qfleet.fleets.fleet import ActorReport, make_actor_report
from qfleet.fleets.supervisor import ActorSupervisor

PLACE_QUESTION_S = 5.0
"""An actor that does not answer within this after its creation may have no place."""

LAST_WORDS_S = 2.0


class Incident(Protocol):
    """Tells a user of something, with the whole text of what was raised if anything was."""

    def __call__(self, text: str, whole_text: str = "") -> None:
        """See `Session.incident`."""
        ...


class ActorWatch:
    """Every actor slot from its first incarnation to its last."""

    def __init__(self, roles: Roles, plan: FleetPlan, incarnation: int) -> None:
        self._roles, self._step_timeout_s = roles, plan.step_timeout_s
        self._supervisor = ActorSupervisor(plan.min_actors)
        self.runs: dict[Any, int] = {}
        """The calls of `run` under way, each with its slot."""
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
            self._supervisor.add(slot, incarnation)

    @property
    def reports(self) -> list[ActorReport]:
        """The newest counters of every living actor, by slot."""
        return [self._reports[slot] for slot in sorted(self._reports)]

    def start(self) -> None:
        """Let every actor play."""
        for slot in self._roles.actors:
            self._start_actor(slot)

    def _start_actor(self, slot: int) -> None:
        actor = self._roles.actors[slot]
        self._run(slot)
        self._pings[slot] = PolledCall(actor.ping.remote, f"actor {slot}", has_answered=False)
        self._steps[slot] = StandStill()

    def _run(self, slot: int) -> None:
        ref = self._roles.actors[slot].run.remote(self._roles.shard_of(slot))
        self.runs[ref] = slot

    def poll(self, incident: Incident, now_s: float) -> None:
        """Take counters that have come; an actor that says nothing or hangs is ended."""
        for slot, ping in list(self._pings.items()):
            try:
                result = ping.poll(now_s)
            except RoleLostError:
                continue  # its `run` ends with the same news, and that is where it is buried
            except WaitTimeoutError as error:
                if ping.has_answered or not self._waits_for_a_place(slot, incident):
                    self._end(slot, str(error))
                else:
                    ping.excuse(now_s)
                continue
            if result is not None:
                self._heard(slot, result, incident, now_s)
            elif not ping.has_answered and ping.silent_s(now_s) > PLACE_QUESTION_S:
                self._waits_for_a_place(slot, incident)

    def _heard(self, slot: int, counters: dict[str, Any], incident: Incident, now_s: float) -> None:
        if slot in self._newcomers:
            incident(f"actor {slot} plays again (incarnation {self._newcomers.pop(slot)})")
        self.take(counters)
        report = self._reports[slot]
        still_s = self._steps[slot].observe(report.env_steps, report.is_stepping, now_s)
        if still_s > self._step_timeout_s:
            self._end(
                slot,
                f"its environments have been in one step or reset for {still_s:.0f} s after "
                f"{report.env_steps} env steps; run.step_timeout_s is {self._step_timeout_s:g}",
            )

    def _end(self, slot: int, reason: str) -> None:
        """End an actor; its `run` then ends too, and there it is buried."""
        self._reasons[slot] = reason
        import_ray().kill(self._roles.actors[slot], no_restart=True)
        del self._pings[slot]

    def _waits_for_a_place(self, slot: int, incident: Incident) -> bool:
        """Whether the cluster has no CPUs for the actor of a slot; said once an incarnation."""
        lack = self._roles.lack_of_cpus(self._roles.plans.actor.num_cpus)
        if lack is not None and slot in self._newcomers:
            incident(
                f"actor {slot} (incarnation {self._newcomers[slot]}) is waiting for CPUs: {lack}"
            )
        return lack is not None

    def take(self, counters: dict[str, Any], is_final: bool = False) -> None:
        """Keep an actor's newest counters; final ones came after its last step."""
        self._reports[counters["slot"]] = make_actor_report(counters, is_final)

    def bury(self, ref: Any, incident: Incident, learner_steps: int, now_s: float) -> None:
        """An actor's loop ended by itself: note why, fence the slot and plan its replacement."""
        slot = self.runs.pop(ref)
        ray = import_ray()
        whole_text = ""
        try:
            self.take(ray.get(ref, timeout=1.0), is_final=True)
            reason = "it was refused by the replay server"
        except ray.exceptions.ActorUnavailableError:
            self._run(slot)  # the call was lost; one that had come is answered first
            return
        except ray.exceptions.RayActorError as error:
            reason = first_line(error)
        except ray.exceptions.RayTaskError as error:
            reason, whole_text = first_line(error), str(error)
            self._take_last(slot)
            if isinstance(error.cause, MemoryLimitError):
                reason, whole_text = str(error.cause), ""
            elif isinstance(error.cause, EnvironmentFailedError):
                reason = str(error.cause)
                self._environment_failed(slot, error.cause)
        reason = self._reasons.pop(slot, reason)
        self._pings.pop(slot, None)
        self._newcomers.pop(slot, None)
        last = self._reports.pop(slot, None)
        incarnation = self._supervisor.slots[slot].incarnation
        self.ended.append(last or ActorReport(slot, 0, 0, 0, 0, incarnation=incarnation))
        ray.kill(self._roles.actors[slot], no_restart=True)
        env_steps = 0 if last is None else last.env_steps
        done = self._supervisor.died(slot, reason, env_steps, learner_steps, now_s)
        incident(done, whole_text)

    def _take_last(self, slot: int) -> None:
        """The counters of an actor whose loop raised: its process still answers."""
        with contextlib.suppress(WaitTimeoutError, RoleLostError):
            ping = self._roles.actors[slot].ping.remote()
            self.take(answer(ping, "driver", f"actor {slot}", LAST_WORDS_S), is_final=True)

    def _environment_failed(self, slot: int, error: EnvironmentFailedError) -> None:
        """Let a new actor try once more, unless its predecessor had not ended an episode either.

        Raises:
            EnvironmentFailedError: the second time.
        """
        last = self._reports.get(slot)
        has_ended_episodes = last is not None and last.episodes > 0
        if slot in self._failed_environments and not has_ended_episodes:
            raise EnvironmentFailedError(
                f"{error}; actor {slot} failed twice without ending an episode in between"
            ) from error
        self._failed_environments.add(slot)

    def fill_slots(self, incident: Incident, now_s: float) -> None:
        """New actors where the supervisor says it is time."""
        due = self._supervisor.due(now_s)
        if not due:
            return
        for slot, incarnation in due.items():
            fence = partial(self._roles.shard_of(slot).fence.remote, slot, incarnation)
            ask(fence, "driver", f"the replay shard to fence actor {slot}")
            self._roles.create_actor(slot, incarnation)
        for slot, incarnation in due.items():
            self._newcomers[slot] = incarnation
            self._start_actor(slot)

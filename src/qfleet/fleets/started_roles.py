"""All roles of a run on Ray, started and ready, and what both schedules ask of them.

Base of the lockstep fleet and of the asynchronous loop; the driver is the only owner.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from qfleet.cluster.answers import ask
from qfleet.cluster.placing.surroundings import NOTHING_AROUND, Surroundings
from qfleet.cluster.plan import RunPlans
from qfleet.cluster.roles import Roles
from qfleet.common.capture_stream import Streams
from qfleet.common.types import EnvironmentSpec
from qfleet.fleets.cuts import capture_learner_and_replay
from qfleet.fleets.fleet import FleetReport, make_report
from qfleet.replay_server.row_bytes import row_bytes


class StartedRoles:
    """Owned by the driver's main thread; `close` ends every role."""

    def __init__(
        self,
        plans: RunPlans,
        spec: EnvironmentSpec,
        *,
        run_id: str,
        incarnation: int,
        device: str,
        surroundings: Surroundings = NOTHING_AROUND,
    ) -> None:
        """Create every role and wait until learner and shards can answer.

        Args:
            plans: Of the run.
            spec: Of the environment.
            run_id: Part of every role's name and of every chunk's id.
            incarnation: Of all actors at first.
            device: The learner's.
            surroundings: What they find around them.

        Raises:
            ResourcesError: when the cluster does not place them in time.
        """
        self._plans, self._spec = plans, spec
        self.roles = Roles(plans, spec, run_id=run_id, device=device, surroundings=surroundings)
        with self.roles.ended_on_error():
            self._start(incarnation)

    def _start(self, incarnation: int) -> None:
        around = self.roles.surroundings
        if around.is_own_ray:  # it has room for all: nobody waits for anybody
            self._create_actors(incarnation)
        with around.waiting():
            self.roles.wait_for_room(around.tell)
        if not self.roles.actors:
            self._create_actors(incarnation)
        with around.waiting():
            self.roles.wait_until_ready()
        self._check_memory()
        self._n_episodes_seen = [0] * len(self.roles.shards)
        learner, shards = self.roles.learner, self.roles.shards
        ask(lambda: learner.set_shards.remote(shards), "driver", "the learner")

    def _check_memory(self) -> None:
        """Whether each host can hold the full replay of its shards."""
        replay = self._plans.replay
        needed = replay.capacity * row_bytes(self._spec, replay.sampling, replay.compression)
        self.roles.places.check_memory(dict.fromkeys(self.roles.shard_names, needed))

    def _create_actors(self, incarnation: int) -> None:
        for slot in range(self._plans.fleet.actors):
            self.roles.create_actor(slot, incarnation)

    def report(self, with_actors: bool = True) -> FleetReport:
        """Counters of all roles, and the episodes since the previous report.

        Without actors nobody waits for theirs to start.
        """
        self.roles.logs.collect(time.monotonic())
        shards = range(len(self.roles.shards))
        counters = [partial(self.ask_report, index) for index in shards]
        pings = [actor.ping.remote for actor in self.roles.actors.values() if with_actors]
        status = self.roles.learner.status.remote
        refs = [call() for call in (status, *counters, *pings)]
        told, *answers = [
            ask(call, "driver", "a role's counters", first=ref)
            for call, ref in zip((status, *counters, *pings), refs, strict=True)
        ]
        reports = [self._new_only(report) for report in answers[: len(counters)]]
        report = make_report(told, reports, answers[len(counters) :])
        report.hosts.update(self.roles.hosts())
        return report

    def ask_report(self, shard: int) -> Any:
        """A shard's counters; the episodes that were seen it need not tell again."""
        return self.roles.shards[shard].report.remote(self._n_episodes_seen[shard])

    def began_anew(self, shard: int) -> None:
        """A new process serves it, and numbers its episodes from 0."""
        self._n_episodes_seen[shard] = 0

    def _new_only(self, report: dict[str, Any]) -> dict[str, Any]:
        """The report without the episodes that an earlier one told of."""
        shard, first = report["shard"], report["first_episode"]
        seen, self._n_episodes_seen[shard] = (
            self._n_episodes_seen[shard],
            first + len(report["episodes"]),
        )
        return report | {"episodes": report["episodes"][max(0, seen - first) :]}

    def fingerprint(self) -> str:
        """`params_sha256` of the online network."""
        ref = self.roles.learner.fingerprint.remote
        return str(ask(ref, "driver", "the parameters' fingerprint"))

    def target_sync_log(self) -> dict[str, Any]:
        """Hard syncs as done by the learner, and the targets that each actor slot acted with."""
        syncs = ask(self.roles.learner.target_syncs.remote, "driver", "the log of target syncs")
        acted: dict[int, list[int]] = {}
        for shard in self.roles.shards:
            acted |= ask(shard.targets_acted.remote, "driver", "the targets that acted")
        return {"syncs": syncs, "acknowledged": dict(sorted(acted.items()))}

    def capture(self, replay_contents: bool) -> Streams:
        """The state of learner and shards by file name, as one consistent cut."""
        return capture_learner_and_replay(self.roles, replay_contents)

    def close(self) -> None:
        """End every role."""
        self.roles.kill_all()

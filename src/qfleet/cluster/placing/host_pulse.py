"""Whether the hosts that roles run on are there, asked beside everything else that the driver does.

Called by the asynchronous loop. Ray takes 15 s to see that a host's raylet was killed, and a minute
for one that the network swallows; a raylet accepts connections as long as it lives, so a connection
is tried every second. What is lost is decided here, what follows is done by the watches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from qfleet.cluster.cluster_pulse import PERIOD_S, Service
from qfleet.cluster.placing.role_places import RolePlaces

LOST_AFTER_S = 6.0
"""Of silence; with a second until it is asked and two of patience, below ten."""


class LostHost(NamedTuple):
    """A host that does not answer any more."""

    reason: str
    roles: list[str]
    """Names of the roles that had told that they are there."""


class _Probe(threading.Thread):
    """Asks one host, for a slow answer of one must not hide another."""

    def __init__(self, service: Service) -> None:
        super().__init__(name=f"host-pulse {service.host}", daemon=True)
        self.service = service
        self.heard_s = time.monotonic()
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(PERIOD_S):
            if self.service.accepts():
                self.heard_s = time.monotonic()

    def end(self) -> None:
        self._end.set()


class HostPulse:
    """The hosts of all roles that have told where they run, but for the driver's own."""

    def __init__(self, ray: Any, places: RolePlaces) -> None:
        self._ray, self._places = ray, places
        self._own = ray.get_runtime_context().get_node_id()
        self._probes: dict[str, _Probe] = {}
        self._lost: dict[str, str] = {}

    def look(self, now_s: float) -> Iterator[LostHost | str]:
        """Each host that was lost since the last time, and a line for each that answers again."""
        by_node: dict[str, list[str]] = {}
        for role, place in self._places.all().items():
            by_node.setdefault(place.node_id, []).append(role)
        self._follow(by_node.keys() - {self._own})
        for node, probe in self._probes.items():
            silent_s, host = now_s - probe.heard_s, probe.service.name
            if node in self._lost and silent_s < LOST_AFTER_S:
                del self._lost[node]
                yield f"{host} answers again"
            elif node not in self._lost and silent_s >= LOST_AFTER_S:
                self._lost[node] = host
                roles = sorted(by_node.get(node, []))
                yield LostHost(f"{host} has accepted no connection for {silent_s:.0f} s", roles)

    def _follow(self, nodes: set[str]) -> None:
        """Ask those hosts; a lost one is asked on, for it may come back."""
        if new := nodes - self._probes.keys():
            for node in self._ray.nodes():
                if node["NodeID"] in new:
                    self._probes[node["NodeID"]] = probe = _Probe(_raylet(node))
                    probe.start()
        for gone in self._probes.keys() - nodes - self._lost.keys():
            self._probes.pop(gone).end()

    def close(self) -> None:
        """Ask nobody any more."""
        for probe in self._probes.values():
            probe.end()


def _raylet(node: dict[str, Any]) -> Service:
    name = f"host {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    return Service(name, node["NodeManagerAddress"], int(node["NodeManagerPort"]))

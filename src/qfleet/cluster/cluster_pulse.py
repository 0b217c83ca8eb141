"""Whether the Ray cluster is still there, asked beside everything else that the driver does.

Started by the runtimes once they are connected. Ray itself waits a minute for a GCS that is gone
and then ends the process, without a word of ours; a raylet that is gone shows as roles that die.
Both accept connections as long as they live, so a connection is all that is tried.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Any, NamedTuple

from qfleet.common.errors import ClusterLostError

PERIOD_S = 1.0
PROBE_TIMEOUT_S = 2.0
LOST_AFTER_S = 10.0
"""A head that is started again takes some seconds; one that stays away longer is gone."""


class Service(NamedTuple):
    """Something of Ray that listens."""

    name: str
    host: str
    port: int

    def accepts(self) -> bool:
        """Whether a connection is accepted in time."""
        try:
            socket.create_connection((self.host, self.port), PROBE_TIMEOUT_S).close()
        except OSError:
            return False
        return True


def services_of(ray: Any) -> list[Service]:
    """The GCS and this host's raylet of the cluster that `ray` is connected to."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return [
        Service("its GCS", host.strip("[]"), int(port)),
        Service("this host's raylet", own["NodeManagerAddress"], int(own["NodeManagerPort"])),
    ]


class ClusterPulse:
    """Probes in a thread of its own; asked by the driver's main thread."""

    def __init__(self, services: list[Service], lost_after_s: float = LOST_AFTER_S) -> None:
        self._services, self._lost_after_s = services, lost_after_s
        self._silent_since_s: dict[Service, float] = {}
        self._lost: Service | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cluster-pulse", daemon=True)

    def __enter__(self) -> ClusterPulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()

    def _run(self) -> None:
        while not self._end.wait(PERIOD_S):
            self._probe()

    def _probe(self) -> None:
        for service in self._services:
            if service.accepts():
                self._silent_since_s.pop(service, None)
                continue
            since_s = self._silent_since_s.setdefault(service, time.monotonic())
            if time.monotonic() - since_s >= self._lost_after_s:
                self._lost = service

    @property
    def is_lost(self) -> bool:
        """Whether a service has been away for too long."""
        return self._lost is not None

    def end_wait(self, began_s: float) -> None:
        """For every wait: end it when the cluster is gone.

        Raises:
            ClusterLostError: naming what does not answer any more.
        """
        if self._lost is not None:
            name, host, port = self._lost
            raise ClusterLostError(
                f"the Ray cluster is gone: {name} has accepted no connection at {host}:{port} for "
                f"{self._lost_after_s:.0f} s; start a cluster and resume the run"
            )

    def settle(self) -> None:
        """Wait until every service accepts connections.

        Raises:
            ClusterLostError: when one does not in time.
        """
        while not all(service.accepts() for service in self._services):
            self.end_wait(time.monotonic())
            time.sleep(PERIOD_S / 4)

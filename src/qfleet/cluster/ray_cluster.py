"""Start or join a Ray cluster with the settings that qfleet needs, and leave it as it was found.

Called by the composition root, before any role exists. A cluster that we start is given the CPUs
that the roles ask for, so that four actors run on a two-core laptop.
"""

from __future__ import annotations

import gc
import importlib
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qfleet.cluster.addresses import join, probe, resolve
from qfleet.cluster.exposure import ensure_token, on_loopback
from qfleet.cluster.plan import ClusterPlan
from qfleet.cluster.private_ray.lean_start import lean_start
from qfleet.cluster.private_ray.own_session import OwnSession, mark, remove_orphans
from qfleet.cluster.waits import call_beside
from qfleet.common.errors import ConfigError, ResourcesError

_SHUTDOWN_TIMEOUT_S = 10.0
Tell = Callable[[str], None]
_METRICS_COLLECTION = "RAY_enable_metrics_collection"
_OBJECT_STORE_BYTES = 512 * 2**20
_SOON_AGAIN = {
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
}
"""A raylet whose object store is not there yet asks again after a second, ten times: one start in
three took that second. The same ten seconds in smaller steps."""
_INIT_OPTIONS: dict[str, Any] = {
    "log_to_driver": False,
    "namespace": "qfleet",
    "logging_level": "ERROR",
}


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray and what to do with it at the end."""

    connected_by_us: bool
    own: OwnSession | None
    """Of a Ray that we have started."""
    description: str


def import_ray() -> Any:
    """The `ray` module; sets what must be in the environment before its import.

    Raises:
        ConfigError: when Ray is not installed, naming the local runtime as the way out.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules:
        ensure_token()  # Ray reads the mode once, when it is imported
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "Ray is not installed: `pip install 'ray[default]'`, or train in this process with "
            "`--runtime local`"
        ) from error
    return ray


def connect(plan: ClusterPlan, tell: Tell = print) -> Cluster:
    """Join the Ray that is initialized already or named by address, else start our own.

    `tell` is given what a user should know meanwhile.

    Raises:
        ResourcesError: when no cluster answers.
        SystemExit: a signal came meanwhile; what was started is ended.
    """
    address = plan.address or os.environ.get("RAY_ADDRESS")
    if address in (None, "local") and plan.is_lean:
        # Metrics agents cost two seconds of start-up and nobody reads them on a private cluster.
        os.environ.setdefault(_METRICS_COLLECTION, "0")
        for name, value in _SOON_AGAIN.items():
            os.environ.setdefault(name, value)
    ray = import_ray()
    if ray.is_initialized():
        if plan.ship:
            raise ConfigError(
                "ray.ship cannot be added to a Ray that is initialized already: pass "
                "`runtime_env={'py_modules': [...]}` to your own ray.init instead"
            )
        return Cluster(False, None, "joined the Ray that this program had initialized")
    common = dict(_INIT_OPTIONS)
    if plan.ship:
        common["runtime_env"] = {"py_modules": list(plan.ship)}
    if address in (None, "local"):
        return Cluster(True, _start_own(ray, plan, common), "started a Ray of our own")
    resolved, others = resolve(str(address))
    beside = f"; others answer too: {', '.join(others)}" if others else ""
    tell(f"joining Ray at {resolved}{beside}")
    probe(resolved, str(address))
    join(ray, resolved, common)
    return Cluster(True, None, f"joined Ray at {resolved}")


def _start_own(ray: Any, plan: ClusterPlan, options: dict[str, Any]) -> OwnSession:
    # It says what is done at a fork: not to be imported by another thread while Ray forks.
    importlib.import_module("concurrent.futures.thread")
    wanted = plan.resources
    del wanted["GPU"]  # Ray counts those that there are
    place = _ray_folder()
    remove_orphans(place)
    own = OwnSession(place)
    lean = lean_start(ray, own.check) if plan.is_lean else nullcontext()
    try:
        with own.around_init(), lean, on_loopback():
            options |= {
                "address": "local",
                "num_cpus": max(1, math.ceil(wanted.pop("CPU"))),
                "resources": wanted,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
            }
            call_beside(partial(ray.init, **options), own.check, own.ended)
    except BaseException as error:
        own.end()
        if not isinstance(error, Exception):
            raise
        said = "" if isinstance(error, ResourcesError) else f"{type(error).__name__}: "
        raise ResourcesError(
            f"Ray did not start: {said}{error}; `qfleet doctor` looks for the cause, and "
            "--runtime local needs no Ray"
        ) from error
    mark(Path(ray._private.worker._global_node.get_session_dir_path()))
    return own


def _ray_folder() -> Path:
    """Where Ray makes the directories of its sessions."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"


def joins_cluster(address: str | None) -> bool:
    """Whether a run with that `ray.address` joins a Ray that is there, on whatever hosts."""
    is_initialized = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    return (address or os.environ.get("RAY_ADDRESS")) not in (None, "local") or is_initialized


def cluster_size(address: str | None) -> tuple[int, int] | None:
    """(CPUs, GPUs) of the cluster that `ray.address` names; None: the run starts its own."""
    if not joins_cluster(address):
        return None
    address = address or os.environ.get("RAY_ADDRESS")
    is_initialized = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    ray = import_ray()
    if not is_initialized:
        resolved, _ = resolve(str(address))
        probe(resolved, str(address))
        join(ray, resolved, _INIT_OPTIONS)
    try:
        resources = ray.cluster_resources()
        return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    finally:
        if not is_initialized:
            ray.shutdown()


def disconnect(cluster: Cluster) -> None:
    """Shut Ray down if we connected; a cluster that was there before stays."""
    if cluster.connected_by_us:
        # What a later collection finds of Ray's, in whatever thread, ends the process with 1.
        gc.collect()
        # Where the cluster is gone, Ray looks for it; nobody waits for that.
        end = threading.Thread(target=import_ray().shutdown, name="ray-shutdown", daemon=True)
        end.start()
        end.join(_SHUTDOWN_TIMEOUT_S)
    if cluster.own is not None:
        cluster.own.end()

"""Start or join a Ray cluster with the settings that qfleet needs, and leave it as it was found.

Called by the composition root, before any role exists. A cluster that we start is given the CPUs
that the roles ask for, so that four actors run on a two-core laptop.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from qfleet.cluster.exposure import ensure_token, on_loopback
from qfleet.cluster.lean_start import lean_start
from qfleet.cluster.plan import ClusterPlan
from qfleet.common.errors import ConfigError, ResourcesError

_KILL_TIMEOUT_S = 5.0
SMALLER = "add nodes, or lower actors.count, actors.num_cpus or learner.num_gpus"
_METRICS_COLLECTION = "RAY_enable_metrics_collection"
_OBJECT_STORE_BYTES = 512 * 2**20
_INIT_OPTIONS: dict[str, Any] = {
    "log_to_driver": False,
    "namespace": "qfleet",
    "logging_level": "ERROR",
}


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray and what to do with it at the end."""

    started_by_us: bool
    connected_by_us: bool
    description: str


def resource_table(plan: ClusterPlan) -> str:
    """What all roles ask for beside what the cluster has and what of it is free, one row each."""
    ray = import_ray()
    present, free = ray.cluster_resources(), ray.available_resources()
    return "\n".join(
        f"  {name}: wanted {amount:g}, the cluster has {present.get(name, 0.0):g}, "
        f"of which {free.get(name, 0.0):g} are free"
        for name, amount in plan.resources.items()
    )


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


def connect(plan: ClusterPlan) -> Cluster:
    """Join the Ray that is initialized already or named by address, else start our own.

    Raises:
        ResourcesError: when no cluster answers, or it is too small.
        SystemExit: a signal came meanwhile; what was started is ended.
    """
    address = plan.address or os.environ.get("RAY_ADDRESS")
    if address in (None, "local") and plan.is_lean:
        # Metrics agents cost two seconds of start-up and nobody reads them on a private cluster.
        os.environ.setdefault(_METRICS_COLLECTION, "0")
    ray = import_ray()
    if ray.is_initialized():
        if plan.ship:
            raise ConfigError(
                "ray.ship cannot be added to a Ray that is initialized already: pass "
                "`runtime_env={'py_modules': [...]}` to your own ray.init instead"
            )
        return Cluster(False, False, "joined the Ray that this program had initialized")
    common = dict(_INIT_OPTIONS)
    if plan.ship:
        common["runtime_env"] = {"py_modules": list(plan.ship)}
    if address in (None, "local"):
        lean = lean_start(ray) if plan.is_lean else nullcontext()
        with _nothing_left_on_error(), lean, on_loopback():
            ray.init(
                address="local",
                num_cpus=max(1, round(plan.cpus + 0.499)),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **common,
            )
        return Cluster(True, True, "started a Ray of our own")
    _join(ray, str(address), common)
    _wait_for_resources(ray, plan)
    return Cluster(False, True, f"joined Ray at {ray.get_runtime_context().gcs_address}")


@contextmanager
def _nothing_left_on_error() -> Iterator[None]:
    """When `ray.init` does not come to its end, the processes that it has started are ended."""
    before = {child.pid for child in psutil.Process().children()}
    try:
        yield
    except BaseException:
        new = [child for child in psutil.Process().children() if child.pid not in before]
        for child in new:
            with suppress(psutil.NoSuchProcess):
                for process in [child, *child.children(recursive=True)]:
                    process.kill()
        psutil.wait_procs(new, timeout=_KILL_TIMEOUT_S)
        raise


def cluster_size(address: str | None) -> tuple[int, int] | None:
    """(CPUs, GPUs) of the cluster that `ray.address` names; None: the run starts its own."""
    address = address or os.environ.get("RAY_ADDRESS")
    is_initialized = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if address in (None, "local") and not is_initialized:
        return None
    ray = import_ray()
    if not is_initialized:
        _join(ray, str(address), _INIT_OPTIONS)
    try:
        resources = ray.cluster_resources()
        return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    finally:
        if not is_initialized:
            ray.shutdown()


def _join(ray: Any, address: str, options: dict[str, Any]) -> None:
    try:
        ray.init(address=address, **options)
    except ConnectionError as error:
        raise ResourcesError(
            f"no Ray cluster answers at {address!r} (ray.address): start one with "
            "`ray start --head`, or leave the key out to start our own"
        ) from error


def disconnect(cluster: Cluster) -> None:
    """Shut Ray down if we connected; a cluster that was there before stays."""
    if cluster.connected_by_us:
        import_ray().shutdown()


def _wait_for_resources(ray: Any, plan: ClusterPlan) -> None:
    """Until the cluster has what all roles ask for.

    Raises:
        ResourcesError: a table of wanted and present after `ray.wait_for_resources_s`.
    """
    wanted = plan.resources
    deadline = time.monotonic() + plan.wait_for_resources_s
    while True:
        present = ray.cluster_resources()
        missing = {k: v for k, v in wanted.items() if v > present.get(k, 0.0)}
        if not missing:
            return
        if time.monotonic() >= deadline:
            raise ResourcesError(
                f"the cluster is too small after {plan.wait_for_resources_s:.0f} s "
                f"(ray.wait_for_resources_s):\n{resource_table(plan)}\n{SMALLER}"
            )
        time.sleep(0.5)

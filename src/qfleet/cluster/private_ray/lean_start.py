"""Starts a private Ray with the processes that a run needs, and without the others.

Called when qfleet starts a Ray of its own and `ray.lean` is true. Besides what carries actors and
objects, `ray.init` starts a dashboard (also with `include_dashboard=False`), an autoscaler and a
log monitor, waits for the first, and looks for the new node once a second. On a cluster of one host
that nobody else can join nobody asks anything of them, and on two cores they cost half of the start
and a second of the end. Ray has no option for it (github.com/ray-project/ray/issues/46732), so
their start is skipped by name while `ray.init` runs: only for releases of Ray with which that was
tried, and only where every name is there; any other Ray starts in full, just later.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

TRIED_RELEASES = ("2.60",)
NODE_POLL_S = 0.01
NODE_TIMEOUT_S = 30.0
"""As long as Ray itself waits for its node."""


class _Replacement(NamedTuple):
    """Attribute `name` of `owner`, and what stands in its place."""

    owner: Any
    name: str
    stand_in: Callable[..., Any]


@contextmanager
def lean_start(ray: Any, check: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Within the block `ray.init` starts no helpers; yields whether that is so.

    `check` is called while the node is waited for, and raises when it cannot come any more.
    Everything is put back at its end. Not thread-safe: `ray.init` is not either.
    """
    replacements = _replacements(ray, check)
    with ExitStack() as stack:
        for owner, name, stand_in in replacements:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, stand_in)
        yield bool(replacements)


def was_tried(version: str) -> bool:
    """Whether this release of Ray is one that starts without its helpers."""
    return version.rpartition(".")[0] in TRIED_RELEASES


def _replacements(ray: Any, check: Callable[[], None]) -> list[_Replacement]:
    """What is replaced in this release of Ray; nothing when it was not tried or has changed."""
    if not was_tried(ray.__version__):
        return []
    services, utils, node = (
        importlib.import_module(f"ray._private.{name}") for name in ("services", "utils", "node")
    )
    skipped = ("start_api_server", "start_monitor", "start_log_monitor")
    names = [
        *((node.Node, name) for name in skipped),
        (utils, "get_dashboard_dependency_error"),
        (services, "get_node"),
        (services, "GcsClient"),
    ]
    if not all(callable(getattr(owner, name, None)) for owner, name in names):
        return []
    return [
        *(_Replacement(node.Node, name, _start_nothing) for name in skipped),
        # The agents then start as they do where the dashboard's packages are not installed.
        _Replacement(utils, "get_dashboard_dependency_error", _no_dashboard),
        _Replacement(services, "get_node", _get_node_soon(services, services.get_node, check)),
    ]


def _start_nothing(node: Any, *_: Any, **__: Any) -> None:
    """In place of a method of Ray's node that starts a helper."""


def _no_dashboard() -> ImportError:
    return ImportError("this cluster has no dashboard")


def _get_node_soon(
    services: Any, get_node: Callable[[str, str], Any], check: Callable[[], None]
) -> Callable[[str, str], Any]:
    """`get_node` asks at once and then once a second; this waits until it will find the node."""

    def get_node_soon(gcs_address: str, node_id: str) -> Any:
        client = services.GcsClient(address=gcs_address)
        deadline_s = time.monotonic() + NODE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if any(known.hex() == node_id for known in client.get_all_node_info()):
                break
            check()
            time.sleep(NODE_POLL_S)
        return get_node(gcs_address, node_id)

    return get_node_soon

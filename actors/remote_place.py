"""Where a role that plays runs, with Ray's name of the host; called by the shells of both."""

from __future__ import annotations

from typing import Any

import ray

from qfleet.common.role_place import role_place


def place_of_this_process() -> dict[str, Any]:
    """See `role_place`."""
    return role_place(ray.get_runtime_context().get_node_id())

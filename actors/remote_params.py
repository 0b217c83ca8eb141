"""Parameters as an actor or the evaluator gets them: inside a call, or by reference.

Called by the shells of both. A reference is fetched through Ray's object store, once for all
processes of a host.
"""

from __future__ import annotations

from typing import Any

import ray

from qfleet.common.messages import decode_snapshot
from qfleet.common.types import ParamsSnapshot

FETCH_TIMEOUT_S = 10.0
"""For a snapshot to come from another host; an actor plays on with the old one after that."""


def fetch_snapshot(payload: Any, timeout_s: float = FETCH_TIMEOUT_S) -> ParamsSnapshot | None:
    """The snapshot of a payload (`ParamsOffer`); None when it is gone or does not come in time.

    It is gone when the learner that offered it has died.
    """
    if not isinstance(payload, bytes):
        try:
            payload = ray.get(payload[0], timeout=timeout_s)
        except (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError):
            return None
    return decode_snapshot(payload)

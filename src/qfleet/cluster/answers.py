"""Answers of roles: waited for with an end, asked again when a call is lost, errors as our own.

Called by the driver's loops for every question to a role.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from qfleet.cluster.ray_cluster import import_ray
from qfleet.cluster.waits import Wait, ask_checks
from qfleet.common.errors import CallLostError, QfleetError, RoleLostError, WaitTimeoutError
from qfleet.common.patience import Patience

START_TIMEOUT_S = 180.0
"""For a role that has a place to start."""
ANSWER_TIMEOUT_S = 45.0
"""A role that keeps the driver waiting for longer than this is taken for dead."""
MAX_CALLS = 10
"""Of one question, the lost ones included."""
INSIST_S = 0.2
"""Between two calls of a question whose answer is due at once."""
LEAST_PATIENCE_S = 0.1
FIRST_PATIENCE_S = 0.5
MOST_PATIENCE_S = 2.0
"""An answer that is later than others were (the second while nothing is known) is asked for once
more, each time after twice as long: Ray says only after two seconds that a call was lost."""
_LONGEST_REASON = 500
"""Characters: an error may quote a whole message."""
_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def answer(
    ref: Any,
    waiter: str,
    awaited: str,
    timeout_s: float = ANSWER_TIMEOUT_S,
    watch: Callable[[], None] | None = None,
) -> Any:
    """`ray.get` that says who waited for whom, and raises our own errors as themselves.

    Args:
        ref: What Ray gave for the call.
        waiter: Who waits, in words.
        awaited: For whom or what.
        timeout_s: For how long at most.
        watch: Called while nothing comes; raises when the role gets nowhere.

    Raises:
        WaitTimeoutError: after `timeout_s`.
        CallLostError: when Ray lost the call, which may be made again.
        RoleLostError: when the awaited role is dead.
        QfleetError: what the role itself raised, or one of the checks (`cluster/waits.py`).
        SystemExit: a signal came, and the role does not answer.
    """
    ray = import_ray()
    wait = Wait(timeout_s)
    try:
        while True:
            try:
                return ray.get(ref, timeout=wait.slice_s)
            except ray.exceptions.GetTimeoutError as error:
                if not wait.goes_on():
                    text = f"{waiter} waited {timeout_s:.0f} s for {awaited}"
                    raise WaitTimeoutError(text) from error
                if watch is not None:
                    watch()
    except ray.exceptions.ActorUnavailableError as error:
        raise CallLostError(f"a call to {awaited} was lost: {first_line(error)}") from error
    except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
        raise RoleLostError(f"{awaited} died: {first_line(error)}") from error
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, QfleetError):
            raise cause from error
        raise


def new_patience(first_s: float = FIRST_PATIENCE_S) -> Patience:
    """For questions of one kind to one role, asked by `ask` or `PolledCall`."""
    return Patience(LEAST_PATIENCE_S, first_s, MOST_PATIENCE_S)


def ask(
    call: Callable[[], Any],
    waiter: str,
    awaited: str,
    timeout_s: float = ANSWER_TIMEOUT_S,
    *,
    first: Any = None,
    patience: Patience | None = None,
) -> Any:
    """`answer` to a call that may be made twice: it is made again when it is late or lost.

    Args:
        call: Makes it.
        waiter: Who waits, in words.
        awaited: For whom or what.
        timeout_s: For how long at most.
        first: The reference of the first call, where it was made before.
        patience: Of questions of this kind, where one follows another.

    Raises:
        WaitTimeoutError: after `timeout_s`.
        CallLostError: when Ray lost it `MAX_CALLS` times.
        RoleLostError, QfleetError, SystemExit: see `answer`.
    """
    patience, wait = patience or new_patience(), Wait(timeout_s)
    began_s = asked_s = time.monotonic()
    calls, n_lost, patience_s = [call() if first is None else first], 0, patience.seconds
    while True:
        wait_s = min(wait.slice_s, max(0.0, asked_s + patience_s - time.monotonic()))
        for made in _answered(calls, wait_s):
            calls.remove(made)
            try:
                result = answer(made, waiter, awaited)
            except CallLostError:
                n_lost += 1
                if n_lost == MAX_CALLS:
                    raise
                continue
            patience.answered(time.monotonic() - began_s)
            return result
        if not calls or time.monotonic() - asked_s >= patience_s:
            calls.append(call())
            asked_s, patience_s = time.monotonic(), 2.0 * patience_s
        if not wait.goes_on():
            raise WaitTimeoutError(f"{waiter} waited {timeout_s:.0f} s for {awaited}")


def _answered(calls: list[Any], timeout_s: float) -> list[Any]:
    """Those of the calls that are answered; the values of one with several come together."""
    refs = [call[0] if isinstance(call, list) else call for call in calls]
    ready, _ = import_ray().wait(refs, timeout=timeout_s)
    return [call for call, ref in zip(calls, refs, strict=True) if ref in ready]


def insist(
    calls: Sequence[Callable[[], Any]], ends_s: float, first: Sequence[Any] = ()
) -> list[Any]:
    """Ask several roles at once, each again and again until it has answered.

    For the end of a run, whose seconds are counted: Ray says after two seconds that a call was
    lost, so a call that may be made twice is not waited for alone.

    Args:
        calls: Each makes one call.
        ends_s: Until when, on the monotonic clock.
        first: References of their first calls, where these were made before.

    Returns:
        For each of `calls` a reference that is ready, with an answer or with an error that is not
        a lost call's; None where nothing came.

    Raises:
        QfleetError, SystemExit: what one of the checks raises (`cluster/waits.py`).
    """
    ray, began_s = import_ray(), time.monotonic()
    asked = {ref: i for i, ref in enumerate(first or [call() for call in calls])}
    found: list[Any] = [None] * len(calls)
    while asked:
        wait_s = max(0.0, min(INSIST_S, ends_s - time.monotonic()))
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=wait_s)
        for ref in ready:
            i = asked.pop(ref)
            if found[i] is None and not _was_lost(ref):
                found[i] = ref
        asked = {ref: i for ref, i in asked.items() if found[i] is None}
        if time.monotonic() >= ends_s:
            break
        ask_checks(began_s)
        asked |= {calls[i](): i for i, ref in enumerate(found) if ref is None}
    return found


def _was_lost(ref: Any) -> bool:
    ray = import_ray()
    try:
        ray.get(ref, timeout=0)
    except ray.exceptions.ActorUnavailableError:
        return True
    except ray.exceptions.RayError:
        pass  # whoever asked is told by `answer`
    return False


def ask_by(call: Callable[[], Any], waiter: str, awaited: str, ends_s: float) -> Any:
    """The answer to a question that one insists on (`insist`).

    Raises:
        WaitTimeoutError: when nothing came by `ends_s`.
        RoleLostError, QfleetError: see `answer`.
    """
    [ref] = insist([call], ends_s)
    if ref is None:
        raise WaitTimeoutError(f"{waiter} heard nothing from {awaited} in time")
    return answer(ref, waiter, awaited)


def first_line(error: BaseException) -> str:
    """The most telling line of a Ray error: its last one when it carries a traceback."""
    text = _ANSI_COLOUR.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # A role whose constructor raised comes with its stack, but without that heading.
    has_stack = any(
        "Traceback" in line or "creation task" in line or line.startswith("File ") for line in lines
    )
    return (lines[-1] if has_stack else lines[0])[:_LONGEST_REASON]

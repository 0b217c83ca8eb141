"""From `ray.address` to a cluster that answers: resolved, probed, and joined or refused in words.

Called when a run joins a cluster. Ray tries an address for minutes, in a call that no signal ends,
and gives one error for everything; so the port is tried before, and its log is read after.
"""

from __future__ import annotations

import importlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from qfleet.cluster.cluster_pulse import LOST_AFTER_S, Service
from qfleet.cluster.waits import call_beside
from qfleet.common.errors import ResourcesError

PROBE_TIMEOUT_S = 2.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How an HTTP/2 client begins, with empty settings; a server of gRPC answers with its own."""
_WRONG_TOKEN = b"InvalidAuthToken"
_NO_TOKEN = "RAY_AUTH_TOKEN"
"""Stands in every word of Ray about a token that it looked for in vain."""


def resolve(address: str) -> tuple[str, list[str]]:
    """`host:port` for an address as a user writes it, and other clusters that `auto` passed over.

    Raises:
        ResourcesError: when `auto` finds none, or the address is not one.
    """
    services: Any = importlib.import_module("ray._private.services")
    try:
        found = services.canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError) as error:
        raise ResourcesError(
            f"no Ray cluster was found for ray.address {address!r}: {error}; start one with "
            "`ray start --head`, or leave the key out to start our own"
        ) from error
    others = sorted(set(services.find_gcs_addresses()) - {found}) if address == "auto" else []
    return str(found), others


def probe(address: str, written: str) -> None:
    """Make sure that something at `address` speaks as Ray does.

    Raises:
        ResourcesError: within `PROBE_TIMEOUT_S`, when nothing listens there or nothing answers.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return  # it speaks only to who has a certificate
            connection.settimeout(PROBE_TIMEOUT_S)
            connection.sendall(_PREFACE)
            answer = connection.recv(4)
            if answer and not answer.startswith(b"HTTP"[: len(answer)]):
                return
            reason = "a web server answers" if answer else "it closed the connection"
    except TimeoutError:
        reason = f"nothing came within {PROBE_TIMEOUT_S:g} s"
    except (OSError, ValueError) as error:
        reason = str(error)
    at = written if written == address else f"{written} ({address})"
    raise ResourcesError(
        f"no Ray cluster answers at {at} (ray.address): {reason}; give host and port of a "
        "`ray start --head` (6379 by default), or leave the key out to start our own"
    )


def join(ray: Any, address: str, options: dict[str, Any]) -> None:
    """`ray.init` for a cluster that has answered `probe`.

    Raises:
        ResourcesError: when it refuses us, with the reason that Ray only logs.
    """
    host, _, port = address.rpartition(":")
    gcs = Service("its GCS", host.strip("[]"), int(port))
    heard_at_s = time.monotonic()

    def check() -> None:
        nonlocal heard_at_s
        if gcs.accepts():
            heard_at_s = time.monotonic()
        elif time.monotonic() - heard_at_s > LOST_AFTER_S:
            raise ConnectionError(f"it is gone: nothing accepts connections for {LOST_AFTER_S:g} s")

    with _native_log() as log:
        try:
            call_beside(partial(ray.init, address=address, **options), check)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise ResourcesError(_refusal(address, str(error), log())) from error


def _refusal(address: str, said: str, log: bytes) -> str:
    if _WRONG_TOKEN in log or _NO_TOKEN in said:
        whom = "our token" if _WRONG_TOKEN in log else "who has no token"
        return (
            f"the Ray cluster at {address} refuses {whom}: give this host the token that it was "
            "started with (RAY_AUTH_TOKEN, or the file that RAY_AUTH_TOKEN_PATH names, by default "
            "~/.ray/auth_token) and RAY_AUTH_MODE=token"
        )
    lines = [line for line in log.decode(errors="replace").splitlines() if line.strip()]
    last = said if said.startswith("it is gone") or not lines else lines[-1]
    return (
        f"the Ray cluster at {address} could not be joined: {last}; ray.address takes host and "
        "port of a `ray start --head` (6379 by default), whose log may say more"
    )


@contextmanager
def _native_log() -> Iterator[Any]:
    """Within the block what native code writes to stderr goes into a file; yields its reader."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)

        def read() -> bytes:
            file.seek(0)
            return file.read()

        try:
            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)

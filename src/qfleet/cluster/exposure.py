"""Who can reach the Ray that a run starts: a token, loopback, and what is left open said aloud.

Called before Ray is imported and around `ray.init`; SECURITY.md says the same in words.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODE = "RAY_AUTH_MODE"
_SAFE_MODES = ("token", "k8s")
_TOKEN = "RAY_AUTH_TOKEN"
_OF_OTHERS = stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH


def token_path() -> Path:
    """Where Ray looks for the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))


def ensure_token() -> None:
    """Token authentication on, with a token file that only its owner can read.

    Ray would write the file itself with the umask's mode, readable by others.
    """
    if os.environ.get(MODE):
        return
    path = token_path()
    try:
        if not os.environ.get(_TOKEN):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    except OSError:
        return  # a read-only home: Ray then decides by its own rules
    os.environ[MODE] = "token"


def unsafe_settings() -> list[str]:
    """One sentence for each setting that lets others in, with the remedy; nothing is changed."""
    found = []
    mode = os.environ.get(MODE)
    if mode not in _SAFE_MODES:
        found.append(
            f"Ray runs without authentication ({MODE}={mode or 'unset'}): whoever reaches its "
            f"ports can run code as you; unset {MODE} (SECURITY.md)"
        )
    elif not os.environ.get(_TOKEN) and _is_open_to_others(token_path()):
        found.append(
            f"the token of Ray in {token_path()} can be read by other users: chmod 600 it, and "
            "make a new one if others had access (SECURITY.md)"
        )
    return found


def _is_open_to_others(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & _OF_OTHERS)
    except OSError:
        return False


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray started inside listens on 127.0.0.1 only.

    Ray does so by itself on macOS and Windows, by this constant; when `127.0.0.1` is given as the
    node's address it takes the reachable one instead. A release without the constant listens as it
    does.
    """
    from ray._private import ray_constants

    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    if before is None:
        yield
        return
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before

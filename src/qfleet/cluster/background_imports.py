"""Imports modules in a thread while the main thread waits for other processes.

Called before Ray is started. Python takes a lock per module: whoever needs one that is on its way
waits for it, so the main thread imports as always and finds the work done.
"""

from __future__ import annotations

import importlib
import threading


def import_in_background(*names: str) -> threading.Thread:
    """Start importing `names` in this order.

    A module that cannot be imported is left to whoever imports it for use, and sees why.
    """
    thread = threading.Thread(target=_import_all, args=(names,), name="imports", daemon=True)
    thread.start()
    return thread


def _import_all(names: tuple[str, ...]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            return

"""How many threads torch and BLAS use in this process, and work that yields its CPU to others.

One or two threads may give different bits, so both runtimes set the number from `*.num_cpus`
instead of taking what the machine offers.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

LOWERED_NICENESS = 19
"""The lowest priority. Ray gives its workers 15: an ordinary thread would go before all roles."""

T = TypeVar("T")


def limit_threads(num_cpus: float) -> int:
    """Limit BLAS, OpenMP and (if it was imported) torch to `num_cpus` rounded up; returns it."""
    n_threads = max(1, math.ceil(num_cpus))
    threadpool_limits(limits=n_threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(n_threads)
    return n_threads


def with_lowered_priority(work: Callable[[], T]) -> T:
    """Do `work` in a thread that gives way to other processes of this host, and wait for it.

    For a checkpoint beside running roles. A thread of its own because niceness cannot be taken
    back; only Linux has it per thread, elsewhere the priority stays as it is.
    """

    def lowered() -> T:
        if sys.platform == "linux":
            thread = threading.get_native_id()
            niceness = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, max(niceness, LOWERED_NICENESS))
        return work()

    with ThreadPoolExecutor(1, "lowered-priority") as pool:
        return pool.submit(lowered).result()

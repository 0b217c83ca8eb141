"""How many threads torch and BLAS use in this process; called once by every role and runtime.

One or two threads may give different bits, so both runtimes set the number from `*.num_cpus`
instead of taking what the machine offers.
"""

from __future__ import annotations

import math
import sys

from threadpoolctl import threadpool_limits


def limit_threads(num_cpus: float) -> int:
    """Limit BLAS, OpenMP and (if it was imported) torch to `num_cpus` rounded up; returns it."""
    n_threads = max(1, math.ceil(num_cpus))
    threadpool_limits(limits=n_threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(n_threads)
    return n_threads

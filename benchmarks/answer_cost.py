"""An answer through Ray's object store beside the same answer in pieces inside the call.

    python benchmarks/answer_cost.py [--json FILE]

One Ray actor answers, another asks with two questions in flight, as a learner asks a replay shard.
CPU time per answer of all processes of this Ray together, and wall time; the two ways take turns.
"""

from __future__ import annotations

import collections
import time
from typing import Any

import psutil
import ray
from machine import finish, make_parser
from producers import START_TIMEOUT_S

from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import resolved_preset
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.cluster.roles import answer
from qfleet.common.inline_pieces import join, pieces_for, split

IN_FLIGHT = 2


class Answerer:
    """Holds one answer of each size."""

    def __init__(self, sizes: list[int]) -> None:
        self._answers = {size: bytes(size) for size in sizes}

    def give(self, size: int, n_pieces: int) -> bytes | list[bytes]:
        """The answer whole, or split."""
        data = self._answers[size]
        return data if n_pieces == 1 else split(data, n_pieces)


class Asker:
    """Takes answers one after the other, the next ones on their way."""

    def take(self, answerer: Any, size: int, n_pieces: int, n: int) -> float:
        """Seconds for `n` answers."""
        waiting: collections.deque[list[Any]] = collections.deque()

        def ask() -> None:
            refs = answerer.give.options(num_returns=n_pieces).remote(size, n_pieces)
            waiting.append([refs] if n_pieces == 1 else list(refs))

        for _ in range(IN_FLIGHT):
            ask()
        started_s = time.perf_counter()
        for _ in range(n):
            assert len(join(ray.get(waiting.popleft(), timeout=START_TIMEOUT_S))) == size
            ask()
        return time.perf_counter() - started_s


def cpu_s() -> float:
    """Of this process's children and theirs: Ray's own processes and the two actors."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--sizes-kb", type=int, nargs="+", default=[200, 400, 800])
    parser.add_argument("--answers", type=int, default=1_000, help="of each size, way and repeat")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    sizes = [1_000 * size for size in arguments.sizes_kb]
    cluster = connect(resolved_preset("cartpole", {"actors.count": 1})[0])
    found: dict[str, list[float]] = collections.defaultdict(list)
    try:
        answerer = ray.remote(num_cpus=0)(Answerer).remote(sizes)
        asker = ray.remote(num_cpus=0)(Asker).remote()

        def measure(size: int, n_pieces: int, name: str | None) -> None:
            before_s = cpu_s()
            call = asker.take.remote(answerer, size, n_pieces, arguments.answers)
            wall_s = answer(call, "benchmark", "answers", START_TIMEOUT_S)
            if name is not None:
                per_answer = 1000.0 / arguments.answers
                found[f"{name}, CPU"].append((cpu_s() - before_s) * per_answer)
                found[f"{name}, wall"].append(wall_s * per_answer)

        measure(sizes[0], 1, None)  # to warm up
        for _ in range(arguments.repeats):
            for size in sizes:
                measure(size, 1, f"{size // 1000} kB, object store")
                measure(size, pieces_for(size), f"{size // 1000} kB, {pieces_for(size)} pieces")
    finally:
        disconnect(cluster)
    finish("answer_cost", arguments, [Measurement(n, "ms", tuple(v)) for n, v in found.items()])


if __name__ == "__main__":
    main()

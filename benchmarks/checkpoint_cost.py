"""What a checkpoint of 1,000,000 CartPole transitions costs, and what the run feels of it.

    python benchmarks/checkpoint_cost.py [--json FILE]

A learner trains from one full replay shard while a producer pushes a chunk of 512 every 5 ms, two
in flight as an actor has. Then the cut is taken as a run takes it (the learner frozen between two
blocks, then the shard, pulled in pieces and written with its checksums as it comes, and synced),
read back and checked, and at the end restored. The stall is the longest time between two blocks of
the learner; inserts are timed from when the push was due to the acknowledgement, before any cut and
while one is taken. Memory is each process's resident set, read every few milliseconds: its peak
during a cut and what is left of it after the last, over what it was before the first.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from machine import finish, latency, make_parser
from producers import RUN_ID, start_producers
from timed_roles import TimedRoles, start_roles

from qfleet.bench.bench_record import Measurement
from qfleet.bench.part_benchmarks import resolved_preset
from qfleet.cluster.answers import answer
from qfleet.cluster.ray_cluster import connect, disconnect
from qfleet.common.threads import with_lowered_priority
from qfleet.common.types import ReplayStats
from qfleet.fleets.cuts import capture_learner_and_replay, restore_learner_and_replay
from qfleet.run_files.checkpoint import write_checkpoint
from qfleet.run_files.checkpoint_reader import read_checkpoint
from qfleet.settings.plans import run_plans

FILL_CHUNK = 10_000
CHUNK = 512
PERIOD_S = 0.005
MEMORY_PERIOD_S = 0.005
LEAD_S = 0.5
"""The producer pushes so long before the cut begins."""

Events = list[tuple[float, float]]
"""(time when the push was due, seconds to its acknowledgement)."""


class Cut(NamedTuple):
    """One checkpoint: when it began and was written, how long reading took, and its size."""

    began_s: float
    written_s: float
    read_s: float
    n_bytes: int
    pushes: Events
    peak_mb: dict[str, float]
    """Resident memory of each role's process."""

    def inserts_ms(self) -> list[float]:
        """Of the pushes between the cut's beginning and its end on disk."""
        return [1000 * s for at, s in self.pushes if self.began_s <= at <= self.written_s]


class PeakMemory:
    """The largest resident set of each process while it is entered."""

    def __init__(self, processes: dict[str, psutil.Process]) -> None:
        self._processes = processes
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_mb = resident_mb(processes)

    def _watch(self) -> None:
        while not self._is_over.wait(MEMORY_PERIOD_S):
            for role, mb in resident_mb(self._processes).items():
                self.peak_mb[role] = max(self.peak_mb[role], mb)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def resident_mb(processes: dict[str, psutil.Process]) -> dict[str, float]:
    return {role: process.memory_info().rss / 1e6 for role, process in processes.items()}


def processes_of(roles: TimedRoles) -> dict[str, psutil.Process]:
    """Of the driver, the learner and the shard."""
    handles = {"learner": roles.learner, "replay shard": roles.shards[0]}
    pids = {role: answer(h.ready.remote(), "benchmark", role) for role, h in handles.items()}
    return {"driver": psutil.Process(), **{r: psutil.Process(pid) for r, pid in pids.items()}}


def take_cut(
    roles: TimedRoles,
    processes: dict[str, psutil.Process],
    producer: Any,
    root: Path,
    generation: int,
    window_s: float,
) -> Cut:
    pushing = producer.pace.remote(roles.shards[0], window_s, PERIOD_S)
    time.sleep(LEAD_S)
    began_s = time.monotonic()

    def checkpoint() -> Path:
        files = capture_learner_and_replay(roles, replay_contents=True)
        return write_checkpoint(
            root, learner_step=0, generation=generation, files=files, manifest={"run_id": RUN_ID}
        )

    with PeakMemory(processes) as memory:
        path = with_lowered_priority(checkpoint)
        written_s = time.monotonic()
    # Read when the pushing has ended: loading belongs to a start, before anything is inserted.
    events = answer(pushing, "benchmark", "the producer", window_s + 60)
    started_s = time.monotonic()
    read = read_checkpoint(path)
    read_s = time.monotonic() - started_s
    n_bytes = sum(entry["bytes"] for entry in read.manifest["files"].values())
    shutil.rmtree(path)
    return Cut(began_s, written_s, read_s, n_bytes, events, memory.peak_mb)


def longest_gap_ms(blocks: list[tuple[int, float]], begin_s: float, end_s: float) -> float:
    """Longest time between two ends of blocks, of those that touch the window."""
    times = [at_s for _, at_s in blocks]
    gaps = [b - a for a, b in itertools.pairwise(times) if b > begin_s and a < end_s]
    return 1000 * max(gaps, default=0.0)


def measure(roles: TimedRoles, spec: Any, arguments: Any) -> list[Measurement]:
    filler, producer = start_producers(spec, [FILL_CHUNK, CHUNK])
    shard = roles.shards[0]
    answer(filler.fill.remote(shard, arguments.rows), "benchmark", "the memory to be filled", 300)
    running = roles.learner.run.remote()
    time.sleep(LEAD_S)
    before_s = time.monotonic()
    pushing = producer.pace.remote(shard, arguments.before_s, PERIOD_S)
    before = answer(pushing, "benchmark", "the producer", arguments.before_s + 60)
    processes = processes_of(roles)
    before_mb = resident_mb(processes)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="qfleet-bench-") as folder:
        root = Path(folder)
        cuts = [
            take_cut(roles, processes, producer, root, generation, arguments.window_s)
            for generation in range(arguments.repeats)
        ]
        after_mb = resident_mb(processes)
        blocks = answer(roles.learner.blocks.remote(), "benchmark", "the learner's notes")
        answer(roles.learner.request_stop.remote(), "benchmark", "the learner to stop")
        answer(running, "benchmark", "the learner to end")
        restored_s = [restore_s(roles, root, number) for number in range(arguments.repeats)]
    stalls = [longest_gap_ms(blocks, cut.began_s, cut.written_s) for cut in cuts]
    usual = longest_gap_ms(blocks, before_s, before_s + arguments.before_s)
    inserts = [1000 * seconds for _, seconds in before]
    return [
        *_throughputs(cuts, restored_s),
        *_memory(cuts, before_mb, after_mb),
        Measurement("learner's longest stall, before", "ms", (usual,)),
        Measurement("learner's longest stall, during a cut", "ms", tuple(stalls)),
        latency(f"insert of {CHUNK}, before", inserts),
        latency(
            f"insert of {CHUNK}, during a cut", [ms for cut in cuts for ms in cut.inserts_ms()]
        ),
    ]


def _throughputs(cuts: list[Cut], restored_s: list[float]) -> list[Measurement]:
    about = {"megabytes": round(cuts[0].n_bytes / 1e6, 1)}

    def speed(name: str, seconds: list[float]) -> Measurement:
        rates = tuple(cut.n_bytes / 1e6 / s for cut, s in zip(cuts, seconds, strict=True))
        return Measurement(name, "MB/s", rates, about)

    return [
        speed("cut: pull, checksums, write, sync", [cut.written_s - cut.began_s for cut in cuts]),
        speed("read and check", [cut.read_s for cut in cuts]),
        speed("restore into the roles", restored_s),
    ]


def _memory(
    cuts: list[Cut], before_mb: dict[str, float], after_mb: dict[str, float]
) -> list[Measurement]:
    peaks = {role: tuple(cut.peak_mb[role] - mb for cut in cuts) for role, mb in before_mb.items()}
    left = {role: (after_mb[role] - mb,) for role, mb in before_mb.items()}
    return [
        *(Measurement(f"{role}, peak of a cut over before", "MB", v) for role, v in peaks.items()),
        *(Measurement(f"{role}, left after the cuts", "MB", v) for role, v in left.items()),
    ]


def restore_s(roles: TimedRoles, root: Path, number: int) -> float:
    """Seconds to give all roles a cut back; the shard must hold what it held."""
    files = capture_learner_and_replay(roles, replay_contents=True)
    path = write_checkpoint(
        root, learner_step=1, generation=number, files=files, manifest={"run_id": RUN_ID}
    )
    held = _size(roles)
    read = read_checkpoint(path)
    started_s = time.monotonic()
    restore_learner_and_replay(roles, {name: read.open(name) for name in read.names})
    elapsed_s = time.monotonic() - started_s
    if _size(roles) != held:
        raise SystemExit(f"restored {_size(roles)} of {held} transitions")
    return elapsed_s


def _size(roles: TimedRoles) -> int:
    stats = answer(roles.shards[0].stats.remote(), "benchmark", "replay counters")
    return ReplayStats(*stats).size


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="transitions held")
    parser.add_argument("--repeats", type=int, default=5, help="checkpoints")
    parser.add_argument("--before-s", type=float, default=5.0, help="seconds without a cut")
    parser.add_argument("--window-s", type=float, default=4.0, help="of pushing around each cut")
    parser.add_argument("--sampling", choices=("uniform", "prioritized"), default="uniform")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's)")
    arguments = parser.parse_args()
    overrides: dict[str, object] = {
        "runtime": "ray",
        "actors.count": 1,
        "replay.capacity": arguments.rows,
        "replay.sampling": arguments.sampling,
        "replay.samples_per_insert": None,
        "replay.min_size_to_sample": 1,
        "eval.period_learner_steps": 1_000_000_000,
        "run.max_learner_steps": 1_000_000_000,
    }
    config, spec = resolved_preset("cartpole", overrides)
    cluster = connect(run_plans(config).cluster)
    try:
        roles = start_roles(config, spec, n_actors=0)
        try:
            found = measure(roles, spec, arguments)
        finally:
            roles.end()
    finally:
        disconnect(cluster)
    arguments.folder = None if arguments.folder is None else "given"
    finish("checkpoint_cost", arguments, found)


if __name__ == "__main__":
    main()

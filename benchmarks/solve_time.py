"""Wall time from the shell command to a solved environment: qfleet beside other libraries.

Every run is a new process and is timed from outside, from its start to its exit, with everything
in it: imports, Ray, evaluation, confirmation, files. Seed by seed the contestants take turns, and
the order is turned round each time, so that a slow minute of the machine hits all of them.

    make bench ARGS="--seeds 5 --only qfleet-ray,sb3"
    make bench ARGS="--seeds 3 --only qfleet-ray,sb3 --preset lunarlander --timeout-s 1800"

Solved means the same for all: 20 greedy episodes with a mean of 475 or more (LunarLander: 200),
confirmed by 100 on other seeds. A run that hits its timeout, or ends unsolved, counts as slower
than every solved one.
qfleet takes part twice: with the compiled block that `make prebuild` makes and with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from qfleet.bench.bench_record import machine
from qfleet.settings.config_loading import Config

FOLDER = Path(__file__).resolve().parent
PEERS = FOLDER / "peers"
GRACE_S = 20.0
"""Between asking a timed-out run to stop and killing it: Ray takes seconds to end its processes."""

PACKAGES = ("qfleet", "stable-baselines3", "torch", "gymnasium", "numpy", "ray")
LIST_VERSIONS = (
    "import json, importlib.metadata as m\n"
    "found = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}\n"
    f"print(json.dumps({{n: found[n] for n in {PACKAGES} if n in found}}))"
)


class Contestant(NamedTuple):
    """Who runs, by which command for a seed, and whether it leaves a summary.json.

    With `empty_cache` each of its runs begins without a compiled block.
    """

    python: Path
    command: Callable[[int, Path], list[str]]
    writes_summary: bool
    empty_cache: bool = False


def qfleet_contestant(runtime: str, preset: str, *, empty_cache: bool = False) -> Contestant:
    """`qfleet train` with the interpreter that runs this script."""
    python = Path(sys.executable)
    script = python.with_name("qfleet")
    door = [str(script)] if script.exists() else [str(python), "-m", "qfleet"]

    def command(seed: int, run_dir: Path) -> list[str]:
        flags = ["--runtime", runtime, "--seed", str(seed), "--run-dir", str(run_dir)]
        return [*door, "train", preset, *flags]

    return Contestant(python, command, writes_summary=True, empty_cache=empty_cache)


def peer_contestant(name: str, script: str, env_id: str) -> Contestant:
    """A script of `peers/` in the virtual environment that `make_venvs.sh` made for it."""
    python = PEERS / f".venv-{name}" / "bin" / "python"

    def command(seed: int, run_dir: Path) -> list[str]:
        return [str(python), str(PEERS / script), "--seed", str(seed), "--env", env_id]

    return Contestant(python, command, writes_summary=False)


def contestants(preset: str) -> dict[str, Contestant]:
    """Everyone, by the name that `--only` takes."""
    env_id = Config.preset(preset).env.id
    return {
        "qfleet-ray": qfleet_contestant("ray", preset),
        "qfleet-local": qfleet_contestant("local", preset),
        "qfleet-ray-empty-cache": qfleet_contestant("ray", preset, empty_cache=True),
        "qfleet-local-empty-cache": qfleet_contestant("local", preset, empty_cache=True),
        "sb3": peer_contestant("sb3", "sb3_dqn.py", env_id),
        "cleanrl": peer_contestant("cleanrl", "cleanrl_dqn.py", env_id),
    }


def run_once(contestant: Contestant, seed: int, timeout_s: float) -> dict[str, Any]:
    """One new process from start to exit, and what it reported."""
    with tempfile.TemporaryDirectory(prefix="qfleet-bench-") as folder:
        run_dir = Path(folder) / "run"
        command = contestant.command(seed, run_dir)
        cache = {"QFLEET_CACHE": str(Path(folder) / "cache")} if contestant.empty_cache else {}
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **cache},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        timed_out = False
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            output, errors = stop(process)
        wall_s = time.perf_counter() - started
        report = read_report(contestant, run_dir, output)
    solved = bool(report.get("solved")) and not timed_out
    row = {
        "seed": seed,
        "solved": solved,
        "wall_s": round(wall_s, 3),
        "timed_out": timed_out,
        "exit_code": process.returncode,
        "load_average_1min": round(os.getloadavg()[0], 2),
        "report": report,
    }
    if not report and not timed_out:
        row["error"] = errors[-2000:]
    return row


def stop(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ask a run to stop, then kill its process group; whatever it wrote."""
    process.terminate()
    try:
        return process.communicate(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


def read_report(contestant: Contestant, run_dir: Path, output: str) -> dict[str, Any]:
    """summary.json of a qfleet run, or the last JSON line of a peer; empty when there is none."""
    if contestant.writes_summary:
        path = run_dir / "summary.json"
        return json.loads(path.read_text()) if path.exists() else {}
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def summarize(rows: list[dict[str, Any]], timeout_s: float) -> dict[str, Any]:
    """Median, minimum and maximum of the wall times; an unsolved run counts as infinite."""
    times = sorted(row["wall_s"] if row["solved"] else float("inf") for row in rows)

    def text(value: float) -> str:
        if value != float("inf"):
            return f"{value:.1f}"
        return f"> {timeout_s:.0f}" if any(row["timed_out"] for row in rows) else "not solved"

    figures = {"median": statistics.median(times), "min": times[0], "max": times[-1]}
    numbers = {
        f"{name}_wall_s": value if value != float("inf") else None
        for name, value in figures.items()
    }
    texts = {f"{name}_text": text(value) for name, value in figures.items()}
    return {"runs": len(rows), "solved": sum(row["solved"] for row in rows), **numbers, **texts}


def versions(contestant: Contestant) -> dict[str, str]:
    """Versions of the packages that matter in the contestant's environment."""
    answer = subprocess.run(
        [str(contestant.python), "-c", LIST_VERSIONS], capture_output=True, text=True, timeout=60
    )
    return json.loads(answer.stdout) if answer.returncode == 0 else {}


def chosen(arguments: argparse.Namespace) -> dict[str, Contestant]:
    """The contestants asked for; exits with the remedy when one is unknown or not installed."""
    everyone = contestants(arguments.preset)
    names = arguments.only.split(",") if arguments.only else list(everyone)
    unknown = [name for name in names if name not in everyone]
    if unknown:
        sys.exit(f"--only takes {', '.join(everyone)}, got {', '.join(unknown)}")
    missing = [name for name in names if not everyone[name].python.exists()]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}. Run `make bench-venvs` first.")
    return {name: everyone[name] for name in names}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1..N for each contestant")
    parser.add_argument("--only", help="comma-separated; default: all of them")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="limit of one run")
    parser.add_argument("--preset", default="cartpole", help="qfleet's preset")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/solve_time.json"))
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    field = chosen(arguments)
    if any(one.writes_summary and not one.empty_cache for one in field.values()):
        build = [sys.executable, "-m", "qfleet.prebuild", arguments.preset]
        subprocess.run(build, check=True)  # nothing to do where the cache has it
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in field}
    seeds = list(range(1, arguments.seeds + 1))
    result: dict[str, Any] = {
        "benchmark": "solve_time",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "versions": {name: versions(contestant) for name, contestant in field.items()},
        "seeds": seeds,
        "timeout_s": arguments.timeout_s,
        "preset": arguments.preset,
    }
    for seed in seeds:
        for name in field if seed % 2 else reversed(field):
            row = run_once(field[name], seed, arguments.timeout_s)
            rows[name].append(row)
            state = "solved" if row["solved"] else "timeout" if row["timed_out"] else "NOT solved"
            print(f"seed {seed:3d}  {name:24s} {row['wall_s']:8.1f} s  {state}", flush=True)
        # Written after each seed: an interrupted benchmark keeps what it measured.
        tables = {name: summarize(rows[name], arguments.timeout_s) for name in field}
        result |= {"summary": tables, "runs": rows}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{'':24s} {'solved':>8s} {'median s':>10s} {'min s':>10s} {'max s':>10s}")
    for name, table in result["summary"].items():
        share = f"{table['solved']}/{table['runs']}"
        texts = " ".join(f"{table[f'{key}_text']:>10s}" for key in ("median", "min", "max"))
        print(f"{name:24s} {share:>8s} {texts}")
    print(f"\nRaw figures: {arguments.out}")


if __name__ == "__main__":
    main()

"""`qfleet doctor`: whether this machine can train, and what to do where it cannot.

Each check stands alone: a machine where torch does not import still learns about its memory.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from qfleet.commands.play import has_display
from qfleet.run_files.find_runs import RUNS

MIN_PYTHON, BELOW_PYTHON = (3, 11), (3, 14)
SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_MEMORY_BYTES = 1 * 2**30
MIN_MEMORY_BYTES = 3 * 2**30
MIN_DISK_BYTES = 1 * 2**30
_GIB = 2**30

PACKAGES: dict[str, tuple[str, str]] = {
    "torch": ("torch", "2.10"),
    "gymnasium": ("gymnasium", "1.2"),
    "numpy": ("numpy", "2.0"),
    "opencv-python": ("cv2", "4.11"),
    "ray": ("ray", "2.60"),
    "msgpack": ("msgpack", "1.2.3"),
    "pydantic": ("pydantic", "2.9"),
    "pyyaml": ("yaml", "6.0"),
    "rich": ("rich", "14"),
    "safetensors": ("safetensors", "0.5"),
    "tensorboard": ("tensorboard", "2.21"),
    "matplotlib": ("matplotlib", "3.9"),
    "scipy": ("scipy", "1.15"),
    "jinja2": ("jinja2", "3.1"),
    "pillow": ("PIL", "11"),
    "filelock": ("filelock", "3.16"),
    "threadpoolctl": ("threadpoolctl", "3.5"),
    "psutil": ("psutil", "5.9"),
}
"""Distribution name to module and lowest version, as in pyproject.toml."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: `fail` stops training, `warn` makes it slower or takes a feature away."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def main(args: argparse.Namespace) -> int:
    """Print all checks, as JSON when `args.json` is set.

    Returns:
        0 when nothing failed, else 2.
    """
    checks = run_checks()
    is_able = all(check.state != "fail" for check in checks)
    if getattr(args, "json", False):
        content = {"able_to_train": is_able, "checks": [asdict(check) for check in checks]}
        print(json.dumps(content, indent=2))
    else:
        print(report(checks))
    return 0 if is_able else 2


def run_checks() -> list[Check]:
    """All checks in the order they are shown."""
    single: list[Callable[[], Check]] = [
        check_python,
        check_cores,
        check_memory,
        check_shared_memory,
        check_lean_start,
        check_device,
        check_display,
        check_run_directory,
    ]
    return [*map(check_package, PACKAGES), *(check() for check in single)]


def report(checks: list[Check]) -> str:
    """The checks as aligned lines, each remedy below its line, and the verdict."""
    lines = []
    for check in checks:
        lines.append(f"{check.state:<5} {check.name:<15} {check.found}")
        if check.remedy:
            lines.append(f"      {'':<15} -> {check.remedy}")
    failed = [check.name for check in checks if check.state == "fail"]
    verdict = f"cannot train: {', '.join(failed)}" if failed else "ready: try `qfleet train`"
    return "\n".join([*lines, "", verdict])


def check_python() -> Check:
    """The interpreter's version."""
    found = f"{platform.python_version()} on {platform.platform()}"
    if MIN_PYTHON <= sys.version_info[:2] < BELOW_PYTHON:
        return Check("python", "ok", found)
    remedy = "use Python 3.11, 3.12 or 3.13, for example: PYTHON=python3.12 make run"
    return Check("python", "fail", found, remedy)


def check_package(name: str) -> Check:
    """Whether a package is there, new enough, and can be imported."""
    module, lowest = PACKAGES[name]
    remedy = f'pip install "{name}>={lowest}"'
    try:
        version = importlib.metadata.version(name)
        importlib.import_module(module)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "fail", "not installed", remedy)
    except (ImportError, OSError) as error:  # OSError: a shared library that cannot be loaded
        return Check(name, "fail", f"does not import: {error}", _import_remedy(str(error), remedy))
    if version_key(version) < version_key(lowest):
        return Check(name, "fail", f"{version}, needs {lowest}", remedy)
    return Check(name, "ok", version)


def _import_remedy(message: str, otherwise: str) -> str:
    if "libGL" in message or "libgthread" in message or "libglib" in message:
        return "apt-get install libgl1 libglib2.0-0 (OpenCV's system libraries)"
    return f"{otherwise} --force-reinstall"


def version_key(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparison: `2.13.0+cpu` is (2, 13)."""
    leading = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in leading[0].split(".")] if leading else []
    while numbers and numbers[-1] == 0:  # 2 and 2.0 are the same version
        numbers.pop()
    return tuple(numbers)


def check_cores() -> Check:
    """CPU cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    if cores >= 2:
        return Check("cores", "ok", str(cores))
    remedy = "one core trains slowly; --runtime local avoids the cost of separate processes"
    return Check("cores", "warn", str(cores), remedy)


def check_memory() -> Check:
    """Free memory, within the container's limit where there is one."""
    import psutil

    free_bytes = psutil.virtual_memory().available
    limit_bytes = container_limit_bytes()
    if limit_bytes is not None:
        free_bytes = min(free_bytes, limit_bytes)
    found = f"{free_bytes / _GIB:.1f} GiB free"
    if free_bytes >= MIN_MEMORY_BYTES:
        return Check("memory", "ok", found)
    remedy = "close programs, raise the container's limit, or use --runtime local"
    return Check("memory", "warn", found, remedy)


def container_limit_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The memory limit of this control group (version 2, then 1); None without a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() and int(text) < 2**60 else None
    return None


def check_shared_memory() -> Check:
    """Room in /dev/shm, where Ray keeps its objects."""
    if not SHARED_MEMORY.is_dir():
        return Check("shared memory", "ok", "no /dev/shm on this system")
    total_bytes = shutil.disk_usage(SHARED_MEMORY).total
    found = f"{total_bytes / _GIB:.2f} GiB in {SHARED_MEMORY}"
    if total_bytes >= MIN_SHARED_MEMORY_BYTES:
        return Check("shared memory", "ok", found)
    remedy = "Ray falls back to the disk, slowly; in Docker add --shm-size=2gb"
    return Check("shared memory", "warn", found, remedy)


def check_lean_start() -> Check:
    """Whether `ray.lean` works with the release of Ray that is installed."""
    from qfleet.cluster.private_ray.lean_start import TRIED_RELEASES, was_tried

    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return Check("ray.lean", "ok", "without Ray: no effect")
    if was_tried(version):
        found = "`qfleet train` starts its own Ray without dashboard, autoscaler and log monitor"
        return Check("ray.lean", "ok", found)
    remedy = f"the lean start was tried with Ray {' and '.join(TRIED_RELEASES)}"
    return Check("ray.lean", "warn", f"Ray {version} starts in full, which takes longer", remedy)


def check_device() -> Check:
    """What the learner would compute on."""
    try:
        import torch
    except (ImportError, OSError):
        return Check("device", "fail", "unknown: torch does not import", "see torch above")
    if torch.cuda.is_available():
        memory_bytes = torch.cuda.get_device_properties(0).total_memory
        found = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
        return Check("device", "ok", f"{found} ({memory_bytes / _GIB:.0f} GiB)")
    if Path("/proc/driver/nvidia/version").exists():
        remedy = "the driver is there but torch cannot use it: compare `nvidia-smi` with "
        remedy += f"torch's CUDA {torch.version.cuda}; a CPU build needs another index"
        return Check("device", "warn", "cpu, although there is an NVIDIA driver", remedy)
    return Check("device", "ok", f"cpu ({torch.get_num_threads()} threads)")


def check_display() -> Check:
    """Whether `qfleet play` can open a window."""
    if has_display():
        return Check("display", "ok", "found")
    return Check("display", "ok", "none: `qfleet play` records videos instead")


def check_run_directory() -> Check:
    """Whether runs can be written below the working directory."""
    place = RUNS if RUNS.is_dir() else Path()
    where = place.resolve()
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as error:
        remedy = "change to a directory of your own, or name one with --run-dir"
        return Check("run directory", "fail", f"{where}: {error.strerror}", remedy)
    free_bytes = shutil.disk_usage(place).free
    found = f"{where}, {free_bytes / _GIB:.0f} GiB free"
    if free_bytes >= MIN_DISK_BYTES:
        return Check("run directory", "ok", found)
    remedy = "free some space: checkpoints with a replay take up to a gigabyte"
    return Check("run directory", "warn", found, remedy)

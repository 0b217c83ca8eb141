"""Compiled packages on disk: found by what they were compiled for, written whole or not at all.

Called by the learner at its start and by the build process. The directory is `$QFLEET_CACHE`, else
`~/.cache/qfleet`, with the packages under `blocks/`: machine code that this user's processes run,
so it is created for its owner alone. Deleting it is always safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qfleet.common.errors import InvariantError, WaitTimeoutError
from qfleet.learner.fast.notices import say_once
from qfleet.learner.fast.package_spec import PROOF_SUFFIX

LOCK_TIMEOUT_S = 900.0
"""How long one process waits for another that compiles the same package."""
_PACKAGE_SUFFIX = ".pt2"


def cache_directory() -> Path:
    """Where packages lie; it need not exist."""
    root = os.environ.get("QFLEET_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "qfleet") / "blocks"


def package_key(description: Mapping[str, Any]) -> str:
    """The name of a description's package: the same for equal descriptions, in any key order."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class PackageCache:
    """A directory of `<key>.pt2` and `<key>.proof` beside `<key>.json`.

    Invariants: the JSON file is written last and holds the others' digests, so a package that was
    not written to its end, or has changed since, is not found; nothing is ever written in place.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, key: str) -> Path | None:
        """The package, when it is there and whole."""
        package = self._package(key)
        try:
            digests = json.loads(self._entry(key).read_text())["sha256"]
            is_whole = all(digests[path.suffix] == _sha256(path) for path in _with_proof(package))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return package if is_whole else None

    def find_or_remove(self, key: str) -> Path | None:
        """As `find`; one that was finished and is no longer whole is removed, which is said."""
        package = self.find(key)
        if package is None and self._entry(key).exists():
            self.remove(key, "is damaged")
        return package

    def remove(self, key: str, reason: str) -> None:
        """Forget a package that cannot be used, and say why."""
        say_once(f"the compiled learner block in {self.directory} is removed: {reason}")
        try:
            self.discard(key)
        except OSError as error:
            say_once(f"it could not be removed: {error}")

    def discard(self, key: str) -> None:
        """Forget a package."""
        for path in (self._entry(key), *self._files(key)):
            path.unlink(missing_ok=True)

    def get_or_build(
        self,
        description: Mapping[str, Any],
        build: Callable[[Path], None],
        timeout_s: float = LOCK_TIMEOUT_S,
    ) -> Path:
        """The package, built by `build(path)` unless it is there; one process builds at a time.

        `build` leaves the proof beside it, under the same name with `PROOF_SUFFIX`.

        Raises:
            OSError: when the directory cannot be written.
            WaitTimeoutError: when another process holds the lock for too long.
        """
        key = package_key(description)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock(key, timeout_s):
            found = self.find(key)
            if found is not None:
                return found
            for left_over in self.directory.glob(f".{key}-*"):  # of a build that was ended
                shutil.rmtree(left_over, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=self.directory, prefix=f".{key}-") as folder:
                built = Path(folder) / f"package{_PACKAGE_SUFFIX}"
                started_s = time.perf_counter()
                build(built)
                files = _with_proof(built)
                entry = {
                    "sha256": {path.suffix: _sha256(path) for path in files},
                    "bytes": built.stat().st_size,
                    "build_s": round(time.perf_counter() - started_s, 1),
                    "compiled_for": dict(description),
                }
                entry_file = Path(folder) / "entry.json"
                entry_file.write_text(json.dumps(entry, indent=1, sort_keys=True) + "\n")
                for path in (*files, entry_file):
                    _flush(path)
                self._entry(key).unlink(missing_ok=True)
                for path in files:
                    os.replace(path, self._package(key).with_suffix(path.suffix))
                os.replace(entry_file, self._entry(key))
        return self._package(key)

    def check_valid(self) -> None:
        """Raise `InvariantError` when a finished package is no longer whole."""
        keys = [path.stem for path in sorted(self.directory.glob("*.json"))]
        damaged = [key for key in keys if self.find(key) is None]
        if damaged:
            raise InvariantError(f"packages are not what was written: {', '.join(damaged)}")

    def _package(self, key: str) -> Path:
        return self.directory / f"{key}{_PACKAGE_SUFFIX}"

    def _files(self, key: str) -> tuple[Path, Path]:
        return _with_proof(self._package(key))

    def _entry(self, key: str) -> Path:
        return self.directory / f"{key}.json"

    @contextmanager
    def _lock(self, key: str, timeout_s: float) -> Iterator[None]:
        """Held by one process; the system releases it when that process ends, however it ends."""
        import filelock  # imports asyncio, which a run that only looks a package up need not

        path = self.directory / f"{key}.lock"
        try:
            with filelock.FileLock(path, timeout=timeout_s):
                yield
        except filelock.Timeout as error:
            raise WaitTimeoutError(
                f"waited {timeout_s:.0f} s for another process that compiles {path}"
            ) from error


def _with_proof(package: Path) -> tuple[Path, Path]:
    return package, package.with_suffix(PROOF_SUFFIX)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""Checkpoints on disk: written as their bytes come, whole or not at all.

Called by the driver's run directory (`run_directory.py`); `checkpoint_reader.py` reads them back. A
checkpoint is a directory of named streams of bytes and a `manifest.json`; what the bytes mean is
the callers' matter.

    root/ckpt-<learner_step>-<generation>/   params.safetensors …, manifest.json
    root/.tmp-*                              an unfinished attempt; removed at the next start

A write that fails at any point leaves the previous checkpoints as they were: files are synced, the
manifest comes last, and one rename to a name that did not exist makes the directory visible.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qfleet.common.errors import CheckpointError
from qfleet.run_files.durable import TEMPORARY_PREFIX, sync_directory

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
PARAMS_FILE = "params.safetensors"
SESSION_FILE = "session.json"

DIRECTORY_NAME = re.compile(r"ckpt-(\d{12,})-(\d+)")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,126}")
OWN_FIELDS = frozenset({"format_version", "learner_step", "generation", "files", "manifest_sha256"})
BLOCK_BYTES = 1024 * 1024


def write_checkpoint(
    root: Path,
    *,
    learner_step: int,
    generation: int,
    files: Mapping[str, Iterable[bytes]],
    manifest: Mapping[str, Any],
) -> Path:
    """Write one checkpoint under `root` and return its directory.

    `manifest` adds JSON-able fields to the manifest's own.

    Raises:
        CheckpointError: when it could not be written; nothing of the attempt remains then, unless
            only the very last sync failed, which leaves a complete checkpoint.
    """
    target = root / f"ckpt-{learner_step:012d}-{generation}"
    temporary = root / f"{TEMPORARY_PREFIX}{target.name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):
            raise CheckpointError(f"{target} exists already: a generation is never written twice")
        write_sealed(
            temporary, learner_step=learner_step, generation=generation, files=files, extra=manifest
        )
        os.rename(temporary, target)
        sync_directory(root)
    except OSError as error:
        raise CheckpointError(f"checkpoint {target} was not written: {error}") from error
    finally:
        # Also on KeyboardInterrupt and SystemExit. After the rename there is nothing to remove.
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def write_sealed(
    directory: Path,
    *,
    learner_step: int,
    generation: int,
    files: Mapping[str, Iterable[bytes]],
    extra: Mapping[str, Any],
) -> None:
    """Fill the new directory `directory` with `files` and their manifest, all synced to disk."""
    if clash := sorted(OWN_FIELDS & set(extra)):
        raise ValueError(f"manifest fields {clash} are the checkpoint's own")
    for name in files:
        check_name(name, directory)
    directory.mkdir()
    listing = {name: _write_synced(directory / name, stream) for name, stream in files.items()}
    fields = {
        **extra,
        "format_version": FORMAT_VERSION,
        "learner_step": learner_step,
        "generation": generation,
        "files": listing,
    }
    sealed = {**fields, "manifest_sha256": hashlib.sha256(canonical(fields)).hexdigest()}
    _write_synced(directory / MANIFEST, [canonical(sealed)])
    sync_directory(directory)


def list_checkpoints(root: Path) -> list[Path]:
    """Directories named as checkpoints, oldest first, intact or not."""
    return [path for _, _, path in sorted(_numbered(root))]


def prune(root: Path, keep: int, written: Path) -> list[Path]:
    """Remove all but the newest `keep` checkpoints; return what was removed.

    `written` stays in any case: its bytes were hashed on their way to the disk, so one intact
    checkpoint is left without reading any back.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep} (run.keep_checkpoints)")
    surplus = [path for path in list_checkpoints(root)[:-keep] if path != written]
    for path in surplus:
        # Renamed first: a crash in the middle must not leave a directory with files missing.
        doomed = path.with_name(f"{TEMPORARY_PREFIX}remove-{path.name}")
        os.rename(path, doomed)
        remove(doomed)
    return surplus


def clean_stray(root: Path) -> list[Path]:
    """Remove what unfinished attempts left; call at start, when no other process writes here."""
    if not root.is_dir():
        return []
    stray = sorted(path for path in root.iterdir() if path.name.startswith(TEMPORARY_PREFIX))
    for path in stray:
        remove(path)
    return stray


def remove(path: Path) -> None:
    """Remove a file, a directory, or a link without what it points at."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _numbered(root: Path) -> Iterator[tuple[int, int, Path]]:
    if not root.is_dir():
        return
    for path in root.iterdir():
        if match := DIRECTORY_NAME.fullmatch(path.name):
            yield int(match[2]), int(match[1]), path


def canonical(value: Mapping[str, Any]) -> bytes:
    """A manifest's one spelling, so that its bytes can be compared."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _write_synced(path: Path, stream: Iterable[bytes]) -> dict[str, Any]:
    """Write a new file as its blocks come, sync it and return its entry in the manifest."""
    digest, n_bytes = hashlib.sha256(), 0
    try:
        with open(path, "xb", buffering=0) as file:
            for piece in stream:
                digest.update(piece)
                n_bytes += len(piece)
                block = memoryview(piece)
                while len(block):  # an unbuffered write may be short, for example on a full disk
                    block = block[file.write(block) :]
            os.fsync(file.fileno())
    finally:
        if isinstance(stream, Generator):
            stream.close()  # who makes the pieces must know that no more are wanted
    return {"bytes": n_bytes, "sha256": digest.hexdigest()}


def check_name(name: str, directory: Path) -> None:
    """Raise `CheckpointError` when `name` cannot be one of a checkpoint's files."""
    if name == MANIFEST or not _FILE_NAME.fullmatch(name):
        raise CheckpointError(f"{directory}: {name!r} cannot name a checkpoint's file")

"""Checkpoints on disk: written whole or not at all, checked byte by byte before they are believed.

Called by the driver's run directory (`run_directory.py`) and by whoever loads a policy. A
checkpoint is a directory of named byte strings and a `manifest.json`; what the bytes mean is the
callers' matter. Nothing here unpickles, follows a link or reads a clock.

    root/ckpt-<learner_step>-<generation>/   params.safetensors …, manifest.json
    root/.tmp-*                              an unfinished attempt; removed at the next start
    root/generation.json                     the last generation handed out

A write that fails at any point leaves the previous checkpoints as they were: files are synced, the
manifest comes last, and one rename to a name that did not exist makes the directory visible.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qfleet.common.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PARAMS_FILE = "params.safetensors"
SESSION_FILE = "session.json"
TEMPORARY_PREFIX = ".tmp-"

_GENERATION_FILE = "generation.json"
_DIRECTORY_NAME = re.compile(r"ckpt-(\d{12,})-(\d+)")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,126}")
_OWN_FIELDS = frozenset(
    {"format_version", "learner_step", "generation", "files", "manifest_sha256"}
)
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose every byte was checked: `manifest` as written, `files` by name."""

    path: Path
    manifest: dict[str, Any]
    files: dict[str, bytes]

    @property
    def learner_step(self) -> int:
        """Updates that the parameters had seen."""
        return int(self.manifest["learner_step"])

    @property
    def generation(self) -> int:
        """The number of the attempt that wrote it; grows over the whole life of a run."""
        return int(self.manifest["generation"])


def write_checkpoint(
    root: Path,
    *,
    learner_step: int,
    generation: int,
    files: Mapping[str, bytes],
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
    files: Mapping[str, bytes],
    extra: Mapping[str, Any],
) -> None:
    """Fill the new directory `directory` with `files` and their manifest, all synced to disk."""
    if clash := sorted(_OWN_FIELDS & set(extra)):
        raise ValueError(f"manifest fields {clash} are the checkpoint's own")
    for name in files:
        _check_name(name, directory)
    directory.mkdir()
    listing = {
        name: {"bytes": len(data), "sha256": _write_synced(directory / name, data)}
        for name, data in files.items()
    }
    fields = {
        **extra,
        "format_version": FORMAT_VERSION,
        "learner_step": learner_step,
        "generation": generation,
        "files": listing,
    }
    sealed = {**fields, "manifest_sha256": hashlib.sha256(_canonical(fields)).hexdigest()}
    _write_synced(directory / MANIFEST, _canonical(sealed))
    sync_directory(directory)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a whole checkpoint (or `best/`); `path` itself may be a symlink.

    Raises:
        CheckpointError: naming the file and the reason; nothing was returned in part.
    """
    path = path.resolve()
    files: dict[str, bytes] = {}

    def keep(name: str, blocks: Iterator[bytes]) -> None:
        files[name] = b"".join(blocks)

    return Checkpoint(path, _check_directory(path, keep), files)


def verify_checkpoint(path: Path) -> None:
    """`read_checkpoint` without holding the contents in memory."""

    def discard(name: str, blocks: Iterator[bytes]) -> None:
        for _ in blocks:
            pass

    _check_directory(path.resolve(), discard)


def newest_valid(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is intact, and why newer ones were skipped.

    Newest is by (generation, learner step), never by a clock.
    """
    skipped: list[str] = []
    for path in reversed(list_checkpoints(root)):
        try:
            return read_checkpoint(path), skipped
        except CheckpointError as error:
            skipped.append(str(error))
    return None, skipped


def list_checkpoints(root: Path) -> list[Path]:
    """Directories named as checkpoints, oldest first, intact or not."""
    return [path for _, _, path in sorted(_numbered(root))]


def next_generation(root: Path) -> int:
    """Hand out a generation that was never handed out before, over restarts as well.

    Directories count even when they are corrupt or unfinished, and a note on disk remembers
    generations whose attempt left nothing.
    """
    used = [generation for generation, _, _ in _numbered(root)]
    note = root / _GENERATION_FILE
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        # An unreadable note is no loss: the directories bound the generation from below.
        used.append(int(json.loads(note.read_bytes())["generation"]))
    generation = max(used, default=0) + 1
    temporary = root / f"{TEMPORARY_PREFIX}{_GENERATION_FILE}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        _write_synced(temporary, _canonical({"generation": generation}))
        os.replace(temporary, note)
        sync_directory(root)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{note} was not written: {error}") from error
    return generation


def prune(root: Path, keep: int) -> list[Path]:
    """Remove all but the newest `keep` checkpoints; return what was removed.

    When none of those is intact, the newest intact one among the older stays too.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep} (run.keep_checkpoints)")
    paths = list_checkpoints(root)
    kept, surplus = paths[-keep:], paths[:-keep]
    if not surplus:
        return []
    if not any(_is_valid(path) for path in reversed(kept)):
        survivor = next((path for path in reversed(surplus) if _is_valid(path)), None)
        surplus = [path for path in surplus if path != survivor]
    for path in surplus:
        # Renamed first: a crash in the middle must not leave a directory with files missing.
        doomed = path.with_name(f"{TEMPORARY_PREFIX}remove-{path.name}")
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return surplus


def clean_stray(root: Path) -> list[Path]:
    """Remove what unfinished attempts left; call at start, when no other process writes here."""
    if not root.is_dir():
        return []
    stray = sorted(path for path in root.iterdir() if path.name.startswith(TEMPORARY_PREFIX))
    for path in stray:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return stray


def sync_directory(directory: Path) -> None:
    """Make renames and new names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _numbered(root: Path) -> Iterator[tuple[int, int, Path]]:
    if not root.is_dir():
        return
    for path in root.iterdir():
        if match := _DIRECTORY_NAME.fullmatch(path.name):
            yield int(match[2]), int(match[1]), path


def _is_valid(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except CheckpointError:
        return False
    return True


def _canonical(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _write_synced(path: Path, data: bytes) -> str:
    """Write a new file, sync it and return the SHA-256 of its contents."""
    digest = hashlib.sha256()
    view = memoryview(data)
    with open(path, "xb", buffering=0) as file:
        for start in range(0, len(view), _BLOCK_BYTES):
            block = view[start : start + _BLOCK_BYTES]
            digest.update(block)
            while len(block):  # an unbuffered write may be short, for example on a full disk
                block = block[file.write(block) :]
        os.fsync(file.fileno())
    return digest.hexdigest()


def _check_name(name: str, directory: Path) -> None:
    if name == MANIFEST or not _FILE_NAME.fullmatch(name):
        raise CheckpointError(f"{directory}: {name!r} cannot name a checkpoint's file")


def _check_directory(path: Path, take: Callable[[str, Iterator[bytes]], None]) -> dict[str, Any]:
    """Check everything in `path`, handing each file's blocks to `take`; return the manifest."""
    try:
        present = {entry.name for entry in os.scandir(path)}
        manifest = _read_manifest(path)
        listed = set(manifest["files"]) | {MANIFEST}
        for name in sorted(listed - present):
            raise CheckpointError(f"{path / name}: missing")
        for name in sorted(present - listed):
            raise CheckpointError(f"{path / name}: not listed in the manifest")
        for name, entry in manifest["files"].items():
            _check_file(path / name, entry, take)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return manifest


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        data = b"".join(_blocks(file, None))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing") from None
    try:
        manifest = json.loads(data)
        # Comparing bytes finds what parsing forgives: doubled keys, blanks, other notations.
        if not isinstance(manifest, dict) or _canonical(manifest) != data:
            raise ValueError("not as it was written")
        fields = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
        if hashlib.sha256(_canonical(fields)).hexdigest() != manifest.get("manifest_sha256"):
            raise ValueError("its checksum does not match")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: corrupt: {error}") from error
    _check_manifest(manifest, file)
    return manifest


def _check_manifest(manifest: dict[str, Any], file: Path) -> None:
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: format version {version}, this qfleet reads {FORMAT_VERSION}"
        )
    if missing := sorted(_OWN_FIELDS - set(manifest)):
        raise CheckpointError(f"{file}: fields {missing} are missing")
    listing = manifest["files"]
    if not (isinstance(listing, dict) and all(map(_is_entry, listing.values()))):
        raise CheckpointError(f"{file}: its list of files is malformed")
    for name in listing:
        _check_name(name, file.parent)
    match = _DIRECTORY_NAME.fullmatch(file.parent.name)
    written = (manifest["learner_step"], manifest["generation"])
    if match and (int(match[1]), int(match[2])) != written:
        raise CheckpointError(f"{file}: written for step and generation {written}, not these")


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"bytes", "sha256"}
        and type(entry["bytes"]) is int
    )


def _check_file(
    file: Path, entry: Mapping[str, Any], take: Callable[[str, Iterator[bytes]], None]
) -> None:
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for block in _blocks(file, entry["bytes"]):
            digest.update(block)
            yield block

    take(file.name, hashed())
    if digest.hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{file}: corrupt: SHA-256 does not match the manifest")


def _blocks(file: Path, wanted_bytes: int | None) -> Iterator[bytes]:
    """The contents of a plain file in blocks; its kind and size are checked before any is read."""
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    if file.is_symlink():
        raise CheckpointError(f"{file}: is a link; a checkpoint holds plain files only")
    with open(os.open(file, flags), "rb", buffering=0) as opened:
        state = os.fstat(opened.fileno())
        if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
            raise CheckpointError(f"{file}: not a plain file with one name")
        if wanted_bytes is not None and state.st_size != wanted_bytes:
            raise CheckpointError(
                f"{file}: holds {state.st_size} bytes, the manifest says {wanted_bytes}"
            )
        if wanted_bytes is None and state.st_size > _MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{file}: {state.st_size} bytes is no manifest")
        while block := opened.read(_BLOCK_BYTES):
            yield block

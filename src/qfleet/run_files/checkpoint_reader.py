"""Checkpoints read back: checked byte by byte before they are believed, and mapped, not loaded.

Called for a resumed run and by whoever loads a policy. Nothing here unpickles, follows a link
inside a checkpoint or reads a clock. `checkpoint.py` has the layout.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qfleet.common.errors import CheckpointError
from qfleet.run_files.checkpoint import (
    BLOCK_BYTES,
    DIRECTORY_NAME,
    FORMAT_VERSION,
    MANIFEST,
    OWN_FIELDS,
    canonical,
    check_name,
    list_checkpoints,
)

READABLE_VERSIONS = (1, FORMAT_VERSION)
"""Version 1 has the same parameters, but captured states that cannot be resumed any more."""
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose every byte was checked; holds none of them itself."""

    path: Path
    manifest: dict[str, Any]
    """As written."""

    @property
    def learner_step(self) -> int:
        """Updates that the parameters had seen."""
        return int(self.manifest["learner_step"])

    @property
    def generation(self) -> int:
        """The number of the attempt that wrote it; grows over the whole life of a run."""
        return int(self.manifest["generation"])

    @property
    def names(self) -> list[str]:
        """Its files."""
        return sorted(self.manifest["files"])

    def open(self, name: str) -> memoryview:
        """A file's contents, mapped into memory for as long as the view lives.

        Raises:
            CheckpointError: when it has gone or changed its size since it was checked.
        """
        try:
            with _open_plain(self.path / name) as file:
                size = _checked_size(file, self.path / name, self.manifest["files"][name]["bytes"])
                if size == 0:
                    return memoryview(b"")
                return memoryview(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ))
        except OSError as error:
            raise CheckpointError(f"{self.path / name}: cannot be read: {error}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Check a whole checkpoint (or `best/`); `path` may be one link to it, as `latest` is.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    path = path.absolute()
    if path.is_symlink():
        path = path.parent / os.readlink(path)
    if path.is_symlink():
        raise CheckpointError(f"{path}: is a link; a checkpoint is a directory of its own")
    path = path.resolve()
    return Checkpoint(path, _check_directory(path))


def newest_valid(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is intact, and why newer ones were skipped.

    Newest is by (generation, learner step), never by a clock.
    """
    skipped: list[str] = []
    for path in reversed(list_checkpoints(root)):
        try:
            if path.is_symlink():
                raise CheckpointError(f"{path}: is a link, which is not followed")
            return read_checkpoint(path), skipped
        except CheckpointError as error:
            skipped.append(str(error))
    return None, skipped


def _check_directory(path: Path) -> dict[str, Any]:
    """Check everything in `path`; return the manifest."""
    try:
        present = {entry.name for entry in os.scandir(path)}
        manifest = _read_manifest(path)
        listed = set(manifest["files"]) | {MANIFEST}
        for name in sorted(listed - present):
            raise CheckpointError(f"{path / name}: missing")
        for name in sorted(present - listed):
            raise CheckpointError(f"{path / name}: not listed in the manifest")
        for name, entry in manifest["files"].items():
            _check_file(path / name, entry)
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
        if not isinstance(manifest, dict) or canonical(manifest) != data:
            raise ValueError("not as it was written")
        fields = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
        if hashlib.sha256(canonical(fields)).hexdigest() != manifest.get("manifest_sha256"):
            raise ValueError("its checksum does not match")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: corrupt: {error}") from error
    _check_manifest(manifest, file)
    return manifest


def _check_manifest(manifest: dict[str, Any], file: Path) -> None:
    version = manifest.get("format_version")
    if version not in READABLE_VERSIONS:
        raise CheckpointError(
            f"{file}: format version {version}, this qfleet reads up to {FORMAT_VERSION}"
        )
    if missing := sorted(OWN_FIELDS - set(manifest)):
        raise CheckpointError(f"{file}: fields {missing} are missing")
    listing = manifest["files"]
    if not (isinstance(listing, dict) and all(map(_is_entry, listing.values()))):
        raise CheckpointError(f"{file}: its list of files is malformed")
    for name in listing:
        check_name(name, file.parent)
    match = DIRECTORY_NAME.fullmatch(file.parent.name)
    written = (manifest["learner_step"], manifest["generation"])
    if match and (int(match[1]), int(match[2])) != written:
        raise CheckpointError(f"{file}: written for step and generation {written}, not these")


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"bytes", "sha256"}
        and type(entry["bytes"]) is int
    )


def _check_file(file: Path, entry: Mapping[str, Any]) -> None:
    digest = hashlib.sha256()
    for block in _blocks(file, entry["bytes"]):
        digest.update(block)
    if digest.hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{file}: corrupt: SHA-256 does not match the manifest")


def _blocks(file: Path, wanted_bytes: int | None) -> Iterator[bytes]:
    """The contents of a plain file in blocks; its kind and size are checked before any is read."""
    with _open_plain(file) as opened:
        _checked_size(opened, file, wanted_bytes)
        while block := opened.read(BLOCK_BYTES):
            yield block


def _open_plain(file: Path) -> IO[bytes]:
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    if file.is_symlink():
        raise CheckpointError(f"{file}: is a link; a checkpoint holds plain files only")
    return open(os.open(file, flags), "rb", buffering=0)


def _checked_size(opened: IO[bytes], file: Path, wanted_bytes: int | None) -> int:
    state = os.fstat(opened.fileno())
    if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
        raise CheckpointError(f"{file}: not a plain file with one name")
    if wanted_bytes is not None and state.st_size != wanted_bytes:
        raise CheckpointError(
            f"{file}: holds {state.st_size} bytes, the manifest says {wanted_bytes}"
        )
    if wanted_bytes is None and state.st_size > _MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{file}: {state.st_size} bytes is no manifest")
    return state.st_size

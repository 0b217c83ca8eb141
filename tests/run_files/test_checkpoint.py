"""Checkpoints: whole or absent, every corruption named, order without a clock."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.common.errors import CheckpointError
from qfleet.run_files import checkpoint
from qfleet.run_files.checkpoint import (
    MANIFEST,
    clean_stray,
    list_checkpoints,
    prune,
    write_checkpoint,
)
from qfleet.run_files.checkpoint_reader import Checkpoint, newest_valid, read_checkpoint

FILES = {"params.safetensors": bytes(range(256)) * 20, "replay-0.qflt": b"abc" * 400, "empty": b""}


def write(root: Path, step: int = 10, generation: int = 1, **files: bytes) -> Path:
    return write_checkpoint(
        root,
        learner_step=step,
        generation=generation,
        files={name: [data] for name, data in (files or FILES).items()},
        manifest={"env_steps": 7, "marks": {"0": [1, 2]}},
    )


def contents(loaded: Checkpoint) -> dict[str, bytes]:
    return {name: bytes(loaded.open(name)) for name in loaded.names}


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_write_then_read_returns_the_same_bytes_and_fields(tmp_path: Path) -> None:
    path = write(tmp_path, step=123, generation=4)

    loaded = read_checkpoint(path)

    assert path.name == "ckpt-000000000123-4"
    assert contents(loaded) == FILES
    assert (loaded.learner_step, loaded.generation) == (123, 4)
    assert loaded.manifest["env_steps"] == 7
    assert loaded.manifest["marks"] == {"0": [1, 2]}
    assert loaded.manifest["files"]["empty"] == {
        "bytes": 0,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    assert names(tmp_path) == {path.name}


def test_read_through_a_link_to_the_directory_works(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoints")
    (tmp_path / "latest").symlink_to(path.relative_to(tmp_path))

    assert read_checkpoint(tmp_path / "latest").path == path.resolve()


def test_write_takes_streams_as_they_come_and_hashes_on_the_way(tmp_path: Path) -> None:
    big = 64 * 2**20
    tracemalloc.start()

    path = write_checkpoint(
        tmp_path,
        learner_step=1,
        generation=1,
        files={"replay-0.qflt": (bytes(2**20) for _ in range(64)), "a": iter([b"b", b"", b"c"])},
        manifest={},
    )
    loaded = read_checkpoint(path)
    view = loaded.open("replay-0.qflt")

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 * 2**20
    assert len(view) == big
    assert loaded.open("a") == b"bc"
    digest = hashlib.sha256(bytes(big)).hexdigest()
    assert loaded.manifest["files"]["replay-0.qflt"] == {"bytes": big, "sha256": digest}


def test_open_after_the_file_has_shrunk_is_refused(tmp_path: Path) -> None:
    loaded = read_checkpoint(write(tmp_path))
    os.truncate(loaded.path / "replay-0.qflt", 3)

    with pytest.raises(CheckpointError, match="holds 3 bytes, the manifest says 1200"):
        loaded.open("replay-0.qflt")
    (loaded.path / "params.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        loaded.open("params.safetensors")


def test_checkpoint_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    own = write(root, 1, 1)
    planted = write(tmp_path / "elsewhere", 2, 2)
    (root / planted.name).symlink_to(planted)
    (tmp_path / "latest").symlink_to(root / planted.name)

    found, skipped = newest_valid(root)

    assert found is not None
    assert found.path == own.resolve()
    assert len(skipped) == 1
    assert "is a link" in skipped[0]
    with pytest.raises(CheckpointError, match="is a link"):
        read_checkpoint(tmp_path / "latest")


@pytest.mark.parametrize("name", [*[n for n in FILES if FILES[n]], MANIFEST])
@pytest.mark.parametrize("cut", ["0", "1", "half", "-1"])
def test_read_truncated_file_is_refused_by_name(tmp_path: Path, name: str, cut: str) -> None:
    file = write(tmp_path) / name
    size = file.stat().st_size
    os.truncate(file, {"0": 0, "1": 1, "half": size // 2, "-1": size - 1}[cut])

    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(file.parent)


@pytest.mark.parametrize("name", ["params.safetensors", "replay-0.qflt", MANIFEST])
def test_read_flipped_bit_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file = write(tmp_path) / name
    original = file.read_bytes()

    for place in range(64):
        data = bytearray(original)
        data[place * (len(data) - 1) // 63] ^= 1 << (place % 8)
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(file.parent)

    file.write_bytes(original)
    assert contents(read_checkpoint(file.parent)) == FILES


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_read_missing_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path)
    (path / name).unlink()

    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        read_checkpoint(path)


def test_read_added_trailing_and_zeroed_contents_are_refused(tmp_path: Path) -> None:
    extra = write(tmp_path, 1, 1)
    (extra / "extra").write_bytes(b"x")
    longer = write(tmp_path, 2, 2)
    with open(longer / "replay-0.qflt", "ab") as file:
        file.write(b"x")
    zeroed = write(tmp_path, 3, 3)
    (zeroed / "replay-0.qflt").write_bytes(bytes(1200))

    with pytest.raises(CheckpointError, match="extra: not listed"):
        read_checkpoint(extra)
    with pytest.raises(CheckpointError, match="holds 1201 bytes, the manifest says 1200"):
        read_checkpoint(longer)
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_checkpoint(zeroed)


@pytest.mark.parametrize("name", ["params.safetensors", MANIFEST])
def test_read_files_swapped_between_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    first = write(tmp_path, 1, 1, **{"params.safetensors": b"one"})
    second = write(tmp_path, 2, 2, **{"params.safetensors": b"two"})
    os.rename(first / name, tmp_path / "moved")
    os.rename(second / name, first / name)
    os.rename(tmp_path / "moved", second / name)

    for path in (first, second):
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_read_renamed_directory_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1, 1)
    os.rename(path, tmp_path / "ckpt-000000000009-9")

    with pytest.raises(CheckpointError, match=r"\(1, 1\)"):
        read_checkpoint(tmp_path / "ckpt-000000000009-9")


def _symlink(file: Path, outside: Path) -> None:
    outside.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(outside)


def _hard_link(file: Path, outside: Path) -> None:
    os.link(file, outside)


def _fifo(file: Path, outside: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _directory(file: Path, outside: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("replace", [_symlink, _hard_link, _fifo, _directory])
@pytest.mark.parametrize("name", ["replay-0.qflt", MANIFEST])
def test_read_anything_but_plain_files_is_refused(
    tmp_path: Path, name: str, replace: Callable[[Path, Path], None]
) -> None:
    path = write(tmp_path)
    replace(path / name, tmp_path / "outside")

    with pytest.raises(CheckpointError):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["../up", "/abs", "a/b", "", ".hidden", MANIFEST, "a\nb", "é"])
def test_write_unusable_file_name_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot name"):
        write(tmp_path, **{name: b"x"})

    assert names(tmp_path) == set()


def _resealed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a manifest with a valid checksum, as an attacker would."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    change(manifest)
    del manifest["manifest_sha256"]
    digest = hashlib.sha256(checkpoint.canonical(manifest)).hexdigest()
    sealed = {**manifest, "manifest_sha256": digest}
    (path / MANIFEST).write_bytes(checkpoint.canonical(sealed))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update(format_version=3), "format version 3, this qfleet reads up to 2"),
        (lambda m: m["files"].update({"../x": m["files"]["empty"]}), "cannot name"),
        (lambda m: m.pop("generation"), "generation"),
        (lambda m: m["files"]["empty"].update(bytes="0"), "malformed"),
        (lambda m: m["files"].update(empty=7), "malformed"),
        (lambda m: m.update(files=[]), "malformed"),
    ],
)
def test_read_hostile_manifest_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    path = write(tmp_path)
    _resealed(path, change)

    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(path)


def test_read_deep_or_huge_manifest_is_refused(tmp_path: Path) -> None:
    deep, huge = write(tmp_path, 1, 1), write(tmp_path, 2, 2)
    (deep / MANIFEST).write_bytes(b"[" * 200_000)
    os.truncate(huge / MANIFEST, 2**40)  # sparse

    with pytest.raises(CheckpointError, match="corrupt"):
        read_checkpoint(deep)
    with pytest.raises(CheckpointError, match="no manifest"):
        read_checkpoint(huge)


def test_write_reserved_manifest_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="generation"):
        write_checkpoint(
            tmp_path, learner_step=1, generation=1, files={}, manifest={"generation": 3}
        )
    assert names(tmp_path) == set()


def test_write_same_generation_and_step_twice_is_refused_and_keeps_the_first(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, 1, 1, a=b"first")

    with pytest.raises(CheckpointError, match="exists already"):
        write(tmp_path, 1, 1, a=b"second")

    assert contents(read_checkpoint(path)) == {"a": b"first"}


STEPS_BEFORE_RENAME = len(FILES) + 2
"""Synced before the rename: each file, the manifest, the directory."""


class _Crash(BaseException):
    """Stands for the process ending: no `except Exception` catches it."""


@pytest.mark.parametrize("crash_at", range(STEPS_BEFORE_RENAME + 1))
@pytest.mark.parametrize("function", ["fsync", "rename"])
def test_write_crash_at_any_step_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int, function: str
) -> None:
    old = write(tmp_path, 1, 1, a=b"old")
    calls = 0
    original = getattr(os, function)

    def crashing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > crash_at or function == "rename":
            raise _Crash
        return original(*args)

    monkeypatch.setattr(os, function, crashing)
    # A killed process removes nothing, so the clean-up must not be what saves us.
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *args, **kwargs: None)
    with pytest.raises(_Crash):
        write(tmp_path, 2, 2)
    monkeypatch.undo()

    found, skipped = newest_valid(tmp_path)
    is_complete = function == "fsync" and crash_at == STEPS_BEFORE_RENAME
    assert found is not None
    assert contents(found) == (FILES if is_complete else {"a": b"old"})
    assert skipped == []
    clean_stray(tmp_path)
    assert names(tmp_path) == {old.name} | ({"ckpt-000000000002-2"} if is_complete else set())


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("fail_at", range(STEPS_BEFORE_RENAME))
def test_write_failing_disk_cleans_up_and_keeps_the_previous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, fail_at: int
) -> None:
    old = write(tmp_path, 1, 1, a=b"old")
    calls = 0

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > fail_at:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(CheckpointError, match=os.strerror(error)):
        write(tmp_path, 2, 2)
    monkeypatch.undo()

    assert names(tmp_path) == {old.name}
    assert contents(read_checkpoint(old)) == {"a": b"old"}
    assert contents(read_checkpoint(write(tmp_path, 2, 2))) == FILES  # it works again


def test_write_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Short:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def fileno(self) -> int:
            return int(self.file.fileno())

        def write(self, block: memoryview) -> int:
            return int(self.file.write(block[:100]))

    def short_open(path: Any, mode: str, buffering: int) -> Any:
        file = open(path, mode, buffering)  # noqa: SIM115  (the caller closes it)
        return Short(file) if mode == "xb" else file

    monkeypatch.setattr(checkpoint, "open", short_open, raising=False)

    path = write(tmp_path)

    monkeypatch.undo()
    assert contents(read_checkpoint(path)) == FILES


def test_newest_valid_orders_by_generation_and_ignores_the_clock(tmp_path: Path) -> None:
    # After a rollback a later generation has fewer steps; times are set against the order.
    for age, (step, generation) in enumerate([(500, 1), (900, 2), (300, 10), (200, 9)]):
        os.utime(write(tmp_path, step, generation), (10_000 - age, 10_000 - age))

    found, skipped = newest_valid(tmp_path)

    assert found is not None
    assert (found.learner_step, found.generation) == (300, 10)
    assert skipped == []
    assert [path.name.split("-")[2] for path in list_checkpoints(tmp_path)] == ["1", "2", "9", "10"]


def test_newest_valid_falls_back_and_names_what_it_skipped(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    for generation in (2, 3):
        os.truncate(write(tmp_path, generation, generation) / "replay-0.qflt", 5)

    found, skipped = newest_valid(tmp_path)

    assert found is not None
    assert found.generation == 1
    assert ["-3/replay-0.qflt" in skipped[0], "-2/replay-0.qflt" in skipped[1]] == [True, True]
    assert newest_valid(tmp_path / "absent") == (None, [])


def test_prune_keeps_the_newest_and_reads_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path, step, step) for step in range(1, 6)]
    monkeypatch.setattr(checkpoint, "open", None, raising=False)

    assert prune(tmp_path, 2, paths[4]) == paths[:3]
    assert names(tmp_path) == {path.name for path in paths[3:]}
    assert prune(tmp_path, 2, paths[4]) == []


def test_prune_never_removes_what_was_just_written(tmp_path: Path) -> None:
    paths = [write(tmp_path, step, step) for step in range(1, 6)]

    assert prune(tmp_path, 2, paths[0]) == [paths[1], paths[2]]

    assert names(tmp_path) == {paths[0].name, paths[3].name, paths[4].name}


def test_prune_of_a_link_removes_the_link_alone(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", 1, 1)
    root = tmp_path / "checkpoints"
    newest = write(root, 2, 2)
    (root / elsewhere.name).symlink_to(elsewhere)

    prune(root, 1, newest)

    assert names(root) == {newest.name}
    assert contents(read_checkpoint(elsewhere)) == FILES


def test_prune_keep_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_checkpoints"):
        prune(tmp_path, 0, tmp_path)


def test_clean_stray_removes_attempts_only(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / ".tmp-ckpt-000000000002-2").mkdir()
    (tmp_path / ".tmp-ckpt-000000000002-2" / "a").write_bytes(b"x")
    (tmp_path / ".tmp-generation.json").write_bytes(b"x")
    (tmp_path / ".tmp-link").symlink_to(path)

    assert len(clean_stray(tmp_path)) == 3

    assert names(tmp_path) == {path.name}
    read_checkpoint(path)
    assert clean_stray(tmp_path / "absent") == []

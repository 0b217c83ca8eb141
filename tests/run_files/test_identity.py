"""Numbers that a run hands out once, over processes, crashes and failed writes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from qfleet.common.errors import CheckpointError
from qfleet.run_files.identity import IDENTITY_FILE, RunIdentity


def test_numbers_grow_over_objects_as_over_processes(tmp_path: Path) -> None:
    given = []
    for _ in range(3):
        identity = RunIdentity(tmp_path)
        given.append((identity.next_process(), *(identity.next_generation() for _ in range(2))))

    assert given == [(0, 1, 2), (1, 3, 4), (2, 5, 6)]
    assert json.loads((tmp_path / IDENTITY_FILE).read_text()) == {"processes": 3, "generation": 6}


def test_number_is_on_disk_and_synced_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noting)

    RunIdentity(tmp_path).next_generation()

    assert [Path(path).name for path in synced] == [f".tmp-{IDENTITY_FILE}", tmp_path.name]


def test_number_that_cannot_be_written_is_not_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = RunIdentity(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space"):
            identity.next_generation()
    assert list(tmp_path.iterdir()) == []
    assert identity.next_generation() == 1


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"processes": 1}', '{"generation": "x"}'])
def test_without_its_file_the_checkpoints_bound_the_numbers(
    tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / IDENTITY_FILE).write_text(text)
    (tmp_path / "checkpoints" / "ckpt-000000000001-7").mkdir(parents=True)

    identity = RunIdentity(tmp_path)

    assert identity.next_generation() == 8
    assert identity.next_process(at_least=5) == 5
    assert RunIdentity(tmp_path).next_process() == 6

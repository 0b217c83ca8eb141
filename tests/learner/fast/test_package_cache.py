import json
import multiprocessing
import stat
from pathlib import Path

import pytest

from qfleet.common.errors import InvariantError, WaitTimeoutError
from qfleet.learner.fast import notices
from qfleet.learner.fast.package_cache import PackageCache, cache_directory, package_key

DESCRIPTION = {"loss": "huber", "n_updates": 10, "network": {"hidden_sizes": [8]}}
KEY = package_key(DESCRIPTION)


def write_package(path: Path) -> None:
    path.write_bytes(b"machine code")
    path.with_suffix(".proof").write_bytes(b"inputs and results")


def must_not_build(path: Path) -> None:
    raise AssertionError("built although the package is there")


def test_cache_directory_follows_the_variable_else_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QFLEET_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path / "blocks"
    monkeypatch.delenv("QFLEET_CACHE")
    monkeypatch.setenv("HOME", "/home/ada")
    assert cache_directory() == Path("/home/ada/.cache/qfleet/blocks")


def test_package_key_is_equal_in_any_order_and_differs_in_any_value() -> None:
    reordered = dict(reversed(DESCRIPTION.items()))
    assert package_key(reordered) == KEY
    changed = [{**DESCRIPTION, "loss": "mse"}, {**DESCRIPTION, "n_updates": 5}]
    changed.append({**DESCRIPTION, "network": {"hidden_sizes": [9]}})
    assert len({KEY, *map(package_key, changed)}) == 4


def test_get_or_build_missing_package_builds_once_and_keeps_it(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path / "blocks")
    assert cache.find(KEY) is None
    path = cache.get_or_build(DESCRIPTION, write_package)
    assert path.read_bytes() == b"machine code"
    assert cache.get_or_build(DESCRIPTION, must_not_build) == path
    assert cache.find(KEY) == path
    cache.check_valid()
    names = sorted(p.name for p in cache.directory.iterdir())
    assert names == [f"{KEY}.json", f"{KEY}.lock", f"{KEY}.proof", f"{KEY}.pt2"]
    assert json.loads((cache.directory / f"{KEY}.json").read_text())["compiled_for"] == DESCRIPTION
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", [b"", b"machine cod", b"machine codE", b"machine code\0"])
def test_find_damaged_package_is_none_and_the_next_build_replaces_it(
    tmp_path: Path, damage: bytes
) -> None:
    cache = PackageCache(tmp_path)
    cache.get_or_build(DESCRIPTION, write_package).write_bytes(damage)
    assert cache.find(KEY) is None
    with pytest.raises(InvariantError, match=KEY):
        cache.check_valid()
    cache.get_or_build(DESCRIPTION, write_package)
    assert cache.find(KEY) is not None
    cache.check_valid()


@pytest.mark.parametrize("entry", ["", "[]", "{}", "not json", '{"sha256": 3}', '{"sha256": {}}'])
def test_find_unreadable_entry_is_none(tmp_path: Path, entry: str) -> None:
    cache = PackageCache(tmp_path)
    cache.get_or_build(DESCRIPTION, write_package)
    (tmp_path / f"{KEY}.json").write_text(entry)
    assert cache.find(KEY) is None


def test_get_or_build_failing_build_leaves_nothing_to_find(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path)

    def half(path: Path) -> None:
        path.write_bytes(b"machine")
        raise RuntimeError("the compiler ended")

    with pytest.raises(RuntimeError, match="the compiler ended"):
        cache.get_or_build(DESCRIPTION, half)
    assert cache.find(KEY) is None
    assert [p.name for p in tmp_path.iterdir()] == [f"{KEY}.lock"]


def test_get_or_build_removes_what_an_ended_build_left(tmp_path: Path) -> None:
    left_over = tmp_path / f".{KEY}-x1"
    left_over.mkdir()
    (left_over / "package.pt2").write_bytes(b"machine")
    PackageCache(tmp_path).get_or_build(DESCRIPTION, write_package)
    assert not left_over.exists()


def test_discard_makes_a_package_unknown(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path)
    cache.get_or_build(DESCRIPTION, write_package)
    cache.discard(KEY)
    assert cache.find(KEY) is None
    assert [p.name for p in tmp_path.iterdir()] == [f"{KEY}.lock"]
    cache.discard(KEY)


def test_get_or_build_without_a_proof_leaves_nothing_to_find(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"package\.proof"):
        cache.get_or_build(DESCRIPTION, lambda path: path.write_bytes(b"machine code") and None)
    assert cache.find(KEY) is None


@pytest.mark.parametrize("damage", [b"inputs and resultS", None])
def test_find_package_without_its_whole_proof_is_none(tmp_path: Path, damage: bytes | None) -> None:
    cache = PackageCache(tmp_path)
    proof = cache.get_or_build(DESCRIPTION, write_package).with_suffix(".proof")
    if damage is None:
        proof.unlink()
    else:
        proof.write_bytes(damage)
    assert cache.find(KEY) is None


def test_find_or_remove_removes_a_damaged_package_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_said", set())
    cache = PackageCache(tmp_path)
    path = cache.get_or_build(DESCRIPTION, write_package)
    assert cache.find_or_remove(KEY) == path
    path.write_bytes(b"machine")
    assert cache.find_or_remove(KEY) is None
    assert cache.find_or_remove(KEY) is None
    said = f"qfleet: the compiled learner block in {tmp_path} is removed: is damaged\n"
    assert capsys.readouterr().err == said
    assert not path.exists()


def test_get_or_build_held_lock_times_out_and_names_the_package(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path)

    def build_again(path: Path) -> None:
        with pytest.raises(WaitTimeoutError, match=f"waited 0 s .*{KEY}"):
            PackageCache(tmp_path).get_or_build(DESCRIPTION, must_not_build, timeout_s=0.0)
        write_package(path)

    cache.get_or_build(DESCRIPTION, build_again)
    assert cache.find(KEY) is not None


def _build_and_count(directory: Path, counter: Path) -> None:
    def build(path: Path) -> None:
        with counter.open("a") as file:
            file.write("built\n")
        write_package(path)

    PackageCache(directory).get_or_build(DESCRIPTION, build)


def test_get_or_build_from_several_processes_builds_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    counter = tmp_path / "count"
    arguments = (tmp_path / "blocks", counter)
    processes = [context.Process(target=_build_and_count, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert counter.read_text() == "built\n"

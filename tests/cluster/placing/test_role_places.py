"""Versions and memory that roles found on their hosts, against the driver's and their needs."""

from __future__ import annotations

import pytest

from qfleet.cluster.placing.role_places import RolePlaces
from qfleet.common.errors import ResourcesError
from qfleet.common.role_place import memory_bytes, read_logs, role_place, versions

VERSIONS = {"python": "3.11.2", "qfleet": "0.1.0", "ray": "2.60.0", "torch": "2.13.0"}


def place(host="h1", memory=2**30, **changed):
    return {
        "node_id": f"node-of-{host}",
        "host": host,
        "pid": 7,
        "memory_bytes": memory,
        "versions": VERSIONS | changed,
        "logs": [],
    }


@pytest.fixture
def places(monkeypatch):
    monkeypatch.setattr(
        "qfleet.cluster.placing.role_places.role_place", lambda node_id: place("here")
    )
    return RolePlaces()


def test_roles_with_the_drivers_versions_pass(places):
    places.take("learner", place())
    places.take("actor-0-0", place("h2"))
    places.check_versions()
    assert places.differing("learner") == ""


def test_other_versions_are_a_table_of_the_roles_that_have_them(places):
    places.take("learner", place())
    places.take("actor-3-0", place("h2", torch="2.10.0"))
    places.take("replay-0", place("box", python="3.12.1", qfleet="0.0.9"))
    with pytest.raises(ResourcesError) as error:
        places.check_versions()
    assert str(error.value).splitlines()[1:] == [
        "  role       host  python  qfleet  ray     torch",
        "  driver     here  3.11.2  0.1.0   2.60.0  2.13.0",
        "  actor-3-0  h2    3.11.2  0.1.0   2.60.0  2.10.0",
        "  replay-0   box   3.12.1  0.0.9   2.60.0  2.13.0",
    ]
    assert error.value.exit_code == 2
    assert places.differing("actor-3-0") == "host h2 has torch 2.10.0 (here 2.13.0)"
    places.forget("actor-3-0")
    places.take("replay-0", place("box"))  # another process, in order
    places.check_versions()


def test_memory_is_that_of_the_host_that_holds_the_shards(places):
    for shard, host in enumerate(["h1", "h1", "h2"]):
        places.take(f"replay-{shard}", place(host))
    needed = {f"replay-{shard}": 2**29 for shard in range(3)}
    places.check_memory(needed)  # just fits on h1
    with pytest.raises(ResourcesError) as error:
        places.check_memory(needed | {"replay-1": 2**29 + 2**28})
    assert str(error.value).splitlines()[1:] == [
        "  host  roles              need GiB  has GiB",
        "  h1    replay-0 replay-1  1.25      1.00",
    ]


def test_own_place_tells_what_is_installed_without_importing_it():
    told = role_place("node")
    assert told["versions"] == versions()
    assert list(told["versions"]) == ["python", "qfleet", "ray", "torch"]
    assert "+" not in told["versions"]["torch"]
    assert 2**28 < told["memory_bytes"] == memory_bytes()


def test_logs_are_read_on_from_where_one_was(tmp_path):
    path = tmp_path / "worker.out"
    assert read_logs([str(path)], [0]) == [b""]
    path.write_bytes(b"one\n")
    assert read_logs([str(path)], [0]) == [b"one\n"]
    with open(path, "ab") as file:
        file.write(b"two\n")
    assert read_logs([str(path), str(path)], [4, 8]) == [b"two\n", b""]

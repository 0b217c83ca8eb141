"""Logs of roles on this host and on others, against roles by hand."""

from __future__ import annotations

import pytest

from qfleet.cluster import answers
from qfleet.cluster.placing.role_places import RolePlace
from qfleet.cluster.telling import role_logs
from qfleet.cluster.telling.role_logs import RoleLogs

HEAD = "actor-1-0: process 7 on {host}, python 3.11.2\n"


def place(host, *paths):
    return RolePlace("node", host, 7, 2**30, {"python": "3.11.2"}, tuple(map(str, paths)))


@pytest.fixture
def ray(hand_ray):
    return hand_ray(answers, role_logs)


def test_role_of_this_host_is_read_to_its_end_also_when_it_is_dead(tmp_path, ray, new_handle):
    out, err, handle = tmp_path / "w.out", tmp_path / "w.err", new_handle()
    out.write_text("hello\n")
    logs = RoleLogs(tmp_path / "logs", "here")
    logs.follow("actor-1-0", handle, place("here", out, err))
    logs.collect(0.0)
    err.write_text("Traceback\n")
    logs.collect(1.0)  # too soon
    text = (tmp_path / "logs" / "actor-1-0.log").read_text()
    assert text == HEAD.format(host="here") + "hello\n"
    logs.end("actor-1-0")
    assert (tmp_path / "logs" / "actor-1-0.log").read_text() == text + "Traceback\n"
    assert handle.calls == []


def test_role_of_another_host_is_asked_and_goes_on_where_it_was(tmp_path, ray, new_handle):
    handle, logs = new_handle(), RoleLogs(tmp_path / "logs", "here")
    logs.follow("actor-1-0", handle, place("there", "/w.out", "/w.err"))
    for now_s, brought in enumerate([[b"one\n", b""], ray.lost, [b"two\n", b"!\n"], ray.dead]):
        logs.collect(10.0 * now_s)
        [call] = handle.open("written")
        call.answer(brought)
        logs.collect(10.0 * now_s + 5.0)
    asked = [call.arguments for call in handle.calls]
    assert asked[0][0] == ["/w.out", "/w.err"]
    text = (tmp_path / "logs" / "actor-1-0.log").read_text()
    assert text == HEAD.format(host="there") + "one\ntwo\n!\n"


def test_log_is_bounded_and_a_run_without_a_folder_has_none(tmp_path, ray, new_handle, monkeypatch):
    monkeypatch.setattr(role_logs, "MAX_BYTES", 100)
    out = tmp_path / "w.out"
    out.write_bytes(b"x" * 500)
    logs = RoleLogs(tmp_path / "logs", "here")
    logs.follow("actor-1-0", new_handle(), place("here", out))
    for now_s in (0.0, 10.0):
        out.write_bytes(out.read_bytes() + b"y" * 500)
        logs.collect(now_s)
    text = (tmp_path / "logs" / "actor-1-0.log").read_text()
    assert text == HEAD.format(host="here") + "\n… more than 100 bytes are left out\n"

    nowhere = RoleLogs(None, "here")
    nowhere.follow("actor-1-0", new_handle(), place("here", out))
    nowhere.collect(0.0)
    nowhere.close()

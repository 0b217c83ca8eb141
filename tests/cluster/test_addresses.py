"""An address that is none, answers nothing or refuses us is told apart, within seconds."""

from __future__ import annotations

import os
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import ray

from qfleet.cluster import addresses
from qfleet.cluster.addresses import PROBE_TIMEOUT_S, join, probe, resolve
from qfleet.common.errors import ResourcesError

pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def server():
    """Listens, and does `answer(connection)` with whoever comes."""
    opened = []

    def listen(answer):
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        opened.append(listening)

        def serve():
            connection, _ = listening.accept()
            opened.append(connection)
            answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listening.getsockname()[1]}"

    yield listen
    for one in opened:
        one.close()


def refused(address):
    began_s = time.monotonic()
    with pytest.raises(ResourcesError) as raised:
        probe(address, address)
    assert time.monotonic() - began_s < PROBE_TIMEOUT_S + 2.0
    assert raised.value.exit_code == 2
    assert "ray start --head" in str(raised.value)
    return str(raised.value)


def test_probe_of_a_port_that_nobody_listens_at():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert f"at {address} (ray.address): " in refused(address)
    assert "refused" in refused(address)


def test_probe_of_one_that_listens_and_says_nothing(server):
    assert "nothing came within 2 s" in refused(server(lambda connection: None))


def test_probe_of_one_that_hangs_up(server):
    assert "it closed the connection" in refused(
        server(lambda connection: (connection.recv(64), connection.close()))
    )


def test_probe_of_a_web_server_as_of_the_dashboard(server):
    def answer(connection):
        connection.recv(64)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    said = refused(server(answer))
    assert "a web server answers; give host and port of a `ray start --head` (6379" in said


def test_probe_of_one_that_speaks_http2(server):
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    address = server(lambda connection: (connection.recv(24), connection.sendall(settings)))
    assert probe(address, address) is None


@pytest.mark.parametrize("address", ["nonsense", "no.such.host.invalid:6379"])
def test_resolve_or_probe_of_no_address_is_exit_2(address):
    with pytest.raises(ResourcesError, match=r"ray\.address"):
        probe(resolve(address)[0], address)


def joined_by(init):
    fake = SimpleNamespace(init=init, exceptions=ray.exceptions)
    with pytest.raises(ResourcesError) as raised:
        join(fake, "10.0.0.1:6379", {})
    return str(raised.value)


def test_join_with_a_wrong_token_says_token(capfd):
    def init(**_):
        os.write(2, b"gcs_client.cc:210: Unauthenticated: InvalidAuthToken: missing or incorrect\n")
        raise ConnectionError("Failed to connect to Ray cluster")

    text = joined_by(init)
    assert "refuses our token" in text
    assert "RAY_AUTH_TOKEN" in text
    assert "ray start" not in text
    assert capfd.readouterr().err == ""  # what native code wrote is not the user's matter


def test_join_without_a_token_says_where_it_belongs():
    def init(**_):
        raise ray.exceptions.AuthenticationError(
            "RAY_AUTH_TOKEN_PATH is set but file cannot be opened or is empty: /dev/null"
        )

    text = joined_by(init)
    assert "at 10.0.0.1:6379 refuses who has no token: give this host the token" in text
    assert "RAY_AUTH_TOKEN_PATH" in text


def test_join_that_fails_otherwise_shows_the_last_words():
    def init(**_):
        os.write(2, b"first\ngcs_client.cc:1: certificate expired\n")
        raise ConnectionError("Failed to connect")

    text = joined_by(init)
    assert "could not be joined: gcs_client.cc:1: certificate expired; " in text
    assert "`ray start --head` (6379 by default)" in text


def test_join_of_one_that_goes_away_meanwhile_ends_soon(monkeypatch):
    monkeypatch.setattr(addresses, "LOST_AFTER_S", 0.5)
    ended = threading.Event()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    began_s = time.monotonic()
    # As Ray waits for a GCS that is gone: in a call that nothing ends.
    fake = SimpleNamespace(init=lambda **_: ended.wait(60.0), exceptions=ray.exceptions)
    with pytest.raises(ResourcesError, match="could not be joined: it is gone") as raised:
        join(fake, address, {})
    ended.set()
    assert raised.value.exit_code == 2
    assert time.monotonic() - began_s < 10.0


def test_join_leaves_stderr_as_it_was(capfd):
    seen = []
    join(SimpleNamespace(init=lambda **options: seen.append(options)), "h:1", {"namespace": "q"})
    os.write(2, b"after\n")
    assert seen == [{"address": "h:1", "namespace": "q"}]
    assert capfd.readouterr().err == "after\n"

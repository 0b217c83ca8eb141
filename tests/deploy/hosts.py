"""Several hosts on one machine: network, process and mount namespaces on a bridge of their own.

Needs root and Linux. A host has its own name, address, Ray sessions, /dev/shm, home directory and
processes; the other files are shared. Ending a host's first process ends the host, as a power cut
does; `unplug` leaves it alive with nobody to talk to.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SETUP = (
    "mkdir -p /tmp/ray; mount -t tmpfs -o size=1g,mode=1777 tmpfs /tmp/ray; "
    "mount -t tmpfs -o size=50% tmpfs /dev/shm; "
    'mount --bind "$0" /etc/hosts; mount --bind "$0.resolv" /etc/resolv.conf; '
    'hostname "$4"; touch "$1"; exec "$2" -c "$3"'
)
INIT = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody else buries what was left alone
while True:
    signal.pause()
"""


class Host:
    """One of several; `run` and `start` act on it."""

    def __init__(
        self, namespace: str, name: str, address: str, port: tuple[str, str], folder: Path
    ) -> None:
        self.namespace, self.name, self.address, self.folder = namespace, name, address, folder
        self._port = port
        self.home = folder / namespace
        self.home.mkdir()
        self.environment = {
            "HOME": str(self.home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "OMP_NUM_THREADS": "1",
        }
        self._started = 0
        ready = self.home / "up"
        self._first = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),  # a host does not outlive its test
                *("ip", "netns", "exec", namespace),
                *("unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"),
                *("sh", "-c", SETUP, str(folder / "hosts"), str(ready), sys.executable, INIT, name),
            ],
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert self._first.poll() is None, "a host needs root"
            assert time.monotonic() < deadline, "a host did not start in time"
            time.sleep(0.05)
        [self._pid] = (
            Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text().split()
        )

    def give_token(self, token: str) -> None:
        """Where Ray looks for it, readable by its owner only."""
        file = self.home / ".ray" / "auth_token"
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.touch(0o600)
        file.write_text(token)

    def start(self, command: str, **changes: str) -> tuple[subprocess.Popen[str], Path]:
        """A command of this host's shell and the file with its output; ends with the host."""
        self._started += 1
        output = self.home / f"output-{self._started}"
        process = subprocess.Popen(
            [
                *("nsenter", "--target", self._pid, f"--wd={self.home}"),
                *("--mount", "--uts", "--pid", "--net"),
                *("sh", "-c", f"exec {command}"),
            ],
            env={**self.environment, **changes},
            stdin=subprocess.DEVNULL,
            stdout=output.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
        )
        return process, output

    def run(self, command: str, timeout_s: float = 120.0, **changes: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        process, output = self.start(command, **changes)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{command} takes too long:\n{output.read_text()}") from error
        finally:
            process.kill()
        return process.returncode, output.read_text()

    def unplug(self) -> None:
        """Nothing that is sent to this host arrives, nor what it sends."""
        switch, port = self._port
        ip("-n", switch, "link", "set", port, "down")

    def plug_in(self) -> None:
        """The inverse of `unplug`."""
        switch, port = self._port
        ip("-n", switch, "link", "set", port, "up")

    def end(self) -> None:
        """Every process of this host, at once."""
        self._first.kill()
        self._first.wait(30)


def ip(*words: str) -> None:
    """One call of iproute2's program."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """So many hosts that reach one another, named host1, host2, … and, the first one, head."""
    prefix = f"qf{os.getpid()}"
    switch = f"{prefix}s"
    made: list[Host] = []
    names: list[str] = [switch]
    addresses = [f"10.88.0.{1 + index}" for index in range(count)]
    lines = [f"{address} host{1 + index}" for index, address in enumerate(addresses)]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, "10.88.0.1 head", ""]))
    # Whoever asks for a name that no file knows is refused at once.
    (folder / "hosts.resolv").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    try:
        # A namespace of its own: a firewall of this machine has no say in there.
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for index, address in enumerate(addresses):
            name, port = f"{prefix}h{1 + index}", f"port{1 + index}"
            ip("netns", "add", name)
            names.append(name)
            to_name = ("peer", "name", "eth0", "netns", name)
            ip("-n", switch, "link", "add", port, "type", "veth", *to_name)
            ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")
            # Ray finds its own address by asking for the way to somewhere.
            ip("-n", name, "route", "add", "default", "dev", "eth0")
            made.append(Host(name, f"host{1 + index}", address, (switch, port), folder))
        yield made
    finally:
        for host in made:
            host.end()
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

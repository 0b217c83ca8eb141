"""What every test needs, in this process and in those that it starts."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qfleet.cluster.exposure import ensure_token
from qfleet.common import user_code

_CACHE = tempfile.TemporaryDirectory(prefix="qfleet-test-cache-")
# Compiled packages of this machine's user must not decide which bits a test computes.
os.environ["QFLEET_CACHE"] = _CACHE.name
# Ray reads how it authenticates once in a process, whoever touches it first.
ensure_token()
# Under nohup it would be ignored, in the processes that tests start as well.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


RAY_FILES = ("test_ray_", "test_hosts", "test_commands.py", "test_exposure.py", "test_programs.py")
PACKAGE_FILES = ("test_backends.py", "test_package_backend.py", "test_lockstep_path.py")


def group_of(file: str) -> str:
    """Whose tests run one after the other on one worker: a file's, but for two larger groups.

    Two clusters at once are more than two cores hold, except beside `test_ray_ends.py`, which
    mostly waits for what ends. The package that some files need is built once.
    """
    name = file.rpartition("/")[2]
    if name == "test_ray_ends.py":
        return "ends"
    if name.startswith(RAY_FILES):
        return "ray"
    return "package" if name in PACKAGE_FILES else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `-n 2 --dist loadscope`; xdist 3.8's own groups are not heard by pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0])

    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first."""
    for item in items:
        starts_ray = item.get_closest_marker("ray") is not None
        assert not starts_ray or group_of(item.path.name) in ("ray", "ends"), item.nodeid
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(autouse=True)
def search_path_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A role's shell in this process must not decide where later tests find their modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(user_code, "_is_forbidden", user_code._is_forbidden)
    monkeypatch.setattr(user_code, "_added", list(user_code._added))


class Call:
    """One call of a handle by hand; serves as the reference to its answer."""

    def __init__(self, method: str, arguments: tuple[Any, ...]) -> None:
        self.method, self.arguments = method, arguments
        self.outcome: list[Any] = []

    def answer(self, value: Any) -> None:
        """Bring `value`, or raise it where it is an exception."""
        self.outcome = [value]


class Handle:
    """A role whose answers a test gives; `calls` are all that were made, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any, **options: Any) -> Call:
            self.calls.append(Call(method, (*arguments, *options.values())))
            return self.calls[-1]

        return SimpleNamespace(remote=remote, options=lambda **_: SimpleNamespace(remote=remote))

    def open(self, method: str) -> list[Call]:
        """Calls of that method without an answer."""
        return [call for call in self.calls if call.method == method and not call.outcome]


class HandRay:
    """`ray.wait` and `ray.get` over calls by hand, and a clock that runs only while one waits."""

    def __init__(self) -> None:
        import ray

        self.exceptions = ray.exceptions
        self.now_s = 1000.0
        self.killed: list[Any] = []
        self.on_idle: Callable[[], None] = lambda: None
        """Called when a wait finds nothing, after its time has passed."""

    def kill(self, handle: Any, *, no_restart: bool) -> None:
        self.killed.append(handle)

    def put(self, value: Any) -> Call:
        call = Call("put", ())
        call.answer(value)
        return call

    def wait(self, refs: list[Call], *, num_returns: int = 1, timeout: float, **_: Any) -> Any:
        ready = [ref for ref in refs if ref.outcome][:num_returns]
        if not ready and timeout:
            self.now_s += max(timeout, 1e-6)  # below that a float of this size does not move
            self.on_idle()
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, refs: Any, timeout: float) -> Any:
        if isinstance(refs, list):
            return [self.get(ref, timeout) for ref in refs]
        if not refs.outcome and not self.wait([refs], timeout=timeout)[0] and not refs.outcome:
            raise self.exceptions.GetTimeoutError("by hand")
        [value] = refs.outcome
        if isinstance(value, BaseException):
            raise value
        return value

    @property
    def lost(self) -> BaseException:
        """What Ray says of a call that may or may not have come."""
        return self.exceptions.ActorUnavailableError("by hand", None)

    @property
    def dead(self) -> BaseException:
        """What Ray says of a call to a role that is gone."""
        return self.exceptions.ActorDiedError()


@pytest.fixture
def hand_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], HandRay]:
    """Puts a `HandRay` and its clock in the place of those of the modules named."""
    by_hand = HandRay()

    def into(*modules: ModuleType) -> HandRay:
        for module in modules:
            if hasattr(module, "import_ray"):
                monkeypatch.setattr(module, "import_ray", lambda: by_hand)
            elif hasattr(module, "ray"):
                monkeypatch.setattr(module, "ray", by_hand)
            if hasattr(module, "time"):
                clock = SimpleNamespace(
                    monotonic=lambda: by_hand.now_s,
                    perf_counter=lambda: by_hand.now_s,
                    sleep=lambda seconds: by_hand.wait([], timeout=seconds),
                )
                monkeypatch.setattr(module, "time", clock)
        return by_hand

    return into


@pytest.fixture
def new_handle() -> type[Handle]:
    """Makes a role that is played by hand."""
    return Handle

"""Signals become a note for the main loop; the handlers that were there come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from qfleet.run import stop_signals
from qfleet.run.stop_signals import PATIENCE_S, HangBrokenError, StopSignal, noticed

SOURCE = Path(__file__).resolve().parents[2] / "src"


def test_stop_signal_before_anything_is_quiet():
    assert (StopSignal().name, StopSignal().exit_code) == (None, 0)


@pytest.mark.parametrize(
    ("number", "name", "exit_code"),
    [
        (signal.SIGHUP, "SIGHUP", 129),
        (signal.SIGINT, "SIGINT", 130),
        (signal.SIGTERM, "SIGTERM", 143),
    ],
)
def test_noticed_signal_is_noted_and_nothing_is_interrupted(number, name, exit_code):
    with noticed() as stop:
        os.kill(os.getpid(), number)
        assert (stop.name, stop.exit_code) == (name, exit_code)
    assert (stop.name, stop.exit_code) == (name, exit_code)


def test_noticed_restores_the_former_handlers_also_after_an_error():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = [signal.getsignal(number) for number in numbers]
    with noticed() as stop:
        assert [signal.getsignal(number) for number in numbers] == [stop.note] * 3
    assert [signal.getsignal(number) for number in numbers] == former
    with pytest.raises(ZeroDivisionError), noticed():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in numbers] == former


def test_noticed_in_another_thread_runs_without_handlers():
    former = signal.getsignal(signal.SIGINT)
    seen = []

    def body():
        with noticed() as stop:
            seen.append((stop.name, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(None, former)]


def test_signal_while_interrupting_is_noted_and_raises():
    def start():
        with stop.interrupting():
            os.kill(os.getpid(), signal.SIGTERM)

    with noticed() as stop:
        with pytest.raises(SystemExit) as raised:
            start()
        assert raised.value.code == 143
        assert stop.name == "SIGTERM"
    with noticed() as stop:
        with stop.interrupting():
            pass
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"
        with pytest.raises(SystemExit) as raised:
            start()  # not even begun
        assert (raised.value.code, stop.name) == (130, "SIGINT")


def test_hangup_that_nohup_ignores_stays_ignored():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with noticed() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.number == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, former)


def test_listen_takes_the_signals_back():
    def of_another(number, frame):
        raise AssertionError("not asked")

    with noticed() as stop:
        signal.signal(signal.SIGTERM, of_another)
        stop.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"


def test_second_signal_ends_the_process_at_once():
    code = """
        import os, signal
        from qfleet.run.stop_signals import noticed
        with noticed():
            os.kill(os.getpid(), signal.SIGINT)
            print("still here", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            print("never", flush=True)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        timeout=30,
    )
    assert result.returncode == 128 + signal.SIGTERM
    assert result.stdout == "still here\n"


def test_end_wait_gives_a_wait_some_seconds_after_the_signal(monkeypatch):
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(stop_signals, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    stop = StopSignal()
    stop.end_wait(0.0)
    stop.note(signal.SIGTERM, None)
    clock.now_s += PATIENCE_S
    stop.end_wait(0.0)
    clock.now_s += 0.1
    stop.end_wait(clock.now_s - 1.0)  # a wait that began after the signal has its own time
    with pytest.raises(SystemExit) as raised:
        stop.end_wait(99.0)
    assert raised.value.code == 143


def test_breaking_hangs_breaks_off_what_gets_nowhere_after_a_signal(monkeypatch):
    monkeypatch.setattr(stop_signals, "BREAK_AFTER_S", 0.1)
    seen = []

    def play():
        os.kill(os.getpid(), signal.SIGTERM)
        ends_s = time.monotonic() + 0.5
        while time.monotonic() < ends_s:  # it gets somewhere: nothing is broken off
            seen.append(None)
            time.sleep(0.01)
        try:
            time.sleep(10.0)
        except Exception:  # an environment that swallows what it can
            seen.append("swallowed")

    with noticed() as stop, stop.breaking_hangs(lambda: len(seen)), pytest.raises(HangBrokenError):
        play()
    assert "swallowed" not in seen
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_breaking_hangs_without_a_signal_leaves_a_slow_step_alone(monkeypatch):
    monkeypatch.setattr(stop_signals, "BREAK_AFTER_S", 0.05)
    with noticed() as stop, stop.breaking_hangs(lambda: 0):
        time.sleep(0.3)
    assert stop.name is None

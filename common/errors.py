"""Every exception type that qfleet raises on purpose, and the exit code each one ends with.

Each is constructible from a single message string: Ray ships exceptions by pickle and a
multi-argument constructor would hide the cause.
"""

from __future__ import annotations


class QfleetError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command ends with."""

    exit_code = 1


class ConfigError(QfleetError, ValueError):
    """A key, value or combination of keys is not usable; nothing was started."""

    exit_code = 2


class ResourcesError(QfleetError):
    """The cluster cannot place what the configuration asks for."""

    exit_code = 2


class CheckpointError(QfleetError):
    """A checkpoint is missing, corrupt or does not fit the configuration."""

    exit_code = 3


class NonFiniteError(QfleetError):
    """Training diverged: a loss, TD error or parameter is NaN or infinite."""

    exit_code = 4


class RoleLostError(QfleetError):
    """A role died and the run cannot go on without it."""

    exit_code = 5


class CallLostError(RoleLostError):
    """A call or its answer was lost on its way; the role may well be alive."""


class ClusterLostError(RoleLostError):
    """The Ray cluster that the roles were in is gone."""


class WaitTimeoutError(QfleetError):
    """A wait ended without its answer; the message names who waited for whom."""

    exit_code = 5


class EnvironmentFailedError(QfleetError):
    """An environment raised, or answered with what no environment may; its author can mend it."""

    exit_code = 5


class MemoryLimitError(QfleetError):
    """An actor's process holds more memory than it may; a new one takes its place."""

    exit_code = 5


class WireFormatError(QfleetError, ValueError):
    """A message's bytes are not what the wire format allows; nothing of it was used."""


class InvariantError(QfleetError, AssertionError):
    """A `check_valid()` found a data structure in a state that must not exist."""


class ReplayNotReadyError(QfleetError):
    """A sample was asked of a replay that holds too little to answer."""

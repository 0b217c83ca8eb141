"""What a user's own code raised, in words: environments, factories of networks and environments.

Called wherever such code is run, so that nobody is told of a bug in qfleet for a line of theirs.
"""

from __future__ import annotations

import sysconfig
import traceback
from types import FrameType

_LONGEST_QUOTE = 500
"""Characters of an exception that a message repeats; the whole text is in the traceback."""


def user_error(error: BaseException) -> str:
    """What code of a user's raised, as its traceback ends, and the line of theirs that raised it.

    For example `KeyError: 'price_table' (/home/me/my_env.py, line 31, in step)`.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__qualname__
    if type(error).__module__ not in ("builtins", "__main__"):
        kind = f"{type(error).__module__}.{kind}"
    text = f"{kind}: {lines[0]}" if lines else kind
    place = _raising_line(error)
    return text[:_LONGEST_QUOTE] + (f" ({place})" if place else "")


def _raising_line(error: BaseException) -> str:
    """The innermost line that is neither ours nor a library's; else the innermost but ours."""
    theirs = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not str(frame.f_globals.get("__name__")).startswith("qfleet.")
    ]
    if not theirs:
        return ""
    own = [place for place in theirs if not _is_library(place[0])]
    frame, line = (own or theirs)[-1]
    return f"{frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}"


def _is_library(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    return "site-packages" in path or path.startswith((sysconfig.get_path("stdlib"), "<frozen"))


def is_from_signal(error: BaseException) -> bool:
    """Whether a signal's handler, Ray's or ours, ended the process while a user's code ran."""
    if not isinstance(error, SystemExit):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__")) if frames else ""
    return module in ("qfleet.run.stop_signals", "ray") or module.startswith("ray.")

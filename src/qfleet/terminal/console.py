"""What a run shows while it trains: a live table, plain lines, JSON lines or nothing.

Called by the driver, which passes the elapsed time with each status; nothing here reads a clock.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.table import Table

PLAIN_PERIOD_S = 2.0
RICH_PERIOD_S = 0.2
_UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One moment of a run; None where nothing was measured yet."""

    elapsed_s: float
    """Since training began."""
    actors_alive: int
    actors_wanted: int
    env_steps: int
    env_steps_per_s: float
    learner_steps: int
    learner_steps_per_s: float
    replay_size: int
    replay_capacity: int
    samples_per_insert: float | None = None
    epsilon_min: float | None = None
    epsilon_max: float | None = None
    rollout_return_mean: float | None = None
    eval_return_mean: float | None = None
    limited_by: str = _UNKNOWN
    """`actors`, `learner`, `limiter` … as in summary.json."""
    budget_fraction: float | None = None
    """Part of the budget nearest to its end that is used, 0 to 1."""
    eta_s: float | None = None
    """Seconds to the end of that budget at the mean speed since learning began."""


@dataclass(frozen=True, slots=True)
class EpisodeLine:
    """One training episode of a run with `learner.updates_per_episode`."""

    episode: int
    episode_return: float
    length_env_steps: int
    epsilon: float
    env_steps: int
    learner_steps: int
    loss_mean: float | None = None


class Console(Protocol):
    """Where the driver says what happens. Calls come from one thread, `start` first."""

    def start(self, header: Sequence[str]) -> None:
        """Show the lines that say what was started."""

    def update(self, status: RunStatus) -> None:
        """Offer a status; the console decides whether it is time to show one."""

    def episode_line(self, line: EpisodeLine) -> None:
        """Show one finished episode."""

    def message(self, text: str) -> None:
        """Show a remark at once."""

    def finish(self, block: str) -> None:
        """Show the last block and give the terminal back; also called after errors."""


def make_console(kind: str, stream: IO[str] | None = None) -> Console:
    """The console for `metrics.console`; `auto` is rich on a terminal and plain elsewhere."""
    stream = stream or sys.stdout
    if kind == "auto":
        kind = "rich" if stream.isatty() else "plain"
    if kind == "none":
        return SilentConsole()
    if kind == "json":
        return JsonConsole(stream)
    return RichConsole(stream) if kind == "rich" else PlainConsole(stream)


class SilentConsole:
    """Shows nothing; the exit code and summary.json tell the outcome."""

    def _nothing(self, what: object) -> None:
        """Nothing."""

    start = update = episode_line = message = finish = _nothing


class PlainConsole:
    """One `key=value` line every two seconds, for log files and pipes."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._next_s = -math.inf

    def start(self, header: Sequence[str]) -> None:
        """Print the header."""
        self.message("\n".join(header))

    def update(self, status: RunStatus) -> None:
        """Print a line when two seconds have passed since the last."""
        if status.elapsed_s >= self._next_s:
            self._next_s = status.elapsed_s + PLAIN_PERIOD_S
            self.message(" ".join(f"{key}={value}" for key, value in _plain_fields(status)))

    def episode_line(self, line: EpisodeLine) -> None:
        """Print the episode."""
        self.message(_episode_text(line))

    def message(self, text: str) -> None:
        """Print it; flushed, for whoever follows the log."""
        print(text, file=self._stream, flush=True)

    def finish(self, block: str) -> None:
        """Print the block after an empty line."""
        self.message(f"\n{block}")


class JsonConsole:
    """One JSON object a line; `event` tells them apart."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def start(self, header: Sequence[str]) -> None:
        """`{"event": "start", "lines": […]}`."""
        self._print("start", lines=list(header))

    def update(self, status: RunStatus) -> None:
        """`{"event": "status", …}` with the fields of `RunStatus`."""
        self._print("status", **dataclasses.asdict(status))

    def episode_line(self, line: EpisodeLine) -> None:
        """`{"event": "episode", …}` with the fields of `EpisodeLine`."""
        self._print("episode", **dataclasses.asdict(line))

    def message(self, text: str) -> None:
        """`{"event": "message", "text": …}`."""
        self._print("message", text=text)

    def finish(self, block: str) -> None:
        """`{"event": "finish", "text": …}`."""
        self._print("finish", text=block)

    def _print(self, event: str, **fields: Any) -> None:
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in fields.items()
        }
        print(json.dumps({"event": event, **finite}), file=self._stream, flush=True)


class RichConsole:
    """A table that is redrawn in place; other lines scroll by above it."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console as Terminal
        from rich.live import Live

        self._terminal = Terminal(file=stream, highlight=False)
        # Redrawn by `update` alone: a redrawing thread would take CPU time from the roles.
        self._live = Live(console=self._terminal, auto_refresh=False, transient=False)
        self._next_s = -math.inf
        self._last: RunStatus | None = None

    def start(self, header: Sequence[str]) -> None:
        """Print the header; the table appears with the first status."""
        self.message("\n".join(header))

    def update(self, status: RunStatus) -> None:
        """Redraw the table, at most five times a second."""
        self._last = status
        if status.elapsed_s >= self._next_s:
            self._next_s = status.elapsed_s + RICH_PERIOD_S
            if not self._live.is_started:
                self._live.start()
            self._live.update(status_table(status), refresh=True)

    def episode_line(self, line: EpisodeLine) -> None:
        """Print the episode above the table."""
        self.message(_episode_text(line))

    def message(self, text: str) -> None:
        """Print it above the table, word for word."""
        self._terminal.print(text, markup=False, soft_wrap=True)

    def finish(self, block: str) -> None:
        """Draw the last status, leave the table standing and print the block below it."""
        if self._live.is_started:
            if self._last is not None:
                self._live.update(status_table(self._last), refresh=True)
            self._live.stop()
        self.message(f"\n{block}")


def status_table(status: RunStatus) -> Table:
    """The live table: two columns of pairs, 72 characters wide."""
    from rich.box import ROUNDED
    from rich.table import Table

    table = Table(box=ROUNDED, show_header=False, padding=(0, 1), width=72)
    for style in ("dim", "bold", "dim", "bold"):
        table.add_column(style=style, justify="right" if style == "bold" else "left")
    cells = _table_cells(status)
    for left, right in zip(cells[::2], cells[1::2], strict=True):
        table.add_row(*left, *right)
    return table


def _table_cells(status: RunStatus) -> list[tuple[str, str]]:
    fill = status.replay_size / max(status.replay_capacity, 1)
    low, high = _number(status.epsilon_min, 3), _number(status.epsilon_max, 3)
    return [
        ("actors alive", f"{status.actors_alive} of {status.actors_wanted}"),
        ("limited by", status.limited_by),
        ("env steps", f"{status.env_steps:,}"),
        ("env steps/s", f"{status.env_steps_per_s:,.0f}"),
        ("learner steps", f"{status.learner_steps:,}"),
        ("updates/s", f"{status.learner_steps_per_s:,.0f}"),
        ("rollout return", _number(status.rollout_return_mean, 1)),
        ("evaluation return", _number(status.eval_return_mean, 1)),
        ("replay", f"{status.replay_size:,} ({fill:.0%})"),
        ("samples per insert", _number(status.samples_per_insert, 1)),
        ("ε", low if low == high else f"{low} … {high}"),
        ("", ""),
        ("elapsed", duration(status.elapsed_s)),
        ("budget used, left", f"{_percent(status.budget_fraction)}, {duration(status.eta_s)}"),
    ]


def _plain_fields(status: RunStatus) -> list[tuple[str, str]]:
    return [
        ("elapsed_s", f"{status.elapsed_s:.1f}"),
        ("actors", f"{status.actors_alive}/{status.actors_wanted}"),
        ("env_steps", str(status.env_steps)),
        ("env_steps_per_s", f"{status.env_steps_per_s:.0f}"),
        ("learner_steps", str(status.learner_steps)),
        ("learner_steps_per_s", f"{status.learner_steps_per_s:.0f}"),
        ("replay", f"{status.replay_size}/{status.replay_capacity}"),
        ("samples_per_insert", _number(status.samples_per_insert, 2)),
        ("epsilon", f"{_number(status.epsilon_min, 3)}..{_number(status.epsilon_max, 3)}"),
        ("rollout_return", _number(status.rollout_return_mean, 1)),
        ("eval_return", _number(status.eval_return_mean, 1)),
        ("limited_by", status.limited_by.replace(" ", "_")),
        ("budget", _percent(status.budget_fraction)),
        ("eta_s", _number(status.eta_s, 0).replace(",", "")),
    ]


def _episode_text(line: EpisodeLine) -> str:
    loss = "" if line.loss_mean is None else f"  loss {line.loss_mean:.4g}"
    return (
        f"episode {line.episode:4d}  return {line.episode_return:8.1f}  "
        f"length {line.length_env_steps:5d}  ε {line.epsilon:.3f}  "
        f"env steps {line.env_steps:,}  updates {line.learner_steps:,}{loss}"
    )


def duration(seconds: float | None) -> str:
    """`42 s`, `3 m 05 s`, `2 h 07 m`; `-` when unknown."""
    if seconds is None or not math.isfinite(seconds):
        return _UNKNOWN
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def _number(value: float | None, decimals: int) -> str:
    return _UNKNOWN if value is None or not math.isfinite(value) else f"{value:,.{decimals}f}"


def _percent(fraction: float | None) -> str:
    return _UNKNOWN if fraction is None else f"{fraction:.0%}"

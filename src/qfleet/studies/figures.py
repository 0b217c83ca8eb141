"""The report's pictures as SVG text, drawn by Matplotlib: legible without a network.

Called by the report page. Text stays text in the SVG, so the browser sets it, also in Japanese.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qfleet.common.types import Array
from qfleet.studies.comparison import Arm, Figures
from qfleet.studies.readings import TRACES
from qfleet.studies.words import Words

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Distinguishable with any kind of colour vision. Source: Okabe and Ito 2008."""
DASHES = ("-", "--", "-.", ":")
_LOG_FROM = 1_000.0
"""A trace that grows by more than this factor is drawn on a logarithmic axis."""
WIDE, NARROW = (6.0, 3.7), (4.2, 3.2)
"""Inches of 72 units, and text of 10 of them: a phone shows 370 pixels in a row."""

LEGEND_COLUMNS = 32
MAX_POINTS = 250
"""Of a run's episode lengths; more would be a smear, and megabytes of it."""


def _svg(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # A fixed salt gives the same ids, so the same runs give the same file.
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "qfleet", "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        buffer = io.StringIO()
        with warnings.catch_warnings():
            # The browser has the glyphs that Matplotlib's own font lacks.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "ls": DASHES[index % len(DASHES)], "lw": 1.8}


def _legend(name: str) -> str:
    """A long name in several lines: it must leave the curves their room."""
    return textwrap.fill(name, LEGEND_COLUMNS)


def learning_curves(found: Sequence[Figures], threshold: float | None, words: Words) -> str:
    """Greedy evaluations over updates, every arm with its interval."""

    def draw(axes: Any) -> None:
        for index, figures in enumerate(found):
            curve = figures.curve
            if curve is None:
                continue
            style = _style(index)
            axes.plot(curve.learner_steps, curve.mean, label=_legend(figures.arm), **style)
            axes.fill_between(
                curve.learner_steps, curve.low, curve.high, color=style["color"], alpha=0.18, lw=0
            )
        if threshold is not None:
            axes.axhline(threshold, color="0.4", lw=1, ls=(0, (1, 2)))
        _label(axes, words("updates"), words("return"))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", framealpha=0.9)

    return _svg(draw, WIDE)


def traces(arms: Sequence[Arm], words: Words) -> list[str]:
    """Q-values, loss and gradient norm of every run: why the curves look as they do."""
    titles = (words("q_mean"), words("loss"), words("grad_norm"))
    return [_trace(arms, name, title, words) for name, title in zip(TRACES, titles, strict=True)]


def _trace(arms: Sequence[Arm], name: str, title: str, words: Words) -> str:
    def draw(axes: Any) -> None:
        largest = 0.0
        for index, arm in enumerate(arms):
            for number, run in enumerate(arm.runs):
                steps, values = run.traces[name]
                label = _legend(arm.name) if number == 0 else None
                axes.plot(steps, values, label=label, alpha=0.8, **_style(index))
                largest = max(largest, float(np.abs(values).max(initial=0.0)))
        if largest > _LOG_FROM:
            axes.set_yscale("symlog", linthresh=1.0)
        _label(axes, words("updates"), title)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", framealpha=0.9, fontsize=9)

    return _svg(draw, NARROW)


def episode_lengths(arms: Sequence[Arm], words: Words) -> str:
    """How long the training episodes were, every run as it went; long runs in means."""

    def draw(axes: Any) -> None:
        for index, arm in enumerate(arms):
            for number, run in enumerate(arm.runs):
                episodes, lengths = in_means(run.episode_lengths)
                label = _legend(arm.name) if number == 0 else None
                style = {**_style(index), "lw": 1.0}
                axes.plot(episodes, lengths, label=label, alpha=0.7, **style)
        _label(axes, words("episode"), words("length"))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", framealpha=0.9)

    return _svg(draw, WIDE)


def in_means(lengths: Array) -> tuple[Array, Array]:
    """Numbers int64 [n] and lengths float64 [n] of episodes, n at most `MAX_POINTS`.

    Where there are more episodes, each point is the mean of some that follow one another, as many
    as in every other but for one, and stands at the last one's number.
    """
    n = min(MAX_POINTS, len(lengths))
    if n == 0:
        return np.arange(0), lengths
    ends = np.arange(1, n + 1) * len(lengths) // n
    firsts = np.append(0, ends[:-1])
    return ends, np.add.reduceat(lengths, firsts) / (ends - firsts)


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")

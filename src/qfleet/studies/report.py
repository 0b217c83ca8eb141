"""A comparison as one self-contained HTML page, a CSV or JSON file, or a table for the terminal.

Called by `qfleet report` and, after every run, by a study. The page needs no network: pictures are
inline SVG, films are embedded.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qfleet.common.errors import ConfigError
from qfleet.run_files.durable import replace_synced
from qfleet.studies import figures as pictures
from qfleet.studies.comparison import Arm, Figures, compare
from qfleet.studies.findings import findings
from qfleet.studies.readings import FILM_TYPES, Reading, differing_keys
from qfleet.studies.statistics import CONFIDENCE, Estimate
from qfleet.studies.words import Words

TEMPLATE = Path(__file__).parent / "report.html.jinja"
MAX_VIDEO_BYTES = 2_000_000
"""A larger film is named by its path and not embedded."""
FORMATS = (".html", ".csv", ".json")


@dataclass(frozen=True)
class Report:
    """What is compared, and how the page is headed."""

    arms: list[Arm]
    title: str
    words: Words
    question: str = ""
    command: str = ""
    """Repeats it."""
    n_runs_wanted: int | None = None
    """Of a study that goes on."""
    base_changes: tuple[str, ...] = ()
    """Said under how it was measured: what a study changes in its preset, in every arm."""
    found: list[Figures] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "found", compare(self.arms, self.threshold))

    @property
    def runs(self) -> list[Reading]:
        """All runs, arm by arm."""
        return [run for arm in self.arms for run in arm.runs]

    @property
    def threshold(self) -> float | None:
        """The return that counts as solved, where all runs agree on one."""
        values = {_threshold(run) for run in self.runs}
        return values.pop() if len(values) == 1 else None

    def write(self, path: Path) -> None:
        """Write the page, the CSV or the JSON file that `path`'s suffix asks for.

        Raises:
            ConfigError: for another suffix.
        """
        makers = {".html": self.html, ".csv": self.csv, ".json": self.json}
        if path.suffix not in makers:
            raise ConfigError(f"-o {path}: must end in {', '.join(FORMATS)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_synced(path, makers[path.suffix]())

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-able row per arm."""
        return [found.as_row() for found in self.found]

    def json(self) -> str:
        """Arms, and every run behind them."""
        runs = [
            {"arm": arm.name, "path": str(run.path), "failure": run.failure, **_known(run.summary)}
            for arm in self.arms
            for run in arm.runs
        ]
        content = {"title": self.title, "threshold": self.threshold, "arms": self.rows()}
        return json.dumps({**content, "runs": runs}, indent=1, ensure_ascii=False) + "\n"

    def csv(self) -> str:
        """One line per arm."""
        rows = self.rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def table(self) -> str:
        """For the terminal."""
        head, *body = self.cells()
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]

        def line(row: Sequence[str]) -> str:
            first = f"{row[0]:<{widths[0]}}"
            rest = [f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True)]
            return "  ".join([first, *rest])

        return "\n".join([line(head), *(line(row) for row in body)])

    def cells(self) -> list[list[str]]:
        """The table's head and one row per arm."""
        words, threshold = self.words, self.threshold
        shown = "–" if threshold is None else f"{threshold:g}"
        head = [words("arm"), words("seeds"), words("outcome"), words("solved"), words("score")]
        head += [words("over_training"), words("to_threshold", threshold=shown), words("train_s")]
        return [
            head,
            *(
                [
                    each.arm,
                    str(len(each.seeds)),
                    f"{each.n_complete - each.n_diverged} / {each.n_diverged} / {each.n_failed}",
                    f"{each.n_solved}",
                    _interval(each.score),
                    _interval(each.over_training),
                    _number(each.learner_steps_to_threshold),
                    _number(each.train_s),
                ]
                for each in self.found
            ),
        ]

    def html(self) -> str:
        """The whole page."""
        import jinja2

        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        words, threshold = self.words, self.threshold
        head, *body = self.cells()
        keys = differing_keys(self.runs)
        arm_of_run = [arm.name for arm in self.arms for _ in arm.runs]
        by_arm = {
            key: dict(zip(arm_of_run, map(_text, values), strict=True))
            for key, values in keys.items()
        }
        return template.render(
            words=words,
            language=words.language,
            title=self.title,
            question=self.question,
            command=self.command,
            progress=self._progress(),
            findings=findings(self.arms, self.found, threshold, words),
            confidence=f"{100 * CONFIDENCE:g}",
            curves=pictures.learning_curves(self.found, threshold, words),
            traces=pictures.traces(self.arms, words),
            lengths=pictures.episode_lengths(self.arms, words),
            films=[(arm.name, *_film(arm, words)) for arm in self.arms],
            head=head,
            body=body,
            arms=[arm.name for arm in self.arms],
            differences=by_arm,
            failures=[
                (arm.name, r.seed, r.failure, r.path) for arm in self.arms for r in arm.failed
            ],
            measured=[*_measured(self.runs, words), *self.base_changes],
        )

    def _progress(self) -> str:
        wanted, done = self.n_runs_wanted, sum(run.is_complete for run in self.runs)
        if wanted is None or done == wanted:
            return ""
        return self.words("running", done=done, all=wanted)


def _threshold(run: Reading) -> float | None:
    wanted = run.config.get("eval.solved_at_return", "auto")
    if wanted != "auto":
        return None if wanted is None else float(wanted)
    import gymnasium

    try:
        return gymnasium.spec(str(run.config.get("env.id"))).reward_threshold
    except gymnasium.error.Error:
        return None  # of a module that this process has not imported


def _known(summary: dict[str, Any]) -> dict[str, Any]:
    names = ["status", "exit_code", "seed", "solved", "eval_return_mean", "env_steps"]
    names += ["learner_steps", "train_s", "wall_s", "learner_path", "params_sha256"]
    return {name: summary.get(name) for name in names}


def _film(arm: Arm, words: Words) -> tuple[str, str, str]:
    """(data URL, caption, path) of the run whose score is the arm's middle one."""
    filmed = [(run.score or -math.inf, run) for run in arm.runs if run.video() is not None]
    if not filmed:
        return "", "", ""
    _, run = sorted(filmed, key=lambda pair: pair[0])[(len(filmed) - 1) // 2]
    video = run.video()
    assert video is not None
    caption = words("seed", n=run.seed) + ("" if run.score is None else f", {run.score:.1f}")
    if run.has_diverged:
        caption = words("before_divergence", caption=caption)
    if video.stat().st_size > MAX_VIDEO_BYTES:
        return "", caption, str(video)
    data = base64.b64encode(video.read_bytes()).decode()
    return f"data:{FILM_TYPES[video.suffix]};base64,{data}", caption, ""


def _measured(runs: Sequence[Reading], words: Words) -> list[str]:
    """Seeds, devices and versions, each said once."""
    seeds = sorted({run.seed for run in runs})
    facts = [words("seed_list", seeds=", ".join(map(str, seeds)))]
    for name in ("runtime", "device", "learner_path"):
        values = sorted({str(run.summary[name]) for run in runs if run.summary.get(name)})
        if values:
            facts.append(f"{words(name)}: {', '.join(values)}")
    versions = {tuple(run.summary.get("versions", {}).items()) for run in runs if run.summary}
    facts += [", ".join(f"{name} {version}" for name, version in one) for one in sorted(versions)]
    from qfleet.bench.bench_record import machine

    about = machine()
    here = f"{about['cpu']}, {about['usable_cpus']} CPUs, {about['memory_gib']} GiB"
    facts.append(words("written_on", machine=here))
    return [fact for fact in facts if fact]


def _interval(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return f"{found.value:.1f} ({found.low:.1f}–{found.high:.1f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

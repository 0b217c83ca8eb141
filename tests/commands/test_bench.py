"""`qfleet bench`: names, the record and its text, and that each part measures what it says."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qfleet.bench import part_benchmarks, timing
from qfleet.bench.bench_record import Measurement, make_report, number, table
from qfleet.bench.part_benchmarks import limiting_role, measure_learner, resolved_preset
from qfleet.bench.timing import Effort, rates_per_s
from qfleet.command_line import cli
from qfleet.commands import bench as commands_bench
from qfleet.commands.bench import main, parts_of, report_text, run_parts
from qfleet.common.errors import ConfigError
from qfleet.learner.backend import LearnerPath
from qfleet.learner.learner import Learner
from qfleet.learner.plan import LearnerPlan

TINY = Effort(repeats=2, repeat_s=0.001)
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def program(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A program of benchmarks/ as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


# Names


def test_parts_of_all_is_every_part() -> None:
    assert parts_of("all") == ["learner", "actor", "replay", "snapshot", "frames"]


def test_parts_of_one_is_itself() -> None:
    assert parts_of("replay") == ["replay"]


def test_parts_of_unknown_name_lists_all_and_suggests() -> None:
    with pytest.raises(ConfigError) as caught:
        parts_of("lerner")
    message = str(caught.value)
    assert "learner, actor, replay, snapshot, frames, all" in message
    assert "did you mean learner?" in message


def test_command_line_unknown_name_exits_2_and_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(effort: Effort) -> list[Measurement]:
        raise AssertionError("nothing may be measured")

    monkeypatch.setattr(commands_bench, "PARTS", dict.fromkeys(commands_bench.PARTS, refuse))

    assert cli.main(["bench", "replai", "--json"]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "did you mean replay?" in captured.err


# Measuring


class FakeClock:
    """Each call of the measured function takes 0.1 s; reading the clock takes none."""

    def __init__(self) -> None:
        self.calls = 0

    def call(self) -> None:
        self.calls += 1

    def perf_counter(self) -> float:
        return self.calls * 0.1


def test_rates_per_s_counts_whole_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(timing.time, "perf_counter", clock.perf_counter)

    rates = rates_per_s(clock.call, 10, Effort(repeats=2, repeat_s=0.25))

    assert clock.calls == 1 + 2 * 3  # one to warm up, then 0.3 s per repeat
    assert rates == pytest.approx([100.0, 100.0])


def test_rates_per_s_calls_at_least_once_per_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(timing.time, "perf_counter", clock.perf_counter)

    assert rates_per_s(clock.call, 1, Effort(1, 0.0)) == pytest.approx([10.0])


@pytest.mark.parametrize(
    ("part", "names", "unit"),
    [
        (
            "learner",
            ["learner, cartpole, eager", "learner, tutorial-state, eager"],  # the cache is empty
            "updates/s",
        ),
        (
            "actor",
            [f"actor, CartPole, {n} sub-environments" for n in (16, 64, 256)],
            "env steps/s",
        ),
        (
            "replay",
            [
                "replay, insert, uniform",
                "replay, sample, uniform",
                "replay, insert, prioritized",
                "replay, sample + weights + update, prioritized",
                "replay, insert, rank",
                "replay, sample + weights + update, rank",
            ],
            "transitions/s",
        ),
        (
            "snapshot",
            [
                "snapshot, cartpole, encode + decode + build",
                "snapshot, tutorial-state, encode + decode + build",
            ],
            "ms",
        ),
        (
            "frames",
            ["frames, CartPole, rgb_array + gray + resize", "frames, CartPole, fast renderer"],
            "frames/s",
        ),
    ],
)
def test_each_part_has_its_figures(part: str, names: list[str], unit: str) -> None:
    rows = run_parts(part, [part], TINY)["results"]

    assert [row["name"] for row in rows] == names
    assert {row["unit"] for row in rows} == {unit}
    assert all(0 < row["min"] <= row["median"] <= row["max"] for row in rows)
    assert all(row["count"] == TINY.repeats for row in rows)


def test_frames_are_told_per_second_and_beside_the_rgb_array_path() -> None:
    slow, fast = (row["detail"] | {"median": row["median"]} for row in
                  run_parts("frames", ["frames"], TINY)["results"])  # fmt: skip

    assert slow["frames_per_s"] == pytest.approx(slow["median"], rel=1e-3)
    assert fast["frames_per_s"] == pytest.approx(fast["median"], rel=1e-3)
    ratio = fast["frames_per_s"] / slow["frames_per_s"]
    assert fast["times_rgb_array"] == pytest.approx(ratio, rel=1e-2)


def test_learner_rate_is_of_updates_not_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    items: list[float] = []

    def note(call: Any, items_per_call: float, effort: Effort) -> list[float]:
        items.append(items_per_call)
        return [1.0]

    monkeypatch.setattr(part_benchmarks, "rates_per_s", note)
    part_benchmarks.measure_learner(TINY)

    blocks = [
        resolved_preset(name)[0].learner.updates_per_call for name in ("cartpole", "tutorial-state")
    ]
    assert items == blocks


# The record


def test_as_row_of_few_values_keeps_them() -> None:
    row = Measurement("a", "ms", (3.0, 1.0, 2.0), {"p99": 3}).as_row()

    assert row == {
        "name": "a",
        "unit": "ms",
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "count": 3,
        "values": [3.0, 1.0, 2.0],
        "detail": {"p99": 3},
    }


def test_as_row_of_many_values_keeps_their_number_only() -> None:
    row = Measurement("a", "ms", tuple(map(float, range(33)))).as_row()

    assert "values" not in row
    assert "detail" not in row
    assert (row["count"], row["median"]) == (33, 16.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1_234_567.8, "1,234,568"), (1_000.4, "1,000"), (999.96, "1000"), (0.012345, "0.01235")],
)
def test_number_is_short_and_grouped(value: float, text: str) -> None:
    assert number(value) == text


def test_table_lines_up_and_shows_detail() -> None:
    rows = [
        Measurement("first", "ms", (1.0,)).as_row(),
        Measurement("second one", "x/s", (2000.0,), {"batch": 64}).as_row(),
    ]

    lines = table(rows).splitlines()

    assert lines[0].split() == ["median", "min", "max"]
    assert lines[1].index("ms") == lines[2].index("x/s")
    assert lines[2].endswith("2,000  x/s  (batch 64)")


def test_table_without_rows_says_so() -> None:
    assert table([]) == "(nothing was measured)"


def test_report_names_machine_and_versions_but_no_host() -> None:
    import platform

    report = make_report("replay", {}, [Measurement("a", "ms", (1.0,))])

    assert set(report["machine"]) >= {"cpu", "usable_cpus", "memory_gib", "system"}
    assert set(report["versions"]) >= {"python", "numpy", "torch", "gymnasium"}
    node = platform.node()
    assert not node or node not in report["machine"].values()
    assert platform.release() not in report["machine"]["system"]


def _rows(updates: float, env_steps: float) -> list[dict[str, Any]]:
    return [
        {"name": "learner, cartpole, eager", "median": updates},
        {"name": "actor, CartPole, 16 sub-environments", "median": env_steps},
    ]


@pytest.mark.parametrize(
    ("env_steps", "limit"), [(4_001.0, "the learner limits"), (3_999.0, "acting limits")]
)
def test_limiting_role_compares_env_steps(env_steps: float, limit: str) -> None:
    config, _ = resolved_preset("cartpole")

    # 1,000 updates of 64 draws at 16 draws per transition use up 4,000 env steps.
    verdict = limiting_role(_rows(1_000.0, env_steps), config)

    assert "use 4,000 env steps/s" in verdict
    assert verdict.endswith(limit)


def test_limiting_role_takes_the_learner_as_runs_use_it() -> None:
    config, _ = resolved_preset("cartpole")
    compiled = {"name": "learner, cartpole, compiled", "median": 6_000.0}

    verdict = limiting_role([*_rows(1_000.0, 4_001.0), compiled], config)

    assert "6,000 updates/s use 24,000 env steps/s" in verdict
    assert verdict.endswith("acting limits")


def test_measure_learner_measures_the_compiled_block_too_where_one_is_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The eager learner stands in for a package: what is asked for is `auto`, as runs ask."""
    asked = []

    class Cached(Learner):
        def __init__(self, plan: LearnerPlan, *rest: Any) -> None:
            asked.append(plan.compile)
            self.mode = plan.compile
            super().__init__(plan, *rest)

        @property
        def path(self) -> LearnerPath:
            return "compiled" if self.mode == "auto" else "eager"

    monkeypatch.setattr("qfleet.learner.learner.Learner", Cached)

    found = measure_learner(TINY)

    assert asked == ["off", "auto"] * 2
    assert [m.name.rsplit(", ")[-1] for m in found] == ["eager", "compiled"] * 2


def test_main_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argparse.Namespace(name="replay", json=True), TINY) == 0

    report = json.loads(capsys.readouterr().out)
    assert report["benchmark"] == "replay"
    assert report["settings"] == {"repeats": 2, "repeat_s": 0.001}
    assert "verdict" not in report


def test_main_text_ends_with_machine_and_versions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {
        name: lambda effort, row=row: [Measurement(row["name"], "x/s", (row["median"],))]
        for name, row in zip(("learner", "actor"), _rows(1_000.0, 9_000.0), strict=True)
    }
    empty: list[Measurement] = []
    found |= dict.fromkeys(("replay", "snapshot", "frames"), lambda effort: empty)
    monkeypatch.setattr(commands_bench, "PARTS", found)

    assert main(argparse.Namespace(name="all", json=False), TINY) == 0

    text = capsys.readouterr().out
    assert "the learner limits" in text
    assert "numpy " in text
    assert "2 repeats of 0.001 s" in text


def test_report_text_without_verdict_has_none() -> None:
    report = make_report(
        "replay", {"repeats": 1, "repeat_s": 0.1}, [Measurement("a", "ms", (1.0,))]
    )

    assert "limits" not in report_text(report)


# The programs under benchmarks/


def test_percentile_is_the_nearest_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    percentile = program("machine", monkeypatch).percentile
    values = [float(n) for n in range(100, 0, -1)]

    assert [percentile(values, p) for p in (1, 50, 99, 100)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([7.0], 50) == 7.0


def test_command_line_leaves_out_where_the_record_went(monkeypatch: pytest.MonkeyPatch) -> None:
    command_line = program("machine", monkeypatch).command_line

    words = ["--rows", "5", "--json", "/somewhere/a.json", "--repeats", "2"]
    assert command_line("x", words) == "python benchmarks/x.py --rows 5 --repeats 2"
    assert command_line("x", ["--json=/somewhere/a.json"]) == "python benchmarks/x.py"


def test_page_shows_each_shape_of_record(monkeypatch: pytest.MonkeyPatch) -> None:
    report = program("report", monkeypatch)
    ours = make_report("memory", {"actors": 3}, [Measurement("actor, RSS", "MB", (100.0, 120.0))])
    summary = {"solved": 2, "runs": 2, "median_text": "5.1", "min_text": "5.0", "max_text": "5.2"}
    records = {
        "memory": ours,
        "replay_in_process": {
            "results": [{"sampling": "uniform", "batch": 32, "samples_per_s": 9}]
        },
        "solve_time": {"summary": {"sb3": summary}, "seeds": [1, 2]},
    }

    text = report.page(records)

    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## Solve time", "## Replay in process", "## Memory"]
    assert "| sb3 | 2 of 2 | 5.1 | 5.0 | 5.2 |" in text
    assert "| uniform | 32 | 9 |" in text
    assert "| actor, RSS | 110 | 100 | 120 | MB | 2 |" in text
    assert "- Settings: seeds 1/2" in text
    assert "- Repeat: `python benchmarks/memory.py`" in text


def test_page_without_records_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Nothing has been measured yet." in program("report", monkeypatch).page({})


@pytest.mark.parametrize(("sampling", "batch"), [("prioritized", 8), ("frames", 32)])
def test_replay_in_process_measures_states_and_frames(
    sampling: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = program("replay_in_process", monkeypatch)
    monkeypatch.setattr(replay, "MEASUREMENTS", ((sampling, batch),))
    arguments = {"side": "qfleet", "only": None, "rows": 100, "frame_rows": 500}

    (row,) = replay.measure(argparse.Namespace(**arguments, repeats=1, repeat_s=0.01))

    assert (row["sampling"], row["batch"]) == (sampling, batch)
    assert row["samples_per_s"] > 0
    assert ("bytes_per_transition" in row) == (sampling == "frames")

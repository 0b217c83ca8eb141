"""The arithmetic behind docs/scaling.md, and that the page is what the records give."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qfleet.bench.part_benchmarks import resolved_preset

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a module of benchmarks/, which is a folder of programs and no package."""
    names = [path.stem for path in BENCHMARKS.glob("*.py")]
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def model(load: Load) -> ModuleType:
    return load("scaling_model")


def make_costs(model: ModuleType) -> Any:
    return model.Costs(
        env_steps_per_s=1_000.0,
        updates_per_s=1_000.0,
        insert_actor=model.Line(1e-3, 0.0),
        insert_shard=model.Line(1e-3, 1e-6),
        sample_learner=model.Line(1e-3, 1e-6),
        sample_shard=model.Line(2e-3, 1e-6),
        publish_learner=9e-4,
        snapshot_shard=1e-3,
        snapshot_actor=1e-3,
        ping_driver=1e-4,
        ping_role=5e-4,
    )


def make_fleet(model: ModuleType, **changes: Any) -> Any:
    fleet = model.Fleet(
        n_actors=10,
        n_shards=2,
        chunk_rows=100,
        row_bytes=50.0,
        draw_bytes=60.0,
        batch_size=100,
        updates_per_call=10,
        publish_period=10,
        announce_period_s=1e-3,
        samples_per_insert=2.0,
    )
    return replace(fleet, **changes)


# Lines


def test_line_through_two_points_in_any_order(model: ModuleType) -> None:
    expected = pytest.approx((1e-3, 1e-6))

    assert model.line_through((100.0, 1.1e-3), (200.0, 1.2e-3)) == expected
    assert model.line_through((200.0, 1.2e-3), (100.0, 1.1e-3)) == expected


def test_line_through_below_zero_has_no_fixed_part(model: ModuleType) -> None:
    assert model.line_through((100.0, 1e-4), (200.0, 4e-4)) == pytest.approx((0.0, 2e-6))


def test_least_squares_of_three_points(model: ModuleType) -> None:
    line = model.least_squares([(0.0, 0.0), (1.0, 1.0), (2.0, 3.0)])

    assert line == pytest.approx((-1 / 6, 1.5))
    assert line.at(4.0) == pytest.approx(35 / 6)


def test_saturating_calls_by_what_is_used_up(model: ModuleType) -> None:
    machine, shard = model.Line(0.2, 1.5e-3), model.Line(0.05, 5e-4)

    found = model.saturating_calls_per_s(2.0, machine, 2, shard)

    assert found["the machine's cores"] == pytest.approx(1_200.0)  # (2 - 0.2) / 1.5 ms
    assert found["one core per shard"] == pytest.approx(3_800.0)  # 2 · (1 - 0.05) / 0.5 ms


# One fleet


def test_block_is_updates_samples_and_publishing_whatever_the_number_of_actors(
    model: ModuleType,
) -> None:
    # 10 updates of 1 ms; 2 samples of 1 ms + 500 draws; 1 version to a shard and to another one.
    expected = {"updates": 0.010, "taking samples": 0.003, "publishing": 0.001}

    for n_actors in (1, 10, 1_000):
        fleet = make_fleet(model, n_actors=n_actors)
        assert model.block_parts_s(fleet, make_costs(model)) == pytest.approx(expected)


def test_versions_that_come_faster_than_the_period_are_not_announced(model: ModuleType) -> None:
    fleet = make_fleet(model, announce_period_s=0.1)
    costs = make_costs(model)

    parts_s = model.block_parts_s(fleet, costs)

    # Of each 0.1 s, 1 ms goes to one announcement and 99 ms to blocks of 13 ms.
    assert parts_s["publishing"] == pytest.approx(0.001 * 0.013 / 0.099)
    assert model.snapshots_per_push(fleet, costs, 1_000.0) == 1.0
    fleet = replace(fleet, chunk_rows=10)  # 1 / 0.011 s pushes
    assert model.snapshots_per_push(fleet, costs, 1_000.0) == pytest.approx(10 * 0.011)


def test_actor_takes_at_most_one_snapshot_with_a_push(model: ModuleType) -> None:
    fleet, costs = make_fleet(model), make_costs(model)

    # 100 steps of 1 ms and a push of 1 ms: 1 / 0.101 s pushes, one publish in 10 updates.
    assert model.snapshots_per_push(fleet, costs, 50.0) == pytest.approx(5 * 0.101)
    assert model.snapshots_per_push(fleet, costs, 1_000.0) == 1.0


def test_rates_with_a_ratio_follow_the_least_bound(model: ModuleType) -> None:
    found = model.rates(make_fleet(model), make_costs(model), network_bytes_per_s=1e6)

    updates = 10 / 0.014
    actor = (1 - 4 * 5e-4) / (1e-3 + (1e-3 + 1e-3) / 100)
    # A transition: (1 ms + 0.1 ms + a snapshot) / 100 over 2 shards, and 2 of 1000 draws, 2.5 ms.
    shards = (1 - 4 * 5e-4) / (2.1e-5 / 2 + 2 / 1000 * 2.5e-3)
    bounds = {
        "actors": 10 * actor,
        "shards": shards,
        "network": 20_000.0,
        "learner": updates * 100 / 2,
    }
    assert found.bounds == pytest.approx(bounds)
    assert found.first_limit == "actors"
    assert found.env_steps == pytest.approx(9_784.3, rel=1e-5)
    assert found.updates == pytest.approx(195.686, rel=1e-5)
    assert found.learner_shares["publishing"] == pytest.approx(1 / 14)
    assert found.driver_load == pytest.approx(4 * 13 * 1e-4)


def test_busy_cores_are_those_of_all_roles(model: ModuleType) -> None:
    found = model.rates(make_fleet(model), make_costs(model), network_bytes_per_s=1e6)

    play, store = found.env_steps * 1.02e-3, found.env_steps * 2.1e-5
    blocks = found.updates / 10 * (0.014 + 2 * 2.5e-3)
    polls = 4 * 13 * (1e-4 + 5e-4)
    assert found.busy_cores == pytest.approx(play + store + blocks + polls)


def test_rates_without_a_ratio_have_no_learner_bound(model: ModuleType) -> None:
    fleet = make_fleet(model, samples_per_insert=None)

    found = model.rates(fleet, make_costs(model), network_bytes_per_s=1e6)

    assert found.updates == pytest.approx(10 / 0.014)
    assert set(found.bounds) == {"actors", "shards", "network"}
    # 71.4 blocks/s take 2.5 ms of each shard, polls 2 ms; a row 11 µs and 10 of its snapshot.
    left = 1 - 4 * 5e-4 - 1 / 0.014 * 2.5e-3
    assert found.bounds["shards"] == pytest.approx(left * 2 / 2.1e-5)


def test_samples_that_take_a_whole_shard_leave_nothing_to_inserts(model: ModuleType) -> None:
    costs = replace(make_costs(model), sample_shard=model.Line(0.1, 0.0))
    fleet = make_fleet(model, samples_per_insert=None)

    assert model.rates(fleet, costs, 1e6).bounds["shards"] == 0.0


def test_shards_enough_are_the_fewest_that_are_not_too_busy(model: ModuleType) -> None:
    free = model.Line(0.0, 0.0)
    costs = replace(
        make_costs(model),
        env_steps_per_s=50_000.0,
        insert_actor=free,
        insert_shard=model.Line(1e-3, 0.0),
        sample_shard=free,
        snapshot_shard=0.0,
        snapshot_actor=0.0,
        ping_role=0.0,
    )
    fleet = make_fleet(model, samples_per_insert=None, n_shards=1)

    # Actors play 500,000/s; a shard takes 100,000/s, 70,000/s of them at the wanted load.
    assert model.with_shards_enough(fleet, costs, 1e12).n_shards == 8


def test_shards_that_never_suffice_are_as_many_as_carry_most(model: ModuleType) -> None:
    costs = replace(
        make_costs(model), env_steps_per_s=1e6, insert_shard=model.Line(1.0, 0.0), ping_role=0.0
    )
    fleet = make_fleet(model, samples_per_insert=None, n_actors=3, n_shards=1)

    assert model.with_shards_enough(fleet, costs, 1e12).n_shards == 3


# Cells


@pytest.mark.parametrize(
    ("bounds", "shares", "driver", "text"),
    [
        ({"actors": 1.0, "learner": 2.0}, {"updates": 0.9}, 0.5, "actors"),
        ({"actors": 2.0, "learner": 1.0}, {"updates": 0.9}, 0.5, "learner"),
        (
            {"actors": 2.0, "learner": 1.0},
            {"updates": 0.2, "taking samples": 0.8},
            0.5,
            "learner, mostly taking samples",
        ),
        (
            {"actors": 2.0, "shards": 1.0},
            {"updates": 0.2, "taking samples": 0.8},
            1.5,
            "shards; the driver's polls come late",
        ),
    ],
)
def test_first_limit_names_the_least_bound(
    load: Load,
    model: ModuleType,
    bounds: dict[str, float],
    shares: dict[str, float],
    driver: float,
    text: str,
) -> None:
    found = model.Rates(1.0, 1.0, bounds, shares, driver, 1.0)

    assert load("scaling_page").first_limit(found) == text


def test_figures_as_text(load: Load) -> None:
    rate = load("scaling_page").rate

    assert [rate(n) for n in (0.05498, 846.3, 30_298.0, 27_137_042.0)] == [
        "0.055",
        "846",
        "30,300",
        "27.1 M",
    ]


def test_wrapped_fills_paragraphs_and_items(load: Load) -> None:
    wrapped = load("scaling_page").wrapped

    assert wrapped("\na b\nc\n\n- one\n  two three\n- four\n", width=9) == [
        "a b c",
        "",
        "- one two",
        "  three",
        "- four",
    ]


# Records


def step(offered: float, acknowledged: float, cores: float) -> dict[str, Any]:
    detail = {"offered": offered, "acknowledged": acknowledged, "shards cores": cores}
    return {"name": f"1 shard, chunk 8, {offered:.0f} calls/s", "median": 1.0, "detail": detail}


def test_line_is_fitted_to_steps_up_to_half_load(load: Load) -> None:
    scaling = load("scaling")
    rows = [step(x, x, 0.1 + 1e-3 * x) for x in (100.0, 200.0, 300.0)]
    rows += [step(301.0, 301.0, 9.0), {"name": "1 shard, chunk 8, saturating calls", "median": 600}]
    figures = load("records").Figures({"replay_saturation": {"results": rows}})

    steps = scaling.light_steps(figures, "1 shard, chunk 8")

    assert [each["offered"] for each in steps] == [100.0, 200.0, 300.0]
    assert scaling.cores_over_calls(steps, ["shards"]) == pytest.approx((0.1, 1e-3))


def test_too_few_light_steps_end_the_program(load: Load) -> None:
    scaling = load("scaling")
    rows = [step(100.0, 100.0, 0.1), {"name": "1 shard, chunk 8, saturating calls", "median": 300}]

    with pytest.raises(SystemExit, match="1 steps up to half load, 3 are needed"):
        scaling.light_steps(
            load("records").Figures({"replay_saturation": {"results": rows}}), "1 shard, chunk 8"
        )


def test_missing_record_or_row_names_its_program(load: Load) -> None:
    figures = load("records").Figures({"memory": {"results": []}})

    with pytest.raises(SystemExit, match=r"python benchmarks/call_cost\.py --json"):
        figures.median("call_cost", "ping, thread")
    with pytest.raises(SystemExit, match=r"no row 'actor, RSS': run benchmarks/memory\.py"):
        figures.median("memory", "actor, RSS")


def test_row_bytes_of_a_cartpole_transition(load: Load) -> None:
    _, spec = resolved_preset("cartpole")

    assert load("scaling").row_bytes(spec) == 2 * 4 * 4 + 3 * 4


def test_committed_page_is_what_the_records_give(load: Load) -> None:
    """After new records, another preset or other assumptions: python benchmarks/scaling.py."""
    records = load("records").read_records(BENCHMARKS / "results")

    assert (ROOT / "docs" / "scaling.md").read_text() == load("scaling").generate(records)


def test_check_fails_when_the_page_differs(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scaling, report, out = load("scaling"), load("report"), tmp_path / "scaling.md"

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["scaling.py", "--out", str(out), *words])
        report.write_page(scaling.__doc__, "scaling.md", scaling.generate)

    run()
    run("--check")
    out.write_text(out.read_text() + "more\n")

    with pytest.raises(SystemExit, match="not what the records say"):
        run("--check")

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
from qfleet.common.config import Config

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
        snapshot_learner=5e-4,
        snapshot_beside=5e-4,
        snapshot_actor=1e-3,
        ping_driver=1e-4,
        ping_beside=2e-4,
        ping_role=5e-4,
    )


def make_fleet(model: ModuleType, **changes: Any) -> Any:
    fleet = model.Fleet(
        n_actors=10,
        n_shards=2,
        chunk_rows=100,
        chunk_bytes=5_000.0,
        draw_bytes=60.0,
        snapshot_bytes=40_000.0,
        snapshot_copies_per_host=False,
        batch_size=100,
        updates_per_call=10,
        publish_period=10,
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


def test_block_is_updates_samples_and_sending(model: ModuleType) -> None:
    parts = model.block_parts_s(make_fleet(model), make_costs(model))

    # 10 updates of 1 ms; 2 samples of 1 ms + 500 draws; 1 publish to 10 actors at 0.5 ms.
    assert parts == pytest.approx(
        {"updates": 0.010, "taking samples": 0.003, "sending snapshots": 0.005}
    )


def test_rates_with_a_ratio_follow_the_least_bound(model: ModuleType) -> None:
    found = model.rates(make_fleet(model), make_costs(model), network_bytes_per_s=1e6)

    updates = 10 / 0.018
    actor = (1 - updates / 10 * 1e-3 - 4 * 5e-4) / (1e-3 + 1e-3 / 100)
    # A transition: (1 ms + 0.1 ms) / 100 over 2 shards, and 2 of 1000 draws that take 2.5 ms each.
    shards = (1 - 4 * 5e-4) / (1.1e-5 / 2 + 2 / 1000 * 2.5e-3)
    assert found.bounds == pytest.approx(
        {
            "actors": 10 * actor,
            "shards": shards,
            "network": 20_000.0,
            "learner": updates * 100 / 2,
        }
    )
    assert found.first_limit == "actors"
    assert found.env_steps == pytest.approx(9_331.1, rel=1e-5)
    assert found.updates == pytest.approx(186.62, rel=1e-4)
    assert found.fan_out_share == pytest.approx(5 / 18)
    assert found.learner_spends_most_on == "updates"
    assert found.driver_load == pytest.approx(4 * 13 * 1e-4)


def test_rates_without_a_ratio_have_no_learner_bound(model: ModuleType) -> None:
    fleet = make_fleet(model, samples_per_insert=None)

    found = model.rates(fleet, make_costs(model), network_bytes_per_s=1e6)

    assert found.updates == pytest.approx(10 / 0.018)
    assert set(found.bounds) == {"actors", "shards", "network"}
    # 55.6 blocks/s take 2.5 ms of each shard and polls 2 ms; an insert takes 11 µs per row.
    left = 1 - 4 * 5e-4 - 1 / 0.018 * 2.5e-3
    assert found.bounds["shards"] == pytest.approx(left * 2 / 1.1e-5)


def test_samples_that_take_a_whole_shard_leave_nothing_to_inserts(model: ModuleType) -> None:
    costs = replace(make_costs(model), sample_shard=model.Line(0.1, 0.0))
    fleet = make_fleet(model, samples_per_insert=None)

    assert model.rates(fleet, costs, 1e6).bounds["shards"] == 0.0


@pytest.mark.parametrize("n_actors", [1, 10, 1000])
def test_publish_period_is_the_shortest_with_little_sending(
    model: ModuleType, n_actors: int
) -> None:
    fleet, costs = make_fleet(model, n_actors=n_actors), make_costs(model)

    def share(period: int) -> float:
        parts = model.block_parts_s(replace(fleet, publish_period=period), costs)
        return float(parts["sending snapshots"] / sum(parts.values()))

    period = model.publish_period(fleet, costs)

    assert period % 10 == 0
    assert share(period) <= model.FAN_OUT_SHARE
    assert period == 10 or share(period - 10) > model.FAN_OUT_SHARE
    assert {1: 10, 10: 40, 1000: 3470}[n_actors] == period


def test_remedied_takes_the_fewest_shards_that_are_not_too_busy(model: ModuleType) -> None:
    free = model.Line(0.0, 0.0)
    costs = replace(
        make_costs(model),
        env_steps_per_s=50_000.0,
        insert_actor=free,
        insert_shard=model.Line(1e-3, 0.0),
        sample_shard=free,
        snapshot_actor=0.0,
        ping_role=0.0,
    )
    fleet = make_fleet(model, samples_per_insert=None, n_shards=1)

    # Actors play 500,000/s; a shard takes 100,000/s, 70,000/s of them at the wanted load.
    assert model.remedied(fleet, costs, 1e12).n_shards == 8


def test_remedied_without_any_that_suffices_carries_most(model: ModuleType) -> None:
    costs = replace(
        make_costs(model), env_steps_per_s=1e6, insert_shard=model.Line(1.0, 0.0), ping_role=0.0
    )
    fleet = make_fleet(model, samples_per_insert=None, n_actors=3, n_shards=1)

    assert model.remedied(fleet, costs, 1e12).n_shards == 3


def fixed_rates(model: ModuleType) -> Any:
    return model.Rates(10_000.0, 200.0, {"actors": 10_000.0}, {"updates": 1.0}, 0.0)


def test_calls_of_each_role(model: ModuleType) -> None:
    calls = model.calls_per_s(make_fleet(model), fixed_rates(model))

    # 100 pushes, 20 blocks with a sample from each of 2 shards, 20 publishes to 10 actors.
    assert calls._asdict() == pytest.approx(
        {
            "actor_makes": 10.0,
            "actor_answers": 24.0,
            "shard_answers": 74.0,
            "learner_answers": 4.0,
            "learner_makes": 240.0,
            "driver_makes": 52.0,
        }
    )


def test_bytes_of_each_role(model: ModuleType) -> None:
    fleet = make_fleet(model)

    moved = model.bytes_per_s(fleet, fixed_rates(model), 1_000.0, n_hosts=2)

    assert moved._asdict() == pytest.approx(
        {
            "actor_out": 54_000.0,
            "actor_in": 800_000.0,
            "shard_in": 250_000.0,
            "shard_out": 604_000.0,
            "learner_in": 1_200_000.0,
            "learner_out": 8_004_000.0,
            "driver_in": 52_000.0,
        }
    )
    by_host = replace(fleet, snapshot_copies_per_host=True)
    moved = model.bytes_per_s(by_host, fixed_rates(model), 1_000.0, n_hosts=2)
    assert moved.learner_out == pytest.approx(1_604_000.0)


def test_cores_of_each_role(model: ModuleType) -> None:
    used = model.cores(make_fleet(model), make_costs(model), fixed_rates(model))

    assert used.actors == pytest.approx(10.0 + 0.1 + 0.2 + 0.02)
    assert used.shards == pytest.approx(0.11 + 0.1 + 0.004)
    assert used.learner == pytest.approx(20 * 0.018 + 200 * 5e-4)
    assert used.driver == pytest.approx(52 * 3e-4)
    assert used.busy == pytest.approx(sum(used))


# Cells


def test_need_pays_for_what_is_reserved_or_busy(load: Load, model: ModuleType) -> None:
    tables, assumed = load("scaling_tables"), load("scaling_assumptions")
    config = Config()

    reserved = tables.need(make_fleet(model), make_costs(model), fixed_rates(model), config, 0)

    assert reserved.reserved == 7.5  # learner 1, shards 2 · 0.5, evaluator 0.5, actors 10 · 0.5
    assert reserved.busy == pytest.approx(11.0096)
    assert (reserved.paid, reserved.hosts) == (12, 1)
    assert reserved.usd_per_hour == pytest.approx(12 * assumed.USD_PER_CORE_HOUR)
    many = make_fleet(model, n_actors=100)
    paid = tables.need(many, make_costs(model), fixed_rates(model), config, 1)
    assert (paid.reserved, paid.paid, paid.hosts) == (52.5, 53, 4)
    assert paid.usd_per_hour == pytest.approx(
        53 * assumed.USD_PER_CORE_HOUR + assumed.USD_PER_GPU_HOUR
    )


@pytest.mark.parametrize(
    ("bounds", "shares", "driver", "text"),
    [
        ({"actors": 1.0, "learner": 2.0}, {"updates": 0.9}, 0.5, "actors"),
        ({"actors": 2.0, "learner": 1.0}, {"updates": 0.9}, 0.5, "learner"),
        (
            {"actors": 2.0, "learner": 1.0},
            {"updates": 0.2, "sending snapshots": 0.8},
            0.5,
            "learner, mostly sending snapshots",
        ),
        (
            {"actors": 2.0, "shards": 1.0},
            {"updates": 0.2, "taking samples": 0.8},
            1.5,
            "shards; few updates, the learner is mostly taking samples; "
            "the driver's polls come late",
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
    found = model.Rates(1.0, 1.0, bounds, shares, driver)

    assert load("scaling_tables").first_limit(found) == text


def test_figures_as_text(load: Load) -> None:
    tables = load("scaling_tables")

    assert [tables.amount(n) for n in (12.0, 1_500.0, 7.08e9)] == ["12 B", "1.5 kB", "7.08 GB"]
    assert [tables.rate(n) for n in (0.05498, 846.3, 30_298.0, 27_137_042.0)] == [
        "0.055",
        "846",
        "30,300",
        "27.1 M",
    ]
    assert tables.error(110.0, 100.0) == "+10 %"


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
    figures = scaling.Figures({"replay_saturation": {"results": rows}})

    steps = scaling.light_steps(figures, "1 shard, chunk 8")

    assert [each["offered"] for each in steps] == [100.0, 200.0, 300.0]
    assert scaling.cores_over_calls(steps, ["shards"]) == pytest.approx((0.1, 1e-3))


def test_too_few_light_steps_end_the_program(load: Load) -> None:
    scaling = load("scaling")
    rows = [step(100.0, 100.0, 0.1), {"name": "1 shard, chunk 8, saturating calls", "median": 300}]

    with pytest.raises(SystemExit, match="1 steps up to half load, 3 are needed"):
        scaling.light_steps(
            scaling.Figures({"replay_saturation": {"results": rows}}), "1 shard, chunk 8"
        )


def test_missing_record_or_row_names_its_program(load: Load) -> None:
    figures = load("scaling").Figures({"memory": {"results": []}})

    with pytest.raises(SystemExit, match=r"python benchmarks/call_cost\.py --json"):
        figures.median("call_cost", "ping, thread")
    with pytest.raises(SystemExit, match=r"no row 'actor, RSS': run benchmarks/memory\.py"):
        figures.median("memory", "actor, RSS")


def test_row_bytes_of_a_cartpole_transition(load: Load) -> None:
    _, spec = resolved_preset("cartpole")

    assert load("scaling").row_bytes(spec) == 2 * 4 * 4 + 3 * 4


def test_committed_page_is_what_the_records_give(load: Load) -> None:
    """After new records, another preset or other assumptions: python benchmarks/scaling.py."""
    records = load("report").read_records(BENCHMARKS / "results")

    assert (ROOT / "docs" / "scaling.md").read_text() == load("scaling").generate(records)


def test_check_fails_when_the_page_differs(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scaling, out = load("scaling"), tmp_path / "scaling.md"
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--out", str(out)])
    scaling.main()
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--check", "--out", str(out)])
    scaling.main()
    out.write_text(out.read_text() + "more\n")

    with pytest.raises(SystemExit, match="not what the records say"):
        scaling.main()

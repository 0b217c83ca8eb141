"""deploy/grafana/qfleet.json asks only for metrics that a run exports."""

from __future__ import annotations

import json
import re
from pathlib import Path

from qfleet.cluster.telling.ray_metrics import RATES, WAITS
from qfleet.run_files import metrics

BOARD = json.loads((Path(__file__).resolve().parents[2] / "deploy/grafana/qfleet.json").read_text())
ROW_NAMES = {
    f"qfleet_{name.replace('/', '_')}"
    for name in vars(metrics).values()
    if isinstance(name, str) and re.fullmatch(r"(rollout|eval|learner|actor|replay|time)/\w+", name)
}


def test_every_panel_asks_for_a_metric_that_there_is() -> None:
    asked = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    names = [re.fullmatch(r'ray_(\w+)\{run=~"\$run"\}', expression) for expression in asked]

    assert len(asked) > 12
    for name, expression in zip(names, asked, strict=True):
        assert name, expression
        assert name[1] in ROW_NAMES | {*RATES.values(), WAITS}, expression
    shown = {name[1] for name in names if name}
    assert shown >= {*RATES.values(), WAITS}


def test_panels_do_not_overlap_and_follow_the_chosen_data_source() -> None:
    places = [
        (panel["gridPos"]["x"], panel["gridPos"]["y"], panel["gridPos"]["w"], panel["gridPos"]["h"])
        for panel in BOARD["panels"]
    ]

    assert len(set(places)) == len(places)
    assert all(x % 8 == 0 and y % 8 == 0 and (w, h) == (8, 8) for x, y, w, h in places)
    assert {panel["datasource"]["uid"] for panel in BOARD["panels"]} == {"${datasource}"}
    assert [variable["name"] for variable in BOARD["templating"]["list"]] == ["datasource", "run"]

"""Plans on their way to a role: what is missing, unknown or no number does not get in."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from qfleet.common.config import EnvConfig, NetworkConfig
from qfleet.common.errors import ConfigError
from qfleet.common.plan_json import PLAN_CONFIG, plan_from_json, plan_to_json


@dataclass(frozen=True, kw_only=True, config=PLAN_CONFIG)
class Plan:
    env: EnvConfig
    network: NetworkConfig
    rows: int
    share: float
    kind: Literal["a", "b"]
    limit: int | None
    is_on: bool


FIELDS = {
    "env": EnvConfig(id="X-v0", kwargs={"a": [1, None], "b": {"c": 0.5}}),
    "network": NetworkConfig(hidden_sizes=(3, 2), normalization="layer"),
    "rows": 7,
    "share": 0.1 + 0.2,
    "kind": "b",
    "limit": None,
    "is_on": True,
}


def test_round_trip_keeps_every_bit():
    plan = Plan(**FIELDS)
    assert plan_from_json(Plan, plan_to_json(plan)) == plan


def test_whole_number_is_taken_where_a_fraction_may_stand():
    share = Plan(**{**FIELDS, "share": 2}).share
    assert (share, type(share)) == (2.0, float)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": "auto"},
        {"rows": "7"},
        {"rows": 7.0},
        {"rows": True},
        {"share": "0.5"},
        {"share": float("nan")},
        {"kind": "c"},
        {"limit": "auto"},
        {"is_on": 1},
        {"columns": 3},
    ],
    ids=str,
)
def test_wrong_or_unknown_field_is_refused_when_built_and_when_read(change):
    with pytest.raises(ValidationError):
        Plan(**{**FIELDS, **change})

    text = json.dumps({**json.loads(plan_to_json(Plan(**FIELDS))), **change})
    with pytest.raises(ConfigError, match=rf"not a Plan, .*{next(iter(change))}: "):
        plan_from_json(Plan, text)


@pytest.mark.parametrize("name", FIELDS)
def test_missing_field_is_refused(name):
    fields = json.loads(plan_to_json(Plan(**FIELDS)))
    del fields[name]
    with pytest.raises(ConfigError, match=f"{name}: Field required"):
        plan_from_json(Plan, json.dumps(fields))


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_other_text_is_refused(text):
    with pytest.raises(ConfigError, match="not a Plan"):
        plan_from_json(Plan, text)

"""How long a run will take, from what its process has done of the budget."""

from __future__ import annotations

import dataclasses

import pytest

from qfleet.session.forecast import Forecast
from qfleet.terminal.console import RunStatus

STATUS = RunStatus(
    elapsed_s=0.0,
    actors_alive=1,
    actors_wanted=1,
    env_steps=0,
    env_steps_per_s=0.0,
    learner_steps=1,
    learner_steps_per_s=0.0,
    replay_size=0,
    replay_capacity=10,
)

RUNS = {
    "without a budget": [(0.0, None, 0, None), (10.0, None, 5, None)],
    # 1 % before learning begins after a second; then 1 % in two seconds.
    "from where learning begins": [
        (0.0, 0.0, 0, None),
        (0.5, 0.005, 0, 99.5),
        (1.0, 0.01, 1, None),
        (3.0, 0.02, 9, 196.0),
        (5.0, 0.03, 17, 194.0),
    ],
    # An earlier process did 30 %: its part is no speed of this one.
    "resumed": [(0.0, 0.30, 60_000, None), (2.0, 0.31, 61_000, 138.0)],
    "gone back to a cut": [
        (0.0, 0.5, 10, None),
        (10.0, 0.6, 20, 40.0),
        (12.0, 0.4, 5, None),
        (14.0, 0.5, 10, 10.0),
    ],
    "used up": [(0.0, 0.0, 0, None), (1.0, 0.5, 0, 1.0), (2.0, 1.0, 5, 0.0), (3.0, 1.3, 5, 0.0)],
}


@pytest.mark.parametrize("moments", RUNS.values(), ids=RUNS)
def test_left_is_the_rest_at_the_speed_of_this_process(
    moments: list[tuple[float, float | None, int, float | None]],
) -> None:
    forecast = Forecast()

    left = [forecast.left_s(*moment[:3]) for moment in moments]

    assert left == [None if m[3] is None else pytest.approx(m[3]) for m in moments]


@pytest.mark.parametrize(
    ("budget_s", "said"), [(170.0, []), (1_000.0, [(4.0, "16 m 36 s")])], ids=["short", "long"]
)
def test_long_run_is_said_once_after_three_seconds_of_learning(
    budget_s: float, said: list[tuple[float, str]]
) -> None:
    forecast, texts = Forecast(), []
    for second in range(10):
        steps = second  # learning begins with the second status
        eta_s = forecast.left_s(float(second), second / budget_s, steps)
        status = dataclasses.replace(
            STATUS, elapsed_s=float(second), learner_steps=steps, eta_s=eta_s
        )
        text = forecast.consider(status)
        if text is not None:
            texts.append((float(second), text))

    assert [(second, text.split(" ends in ")[1].split(" (")[0]) for second, text in texts] == said

"""What an actor records is what the learner is told; scores are the game's own."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.actors.plan import ActorPlan
from qfleet.actors.recorder import Recorder
from qfleet.common.types import BOOTSTRAP_DISCOUNT, N_STEP_RETURN, EnvironmentSpec
from qfleet.common.vector_envs import StepResult
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.config_loading import load_config
from qfleet.settings.plans import run_plans

SPEC = EnvironmentSpec("Game-v0", (1,), "<f4", 2, None, None)
NO, YES = np.zeros(1, dtype=bool), np.ones(1, dtype=bool)


def plan(**changes: object) -> ActorPlan:
    overrides = {"env.factory": "games:make", "actors.n_step": 2, "actors.discount": 0.5}
    given = {**overrides, **{key.replace("__", "."): value for key, value in changes.items()}}
    config = resolve_config(load_config("generic", [], given), SPEC, cpus=1, gpus=0)
    return run_plans(config).actor


def played(actor_plan: ActorPlan, steps: list[tuple[float, bool, bool]]) -> Recorder:
    """A recorder after steps of (reward, life lost, game over) of one sub-environment."""
    recorder = Recorder(actor_plan, SPEC, 0, np.zeros((1, 1), np.float32))
    for number, (reward, life_lost, is_over) in enumerate(steps):
        shown = np.full((1, 1), number + 1, np.float32)
        result = StepResult(
            *(shown, np.array([reward]), np.array([is_over]), NO, YES, shown),
            np.array([life_lost]),
        )
        recorder.record(shown - 1, np.zeros(1, np.int32), result, np.zeros(1))
    return recorder


@pytest.mark.parametrize(
    ("clip", "returns"), [(None, [6.5, 1.0, -4.0]), (1.0, [0.5 + 0.5 + 0.5, 0.5, -1.0])]
)
def test_rewards_are_clipped_for_the_learner_and_scores_are_real(clip, returns):
    steps = [(5.0, False, False), (3.0, False, False), (-4.0, False, True)]
    recorder = played(plan(actors__max_abs_reward=clip), steps)

    columns = recorder.pending()
    (episode,) = recorder.take(columns).episodes

    assert columns[N_STEP_RETURN].tolist() == returns
    assert (episode.episode_return, episode.length_env_steps) == (4.0, 3)


@pytest.mark.parametrize(
    ("episodic_life", "discounts"), [(True, [0.0, 0.0, 0.0, 0.0]), (False, [0.25, 0.25, 0.0, 0.0])]
)
def test_a_lost_life_ends_windows_where_it_is_asked_for_and_never_the_episode(
    episodic_life, discounts
):
    steps = [(1.0, False, False), (1.0, True, False), (1.0, False, False), (1.0, False, True)]
    recorder = played(plan(env__episodic_life=episodic_life), steps)

    columns = recorder.pending()
    played_on = recorder.take(columns)

    assert columns[BOOTSTRAP_DISCOUNT].tolist() == discounts
    assert [episode.length_env_steps for episode in played_on.episodes] == [4]
    recorder.check_valid()

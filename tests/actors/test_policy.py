import numpy as np
import pytest

from qfleet.actors.plan import ActorPlan
from qfleet.actors.policy import Exploration, explore, select_actions
from qfleet.settings.config import ActorsConfig, Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans


def actor_plan(**actors) -> ActorPlan:
    config = Config(actors=ActorsConfig(**actors))
    return run_plans(resolve_config(config, None, cpus=2, gpus=0)).actor


def test_ladder_slots_of_all_actors_form_one_ladder():
    plan = actor_plan(epsilon_base=0.4, epsilon_ladder_exponent=7.0)

    together = np.concatenate(
        [Exploration(plan, slot, 2, 2).epsilons(123.0, 0) for slot in range(2)]
    )

    expected = [0.4 ** (1 + 7 * i / 3) for i in range(4)]
    np.testing.assert_allclose(together, expected, rtol=1e-12)


def test_ladder_of_one_slot_plays_base():
    assert Exploration(actor_plan(), 0, 1, 1).epsilons(0.0, 0).tolist() == [0.4]


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("linear", 0, 1.0),
        ("linear", 50, 0.6),
        ("linear", 100, 0.2),
        ("linear", 1_000, 0.2),
        ("exponential", 0, 1.0),
        ("exponential", 100, 0.2 + 0.8 / np.e),
        ("constant", 0, 0.2),
        ("constant", 1_000, 0.2),
    ],
)
def test_schedules_follow_the_fleets_env_steps(schedule, step, expected):
    plan = actor_plan(
        epsilon_schedule=schedule,
        epsilon_start=1.0,
        epsilon_end=0.2,
        epsilon_decay_env_steps=100,
    )

    epsilons = Exploration(plan, 1, 2, 3).epsilons(step, 7)

    assert epsilons.shape == (3,)
    assert epsilons.dtype == np.float64
    np.testing.assert_allclose(epsilons, expected, rtol=1e-12)


@pytest.mark.parametrize(("slot", "n_actors"), [(-1, 2), (2, 2)])
def test_exploration_outside_the_fleet_is_refused(slot, n_actors):
    with pytest.raises(ValueError, match="place"):
        Exploration(actor_plan(), slot, n_actors, 1)


def test_greedy_takes_the_first_of_equal_actions():
    q_values = np.array([[1, 1, 0], [0, 2, 2], [3, 3, 3], [0, 0, 1]], np.float32)

    actions = select_actions(q_values, np.zeros(4), np.random.default_rng(0), 3)

    assert actions.tolist() == [0, 1, 0, 2]
    assert actions.dtype == np.int32


def test_explore_equals_hand_table():
    q_values = np.array([[0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]], np.float32)
    uniforms = np.array([[0.49, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 1 - 2.0**-53]])

    actions = explore(q_values, np.full(4, 0.5), uniforms, 3)

    assert actions.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("n_actions", [1, 2, 3, 5, 6, 7, 18, 1_000])
def test_explore_largest_uniform_stays_inside_the_actions(n_actions):
    largest = np.full((2, 1), np.nextafter(1.0, 0.0))

    actions = explore(np.zeros((1, n_actions)), 2.0, largest, n_actions)

    assert actions.tolist() == [n_actions - 1]


def test_select_actions_explores_at_its_rate_and_uniformly():
    n, epsilon = 60_000, 0.3
    q_values = np.tile(np.array([[0, 0, 1]], np.float32), (n, 1))

    actions = select_actions(q_values, np.full(n, epsilon), np.random.default_rng(5), 3)

    frequencies = np.bincount(actions, minlength=3) / n
    np.testing.assert_allclose(frequencies, [0.1, 0.1, 0.8], atol=0.006)  # 4.9 σ


def test_select_actions_uses_each_sub_envs_own_epsilon():
    q_values = np.tile(np.array([[0, 1]], np.float32), (1_000, 1))
    epsilons = np.repeat([0.0, 1.0], 500)

    actions = select_actions(q_values, epsilons, np.random.default_rng(5), 2)

    assert actions[:500].tolist() == [1] * 500
    assert 180 < np.count_nonzero(actions[500:] == 0) < 320  # 250 ± 6 σ


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_select_actions_always_draws_as_many_numbers(epsilon):
    rng, reference = np.random.default_rng(1), np.random.default_rng(1)

    select_actions(np.zeros((5, 3), np.float32), np.full(5, epsilon), rng, 3)
    reference.random(10)

    assert rng.bit_generator.state == reference.bit_generator.state


@pytest.mark.parametrize(("episodes", "expected"), [(0, 1.0), (50, 0.6), (100, 0.2), (1_000, 0.2)])
def test_linear_schedule_by_episodes_does_not_look_at_env_steps(episodes, expected):
    plan = actor_plan(
        epsilon_schedule="linear",
        epsilon_start=1.0,
        epsilon_end=0.2,
        epsilon_decay_env_steps=10,
        epsilon_decay_episodes=100,
    )

    epsilons = Exploration(plan, 0, 1, 1).epsilons(1e9, episodes)

    np.testing.assert_allclose(epsilons, [expected], rtol=1e-12)

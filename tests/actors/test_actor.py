import gc
import weakref

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from qfleet.actors.actor import Actor
from qfleet.common import messages
from qfleet.common.arrays_check import check_columns
from qfleet.common.capture_stream import decode_capture, encode_capture
from qfleet.common.envs import describe_environment
from qfleet.common.errors import (
    CheckpointError,
    EnvironmentFailedError,
    InvariantError,
    NonFiniteError,
    QfleetError,
)
from qfleet.common.types import Capture, ParamsSnapshot, TargetSyncEvent, transition_columns
from qfleet.common.vector_envs import make_vector_env
from qfleet.settings.config import Config
from qfleet.settings.config_auto import resolve_config
from qfleet.settings.plans import run_plans


def round_trip(capture: Capture) -> Capture:
    return decode_capture(b"".join(encode_capture(capture)))


class LinearQ:
    """Q(s) = s·w."""

    def __init__(self, snapshot):
        self.w = snapshot.arrays["w"]

    def q_values(self, observations, noise=None):
        assert noise is None
        return (observations @ self.w).astype(np.float32)


class Corridor(gymnasium.Env):
    """Counts up from 0 by 1 each step, whatever the action; the reward is the count."""

    observation_space = spaces.Box(0, 1e6, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None, reward=None, fails_at=None):
        self._count = self._total = 0
        self._reward, self._fails_at = reward, fails_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._count = 0
        return np.array([0.0], np.float32), {}

    def step(self, action):
        self._count += 1
        self._total += 1
        if self._total == self._fails_at:
            raise RuntimeError("the corridor is blocked")
        reward = float(self._count) if self._reward is None else self._reward
        return np.array([self._count], np.float32), reward, False, False, {}


def corridor_of_4(render_mode=None, **kwargs):
    return TimeLimit(Corridor(**kwargs), 4)


CORRIDOR = {"factory": f"{__name__}:corridor_of_4"}


def _snapshot(version, *, sync=False, env_steps=0, w=None, n_inputs=4):
    if w is None:
        w = np.random.default_rng(version).normal(size=(n_inputs, 2))
    return ParamsSnapshot(
        version, 10 * version, env_steps, sync, {"w": np.asarray(w, dtype=np.float32)}
    )


def _actor(config=None, *, n_envs=4, slot=0, incarnation=0, n_actors=1, seed=1):
    config = config or Config()
    own = {"count": n_actors, "envs_per_actor": n_envs}
    actors = config.actors.model_copy(update=own)
    config = config.model_copy(update={"actors": actors, "seed": seed})
    plan = run_plans(resolve_config(config, None, cpus=2, gpus=0)).actor
    return Actor(
        plan,
        describe_environment(plan.env),
        make_vector_env(plan.env, n_envs, place=f"actor {slot}"),
        LinearQ,
        run_id="run",
        slot=slot,
        incarnation=incarnation,
    )


def _same_chunks(a, b):
    names = "chunk_id", "params_version", "target_version", "env_steps"
    assert [getattr(a, name) for name in names] == [getattr(b, name) for name in names]
    assert a.episodes == b.episodes
    assert all(np.array_equal(a.columns[name], b.columns[name]) for name in a.columns)
    assert (a.priorities is None) == (b.priorities is None)
    if a.priorities is not None:
        assert np.array_equal(a.priorities, b.priorities)


def test_actor_without_parameters_refuses_to_step():
    with pytest.raises(QfleetError, match="no parameters yet"):
        _actor().step()


def test_actor_that_did_nothing_has_no_chunk():
    actor = _actor()
    actor.set_params(_snapshot(1))

    assert actor.take_chunk() is None


def test_actor_corridor_chunk_equals_hand_table():
    config = Config(env=CORRIDOR, actors={"n_step": 3, "discount": 0.5})
    actor = _actor(config, n_envs=1)
    actor.set_params(_snapshot(1, n_inputs=1))

    assert actor.act_steps(5) == 5
    chunk = actor.take_chunk()

    # Rewards 1 2 3 4, truncated at 4; then a new episode from 0, whose first window stays open.
    columns = chunk.columns
    check_columns(columns, transition_columns(describe_environment(config.env)), 4)
    assert columns["observation"][:, 0].tolist() == [0, 1, 2, 3]
    assert columns["n_step_return"].tolist() == [1 + 1 + 0.75, 2 + 1.5 + 1, 3 + 2, 4]
    assert columns["bootstrap_discount"].tolist() == [0.125, 0.125, 0.25, 0.5]
    assert columns["next_observation"][:, 0].tolist() == [3, 4, 4, 4]
    assert chunk.priorities is None
    assert (chunk.env_steps, chunk.params_version) == (5, 1)
    assert tuple(chunk.chunk_id) == ("run", 0, 0, 0)
    (episode,) = chunk.episodes
    assert (episode.episode_return, episode.length_env_steps) == (10.0, 4)
    assert (episode.terminated, episode.epsilon) == (False, 0.4)
    assert (actor.open_windows, actor.produced, actor.pending_rows) == (1, 4, 0)
    actor.check_valid()


def test_actor_cartpole_rows_chain_and_never_hold_a_reset_step():
    config = Config(actors={"epsilon_schedule": "constant", "epsilon_end": 1.0})
    actor = _actor(config, n_envs=1)
    actor.set_params(_snapshot(1))

    actor.act_steps(400)
    actor.check_valid()
    chunk = actor.take_chunk()

    rows = chunk.columns
    assert len(chunk) == chunk.env_steps == actor.env_steps == actor.produced == 400
    ends = np.flatnonzero(rows["bootstrap_discount"] == 0.0)
    assert len(ends) == len(chunk.episodes) == actor.episodes > 5
    assert np.diff(ends, prepend=-1).tolist() == [e.length_env_steps for e in chunk.episodes]
    assert all(e.episode_return == e.length_env_steps and e.terminated for e in chunk.episodes)
    chained = (rows["next_observation"][:-1] == rows["observation"][1:]).all(axis=1)
    assert np.array_equal(np.flatnonzero(~chained), ends[ends < 399])
    assert (np.abs(rows["observation"]) < 0.05).all(axis=1)[ends[ends < 399] + 1].all()
    last = rows["next_observation"][ends]
    assert ((np.abs(last[:, 0]) > 2.4) | (np.abs(last[:, 2]) > 0.2094)).all()


def test_chunks_are_numbered_and_cover_everything_once():
    config = Config(actors={"n_step": 3}, replay={"sampling": "prioritized"})
    whole, parts = _actor(config), _actor(config)
    for actor in (whole, parts):
        actor.set_params(_snapshot(1, sync=True))
    whole.act_steps(300)
    chunks = []
    for _ in range(100):
        if parts.env_steps >= whole.env_steps:
            break
        parts.step()
        chunks.append(parts.take_chunk())
        assert parts.take_chunk() is None

    expected = whole.take_chunk()
    assert [chunk.chunk_id.seq for chunk in chunks] == list(range(len(chunks)))
    assert sum(chunk.env_steps for chunk in chunks) == expected.env_steps == whole.env_steps
    assert sum((chunk.episodes for chunk in chunks), ()) == expected.episodes
    assert len(chunks[0]) == 0
    assert chunks[0].priorities.shape == (0,)
    for name, column in expected.columns.items():
        assert np.array_equal(np.concatenate([c.columns[name] for c in chunks]), column)
    np.testing.assert_allclose(
        np.concatenate([c.priorities for c in chunks]), expected.priorities, rtol=1e-5, atol=1e-6
    )


def test_chunk_survives_the_wire():
    config = Config(replay={"sampling": "prioritized"})
    actor = _actor(config, n_envs=8)
    actor.set_params(_snapshot(1))
    actor.act_steps(500)
    chunk = actor.take_chunk()

    decoded = messages.decode_chunk(messages.encode_chunk(chunk), describe_environment(config.env))

    _same_chunks(decoded, chunk)


def test_chunk_names_the_newest_version_that_acted():
    actor = _actor()
    actor.set_params(_snapshot(1))
    actor.step()
    actor.set_params(_snapshot(3))
    actor.step()
    actor.set_params(_snapshot(4))  # arrives after the last step

    assert actor.take_chunk().params_version == 3


def test_set_params_acknowledges_syncs_and_ignores_older_versions():
    actor = _actor()

    assert actor.set_params(_snapshot(2)) is None
    assert actor.target_version is None
    assert actor.set_params(_snapshot(5, sync=True)) == TargetSyncEvent(50, 5)
    assert actor.set_params(_snapshot(7)) is None
    assert actor.set_params(_snapshot(6)) is None
    assert (actor.params_version, actor.target_version, actor.stale_params) == (7, 5, 1)
    # A target that comes after newer parameters is the target alone.
    assert actor.set_params(_snapshot(6, sync=True)) == TargetSyncEvent(60, 6)
    assert actor.set_params(_snapshot(5, sync=True)) is None
    assert (actor.params_version, actor.target_version, actor.stale_params) == (7, 6, 2)
    assert actor.set_params(_snapshot(7, sync=True)) == TargetSyncEvent(70, 7)
    assert actor.set_params(_snapshot(7, sync=True)) is None
    assert (actor.params_version, actor.target_version, actor.stale_params) == (7, 7, 2)


BAD_ARRAYS = {
    "float64": ({"w": np.zeros((4, 2))}, InvariantError, "w is float64"),
    "shape": ({"w": np.zeros((3, 2), np.float32)}, InvariantError, "w|network"),
    "name": ({"v": np.zeros((4, 2), np.float32)}, InvariantError, "missing|network"),
    "nan": ({"w": np.full((4, 2), np.nan, np.float32)}, NonFiniteError, "NaN or infinity in w"),
    "infinity": ({"w": np.full((4, 2), np.inf, np.float32)}, NonFiniteError, "infinity in w"),
}


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(("arrays", "error", "words"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_snapshot_that_is_refused_is_an_error_and_not_acknowledged(arrays, error, words, is_first):
    actor = _actor()
    if not is_first:
        actor.set_params(_snapshot(1, sync=True))
        actor.step()

    with pytest.raises(error, match=f"actor 0 refuses parameters version 2.*({words})"):
        actor.set_params(ParamsSnapshot(2, 20, 0, True, arrays))

    assert (actor.params_version, actor.target_version) == ((None, None) if is_first else (1, 1))
    if not is_first:
        chunk = actor.take_chunk()
        assert (chunk.params_version, chunk.target_version) == (1, 1)


def test_chunk_names_the_versions_that_acted():
    actor = _actor()
    actor.set_params(_snapshot(3, sync=True))
    actor.set_params(_snapshot(5))
    actor.step()
    actor.set_params(_snapshot(6, sync=True))  # arrives after the last step

    chunk = actor.take_chunk()

    assert (chunk.params_version, chunk.target_version) == (5, 3)


def test_actor_holds_two_snapshots_whatever_comes():
    actor = _actor()
    arrays = []
    for version in range(1, 1001):
        snapshot = _snapshot(version, sync=version % 7 == 0)
        arrays.append(weakref.ref(snapshot.arrays["w"]))
        actor.set_params(snapshot)
    del snapshot
    gc.collect()

    assert [version for version, array in enumerate(arrays, 1) if array() is not None] == [
        994,
        1000,
    ]


@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize(
    ("learner", "target_is_online"),
    [({}, False), ({"target_network": False}, True), ({"target_tau": 0.01}, True)],
)
def test_priorities_equal_td_error_by_definition(learner, target_is_online, double_q):
    config = Config(
        actors={"n_step": 2},
        replay={"sampling": "prioritized"},
        learner={"double_q": double_q, **learner},
    )
    actor = _actor(config)
    target, online = _snapshot(1, sync=True), _snapshot(2)
    actor.set_params(target)
    actor.set_params(online)
    actor.act_steps(200)
    chunk = actor.take_chunk()

    w_online = online.arrays["w"].astype(np.float64)
    w_target = w_online if target_is_online else target.arrays["w"].astype(np.float64)
    expected = []
    for s, a, r, discount, s_next in zip(*chunk.columns.values(), strict=True):
        best = np.argmax(s_next @ (w_online if double_q else w_target))
        expected.append(abs(r + discount * (s_next @ w_target)[best] - (s @ w_online)[a]))
    np.testing.assert_allclose(chunk.priorities, expected, rtol=1e-4, atol=1e-5)
    assert chunk.priorities.dtype == np.float64


def test_priorities_before_any_target_sync_use_the_online_network():
    config = Config(env=CORRIDOR, replay={"sampling": "prioritized"}, actors={"discount": 0.5})
    actor = _actor(config, n_envs=1)
    actor.set_params(_snapshot(1, w=[[1.0, 1.0]]))
    actor.act_steps(2)

    # 1 + 0.5*1 - 0; 2 + 0.5*2 - 1
    assert actor.take_chunk().priorities.tolist() == [1.5, 2.0]


def test_priorities_that_are_not_finite_stop_the_run():
    actor = _actor(Config(env=CORRIDOR, replay={"sampling": "prioritized"}), n_envs=1)
    actor.set_params(_snapshot(1, w=[[3e38, 3e38]]))  # finite, but not twice as large
    with np.errstate(over="ignore"):
        actor.act_steps(3)

    with pytest.raises(NonFiniteError, match="actor 0"):
        actor.take_chunk()


def test_reward_scale_changes_what_is_learned_from_and_not_the_scores():
    plain, scaled = (
        _actor(Config(env=CORRIDOR, actors={"reward_scale": scale})) for scale in (1.0, 0.25)
    )
    for actor in (plain, scaled):
        actor.set_params(_snapshot(1, n_inputs=1))
        actor.act_steps(200)
    theirs, ours = plain.take_chunk(), scaled.take_chunk()

    assert theirs.columns["n_step_return"].any()
    np.testing.assert_array_equal(
        ours.columns["n_step_return"], 0.25 * theirs.columns["n_step_return"]
    )
    assert ours.episodes == theirs.episodes
    assert theirs.episodes


@pytest.mark.parametrize("kept", [1, 8])
def test_return_beyond_float32_never_enters_a_chunk(kept):
    """Three rewards of 2e38 are finite each, and their sum is not."""
    actor = _actor(Config(env={**CORRIDOR, "kwargs": {"reward": 2e38}}, actors={"n_step": 3}))
    actor.set_params(_snapshot(1, n_inputs=1))

    with np.errstate(over="ignore"):
        for _ in range(kept):
            actor.step()
    if kept == 1:
        actor.take_chunk()  # no window is complete yet
        return
    with pytest.raises(
        EnvironmentFailedError,
        match=r"corridor_of_4 failed in actor 0 before env step 32: n_step_return .*scale the rew",
    ):
        actor.take_chunk()


def test_error_of_the_environment_names_actor_and_sub_environment():
    actor = _actor(Config(env={**CORRIDOR, "kwargs": {"fails_at": 19}}), slot=2, n_actors=3)
    actor.set_params(_snapshot(1, n_inputs=1))

    with pytest.raises(
        EnvironmentFailedError,
        match="failed in actor 2, sub-environment 0 at step 3 of episode 5: step raised Runtime",
    ):
        actor.act_steps(100)


def test_epsilon_follows_the_fleets_env_steps():
    config = Config(
        env=CORRIDOR,
        actors={
            "epsilon_schedule": "linear",
            "epsilon_start": 1.0,
            "epsilon_end": 0.0,
            "epsilon_decay_env_steps": 1_000,
        },
    )
    actor = _actor(config, n_envs=1, n_actors=5)
    actor.set_params(_snapshot(1, n_inputs=1))
    actor.act_episode()
    actor.set_params(_snapshot(2, n_inputs=1, env_steps=500))
    actor.act_episode()
    actor.act_episode()

    epsilons = [episode.epsilon for episode in actor.take_chunk().episodes]

    # The last step of an episode is chosen after 3 (7) own steps, each counted for 5 actors.
    np.testing.assert_allclose(epsilons, [1 - 0.015, 0.5 - 0.015, 0.5 - 0.035], rtol=1e-12)


def test_set_ladder_gives_another_place_among_other_actors():
    actor = _actor(Config(env=CORRIDOR), n_envs=2, slot=1, n_actors=2)
    actor.set_params(_snapshot(1, n_inputs=1))
    actor.act_steps(8)
    actor.set_ladder(0, 3)
    actor.act_steps(8)

    epsilons = [episode.epsilon for episode in actor.take_chunk().episodes]

    steps = [(3, 2), (3, 3), (5, 0), (5, 1)]
    expected = [0.4 ** (1 + 7 * i / last) for last, i in steps]
    np.testing.assert_allclose(epsilons, expected, rtol=1e-12)


def test_act_episode_ends_exactly_one_episode():
    actor = _actor(n_envs=1)
    actor.set_params(_snapshot(1))

    for count in range(1, 6):
        actor.act_episode()
        chunk = actor.take_chunk()
        assert actor.episodes == count
        assert [episode.length_env_steps for episode in chunk.episodes] == [chunk.env_steps]
        assert chunk.columns["bootstrap_discount"][-1] == 0.0


def test_act_steps_counts_real_steps_only():
    actor = _actor(Config(actors={"epsilon_schedule": "constant", "epsilon_end": 1.0}), n_envs=3)
    actor.set_params(_snapshot(1))

    taken = [actor.act_steps(100) for _ in range(5)]

    assert all(100 <= count < 103 for count in taken)
    assert sum(taken) == actor.env_steps == actor.take_chunk().env_steps


def _played(seed=1, slot=0, incarnation=0):
    actor = _actor(seed=seed, slot=slot, incarnation=incarnation, n_actors=2)
    actor.set_params(_snapshot(1))
    actor.act_steps(200)
    return actor.take_chunk()


def test_equal_seeds_play_equal_bits_and_other_seeds_do_not():
    first = _played()

    _same_chunks(_played(), first)
    for other in (_played(seed=2), _played(slot=1), _played(incarnation=1)):
        assert not np.array_equal(
            other.columns["observation"][:4], first.columns["observation"][:4]
        )


@pytest.mark.parametrize("cut", [0, 1, 60])
def test_actor_restored_continues_with_equal_bits(cut):
    config = Config(
        actors={"n_step": 3, "epsilon_schedule": "linear", "epsilon_decay_env_steps": 2_000},
        replay={"sampling": "prioritized"},
    )
    original, copy = _actor(config), _actor(config)
    original.set_params(_snapshot(1, sync=True))
    original.set_params(_snapshot(2, env_steps=300))
    for _ in range(cut):
        original.step()
    if cut > 1:
        original.take_chunk()
        original.act_steps(30)  # leaves rows, episodes and open windows behind

    copy.restore(round_trip(original.capture()))
    copy.check_valid()

    assert (copy.params_version, copy.target_version) == (2, 1)
    assert copy.open_windows == original.open_windows
    for version in (2, 3):  # version 2 again changes nothing
        for actor in (original, copy):
            actor.set_params(_snapshot(version, sync=version == 3, env_steps=300))
            for _ in range(150):
                actor.step()
        _same_chunks(copy.take_chunk(), original.take_chunk())
    assert copy.episodes == original.episodes > 0
    assert copy.dropped_transitions == 0


def test_actor_of_uncapturable_environment_drops_open_windows():
    config = Config(env=CORRIDOR, actors={"n_step": 3})
    original = _actor(config, n_envs=2)
    original.set_params(_snapshot(1, n_inputs=1))
    original.act_steps(12)  # 6 steps each: 4 rows and 2 open windows
    copy = _actor(config, n_envs=2)

    copy.restore(round_trip(original.capture()))
    copy.check_valid()

    assert (copy.dropped_transitions, copy.open_windows, copy.pending_rows) == (4, 0, 8)
    copy.act_steps(2)
    chunk = copy.take_chunk()
    assert (chunk.env_steps, len(chunk), len(chunk.episodes)) == (14, 8, 2)
    copy.act_steps(6)
    assert [e.length_env_steps for e in copy.take_chunk().episodes] == [4, 4]


def test_restore_into_new_incarnation_numbers_chunks_from_zero():
    original = _actor()
    original.set_params(_snapshot(1))
    for _ in range(3):
        original.step()
        original.take_chunk()
    capture = original.capture()
    same, new = _actor(), _actor(incarnation=1)

    for actor in (same, new):
        actor.restore(capture)
        actor.step()

    assert tuple(same.take_chunk().chunk_id) == ("run", 0, 0, 3)
    assert tuple(new.take_chunk().chunk_id) == ("run", 0, 1, 0)


def test_restore_from_another_slot_is_refused():
    actor = _actor(slot=1, n_actors=2)

    with pytest.raises(CheckpointError, match="actor 1, this is 0"):
        _actor().restore(actor.capture())


def test_check_valid_finds_a_miscounted_step():
    actor = _actor()
    actor.set_params(_snapshot(1))
    actor.step()
    actor._recorder.env_steps += 1

    with pytest.raises(InvariantError, match="windows were opened"):
        actor.check_valid()

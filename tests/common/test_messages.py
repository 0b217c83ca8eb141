import dataclasses

import numpy as np
import pytest

from qfleet.common import messages, sample_message, wire
from qfleet.common.errors import WireFormatError
from qfleet.common.pixels.new_frames import NewFrames
from qfleet.common.pixels.stored_columns import STACKS, held_columns
from qfleet.common.types import (
    ChunkId,
    EnvironmentSpec,
    EpisodeSummary,
    ParamsSnapshot,
    PriorityUpdate,
    ReplayStats,
    ShardSample,
    TransitionChunk,
)

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
IMAGES = EnvironmentSpec("Images-v0", (2, 3), "|u1", 3, None, None)
STACKED = EnvironmentSpec("Stacks-v0", (4, 5, 6), "|u1", 3, None, None, frame_stack=4)
EPISODES = (
    EpisodeSummary(3, 0, -12.5, 200, 0.1, True),
    EpisodeSummary(3, 15, 500.0, 500, 0.4, False),
)


def transition_rows(rows: int, spec: EnvironmentSpec = SPEC) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    shape = (rows, *spec.observation_shape)
    return {
        "observation": rng.integers(0, 255, shape).astype(spec.observation_dtype),
        "action": rng.integers(0, spec.n_actions, rows).astype(np.int32),
        "n_step_return": rng.normal(size=rows).astype(np.float32),
        "bootstrap_discount": np.full(rows, 0.99, np.float32),
        "next_observation": rng.integers(0, 255, shape).astype(spec.observation_dtype),
    }


def chunk(rows: int = 5, spec: EnvironmentSpec = SPEC, **changes: object) -> TransitionChunk:
    base = TransitionChunk(
        ChunkId("run-ü", 3, 2, 7),
        transition_rows(rows, spec),
        np.linspace(0.0, 2.0, rows),
        11,
        rows + 1,
        EPISODES,
    )
    return dataclasses.replace(base, **changes)


def assert_same_columns(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array)


@pytest.mark.parametrize("spec", [SPEC, IMAGES])
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("has_priorities", [True, False])
def test_chunk_round_trips(spec, rows, has_priorities):
    sent = chunk(rows, spec) if has_priorities else chunk(rows, spec, priorities=None, episodes=())

    received = messages.decode_chunk(messages.encode_chunk(sent), spec)

    assert received.chunk_id == sent.chunk_id
    assert_same_columns(received.columns, sent.columns)
    assert (received.params_version, received.env_steps) == (11, rows + 1)
    assert received.episodes == sent.episodes
    assert len(received) == rows
    if has_priorities:
        np.testing.assert_array_equal(received.priorities, sent.priorities)
    else:
        assert received.priorities is None


def with_column(name: str, array: np.ndarray) -> TransitionChunk:
    return chunk(columns={**transition_rows(5), name: array})


def with_value(name: str, value: float) -> TransitionChunk:
    columns = transition_rows(5)
    columns[name].flat[-1] = value
    return chunk(columns=columns)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (with_value("observation", np.nan), "observation holds a value that is not finite"),
        (with_value("next_observation", np.inf), "next_observation holds"),
        (with_value("n_step_return", np.nan), "n_step_return holds"),
        (with_value("bootstrap_discount", -np.inf), "bootstrap_discount holds"),
        (with_value("action", 2), "an action is outside 0…1"),
        (with_value("action", -1), "an action is outside"),
        (with_column("action", np.zeros(5, np.int64)), "column action is <i8"),
        (with_column("action", np.zeros((5, 1), np.int32)), "column action"),
        (with_column("action", np.zeros((), np.int32)), "column observation"),
        (with_column("observation", np.zeros((5, 4))), "column observation is <f8"),
        (with_column("observation", np.zeros((5, 3), np.float32)), "column observation"),
        (with_column("next_observation", np.zeros((4, 4), np.float32)), "column next_observation"),
        (with_column("n_step_return", np.zeros(4, np.float32)), "column n_step_return"),
        (with_column("extra", np.zeros(5)), "are not a transition's"),
        (chunk(columns=dict(list(transition_rows(5).items())[:-1])), "are not a transition's"),
        (chunk(columns=dict(reversed(transition_rows(5).items()))), "are not a transition's"),
        (chunk(priorities=np.full(5, -1e-9)), "finite and not negative"),
        (chunk(priorities=np.full(5, np.nan)), "finite and not negative"),
        (chunk(priorities=np.full(5, np.inf)), "finite and not negative"),
        (chunk(priorities=np.zeros(4)), "priorities must be float64"),
        (chunk(priorities=np.zeros(5, np.float32)), "priorities must be float64"),
        (chunk(chunk_id=ChunkId("r", -1, 0, 0)), "actor_slot must be at least 0"),
        (chunk(chunk_id=ChunkId("r", 0, 0, True)), "seq must be a int"),
        (chunk(chunk_id=ChunkId(5, 0, 0, 0)), "run_id must be a str"),
        (chunk(env_steps=1.0), "env_steps must be a int"),
        (chunk(params_version=-1), "params_version must be at least 0"),
        (chunk(episodes=(EpisodeSummary(0, 0, np.nan, 1, 0.1, True),)), "episodes must be finite"),
        (chunk(episodes=(EpisodeSummary(0, 0, 1.0, np.inf, 0.1, True),)), "episodes must be finit"),
        (chunk(episodes=(EpisodeSummary(0, -1, 1.0, 1, 0.1, True),)), "must be counts"),
        (chunk(episodes=(EpisodeSummary(0.5, 0, 1.0, 1, 0.1, True),)), "must be counts"),
    ],
)
def test_decode_chunk_wrong_value_is_refused(broken, words):
    data = messages.encode_chunk(broken)

    with pytest.raises(WireFormatError, match=words):
        messages.decode_chunk(data, SPEC)


@pytest.mark.parametrize("missing", ["run_id", "seq", "env_steps"])
def test_decode_chunk_missing_or_foreign_field_is_refused(missing):
    meta, columns = wire.decode(messages.encode_chunk(chunk()), "chunk")
    meta.pop(missing)

    for fields in (meta, {**meta, missing: 1, "foreign": 1}):
        with pytest.raises(WireFormatError, match="fields must be"):
            messages.decode_chunk(wire.encode("chunk", fields, columns), SPEC)


@pytest.mark.parametrize("episodes", [None, np.zeros((2, 5)), np.zeros(6), np.zeros((1, 6), "<f4")])
def test_decode_chunk_episodes_of_wrong_form_are_refused(episodes):
    meta, columns = wire.decode(messages.encode_chunk(chunk()), "chunk")
    columns.pop("episodes")
    extra = {} if episodes is None else {"episodes": episodes}

    with pytest.raises(WireFormatError, match="episodes"):
        messages.decode_chunk(wire.encode("chunk", meta, {**columns, **extra}), SPEC)


def sample(n: int = 6) -> ShardSample:
    stats = ReplayStats(100, 200, 300, 100, 12.25, 1, 2, 3, 4, 210, 9)
    keys, probabilities = np.arange(n) + 2**40, np.full(n, 0.01)
    return ShardSample(1, transition_rows(n), keys, probabilities, stats, 1.5, 0.25)


@pytest.mark.parametrize("n", [0, 6])
def test_shard_sample_round_trips(n):
    sent = sample(n)

    received = sample_message.decode_shard_sample(sample_message.encode_shard_sample(sent))

    assert (received.shard, received.stats, received.mean_age_s) == (1, sent.stats, 1.5)
    assert received.held_s == 0.25
    assert_same_columns(received.columns, sent.columns)
    np.testing.assert_array_equal(received.item_keys, sent.item_keys)
    np.testing.assert_array_equal(received.probabilities, sent.probabilities)


def test_decode_shard_sample_wrong_field_is_refused():
    meta, columns = wire.decode(sample_message.encode_shard_sample(sample()), "sample")
    without_keys = {name: a for name, a in columns.items() if name != "item_keys"}
    broken = [
        ({**meta, "more": 1}, columns),
        ({**meta, "shard": "0"}, columns),
        ({**meta, "shard": -1}, columns),
        ({**meta, "mean_age_s": None}, columns),
        ({**meta, "stats": [1, 2]}, columns),
        ({**meta, "stats": ["a"] * len(ReplayStats._fields)}, columns),
        (meta, without_keys),
        (meta, {**columns, "item_keys": np.zeros(6, np.int32)}),
        (meta, {**columns, "probabilities": np.zeros((6, 1))}),
        (meta, {**columns, "probabilities": np.zeros(5)}),
        (meta, {**columns, "action": np.zeros(5, np.int32)}),
    ]

    for fields, arrays in broken:
        with pytest.raises(WireFormatError):
            sample_message.decode_shard_sample(wire.encode("sample", fields, arrays))


def sample_by_place(**changes):
    places = {name: np.array([[0, 1], [6, 2]], "<i4") for name in STACKS}
    columns = {**transition_rows(2), **places}
    frames = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    news = NewFrames("reader", 5, 7, np.array([1, 6]), frames, np.array([5, 3]))
    sent = dataclasses.replace(sample(2), columns=columns, new_frames=news)
    meta, arrays = wire.decode(sample_message.encode_shard_sample(sent), "sample")
    return sent, wire.encode("sample", meta, {**arrays, **changes})


def test_shard_sample_by_place_round_trips():
    sent, data = sample_by_place()
    received = sample_message.decode_shard_sample(data)
    assert_same_columns(received.columns, sent.columns)
    assert received.new_frames[:3] == ("reader", 5, 7)
    np.testing.assert_array_equal(received.new_frames.since, [5, 3])
    np.testing.assert_array_equal(received.new_frames.places, [1, 6])
    np.testing.assert_array_equal(received.new_frames.frames, sent.new_frames.frames)


@pytest.mark.parametrize(
    "changes",
    [
        {"new_places": np.array([1])},
        {"new_places": np.array([1, 7])},
        {"new_places": np.array([-1, 6])},
        {"new_places": np.array([1, 6], np.int32)},
        {"new_since": np.array([1])},
        {"new_since": np.array([0, 3])},
        {"new_since": np.array([6, 3])},
        {"new_since": np.array([5, 3], np.int32)},
        {"new_frames": np.zeros((2, 6), np.uint8)},
        {"new_frames": np.zeros((2, 2, 3), np.int8)},
        {"observation": np.array([[0, 1], [7, 2]], "<i4")},
        {"next_observation": np.array([[0, -1], [6, 2]], "<i4")},
        {"observation": np.zeros((2, 2), "<f4")},
        {"observation": np.zeros(2, "<i4")},
    ],
)
def test_decode_shard_sample_by_place_refuses_places_that_are_none(changes):
    _, data = sample_by_place(**changes)
    with pytest.raises(WireFormatError):
        sample_message.decode_shard_sample(data)


def test_priority_update_round_trips():
    sent = PriorityUpdate(np.array([5, 5, 2**50]), np.array([0.0, 1e-300, 3.5]))

    received = messages.decode_priority_update(messages.encode_priority_update(sent))

    np.testing.assert_array_equal(received.item_keys, sent.item_keys)
    np.testing.assert_array_equal(received.td_errors_abs, sent.td_errors_abs)


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"item_keys": np.zeros(2, np.int64)},
        {"item_keys": np.zeros(2, np.int32), "td_errors_abs": np.zeros(2)},
        {"item_keys": np.zeros(2, np.int64), "td_errors_abs": np.zeros(2, np.float32)},
        {"item_keys": np.zeros(2, np.int64), "td_errors_abs": np.zeros(3)},
        {"item_keys": np.zeros(2, np.int64), "td_errors_abs": np.array([0.0, -1.0])},
        {"item_keys": np.zeros(2, np.int64), "td_errors_abs": np.array([0.0, np.nan])},
        {"item_keys": np.zeros(1, np.int64), "td_errors_abs": np.zeros(1), "x": np.zeros(1)},
    ],
)
def test_decode_priority_update_wrong_columns_are_refused(columns):
    with pytest.raises(WireFormatError):
        messages.decode_priority_update(wire.encode("priorities", {}, columns))


def test_snapshot_round_trips_with_scalar_buffers():
    arrays = {
        "0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "1.num_batches_tracked": np.array(2**40),
    }
    sent = ParamsSnapshot(4, 200, 5_000, True, arrays)

    received = messages.decode_snapshot(messages.encode_snapshot(sent))

    assert (received.version, received.learner_step, received.env_steps) == (4, 200, 5_000)
    assert received.is_target_sync is True
    assert_same_columns(received.arrays, arrays)
    assert received.arrays["1.num_batches_tracked"].shape == ()


@pytest.mark.parametrize(
    "change",
    [{"version": None}, {"version": -1}, {"is_target_sync": 1}, {"learner_step": 0.5}, {"x": 1}],
)
def test_decode_snapshot_wrong_field_is_refused(change):
    meta = {"version": 1, "learner_step": 2, "env_steps": 3, "is_target_sync": False, **change}

    with pytest.raises(WireFormatError, match="snapshot's"):
        messages.decode_snapshot(wire.encode("snapshot", meta, {}))


def test_decoders_refuse_each_others_messages():
    encoded = {
        "chunk": messages.encode_chunk(chunk()),
        "sample": sample_message.encode_shard_sample(sample()),
        "priorities": messages.encode_priority_update(PriorityUpdate(np.arange(1), np.ones(1))),
        "snapshot": messages.encode_snapshot(ParamsSnapshot(1, 0, 0, False, {})),
    }
    decoders = {
        "chunk": lambda data: messages.decode_chunk(data, SPEC),
        "sample": sample_message.decode_shard_sample,
        "priorities": messages.decode_priority_update,
        "snapshot": messages.decode_snapshot,
    }

    for sent, data in encoded.items():
        for expected, decode in decoders.items():
            if sent == expected:
                decode(data)
            else:
                with pytest.raises(WireFormatError, match="of kind"):
                    decode(data)


@pytest.mark.parametrize("spec", [SPEC, IMAGES])
@pytest.mark.parametrize("rows", [0, 1, 3200])
def test_shard_sample_bytes_is_never_fewer_and_at_most_a_kilobyte_more(spec, rows):
    stats = ReplayStats(*[10**9] * len(ReplayStats._fields))
    keys, probabilities = np.arange(rows), np.full(rows, 0.5)
    sample = ShardSample(99, transition_rows(rows, spec), keys, probabilities, stats, 1.5, 0.25)

    estimate = sample_message.shard_sample_bytes(spec, rows)

    assert 0 <= estimate - len(sample_message.encode_shard_sample(sample)) < 1024


@pytest.mark.parametrize("rows", [0, 1, 60])
def test_shard_sample_bytes_by_place_holds_every_frame_that_the_draws_may_name(rows):
    stats = ReplayStats(*[10**9] * len(ReplayStats._fields))
    spec, n = STACKED, rows * 2 * STACKED.frame_stack
    columns = {c.name: np.zeros((rows, *c.shape), c.dtype) for c in held_columns(spec)}
    frames = np.zeros((n, *spec.observation_shape[1:]), np.uint8)
    news = NewFrames("0" * 32, 2**40, n + 1, np.arange(n), frames, np.arange(n))
    keys, probabilities = np.arange(rows), np.full(rows, 0.5)
    sample = ShardSample(99, columns, keys, probabilities, stats, 1.5, 0.25, news)

    estimate = sample_message.shard_sample_bytes(spec, rows, by_place=True)

    assert 0 <= estimate - len(sample_message.encode_shard_sample(sample)) < 1024


@pytest.mark.parametrize("rows", [0, 1, 100])
def test_chunk_bytes_is_never_fewer_than_a_chunk_has(rows):
    most = chunk(rows, priorities=np.ones(rows), episodes=EPISODES[:1] * rows)

    n_bytes = len(messages.encode_chunk(most))

    assert n_bytes <= messages.chunk_bytes(SPEC, rows) <= n_bytes + 1024

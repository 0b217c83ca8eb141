import dataclasses
import pickle

import numpy as np
import pytest

from qfleet.common import reports, types
from qfleet.common.arrays_check import check_columns
from qfleet.common.errors import InvariantError
from qfleet.common.types import EnvironmentSpec, transition_columns

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
IMAGES = EnvironmentSpec("Images-v0", (4, 84, 84), "|u1", 6, None, None)


def columns(rows: int = 3) -> dict[str, np.ndarray]:
    return {c.name: np.zeros((rows, *c.shape), c.dtype) for c in transition_columns(SPEC)}


@pytest.mark.parametrize("spec", [SPEC, IMAGES])
def test_environment_spec_json_round_trips(spec):
    copy = EnvironmentSpec.from_json(spec.to_json())

    assert copy == spec
    assert isinstance(copy.observation_shape, tuple)


def test_environment_spec_n_inputs_is_the_flat_length_or_the_number_of_planes():
    assert SPEC.n_inputs == 4
    assert IMAGES.n_inputs == 4
    assert dataclasses.replace(SPEC, observation_shape=()).n_inputs == 1


def test_transition_columns_of_images_are_stored_as_bytes():
    assert [tuple(c) for c in transition_columns(IMAGES)] == [
        ("observation", "|u1", (4, 84, 84)),
        ("action", "<i4", ()),
        ("n_step_return", "<f4", ()),
        ("bootstrap_discount", "<f4", ()),
        ("next_observation", "|u1", (4, 84, 84)),
    ]


def test_check_columns_accepts_exactly_the_spec():
    check_columns(columns(), transition_columns(SPEC), 3)
    check_columns(columns(0), transition_columns(SPEC), 0)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        dict(reversed(columns().items())),
        {**columns(), "extra": np.zeros(3)},
        {**columns(), "action": np.zeros(3, np.int64)},
        {**columns(), "action": np.zeros(2, np.int32)},
        {**columns(), "observation": np.zeros((3, 5), np.float32)},
    ],
)
def test_check_columns_any_departure_raises(broken):
    with pytest.raises(InvariantError):
        check_columns(broken, transition_columns(SPEC), 3)


def test_replay_sample_n_batches_is_the_leading_extent():
    keys = np.zeros((3, 8), np.int64)

    assert types.ReplaySample({}, keys, keys, keys).n_batches == 3


def test_every_message_type_survives_pickle():
    stats = types.ReplayStats(*range(11))
    values = [
        SPEC,
        types.ChunkId("r", 1, 2, 3),
        types.EpisodeSummary(0, 1, 2.0, 3, 0.4, True),
        types.InsertAck("accepted", 1, 2),
        stats,
        types.TargetSyncEvent(1, 2),
        reports.LearnerStats(1, 2, 3, 0.1, 0.2, 0.3, 0.4),
        reports.EvaluationRequest(1, 2, None, 3, 4),
        reports.EvaluationReport(1, 2, 3, 4.0, 5.0, 6, None, None, 0),
        types.Capture({"a": 1}, {}),
    ]

    assert pickle.loads(pickle.dumps(values)) == values
    with_arrays = [
        types.TransitionChunk(types.ChunkId("r", 1, 2, 3), columns(), None, 1, 2),
        types.ShardSample(0, columns(), np.arange(3), np.ones(3), stats, 0.5),
        types.PriorityUpdate(np.arange(3), np.ones(3)),
        types.ParamsSnapshot(1, 2, 3, True, {"w": np.ones(2)}),
        types.ReplaySample(columns(), np.arange(3), np.arange(3), np.ones(3)),
    ]
    for value in with_arrays:
        copy = pickle.loads(pickle.dumps(value))
        for field in dataclasses.fields(value):
            np.testing.assert_equal(getattr(copy, field.name), getattr(value, field.name))


@pytest.mark.parametrize("value", [SPEC, types.PriorityUpdate(np.arange(1), np.ones(1))])
def test_message_types_are_frozen(value):
    field = dataclasses.fields(value)[0].name

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)

from typing import Any

import numpy as np
import pytest
import torch

from qfleet.common.types import ReplaySample
from qfleet.learner.batch_stager import BatchStager
from qfleet.learner.update import Batches

CPU = torch.device("cpu")
K, B = 2, 3


def sample(
    seed: int, shape: tuple[int, ...] = (4,), dtype: Any = np.float32, k: int = K
) -> ReplaySample:
    rng = np.random.default_rng(seed)
    columns = {
        "observation": rng.integers(0, 256, (k, B, *shape)).astype(dtype),
        "action": rng.integers(0, 6, (k, B)).astype(np.int32),
        "n_step_return": rng.normal(size=(k, B)).astype(np.float32),
        "bootstrap_discount": rng.uniform(size=(k, B)).astype(np.float32),
        "next_observation": rng.integers(0, 256, (k, B, *shape)).astype(dtype),
    }
    for array in columns.values():
        array.flags.writeable = False  # as they come out of a message
    keys = np.zeros((k, B), np.int64)
    # Twice as wide as what is kept: float64, as a sampler may give them.
    return ReplaySample(columns, keys, keys.astype(np.int32), rng.uniform(size=(k, B)))


def assert_holds(batches: Batches, expected: ReplaySample) -> None:
    columns = expected.columns
    stored = torch.from_numpy(np.empty(0, columns["observation"].dtype)).dtype
    pairs = [
        (batches.observations, columns["observation"], stored),
        (batches.actions, columns["action"], torch.int64),
        (batches.n_step_returns, columns["n_step_return"], torch.float32),
        (batches.bootstrap_discounts, columns["bootstrap_discount"], torch.float32),
        (batches.next_observations, columns["next_observation"], stored),
        (batches.is_weights, expected.is_weights.astype(np.float32), torch.float32),
    ]
    assert batches.noise is None
    for tensor, array, wanted in pairs:
        assert tensor.dtype == wanted
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((4,), np.float32),
        ((4,), np.float64),
        ((4, 5, 2), np.uint8),
        ((3,), np.int16),
        ((), np.float32),
        ((2, 2), np.bool_),
    ],
)
def test_stage_keeps_observations_as_they_are_stored(shape: tuple[int, ...], dtype: Any) -> None:
    given = sample(1, shape, dtype)
    assert_holds(BatchStager(CPU).stage(given), given)


def test_stage_uses_its_memory_again_and_leaves_the_sample_alone() -> None:
    stager, first, second = BatchStager(CPU), sample(1), sample(2)
    before = stager.stage(first)
    addresses = [column.data_ptr() for column in before.tensors()]
    after = stager.stage(second)
    assert [column.data_ptr() for column in after.tensors()] == addresses
    assert all(address % 64 == 0 for address in addresses)
    assert_holds(after, second)
    assert_holds(BatchStager(CPU).stage(first), first)


def test_stage_of_other_shapes_in_turn() -> None:
    stager = BatchStager(CPU)
    for given in (sample(1), sample(2, k=5), sample(3, (7,)), sample(4, (7,), np.uint8), sample(5)):
        assert_holds(stager.stage(given), given)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_stage_on_a_gpu_never_overtakes_its_transfer() -> None:
    stager = BatchStager(torch.device("cuda"))
    given = [sample(seed, (84, 84, 4), np.uint8, k=16) for seed in range(8)]
    kept = [Batches(*(column.clone() for column in stager.stage(one).tensors())) for one in given]
    for batches, one in zip(kept, given, strict=True):
        assert batches.observations.device.type == "cuda"
        assert_holds(batches, one)

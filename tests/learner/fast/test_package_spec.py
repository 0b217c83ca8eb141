"""What makes two runs share a package, and how many updates one holds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qfleet.common.types import EnvironmentSpec
from qfleet.learner.block_inputs import first_arrays
from qfleet.learner.fast.package_cache import package_key
from qfleet.learner.fast.package_spec import PackageSpec
from qfleet.learner.plan import LearnerPlan

SPEC = EnvironmentSpec("CartPole-v1", (4,), "<f4", 2, 475.0, 500)
Plans = Callable[..., LearnerPlan]


def key(plan: LearnerPlan, dtype: str = "float32", **environment: Any) -> str:
    spec = PackageSpec(plan, replace(SPEC, **environment), dtype)
    return package_key(spec.describe(*first_arrays(plan, spec.environment)))


def test_describe_changes_with_the_code_and_not_with_values(plan_of: Plans) -> None:
    base = key(plan_of())
    rates = {"learning_rate": 0.5, "momentum": 0.1, "huber_delta": 2.0, "max_grad_norm": 7.0}
    assert key(plan_of(**rates)) == base
    assert key(replace(plan_of(), seed=9)) == base
    changes: list[dict[str, Any]] = [
        *({"normalization": "none"}, {"normalization": "layer"}, {"loss": "mse"}),
        *({"optimizer": "adam"}, {"optimizer": "radam"}, {"target_tau": 0.1}),
        *({"max_grad_norm": None}, {"double_q": False}, {"updates_per_call": 8}),
        *({"batch_size": 5}, {"num_cpus": 2}, {"target_network": False, "double_q": False}),
    ]
    keys = [base, key(plan_of(), "float64"), *(key(plan_of(**change)) for change in changes)]
    keys += [key(plan_of(), **change) for change in ({"n_actions": 3}, {"observation_shape": (5,)})]
    assert len(set(keys)) == len(keys)


def test_describe_changes_with_how_observations_are_stored(plan_of: Plans) -> None:
    stored = [("<f4", (4,)), ("<f4", (2, 2)), ("|u1", (4,)), ("<f8", (4,))]
    keys = {
        key(plan_of(), observation_dtype=dtype, observation_shape=shape) for dtype, shape in stored
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("updates_per_call", "unrolled"), [(50, 10), (4, 4), (13, 13), (25, 5), (48, 16), (17, 1)]
)
def test_n_updates_is_the_largest_divisor_that_is_unrolled(
    updates_per_call: int, unrolled: int, plan_of: Plans
) -> None:
    plan = replace(plan_of(), updates_per_call=updates_per_call)
    assert PackageSpec(plan, SPEC).n_updates == unrolled

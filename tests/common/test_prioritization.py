import numpy as np
import pytest

from qfleet.common.prioritization import importance_weights, sampling_weights


def test_sampling_weights_table():
    weights = sampling_weights(np.array([0.0, 0.25, 4.0], np.float32), 0.5, 0.0)

    assert weights.dtype == np.float64
    assert weights.tolist() == [0.0, 0.5, 2.0]


def test_sampling_weights_epsilon_is_added_before_the_exponent():
    assert sampling_weights(np.array([0.0, 3.0]), 2.0, 1.0).tolist() == [1.0, 16.0]


def test_sampling_weights_exponent_zero_is_uniform_even_at_zero():
    assert sampling_weights(np.array([0.0, 9.0]), 0.0, 1e-6).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [-1e-12, np.nan, np.inf])
def test_sampling_weights_of_no_magnitude_raise(value):
    with pytest.raises(ValueError, match="finite and not negative"):
        sampling_weights(np.array([1.0, value]), 0.6, 1e-6)


def test_importance_weights_table():
    # (N·P)^(−β) with N = 4, β = ½: 1, 1/√2, 1/2, √2, divided by √2.
    weights = importance_weights(np.array([0.25, 0.5, 1.0, 0.125]), 4, 0.5)

    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [0.5**0.5, 0.5, 0.125**0.5, 1.0], rtol=1e-6)


def test_importance_weights_exponent_one_undoes_the_probabilities_and_zero_does_nothing():
    probabilities = np.array([0.1, 0.2, 0.7])

    full = importance_weights(probabilities, 3, 1.0)

    np.testing.assert_allclose(full * probabilities, [0.1, 0.1, 0.1], rtol=1e-6)
    assert importance_weights(probabilities, 3, 0.0).tolist() == [1.0, 1.0, 1.0]


def test_importance_weights_each_batch_has_its_own_maximum():
    weights = importance_weights(np.array([[0.5, 0.25], [0.01, 0.02]]), 10, 1.0)

    np.testing.assert_allclose(weights, [[0.5, 1.0], [1.0, 0.5]], rtol=1e-6)

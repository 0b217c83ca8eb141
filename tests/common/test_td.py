import numpy as np
import pytest

from qfleet.common.config import NetworkConfig
from qfleet.common.td import TdRule, td_errors, td_errors_by_networks

Q = np.array([[1.0, 2.0], [3.0, 4.0], [0.5, -0.5], [0.0, 0.0]], dtype=np.float32)
ACTIONS = np.array([0, 1, 1, 0], dtype=np.int32)
RETURNS = np.array([1.0, 2.0, -1.0, 0.0], dtype=np.float32)
DISCOUNTS = np.array([0.5, 0.25, 0.0, 1.0], dtype=np.float32)
NEXT_TARGET = np.array([[4.0, 8.0], [2.0, -2.0], [100.0, 100.0], [-3.0, -1.0]], dtype=np.float32)
NEXT_ONLINE = np.array([[9.0, 1.0], [0.0, 1.0], [0.0, 5.0], [2.0, 2.0]], dtype=np.float32)


def test_td_errors_of_single_network_take_targets_best_action():
    errors = td_errors(Q, ACTIONS, RETURNS, DISCOUNTS, NEXT_TARGET, None)

    # 1 + 0.5*8 - 1; 2 + 0.25*2 - 4; -1 + 0 + 0.5; 0 + (-1) - 0
    assert errors.tolist() == [4.0, -1.5, -0.5, -1.0]
    assert errors.dtype == np.float64


def test_td_errors_of_double_q_take_onlines_choice_at_targets_value():
    errors = td_errors(Q, ACTIONS, RETURNS, DISCOUNTS, NEXT_TARGET, NEXT_ONLINE)

    # online chooses 0, 1, 1 and, of equals, the first: 0
    # 1 + 0.5*4 - 1; 2 + 0.25*(-2) - 4; -1 + 0 + 0.5; 0 + (-3) - 0
    assert errors.tolist() == [2.0, -2.5, -0.5, -3.0]


def test_td_errors_of_empty_batch_are_empty():
    empty = np.empty((0, 2), np.float32)
    vector = np.empty(0, np.float32)

    errors = td_errors(empty, vector.astype(np.int32), vector, vector, empty, empty)

    assert errors.shape == (0,)


class _CountingNetwork:
    def __init__(self, here, there):
        self.here, self.there, self.calls = here, there, 0

    def q_values(self, observations):
        self.calls += 1
        return self.there if observations[0, 0] == 1.0 else self.here


def _columns():
    return {
        "observation": np.zeros((4, 1), np.float32),
        "action": ACTIONS,
        "n_step_return": RETURNS,
        "bootstrap_discount": DISCOUNTS,
        "next_observation": np.ones((4, 1), np.float32),
    }


def rule(double_q):
    return TdRule(NetworkConfig(), double_q, munchausen=False)


@pytest.mark.parametrize(
    ("double_q", "expected"),
    [(True, [2.0, -2.5, -0.5, -3.0]), (False, [4.0, -1.5, -0.5, -1.0])],
)
def test_td_errors_by_networks_follow_double_q(double_q, expected):
    online = _CountingNetwork(Q, NEXT_ONLINE)
    target = _CountingNetwork(Q * 0, NEXT_TARGET)

    errors = td_errors_by_networks(_columns(), online, target, rule(double_q))

    assert errors.tolist() == expected


def test_td_errors_by_networks_of_one_network_forwards_twice():
    online = _CountingNetwork(Q, NEXT_ONLINE)

    errors = td_errors_by_networks(_columns(), online, online, rule(True))

    # 1 + 0.5*9 - 1; 2 + 0.25*1 - 4; -1 + 0.5; 0 + 2 - 0
    assert errors.tolist() == [4.5, -1.75, -0.5, 2.0]
    assert online.calls == 2

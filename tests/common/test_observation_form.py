import numpy as np
import pytest
from gymnasium import spaces

from qfleet.common.observation_form import ObservationForm


@pytest.mark.parametrize(
    ("low", "high", "taken", "refused"),
    [
        (-1, 1, [201, -201], [202, -202]),
        (0, 0.5, [100.4, -99.9], [101, -101]),
        (-np.inf, np.inf, [3e38, -3e38], [np.nan]),
        (0, np.inf, [-5, 1e30], [np.inf]),
        (1e6, 1e6 + 2, [1e6 - 190, 1e6 + 190], [0, 1e6 + 300]),
        (-3.4e38, 3.4e38, [1e20], [np.inf]),
    ],
)
def test_observation_form_refuses_what_lies_a_hundred_extents_outside(low, high, taken, refused):
    space = spaces.Box(low, high, (3,), np.float32)
    form = ObservationForm(space, space)
    inside = np.clip(0.0, low, high)

    for value in taken:
        given = [inside, value, inside]
        assert form.flatten(given).tolist() == np.array(given, np.float32).tolist()
    for value in refused:
        with pytest.raises(ValueError, match="value 1 of the observation"):
            form.flatten([inside, value, inside])

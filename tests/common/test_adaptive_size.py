"""The size against observations written down by hand."""

from __future__ import annotations

import pytest

from qfleet.common.adaptive_size import AdaptiveSize


def make(least=8, most=50, grow_after=2, shrink_after=3):
    return AdaptiveSize(
        least,
        most,
        grow_above=0.1,
        shrink_below=0.04,
        grow_after=grow_after,
        shrink_after=shrink_after,
    )


def sizes(subject, costs):
    """The size after each observation, of costs out of a budget of 1 s."""
    seen = []
    for cost_s in costs:
        subject.observe(cost_s, 1.0)
        seen.append(subject.size)
    return seen


def test_doubles_after_costly_ones_in_a_row_up_to_the_most():
    assert sizes(make(), [0.2] * 8) == [8, 16, 16, 32, 32, 50, 50, 50]


def test_halves_after_cheap_ones_in_a_row_down_to_the_least():
    subject = make()
    sizes(subject, [0.2] * 6)
    assert sizes(subject, [0.0] * 10) == [50, 50, 25, 25, 25, 12, 12, 12, 8, 8]


def test_a_middling_one_begins_the_count_anew():
    assert sizes(make(), [0.2, 0.05, 0.2, 0.05, 0.2, 0.2]) == [8, 8, 8, 8, 8, 16]
    subject = make()
    sizes(subject, [0.2] * 2)
    assert sizes(subject, [0.0, 0.0, 0.1, 0.0, 0.0, 0.0]) == [16, 16, 16, 16, 16, 8]


def test_bounds_are_shares_of_the_budget():
    subject = make(grow_after=1)
    subject.observe(0.2, 2.0)  # exactly a tenth is not above it
    assert subject.size == 8
    subject.observe(0.2, 1.9)
    assert subject.size == 16


def test_equal_bounds_never_change():
    assert sizes(make(8, 8), [0.9] * 5 + [0.0] * 5) == [8] * 10


@pytest.mark.parametrize(("least", "most"), [(0, 4), (5, 4)])
def test_sizes_out_of_order_are_refused(least, most):
    with pytest.raises(ValueError, match="in order"):
        make(least, most)


def test_thresholds_that_would_swing_are_refused():
    with pytest.raises(ValueError, match="half"):
        AdaptiveSize(1, 2, grow_above=0.1, shrink_below=0.05, grow_after=1, shrink_after=1)

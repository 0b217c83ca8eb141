"""Limiter decisions by hand, and random interleavings that must never stand still."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qfleet.common.errors import ConfigError
from qfleet.replay_server.rate_limiter import (
    UNLIMITED_CREDITS,
    EpisodeLimiter,
    RatioLimiter,
    check_window,
    minimum_limiter_tolerance_samples,
)


@pytest.mark.parametrize(
    ("size", "inserted", "sampled", "n", "expected"),
    [
        (9, 9, 0, 1, False),  # below min_size, whatever the ratio says
        (10, 10, 0, 8, True),  # error 0 may fall to −8
        (10, 10, 0, 9, False),
        (10, 12, 0, 16, True),  # 2 inserts allow 8 more
        (10, 12, 0, 17, False),
        (10, 12, 16, 1, False),
        (5, 100, 0, 1, False),  # emptied since
    ],
)
def test_ratio_can_sample_table(size, inserted, sampled, n, expected):
    limiter = RatioLimiter(4.0, 10, 8)

    assert limiter.can_sample(size, inserted, sampled, n) is expected


@pytest.mark.parametrize(
    ("inserted", "sampled", "n", "expected"),
    [
        (0, 0, 1000, True),  # below min_size
        (9, 0, 1000, True),
        (10, 0, 2, True),  # error 0 may rise to +8
        (10, 0, 3, False),
        (12, 0, 1, False),
        (12, 4, 1, True),
        (12, 3, 1, False),
    ],
)
def test_ratio_can_insert_table(inserted, sampled, n, expected):
    assert RatioLimiter(4.0, 10, 8).can_insert(inserted, sampled, n) is expected


def test_ratio_free_running_asks_only_for_min_size():
    limiter = RatioLimiter(None, 10, 0)

    assert not limiter.can_sample(9, 9, 0, 1)
    assert limiter.can_sample(10, 10, 10**9, 10**6)
    assert limiter.can_insert(10**9, 0, 10**6)
    assert limiter.credits(10**9, 0) == UNLIMITED_CREDITS


@pytest.mark.parametrize(
    ("inserted", "sampled", "expected"),
    [(0, 0, 12), (10, 0, 2), (12, 0, 0), (12, 6, 1), (20, 0, 0)],
)
def test_ratio_credits_table(inserted, sampled, expected):
    assert RatioLimiter(4.0, 10, 8).credits(inserted, sampled) == expected


def test_ratio_explain_names_all_counts():
    line = RatioLimiter(4.0, 10, 8).explain(11, 12, 5)

    assert line == (
        "replay holds 11 of 10 needed; inserted 12, sampled 5, error 3 samples in ±8 "
        "at 4 samples per insert"
    )
    assert "no ratio" in RatioLimiter(None, 10, 8).explain(1, 1, 0)


@pytest.mark.parametrize(
    ("spi", "chunk", "n_draws", "expected"),
    [(4.0, 100, 256, 328), (16.0, 1, 1, 9), (0.5, 3, 4, 3)],
)
def test_min_tolerance_table(spi, chunk, n_draws, expected):
    assert minimum_limiter_tolerance_samples(spi, chunk, n_draws) == expected


def test_check_window_refuses_smaller_and_takes_smallest():
    check_window(RatioLimiter(4.0, 1, 328), 100, 256)

    with pytest.raises(ValueError, match=r"at least 328 .*limiter_tolerance_samples") as caught:
        check_window(RatioLimiter(4.0, 1, 327), 100, 256)
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((4.0, 0, 8), "replay.min_size_to_sample"),
        ((0.0, 1, 8), "replay.samples_per_insert"),
        ((math.inf, 1, 8), "replay.samples_per_insert"),
        ((4.0, 1, 2), "replay.limiter_tolerance_samples"),
        ((4.0, 1, math.nan), "replay.limiter_tolerance_samples"),
    ],
)
def test_ratio_unusable_values_raise_with_key(arguments, key):
    with pytest.raises(ConfigError, match=key):
        RatioLimiter(*arguments)


def test_tolerance_below_smallest_can_deadlock():
    # One sample less than the smallest: chunks of 2 at 4 per insert against requests of 8.
    spi, chunk, request = 4.0, 2, 8
    limiter = RatioLimiter(spi, 1, minimum_limiter_tolerance_samples(spi, chunk, request) - 1)

    assert not limiter.can_insert(1, 0, chunk)
    assert not limiter.can_sample(1, 1, 0, request)


@settings(max_examples=150, deadline=None)
@given(
    st.floats(0.01, 64),
    st.integers(1, 40),
    st.integers(1, 300),
    st.integers(1, 200),
    st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=50, max_size=250),
)
@example(0.1, 3, 1, 1, [(True, 1.0), (False, 1.0)] * 60)
def test_ratio_random_interleavings_never_deadlock_and_stay_in_window(
    spi, chunk, request, min_size, steps
):
    tolerance = minimum_limiter_tolerance_samples(spi, chunk, request)
    limiter = RatioLimiter(spi, min_size, tolerance)
    inserted = sampled = 0
    for inserts_first, fraction in steps:
        # The largest of either is the first to be refused.
        can_insert = limiter.can_insert(inserted, sampled, chunk)
        can_sample = limiter.can_sample(inserted, inserted, sampled, request)
        assert can_insert or can_sample, limiter.explain(inserted, inserted, sampled)
        credit = limiter.credits(inserted, sampled)
        assert limiter.can_insert(inserted, sampled, credit) or credit == 0
        assert inserted < min_size or not limiter.can_insert(inserted, sampled, credit + 2)

        if can_insert and (inserts_first or not can_sample):
            inserted += 1 + round(fraction * (chunk - 1))
        else:
            sampled += 1 + round(fraction * (request - 1))

        error = (inserted - min_size) * spi - sampled
        if inserted >= min_size:
            assert -tolerance <= error <= max(tolerance, spi * (chunk - 1)) + 1e-9
        else:
            assert sampled == 0


def test_episode_limiter_follows_the_course():
    limiter = EpisodeLimiter(updates_per_episode=10, batch_size=32)

    assert [limiter.samples_owed(episodes) for episodes in (0, 1, 2)] == [0, 320, 640]
    assert "1 episodes allow 320 samples" in limiter.explain(1, 319)


@pytest.mark.parametrize("arguments", [(0, 32), (10, 0)])
def test_episode_limiter_unusable_values_raise(arguments):
    with pytest.raises(ConfigError, match=r"learner\.updates_per_episode"):
        EpisodeLimiter(*arguments)

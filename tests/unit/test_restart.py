"""Back-off and intensity: arithmetic on times and chances."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusd.domain.manifest_sections import Backoff, Intensity
from nexusd.domain.restart import is_spent, recent, wait_s
from nexusd.domain.units import Seconds

MIDDLE = 0.5  # of the jitter: no deviation
FIVE_A_MINUTE = Intensity()


@pytest.mark.parametrize(
    ("restarts", "expected"),
    [(0, 0), (1, 0.5), (2, 1), (3, 2), (4, 4), (5, 8), (6, 16), (7, 30), (8, 30), (1000, 30), (10**6, 30)],
)
def test_the_first_restart_is_at_once_and_the_waits_double_up_to_half_a_minute(restarts, expected):
    assert wait_s(Backoff(), restarts, MIDDLE) == expected


@pytest.mark.parametrize(("chance", "expected"), [(0, 3.6), (0.5, 4), (1, 4.4)])
def test_jitter_moves_a_wait_by_a_tenth_at_most(chance, expected):
    assert wait_s(Backoff(), 4, chance) == pytest.approx(expected)


def test_the_first_wait_has_no_jitter():
    assert {wait_s(Backoff(first=Seconds(2)), 0, chance) for chance in (0, 0.3, 1)} == {2}


@given(
    st.builds(
        Backoff,
        first=st.builds(Seconds, st.floats(0, 60)),
        initial=st.builds(Seconds, st.floats(0, 60)),
        factor=st.floats(1, 1000),
        max=st.builds(Seconds, st.floats(60, 3600)),
        jitter=st.floats(0, 1),
    ),
    st.integers(0, 10**9),
    st.floats(0, 1),
)
def test_no_wait_is_negative_or_longer_than_the_longest(backoff, restarts, chance):
    assert 0 <= wait_s(backoff, restarts, chance) <= backoff.max


@pytest.mark.parametrize(
    ("times", "now", "spent"),
    [
        ((), 0, False),
        ((1, 2, 3, 4), 5, False),
        ((1, 2, 3, 4, 5), 6, True),
        ((1, 2, 3, 4, 5), 60.9, True),
        ((1, 2, 3, 4, 5), 61, False),  # the first no longer counts
        ((1, 2, 3, 4, 5, 6), 61, True),
    ],
)
def test_five_restarts_a_minute_are_allowed(times, now, spent):
    assert is_spent(times, FIVE_A_MINUTE, now) is spent


def test_an_intensity_of_none_allows_no_restart():
    assert is_spent((), Intensity(restarts=0), 0)


def test_only_restarts_within_the_time_count():
    assert recent((0, 10, 59, 60, 61), FIVE_A_MINUTE, 70) == (59, 60, 61)

"""Ranks of a request: as text, and as ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.core.errors import UsageProblem
from adapterhub.core.ranks import ANY_RANK, RankRange

ENDS = st.none() | st.integers(1, 10**9 - 1)


@given(low=ENDS, high=ENDS)
def test_a_range_reads_back_as_it_is_written(low, high):
    if low is not None and high is not None and low > high:
        low, high = high, low
    ranks = RankRange(low, high)

    assert RankRange.of(ranks.written or None) == ranks


@pytest.mark.parametrize(
    ("wanted", "inside", "outside"),
    [
        (8, [8], [7, 9, None]),
        ("8", [8], [7, 9]),
        ("4-16", [4, 16], [3, 17, None]),
        ("4-", [4, 999], [3]),
        ("-16", [1], [17]),
    ],
)
def test_both_ends_are_inside(wanted, inside, outside):
    ranks = RankRange.of(wanted)

    assert all(map(ranks.includes, inside))
    assert not any(map(ranks.includes, outside))
    assert ANY_RANK.includes(None)


@pytest.mark.parametrize("wanted", [0, -3, "0", "0-4", "16-4", "-", "", "x", "4--8", "4-8-9", "٤", "9" * 10])
def test_what_is_no_rank_is_refused(wanted):
    with pytest.raises(UsageProblem, match="rank"):
        RankRange.of(wanted)

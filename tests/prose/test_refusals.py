"""Of the places that refuse something, most name what was expected or what to type next."""

from __future__ import annotations

from tests.prose.refusals import EXPECTS, places

LEAST_SHARE = 0.99
"""What they are, rounded down: a new refusal is not to lower it."""


def test_most_refusals_name_what_was_expected_or_the_next_step():
    helpful = [one.helps for one in places()]

    assert len(helpful) > 1000
    assert sum(helpful) / len(helpful) >= LEAST_SHARE


def test_a_statement_alone_is_no_help():
    assert EXPECTS.search("`x` has no direction: its update is zero") is None
    assert EXPECTS.search("`x` is 3, expected a number below 1") is not None
    assert EXPECTS.search("`x` exists; choose another name") is not None

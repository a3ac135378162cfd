"""Moments as text: what `exclude-newer` means, and times that read back as they were printed."""

from __future__ import annotations

import contextlib
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.core.dates import parse_newest_allowed, parse_time, time_text
from adapterhub.core.errors import UsageProblem
from adapterhub.projects.file import parse_exclude_newer

NOW = parse_time("2026-06-15T12:00:00Z")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("7d", "2026-06-08T12:00:00Z"),
        ("2w", "2026-06-01T12:00:00Z"),
        ("12h", "2026-06-15T00:00:00Z"),
        ("0d", "2026-06-15T12:00:00Z"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        ("2026-01-31t12:00:00.250z", "2026-01-31T12:00:00Z"),
        ("2026-01-31 13:30:00+01:30", "2026-01-31T12:00:00Z"),
        ("2026-01-31", "2026-01-31T23:59:59Z"),
        ("2024-02-29", "2024-02-29T23:59:59Z"),
    ],
)
def test_exclude_newer_is_a_day_with_all_its_hours_a_time_or_an_age(text, moment):
    assert time_text(parse_exclude_newer(text).moment(NOW)) == moment


@pytest.mark.parametrize(
    "text",
    ["", "7", "7m", "d", "-7d", "7 d", "1.5d", "\u0667d", "yesterday", "2026-02-30", "2026-1-31", "20260131", "9999-12-31",
     "2026-01-31T12:00:00", "2026-01-31T25:00:00Z", "2026-01-31T12:00:60Z", "2026-01-31T12:00:00+99:00", "\x1b[31m"],
)  # fmt: skip
def test_any_other_text_is_refused_and_the_forms_are_named(text):
    with pytest.raises(UsageProblem, match=r"expected an age such as `7d`.*`2026-01-31`") as refusal:
        parse_exclude_newer(text)

    assert str(refusal.value).isprintable()


@given(st.integers(0, 2**33))
def test_a_time_reads_back_as_it_was_printed(seconds):
    assert parse_time(time_text(seconds)) == seconds


@given(st.integers(0, 4_000_000_000), st.integers(0, 999_999))
def test_a_time_is_read_as_python_reads_it(seconds, microseconds):
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc).replace(microsecond=microseconds)
    text = moment.isoformat()

    assert parse_time(text) == pytest.approx(moment.timestamp(), abs=1e-5)
    assert parse_newest_allowed(text).moment(NOW) == parse_time(text)


@given(st.text(max_size=30))
def test_no_text_is_more_than_refused(text):
    with contextlib.suppress(UsageProblem):
        parse_exclude_newer(text)


def test_a_number_that_no_calendar_has_is_still_printed():
    assert time_text(1e300).startswith("Unix time 1")
    assert time_text(float("nan")) == "Unix time nan"

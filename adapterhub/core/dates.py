"""Times as text, and the cooldown before a release is taken. All times are in UTC, the same on every machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final

from adapterhub.core.errors import shown

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_AGE: Final = re.compile(r"([0-9]{1,6})([hdw])")
_UNITS_S: Final = {"h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestAllowed:
    """How new a release may be. `text` is the setting as written; either `at` or `age_s` is set."""

    text: str
    at: float | None = None
    age_s: float | None = None

    def moment(self, now: float) -> float:
        """Return the last Unix time at which a release may have been published."""
        return self.at if self.at is not None else now - (self.age_s or 0.0)


def parse_newest_allowed(text: str) -> NewestAllowed:
    """Parse `exclude-newer`: `2026-01-31` (that day and earlier, in UTC), an RFC 3339 time, or an age such as `7d`.

    Raises:
        ValueError: the text has none of these forms.
    """
    if age := _AGE.fullmatch(text):
        return NewestAllowed(text=text, age_s=int(age[1]) * _UNITS_S[age[2]])
    try:
        if _DAY.fullmatch(text):
            day = datetime.fromisoformat(text).replace(tzinfo=timezone.utc)
            return NewestAllowed(text=text, at=(day + timedelta(days=1)).timestamp() - 1e-6)
        return NewestAllowed(text=text, at=parse_time(text))
    except (ValueError, OverflowError):
        ages, days = "an age such as `7d`, `2w` or `12h`", "a day such as `2026-01-31`"
        expected = f"{ages}, {days} or a time such as `2026-01-31T12:00:00Z`"
        raise ValueError(f"expected {expected}, got {shown(text)}") from None


def parse_time(text: str) -> float:
    """Return the Unix time of an RFC 3339 text with an offset. Leap seconds are refused.

    Raises:
        ValueError: the text is not such a time.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"expected a time such as 2026-01-31T12:00:00Z, got {shown(text)}")
    day, clock, fraction, offset = found.groups()
    moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if offset in 'Zz' else offset}")
    return moment.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)


def time_text(at: float) -> str:
    """Return a Unix time as text, to the second: `2026-01-31T12:00:00Z`.

    One outside the calendar is shown as a number.
    """
    try:
        moment = datetime.fromtimestamp(at, tz=timezone.utc)
    except (ValueError, OverflowError, OSError):
        return f"Unix time {at:.0f}"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Moment(int):
    """A time in milliseconds since 1970, for a machine; an answer of the registry has it as `sent`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Moment:
        """Return the moment of an RFC 3339 text; raises `ValueError` for any other."""
        return cls(round(parse_time(text) * 1000))

    @property
    def text(self) -> str:
        """The time as RFC 3339, to the second."""
        return datetime.fromtimestamp(self / 1000, tz=timezone.utc).isoformat(timespec="seconds")

    @property
    def sent(self) -> str:
        """The time as `2026-11-24T10:00:00.000Z`, the only form that all clients of the Hub read."""
        return datetime.fromtimestamp(self / 1000, tz=timezone.utc).isoformat(timespec="milliseconds")[:23] + "Z"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> dict[str, object]:
        """Return how the models of the registry's answers hold and send it."""
        send = {"type": "function-plain", "function": lambda at: at.sent, "return_schema": {"type": "str"}}
        return {"type": "is-instance", "cls": cls, "serialization": send}


def moment_or_none(at_ms: int | None) -> Moment | None:
    """Return the moment of a time that may be missing."""
    return None if at_ms is None else Moment(at_ms)

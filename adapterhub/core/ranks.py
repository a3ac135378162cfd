"""Which ranks a request accepts: one value from the command line and the project file to the index and the server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from adapterhub.core.errors import UsageProblem, shown

_WRITTEN: Final = re.compile(r"(?P<low>[0-9]{1,9})?(?P<to>\s*-\s*(?P<high>[0-9]{1,9})?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class RankRange:
    """The ranks that a request accepts. Both ends are inside; None is open."""

    low: int | None = None
    high: int | None = None

    @classmethod
    def of(cls, wanted: Ranks | None) -> RankRange:
        """Read a rank (`8`), or a range of them as text: `8`, `4-16`, `4-`, `-16`; None is any rank.

        Raises:
            UsageProblem: it has none of these forms, a rank is below 1, or the range is empty.
        """
        if wanted is None or isinstance(wanted, RankRange):
            return wanted or ANY_RANK
        if isinstance(wanted, int):
            bounds = cls(wanted, wanted)
        else:
            found = _WRITTEN.fullmatch(wanted.strip())
            if found is None or not (found["low"] or found["high"]):
                raise UsageProblem(f"`{shown(wanted)}` is not a rank; expected one such as `8`, `4-16`, `4-` or `-16`")
            low, high = (int(end) if end else None for end in (found["low"], found["high"]))
            bounds = cls(low, high if found["to"] else low)
        if any(end is not None and end < 1 for end in (bounds.low, bounds.high)):
            raise UsageProblem(f"rank {shown(wanted)}: a rank is at least 1")
        if bounds.low is not None and bounds.high is not None and bounds.low > bounds.high:
            raise UsageProblem(f"no rank is at least {bounds.low} and at most {bounds.high}")
        return bounds

    @property
    def written(self) -> str:
        """The range as `of` reads it: `8`, `4-16`, `4-`, `-16`; empty for any rank."""
        low, high = ("" if end is None else str(end) for end in (self.low, self.high))
        return low if low == high else f"{low}-{high}"

    def includes(self, rank: int | None) -> bool:
        """Return whether an adapter of this rank is inside; one without a recorded rank is only in the open range."""
        if self == ANY_RANK:
            return True
        return rank is not None and (self.low or rank) <= rank <= (self.high or rank)

    def refusal(self, rank: int | None) -> str | None:
        """Return why an adapter of this rank is outside; None when it is inside."""
        if self.includes(rank):
            return None
        return f"rank not recorded, {self} asked" if rank is None else f"rank {rank}, {self} asked"

    def __str__(self) -> str:
        """`16` or `at least 4 and at most 16`."""
        low, high = self.low, self.high
        if low == high:
            return str(low)
        return " and ".join([*([f"at least {low}"] if low else []), *([f"at most {high}"] if high else [])])


ANY_RANK: Final = RankRange()

Ranks: TypeAlias = int | str | RankRange
"""A rank, or a range of them as `RankRange.of` reads it."""

"""Which ranks a request accepts: one value from the command line and the project file to the index and the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from adapterhub.core.errors import UsageProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRange:
    """The ranks that a request accepts, as the user wrote them. Both ends are inside; None is open."""

    rank: int | None = None
    min_rank: int | None = None
    max_rank: int | None = None

    @property
    def low(self) -> int | None:
        """The smallest rank inside."""
        return self.min_rank if self.rank is None else self.rank

    @property
    def high(self) -> int | None:
        """The largest rank inside."""
        return self.max_rank if self.rank is None else self.rank

    @property
    def written(self) -> dict[str, int]:
        """The keys of a project file for it: `rank`, `min-rank`, `max-rank`."""
        keys = {"rank": self.rank, "min-rank": self.min_rank, "max-rank": self.max_rank}
        return {key: rank for key, rank in keys.items() if rank is not None}

    def check(self) -> None:
        """Raise unless some rank is inside.

        Raises:
            UsageProblem: ranks below 1, or that no adapter could have together.
        """
        low, high = self.min_rank, self.max_rank
        for rank in (self.rank, low, high):
            if rank is not None and rank < 1:
                raise UsageProblem(f"rank {rank}: a rank is at least 1")
        if low is not None and high is not None and low > high:
            raise UsageProblem(f"no rank is at least {low} and at most {high}")
        if self.rank is not None and not (low or self.rank) <= self.rank <= (high or self.rank):
            outer = RankRange(min_rank=low, max_rank=high)
            raise UsageProblem(f"rank {self.rank} is not inside the requested range of ranks, {outer}")

    def includes(self, rank: int | None) -> bool:
        """Whether an adapter of this rank is inside; one without a recorded rank is only in the open range."""
        if self == ANY_RANK:
            return True
        return rank is not None and (self.low or rank) <= rank <= (self.high or rank)

    def refusal(self, rank: int | None) -> str | None:
        """Why an adapter of this rank is outside; None when it is inside."""
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

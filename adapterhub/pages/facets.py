"""The facets beside a list: the most frequent values of a condition, each with its count and its address."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from adapterhub.pages.figures import method_name
from adapterhub.pages.lists import Facet, FacetValue

SHOWN_VALUES: Final = 5
MOST_VALUES: Final = 100
RANKS: Final = MappingProxyType({"1-8": "1 to 8", "9-16": "9 to 16", "17-64": "17 to 64", "65-": "Over 64"})
LABELS: Final = MappingProxyType(
    {"base": "Base", "task": "Task", "method": "Method", "rank": "Rank", "license": "Licence"}
)
_PLURALS: Final = MappingProxyType({"base": "bases", "task": "tasks", "method": "methods", "license": "licences"})


def rank_of(rank: int) -> str:
    """Return the range of `RANKS` that holds a rank."""
    return next((text for text in RANKS if rank <= int(text.partition("-")[2] or rank)), "")


def value_text(name: str, value: str) -> str:
    """Return a value of a condition as readers write it."""
    if name == "rank":
        return f"Rank {RANKS.get(value, value)}"
    return method_name(value) if name == "method" else value


def facet_of(
    name: str,
    counts: Mapping[str, int],
    url: Callable[[str], str],
    *,
    chosen: str = "",
    all_url: str | None = None,
    more: bool = False,
) -> Facet:
    """Return the facet of a condition; `url` gives the address with a value, and with "" the one without any.

    The most frequent values come first, and ranks in their order. `all_url` is the address with all values, None if the
    reader is there. With `more`, each count is a least number.
    """
    most = MOST_VALUES if all_url is None else SHOWN_VALUES
    if name == "rank":
        shown = [(value, counts[value]) for value in RANKS if counts.get(value) or value == chosen]
    else:
        shown = heapq.nsmallest(most, counts.items(), key=lambda item: (-item[1], item[0]))
    if chosen and chosen in counts and chosen not in dict(shown):
        shown = [(chosen, counts[chosen]), *shown]
    number = len(shown) if name == "rank" else len(counts)
    has_more = all_url is not None and number > len(shown)
    return Facet(
        name=name,
        label=LABELS[name],
        values=tuple(
            FacetValue(
                text=RANKS.get(value, value) if name == "rank" else value_text(name, value),
                url=url("" if value == chosen else value),
                count=count,
                more=more,
                is_chosen=value == chosen,
            )
            for value, count in shown
        ),
        all_url=all_url if has_more else None,
        all_text=f"More {_PLURALS.get(name, name)}" if more else f"All {number} {_PLURALS.get(name, name)}",
    )

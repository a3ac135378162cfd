"""The request of a reader of the search page, as its address spells it, and the conditions that it means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, cast, get_args
from urllib.parse import quote_plus

from sqlalchemy import Column, ColumnElement, bindparam, exists, select
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub.formats.relevance import question_words
from adapterhub_registry.database.db import adapters, repos, results, test_keys
from adapterhub_registry.database.prepared import Numbers, numbers_of
from adapterhub_registry.database.search_tables import Unindexed
from adapterhub_registry.errors import bad_request
from adapterhub_registry.repos.adapter_facts import MAX_RANK
from adapterhub_registry.repos.bases import BASE_DIGEST
from adapterhub_registry.repos.listing import of_namespace
from adapterhub_registry.repos.search import AdapterQuery, Condition, conditions_of

Order = Literal["downloads", "changed", "newest", "relevance"]
ORDERS: Final[dict[Order, tuple[str, Column[Any]]]] = {
    "downloads": ("Most downloads", repos.c.downloads),
    "changed": ("Recently updated", repos.c.modified_at),
    "newest": ("Newest", adapters.c.created_at),
}
BEST: Final = "Best match"
FILTERS: Final = MappingProxyType(
    {
        "base": "Base",
        "task": "Task",
        "signed": "Signature",
        "contract": "Contract",
        "tested": "Contract",
        "method": "Method",
        "rank": "Rank",
        "license": "Licence",
        "yanked": "Yanked",
        "namespace": "Namespace",
    }
)
"""The conditions of an address, and their names; the words `q` are another."""
_KEPT: Final = ("q", *FILTERS, "sort", "all", "cursor")
_YES_OR_NO: Final = MappingProxyType({"yes": True, "no": False})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The query of the page as it was typed, and the other forms of the base that it names.

    `place` is the path of the page: the search, or the page of a namespace.
    """

    given: dict[str, str]
    note: str = ""
    kin: tuple[str, ...] = ()
    place: str = "/"

    @classmethod
    def of(cls, query: dict[str, str], **more: Any) -> Wanted:
        """Return the request in the parameters of an address."""
        return cls(given={name: query[name] for name in _KEPT if query.get(name, "").strip()}, **more)

    def get(self, name: str) -> str:
        """Return a parameter without space at its ends, "" if it is absent."""
        return self.given.get(name, "").strip()

    @property
    def is_yanked(self) -> bool:
        """Whether only adapters with a yanked version are wanted."""
        return self.get("yanked") == "yes"

    @property
    def order(self) -> Order:
        """The order of the list: as the address says, or by relevance with several words, or the newest first."""
        text = self.get("sort")
        if text == "relevance" or text not in get_args(Order):
            # a list of what was yanked begins there: a ranking would go through all that has the words
            several = len(question_words(self.get("q"))) > 1
            return "relevance" if several and not self.is_yanked else "newest"
        return cast("Order", text)

    @property
    def filters(self) -> tuple[str, ...]:
        """The names of the conditions that the reader set beside the words."""
        return tuple(name for name in FILTERS if self.get(name) and not (name == "namespace" and self.place != "/"))

    def without(self, *names: str) -> Wanted:
        """Return the same without some parameters, from the first page on."""
        kept = {name: text for name, text in self.given.items() if name not in (*names, "cursor")}
        return Wanted(given=kept, kin=() if "base" in names else self.kin, place=self.place)

    def url(self, **changed: str) -> str:
        """Return the address with some parameters changed; those of the place itself stay out of it."""
        kept = {name: text for name, text in (self.given | changed).items() if text}
        if self.place != "/":
            kept.pop("namespace", None)
        query = "&".join(f"{name}={_quoted(text)}" for name, text in kept.items())
        return f"{self.place}?{query}" if kept else self.place

    def conditions(self, connection: Connection, *, words: bool = True) -> list[Condition]:
        """All conditions but who may see what; without `words`, they leave out those.

        Raises:
            HttpRefusal: 400 for a malformed value.
        """
        return [*conditions_of(connection, self._query(words=words)), *self._states()]

    @property
    def listed(self) -> ColumnElement[bool]:
        """The rows that a search shows; of those with a yanked version also ones without any other, which few have."""
        return adapters.c.is_warned if self.is_yanked else adapters.c.is_listed

    def _query(self, *, words: bool) -> AdapterQuery:
        base, rank = self.get("base"), self.get("rank")
        is_digest = BASE_DIGEST.fullmatch(base) is not None
        found = re.fullmatch(r"([0-9]{1,7})(-([0-9]{0,7}))?", rank) if rank else None
        if rank and found is None:
            raise bad_request(f"rank `{shown(rank)}`: expected a number such as 16, or a range such as 8-64")
        least = int(found[1]) if found else None
        most = None if found is None else (int(found[3]) if found[3] else MAX_RANK) if found[2] else least
        return AdapterQuery(
            q=self.get("q") or None if words else None,
            base=base or None if not is_digest else None,
            base_sha256=base if is_digest else None,
            kin=self.kin,
            task=self.get("task") or None,
            rank_min=least,
            rank_max=most,
            peft_type=self.get("method") or None,
            license=self.get("license") or None,
            signed=_YES_OR_NO.get(self.get("signed")),
            tested=_YES_OR_NO.get(self.get("contract")),
        )

    def _states(self) -> list[Condition]:
        """Return the conditions that the API's search lacks."""
        found = []
        verdict = {"passed": "PASS", "changed": "CHANGED"}.get(self.get("tested"))
        if verdict is not None:
            found.append(tested(verdict))
        if namespace := self.get("namespace"):
            given = {"namespace": namespace}
            found.append(Condition(filters=_IN_NAMESPACE, given=given, holders=of_namespace(namespace)))
        if self.get("yanked") == "no":
            found.append(_NOT_WARNED)
        if self.is_yanked:
            found.append(Condition(filters=None, holders=_WARNED))
        return found


_quoted: Final = lru_cache(maxsize=4096)(quote_plus)
"""As `urlencode` writes a value; a page has the same ones in each of its addresses."""
_NOT_WARNED: Final = Condition(filters=~adapters.c.is_warned)
_IN_NAMESPACE: Final = Unindexed(repos.c.namespace) == bindparam("namespace")
_WARNED: Final = Numbers(numbers_of(select(adapters.c.repo_id).where(adapters.c.is_warned)), {})


@lru_cache
def tested(verdict: str) -> Condition:
    """Return whether the listed build has this verdict by a key that its namespace knows."""
    known = (test_keys.c.namespace == repos.c.namespace) & (test_keys.c.fingerprint == results.c.key)
    mine = (results.c.repo_id == adapters.c.repo_id) & (results.c.manifest == adapters.c.digest)
    there = exists().where(mine, results.c.verdict == verdict, known)
    holders = numbers_of(select(results.c.repo_id).where(results.c.verdict == verdict))
    return Condition(filters=there, holders=Numbers(holders, {}))

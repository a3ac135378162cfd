"""The full-text index of a library's builds: FTS5 with Porter's stems over bounded texts, beside the table `builds`."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple

from adapterhub.formats import relevance
from adapterhub.formats.relevance import All, Matched, Wording, question_words, wording_of
from adapterhub.library.store.rows import ORDER, BuildRow

_TABLE: Final = (
    "CREATE VIRTUAL TABLE builds_fts USING fts5(name, task, description, prompts, base, tokenize='porter unicode61')"
)
SCHEMA: Final = (
    _TABLE,
    "CREATE TRIGGER builds_gone AFTER DELETE ON builds BEGIN DELETE FROM builds_fts WHERE rowid = old.rowid; END",
)
_ALL: Final = "rowid, name, task, description, prompts, base"
_SPOKEN: Final = "{name task description prompts}"
_MOST_BASES: Final = 50
_MOST_READ: Final = 500
"""Of more builds that a beginning finds, the words are not read again: their names give the order."""
_MOST_TRIED: Final = 1_000
"""So many builds in their order are looked at for a word that very many have, before the index gives all with it."""
_LONGEST_ENDING: Final = 4
_FEWEST_LETTERS: Final = 4


class WhereClause(NamedTuple):
    """Conditions on `builds`, all of which have to hold, and their values.

    `bases` are the fingerprints that one of the conditions names; the index holds them beside the words, so that a
    search for one base does not look at the builds of the others. `order` is that of the builds without a score, and
    `walked` names the index that has it, where it is not that of the names.
    """

    conditions: Sequence[str]
    values: Sequence[object]
    bases: Sequence[str] | None = None
    order: str = ORDER
    walked: str = ""

    @property
    def only_bases(self) -> bool:
        """Whether the query of the index holds all conditions."""
        return not self.conditions or (len(self.conditions) == len(self.bases or ()) == 1)

    def matching(self, query: str) -> str:
        """Return the query of the index for the words of `query` in the builds of the bases."""
        spoken = f"{_SPOKEN} : ({query})"
        if not self.bases or len(self.bases) > _MOST_BASES:
            return spoken
        return f"{spoken} AND base : ({_either(base.removeprefix('sha256:') for base in self.bases)})"


class Found(NamedTuple):
    """A build that a search found, by its row's number; without a score where the order is that of the names.

    `matched` is None if too many builds were found to look at each.
    """

    number: int
    score: float | None
    matched: Matched | None


def put_words(connection: sqlite3.Connection, builds: Iterable[BuildRow]) -> None:
    """Index the words of builds by their folders, whose rows were just put in, and by the weights of their bases."""
    sql = f"INSERT INTO builds_fts ({_ALL}) SELECT rowid, ?, ?, ?, ?, ? FROM builds WHERE folder = ?"
    for row in builds:
        words = wording_of(row.name, row.task, row.says, f"{row.prompts}\n{row.triggers}".splitlines())
        connection.execute(sql, (*words, row.base_weights.removeprefix("sha256:"), row.folder))


def _either(words: Iterable[str], mark: str = "") -> str:
    return " OR ".join(f'"{word}"{mark}' for word in words)


def find_words(
    connection: sqlite3.Connection,
    text: str,
    where: WhereClause,
    limit: int | None,
    *,
    all_words: bool,
    any_of: bool = False,
) -> list[Found]:
    """Return builds whose words `text` asks for: by relevance, or those where each word begins a word, in any order.

    A single word is also looked for as a beginning. With `any_of`, builds beyond the limit leave it open which ones of
    all are found.
    """
    words = question_words(text)
    if all_words or len(text.split()) == 1:
        return _beginning(connection, text, where, limit, any_of=any_of)
    if not words:
        return []
    most = min(limit or relevance.MOST_RANKED, relevance.MOST_RANKED)
    source = "builds_fts" if not where.conditions else "builds_fts JOIN builds ON builds.rowid = builds_fts.rowid"
    conditions = " AND ".join(["builds_fts MATCH ?", *where.conditions])
    sql = f"SELECT builds_fts.rowid FROM {source} WHERE {conditions} ORDER BY builds_fts.rowid LIMIT ?"

    def holders(condition: All, many: int) -> list[int]:
        query = where.matching(" AND ".join(f"({_either(words)})" for words in condition))
        return [row[0] for row in connection.execute(sql, (query, *where.values, many))]

    count = int(connection.execute("SELECT coalesce(max(rowid), 0) FROM builds").fetchone()[0])
    found = relevance.find(words, count, max(2 * most, 30), holders)
    texts = _texts(connection, [one.number for one in found])
    weighed = [(relevance.weigh(one, texts[one.number]), one) for one in found if one.number in texts]
    weighed.sort(key=lambda pair: (-pair[0], texts[pair[1].number]))
    return [
        Found(one.number, round(score, 4), relevance.matched(one.words, texts[one.number]))
        for score, one in weighed[:most]
    ]


def _texts(connection: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, Wording]:
    """Return the indexed texts of builds."""
    found: dict[int, Wording] = {}
    for at in range(0, len(numbers), 500):  # SQLite bounds the number of values
        some = numbers[at : at + 500]
        marks = ", ".join("?" * len(some))
        sql = f"SELECT rowid, name, task, description, prompts FROM builds_fts WHERE rowid IN ({marks})"
        found |= {row[0]: Wording(*row[1:]) for row in connection.execute(sql, some)}
    return found


def _beginning(
    connection: sqlite3.Connection, text: str, where: WhereClause, limit: int | None, *, any_of: bool
) -> list[Found]:
    """Return the builds where each word of `text` begins a word; by name, those first whose name it begins.

    The index holds stems, and `translatio` begins none: then shorter beginnings find builds, whose words are looked at.
    """
    words = relevance.words_of(text)
    for cut in range(_LONGEST_ENDING + 1) if words else ():
        query = where.matching(" AND ".join(f'"{word[: max(_FEWEST_LETTERS, len(word) - cut)]}"*' for word in words))
        found, are_many = _in_order(connection, query, where, limit, any_of=any_of)
        if are_many:
            return [Found(number, None, None) for number in found[:limit]]
        texts = _texts(connection, found)
        places = {number: _place(words, texts[number]) for number in found}
        found = [number for number in found if cut == 0 or places[number] < len(_PLACES) - 1]
        if found:
            if where.order == ORDER:
                found.sort(key=lambda number: places[number])
            return [Found(number, None, relevance.matched(words, texts[number])) for number in found[:limit]]
    return []


def _in_order(
    connection: sqlite3.Connection, query: str, where: WhereClause, limit: int | None, *, any_of: bool
) -> tuple[list[int], bool]:
    """Return the builds that match, in their order, and whether they are more than are read.

    Of few, the rows are read and sorted; of many, the index of the order is followed until there are enough.
    """
    some = "SELECT rowid FROM builds_fts WHERE builds_fts MATCH ? LIMIT ?"
    found = {row[0] for row in connection.execute(some, (query, _MOST_READ + 1))}
    if len(found) <= _MOST_READ:
        conditions = " AND ".join(["builds_fts MATCH ?", *where.conditions])
        sql = f"SELECT builds.rowid FROM builds_fts JOIN builds ON builds.rowid = builds_fts.rowid WHERE {conditions}"
        return [row[0] for row in connection.execute(f"{sql} ORDER BY {where.order}", (query, *where.values))], False
    if any_of and limit and where.only_bases:
        first = [row[0] for row in connection.execute(some, (query, limit))]
        return first if len(first) == limit else _sorted(connection, first, where.order), True
    conditions = f" WHERE {' AND '.join(where.conditions)}" if where.conditions else ""
    in_order = f"SELECT rowid FROM builds{where.walked}{conditions} ORDER BY {where.order}"
    # what the query does not hold may leave few, whose words have a say in the order
    if where.only_bases and limit and (first := _first(connection, query, in_order, where.values, limit)):
        return first, True
    found = {row[0] for row in connection.execute(some, (query, -1))}
    every = (row[0] for row in connection.execute(in_order, where.values))
    most = limit and max(limit, _MOST_READ + 1)
    listed = list(islice((number for number in every if number in found), most))
    return listed, len(listed) > _MOST_READ


def _sorted(connection: sqlite3.Connection, numbers: Sequence[int], order: str) -> list[int]:
    sql = f"SELECT rowid FROM builds WHERE rowid IN (SELECT value FROM json_each(?)) ORDER BY {order}"
    return [row[0] for row in connection.execute(sql, (json.dumps([*numbers]),))]


def _first(
    connection: sqlite3.Connection, query: str, in_order: str, values: Sequence[object], limit: int
) -> list[int]:
    """Return the first builds that match; none if fewer than `limit` are among the first of all.

    An index in memory of only these builds answers, as the whole one gives no order but that of the rows.
    """
    if limit > _MOST_TRIED:
        return []
    one, tried = f"SELECT {_ALL} FROM builds_fts WHERE rowid = ?", list[int]()
    names = connection.execute(f"{in_order} LIMIT ?", (*values, _MOST_TRIED))
    with contextlib.closing(sqlite3.connect(":memory:")) as few:
        few.execute(_TABLE)
        while some := [row[0] for row in names.fetchmany(2 * limit)]:
            tried += some
            texts = (connection.execute(one, (number,)).fetchone() for number in some)
            few.executemany(f"INSERT INTO builds_fts ({_ALL}) VALUES (?, ?, ?, ?, ?, ?)", texts)
            matching = few.execute("SELECT rowid FROM builds_fts WHERE builds_fts MATCH ?", (query,))
            found = {row[0] for row in matching}
            if len(found) >= limit:
                return [number for number in tried if number in found][:limit]
    return []


_PLACES: Final = ("in the name", "in any text", "as another form of the word")


def _place(words: Sequence[str], wording: Wording) -> int:
    """Return the first of `_PLACES` that holds for all of `words`."""
    for place, text in enumerate((wording.name, " ".join(wording))):
        tokens = relevance.words_of(text)
        if all(any(token.startswith(word) for token in tokens) for word in words):
            return place
    return len(_PLACES) - 1

"""The full-text index of a library's builds: FTS5 with Porter's stems over bounded texts, beside the table `builds`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from adapterhub.formats import relevance
from adapterhub.formats.relevance import All, Matched, Wording, question_words, wording_of

SCHEMA: Final = (
    "CREATE VIRTUAL TABLE builds_fts USING fts5(name, task, description, prompts, base, tokenize='porter unicode61')",
    "CREATE TRIGGER builds_gone AFTER DELETE ON builds BEGIN DELETE FROM builds_fts WHERE rowid = old.rowid; END",
)
_SPOKEN: Final = "{name task description prompts}"
_MOST_BASES: Final = 50
_MOST_READ: Final = 500
"""Of more builds that a beginning finds, the words are not read again: their names give the order."""
_LONGEST_ENDING: Final = 4
_FEWEST_LETTERS: Final = 4


class WhereClause(NamedTuple):
    """Conditions on `builds`, all of which have to hold, and their values.

    `bases` are the fingerprints that one of the conditions names; the index holds them beside the words, so that a
    search for one base does not look at the builds of the others.
    """

    conditions: Sequence[str]
    values: Sequence[object]
    bases: Sequence[str] | None = None

    def matching(self, query: str) -> str:
        """The query of the index for the words of `query` in the builds of the bases."""
        spoken = f"{_SPOKEN} : ({query})"
        if not self.bases or len(self.bases) > _MOST_BASES:
            return spoken
        return f"{spoken} AND base : ({_either(base.removeprefix('sha256:') for base in self.bases)})"


class Found(NamedTuple):
    """A build that a search found, by its row's number; without a score where the order is that of the names.

    `matched` is None where too many builds were found to look at each.
    """

    number: int
    score: float | None
    matched: Matched | None


def put_words(connection: sqlite3.Connection, builds: Iterable[tuple[str, str, Wording]]) -> None:
    """Index the words of builds by their folders, whose rows were just put in, and by the weights of their bases."""
    rows = (
        (*wording_of(*text[:3], text.prompts.splitlines()), base.removeprefix("sha256:"), folder)
        for folder, base, text in builds
    )
    connection.executemany(
        "INSERT INTO builds_fts (rowid, name, task, description, prompts, base)"
        " SELECT rowid, ?, ?, ?, ?, ? FROM builds WHERE folder = ?",
        rows,
    )


def _either(words: Iterable[str], mark: str = "") -> str:
    return " OR ".join(f'"{word}"{mark}' for word in words)


def find_words(
    connection: sqlite3.Connection, text: str, where: WhereClause, limit: int | None, *, all_words: bool
) -> list[Found]:
    """Builds whose words `text` asks for: by relevance, or those where each word begins a word, in any order.

    One word alone is looked for as a beginning, too.
    """
    words = question_words(text)
    if all_words or len(text.split()) == 1:
        return _beginning(connection, text, where, limit)
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
    """The indexed texts of builds."""
    found: dict[int, Wording] = {}
    for at in range(0, len(numbers), 500):  # SQLite bounds the number of values
        some = numbers[at : at + 500]
        marks = ", ".join("?" * len(some))
        sql = f"SELECT rowid, name, task, description, prompts FROM builds_fts WHERE rowid IN ({marks})"
        found |= {row[0]: Wording(*row[1:]) for row in connection.execute(sql, some)}
    return found


def _beginning(connection: sqlite3.Connection, text: str, where: WhereClause, limit: int | None) -> list[Found]:
    """The builds where each word of `text` begins a word, those first whose name it begins.

    The index holds stems, and `translatio` begins none: then shorter beginnings find builds, whose words are looked at.
    """
    words = relevance.words_of(text)
    conditions = " AND ".join(["builds_fts MATCH ?", *where.conditions])
    sql = f"SELECT builds.rowid FROM builds_fts JOIN builds ON builds.rowid = builds_fts.rowid WHERE {conditions}"
    sql += " ORDER BY builds.name, builds.namespace, builds.added_at DESC, builds.digest"
    for cut in range(_LONGEST_ENDING + 1) if words else ():
        query = " AND ".join(f'"{word[: max(_FEWEST_LETTERS, len(word) - cut)]}"*' for word in words)
        found = [row[0] for row in connection.execute(sql, (where.matching(query), *where.values))]
        if len(found) > _MOST_READ:
            return [Found(number, None, None) for number in found[:limit]]
        texts = _texts(connection, found)
        places = {number: _place(words, texts[number]) for number in found}
        found = [number for number in found if cut == 0 or places[number] < len(_PLACES) - 1]
        if found:
            found.sort(key=lambda number: places[number])
            return [Found(number, None, relevance.matched(words, texts[number])) for number in found[:limit]]
    return []


_PLACES: Final = ("in the name", "in any text", "as another form of the word")


def _place(words: Sequence[str], wording: Wording) -> int:
    """The first of `_PLACES` that holds for all of `words`."""
    for place, text in enumerate((wording.name, " ".join(wording))):
        tokens = relevance.words_of(text)
        if all(any(token.startswith(word) for token in tokens) for word in words):
            return place
    return len(_PLACES) - 1

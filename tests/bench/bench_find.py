"""How well, and how fast, a search finds the right adapter: 180 questions with known answers over 314 real task cards.

    python -m tests.bench.bench_find [--builds 100000] [--only words]

Each method answers every question over the cards, then over `--builds` builds of the same words. Peer: full text search
as it was, where every word of the question has to begin a word of the build, ordered by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from adapterhub.library.store.index import Index
from adapterhub.library.store.rows import Filters
from tests.bench.find_meaning import in_registry, meaning, torch_model
from tests.bench.find_questions import AT, PLAIN, Card, many, questions, recall, row_of
from tests.bench.find_registry import searching
from tests.bench.harness import given

Search: TypeAlias = Callable[[str], Sequence[str]]
OTHER_SUBJECTS: Final = ("find_likeness", "find_route")
"""Modules beside this one whose `rows()` are lines to print."""


@dataclass(frozen=True, slots=True)
class Method:
    """A way to search: `prepare` takes the builds and a folder, and gives what answers a question with names in order."""

    name: str
    prepare: Callable[[Sequence[Card], Path], Search]
    most_builds: int = 100_000


def before(cards: Sequence[Card], _folder: Path) -> Search:
    """Full text search as it was: every word begins a word of the row; by name."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE cards USING fts5(name, task, description, tokenize=unicode61)")
    rows = [(card.name, card.task, card.description) for card in cards]
    connection.executemany("INSERT INTO cards VALUES (?, ?, ?)", rows)

    def search(text: str) -> list[str]:
        words = "".join(c if c.isalnum() else " " for c in text).split()
        query = " ".join(f'"{word}"*' for word in words)
        found = connection.execute("SELECT name FROM cards WHERE cards MATCH ? ORDER BY name LIMIT 10", (query,))
        return [row[0] for row in found]

    return search


def words(cards: Sequence[Card], folder: Path) -> Search:
    """`adapt search` by words."""
    index = Index(folder / "index.db")
    index.rebuild([row_of(card) for card in cards], [], [])
    return lambda text: [row.name for row in index.search(Filters(text=text, limit=10))]


METHODS: Final = (
    Method("all words, by name", before),
    Method("words", words),
    Method("words, registry", searching(lambda folder: f"sqlite:///{folder / 'registry.db'}")),
    Method("meaning", meaning, most_builds=10_000),
    Method("meaning, registry", in_registry, most_builds=10_000),
    Method("meaning, in torch", torch_model, most_builds=10_000),
)


def milliseconds(search: Search) -> float:
    """The median CPU time of one question, over all questions, warm."""
    asked = questions()
    search(asked[0].text)
    spent = []
    for question in asked:
        start = time.process_time()
        search(question.text)
        spent.append((time.process_time() - start) * 1000)
    return statistics.median(spent)


def measure(method: Method, builds: int) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        search = method.prepare(list(many(314)), Path(folder))
        asked = questions()
        everything, plain, other = (recall(search, part) for part in (asked, asked[:PLAIN], asked[PLAIN:]))
        small = milliseconds(search)
    count = min(builds, method.most_builds)
    with tempfile.TemporaryDirectory() as folder:
        large = milliseconds(method.prepare(list(many(count)), Path(folder)))
    shares = "   ".join(f"{everything[k]:.2f}" for k in AT)
    return (
        f"{method.name:<24}{shares}   {plain[5]:.2f}          {other[5]:.2f}"
        f"            {small:>8.2f}   {large:>8.2f} ({count:,})"
    )


def main() -> None:
    """Measure and print."""
    arguments = given(__doc__, builds=100_000, only="")
    print(f"{'method':<24}@1     @5     @10    @5 in words   @5 in others   CPU ms at 314   at many")
    for method in METHODS:
        if arguments.only in method.name:
            print(measure(method, arguments.builds), flush=True)
    for name in OTHER_SUBJECTS:
        module = f"tests.bench.{name}"
        if not arguments.only and importlib.util.find_spec(module) is not None:
            print(*importlib.import_module(module).rows(), sep="\n")


if __name__ == "__main__":
    main()

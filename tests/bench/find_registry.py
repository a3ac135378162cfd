"""The registry's search by relevance as a method of `bench_find`: the same code on SQLite and on PostgreSQL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from adapterhub_registry.database.db import Database, adapters, repos
from adapterhub_registry.database.search_tables import wordings
from adapterhub_registry.repos.search import AdapterQuery, search_adapters

from adapterhub.formats.relevance import wording_of, words_of
from tests.bench.find_questions import Card

_BATCH = 5000


def fill(database: Database, cards: Sequence[Card]) -> None:
    """A public repository for each card, with its words."""
    for at in range(0, len(cards), _BATCH):
        some = list(enumerate(cards[at : at + _BATCH], at + 1))
        with database.begin() as connection:
            connection.execute(repos.insert(), [_repo(number, card) for number, card in some])
            connection.execute(adapters.insert(), [_adapter(number, card) for number, card in some])
            connection.execute(wordings.insert(), [_wording(number, card) for number, card in some])


def searching(url: Callable[[Path], str]) -> Callable[[Sequence[Card], Path], Callable[[str], Sequence[str]]]:
    """What prepares a method of `bench_find` for the database at `url`, which may lie in the folder."""

    def prepare(cards: Sequence[Card], folder: Path) -> Callable[[str], Sequence[str]]:
        database = Database(url(folder))
        fill(database, cards)

        def search(text: str) -> list[str]:
            asked = AdapterQuery(q=text, by_relevance=True, limit=10)
            with database.read() as connection:
                page = search_adapters(connection, asked, repos.c.private.is_(False))
            return [row.full_name.partition("/")[2] for row in page.rows]

        return search

    return prepare


def commit_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:40]


def _repo(number: int, card: Card) -> dict[str, object]:
    name = f"acme/{card.name}"
    names = {"full_name": name, "namespace": "acme", "folded": name, "folded_namespace": "acme"}
    times = {"created_by": "ann", "created_at": number, "modified_at": number}
    return {"id": number, "private": False, "head": commit_of(number), **names, **times}


def _adapter(number: int, card: Card) -> dict[str, object]:
    facts = {"digest": commit_of(number), "task": card.task, "description": card.description, "peft_type": "LORA"}
    texts = {"methods": "[]", "target_modules": "[]", "words": "", "examples": "\n".join(card.prompts)}
    place = {
        "repo_id": number,
        "commit_id": commit_of(number),
        "is_head": True,
        "is_listed": True,
        "created_at": number,
    }
    return facts | texts | place


def _wording(number: int, card: Card) -> dict[str, object]:
    wording = wording_of(f"acme/{card.name}", card.task, card.description, card.prompts)
    return {"repo_id": number, **wording._asdict(), "body": " ".join(words_of(" ".join(wording)))}

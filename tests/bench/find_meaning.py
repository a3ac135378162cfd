"""Ways to search by meaning for `bench_find`: ours, and the same model in torch. The model is fetched once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command sets it

import numpy as np
from adapterhub_registry import vectors
from adapterhub_registry.database.db import Database, repos
from adapterhub_registry.database.db import meaning as table
from adapterhub_registry.nearest import Nearest
from adapterhub_registry.repos.search import AdapterQuery, search_adapters

from adapterhub.formats.meaning.model import FILES, MODEL, SIZE
from adapterhub.formats.meaning.ranking import packed
from adapterhub.formats.meaning.texts import parts_of
from adapterhub.library.find.meaning import model_place, opened
from adapterhub.library.library import Library
from adapterhub.library.store.rows import Filters
from tests.bench.find_questions import Card, cards, row_of
from tests.bench.find_registry import commit_of, fill
from tests.support.real_encoder import minilm_base


def meaning(builds: Sequence[Card], folder: Path) -> Callable[[str], Sequence[str]]:
    """`adapt search` by meaning; builds beyond the real cards have random vectors, as the time depends on none."""
    library = Library(folder)
    _give_model(model_place(library.root))
    rows = [row_of(card) for card in builds]
    library.catalog.index.rebuild(rows, [], [])
    beyond = rows[len(cards()) :]
    made = [(row.folder, row.digest, one) for row, one in zip(beyond, _random(len(beyond)), strict=True)]
    library.catalog.keep_vectors(MODEL, made)
    search = opened(library)
    assert search is not None
    search.make_missing()
    return lambda text: [hit.row.name for hit in search.search(text, Filters(), limit=10, far=True)]


def in_registry(builds: Sequence[Card], folder: Path) -> Callable[[str], Sequence[str]]:
    """The registry's search by meaning on SQLite; vectors as above."""
    _give_model(vectors.model_place(folder))
    database = Database(f"sqlite:///{folder / 'registry.db'}")
    fill(database, builds)
    beyond = range(len(cards()), len(builds))
    made = [
        {"repo_id": at + 1, "commit_id": commit_of(at + 1), "model": MODEL, "vectors": one}
        for at, one in zip(beyond, _random(len(beyond)), strict=True)
    ]
    if made:
        with database.begin() as connection:
            connection.execute(table.insert(), made)
    vectors.make(database, folder)
    nearest = Nearest(folder)

    def search(text: str) -> list[str]:
        asked = AdapterQuery(q=text, by_relevance=True, limit=10)
        with database.read() as connection:
            page = search_adapters(connection, asked, repos.c.private.is_(False), nearest.ranked)
        return [row.full_name.partition("/")[2] for row in page.rows]

    return search


def _give_model(place: Path) -> None:
    place.mkdir(parents=True)
    for name in FILES:
        (place / name).symlink_to(minilm_base() / name)


def _random(count: int) -> Iterator[bytes]:
    for one in np.random.default_rng(0).standard_normal((count, 1, SIZE)):
        yield packed(one / np.linalg.norm(one))


def torch_model(builds: Sequence[Card], _folder: Path) -> Callable[[str], Sequence[str]]:
    """transformers and torch, float32, and one product with all vectors; builds beyond the real cards as above."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    words, model = AutoTokenizer.from_pretrained(minilm_base()), AutoModel.from_pretrained(minilm_base())

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            states = model(**words(text, truncation=True, max_length=256, padding=False, return_tensors="pt"))
        mean = states.last_hidden_state[0].mean(0)
        return mean / mean.norm()

    known = [vector(parts_of(card.name, card.task, card.description)[0]) for card in builds[: len(cards())]]
    rest = torch.nn.functional.normalize(torch.randn(len(builds) - len(known), SIZE))
    every = torch.cat([torch.stack(known), rest])
    return lambda text: [builds[at].name for at in (every @ vector(text)).topk(10).indices.tolist()]

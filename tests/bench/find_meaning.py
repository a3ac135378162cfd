"""Two ways to search by meaning for `bench_find`: ours, and the same model in torch. The model is fetched once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command sets it

import numpy as np

from adapterhub.formats.meaning.model import FILES, MODEL, SIZE
from adapterhub.formats.meaning.ranking import packed
from adapterhub.formats.meaning.texts import parts_of
from adapterhub.library.find.meaning import model_place, opened
from adapterhub.library.library import Library
from adapterhub.library.store.index import Filters
from tests.bench.find_questions import Card, cards, row_of
from tests.support.real_encoder import minilm_base


def meaning(builds: Sequence[Card], folder: Path) -> Callable[[str], Sequence[str]]:
    """`adapt search` by meaning; builds beyond the real cards have random vectors, as the time depends on none."""
    library = Library(folder)
    model_place(library.root).mkdir(parents=True)
    for name in FILES:
        (model_place(library.root) / name).symlink_to(minilm_base() / name)
    rows, real = [row_of(card) for card in builds], len(cards())
    library.catalog.index.rebuild(rows, [], [])
    chance = np.random.default_rng(0).standard_normal((max(0, len(rows) - real), 1, SIZE))
    made = [
        (row.folder, row.digest, packed(one / np.linalg.norm(one)))
        for row, one in zip(rows[real:], chance, strict=True)
    ]
    library.catalog.keep_vectors(MODEL, made)
    search = opened(library)
    assert search is not None
    search.make_missing()
    return lambda text: [hit.row.name for hit in search.search(text, Filters(), limit=10, far=True)]


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

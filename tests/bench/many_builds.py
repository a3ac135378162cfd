"""An index of many made-up builds on a few bases; only the index, no weights: what searching costs depends on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from adapterhub.library.store.index import Index
from adapterhub.library.store.rows import BaseRow, BuildRow

TASKS = ("legal-qa", "summarize", "translate", "triage", "sql", "extract", "classify", "rewrite", "chat", "code")
RANKS = (4, 8, 16, 32, 64)
BASES = 20


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def rows(count: int, home: Path) -> Iterator[BuildRow]:
    for i in range(count):
        base, task = i % BASES, TASKS[(i // BASES) % len(TASKS)]
        rank = RANKS[(i // (BASES * len(TASKS))) % len(RANKS)]
        yield BuildRow(
            digest=digest(f"build {i}"),
            namespace="acme" if i % 3 else "",
            name=f"{task}-{i}",
            version="1.0.0",
            base_weights=digest(f"base {base}"),
            base_tensors=digest(f"tensors {base}"),
            base_hub_id=f"org/base-{base}",
            task=task,
            description=f"Adapter number {i} for {task}, trained on corpus {i % 977}",
            method="LORA",
            rank=rank,
            alpha=2.0 * rank,
            dtype="F32",
            parameters=460_800 * rank,
            size_bytes=1_843_200 * rank,
            target_modules="q_proj,v_proj",
            parents=0,
            folder=str(home / f"adapters/base-{base}/{task}-{i}/1.0.0-r{rank}"),
            added_at=1.7e9 + i,
        )


def fill_index(home: Path, count: int) -> Index:
    """Index `count` builds on 20 registered bases under `home`."""
    index = Index(home / "index.db")
    bases = [
        BaseRow(
            alias=f"base-{b}",
            weights=digest(f"base {b}"),
            hub_id=f"org/base-{b}",
            model_type="llama",
            dtype="BF16",
            parameters=7_000_000_000,
            path=f"/models/base-{b}",
        )
        for b in range(BASES)
    ]
    home.mkdir(parents=True, exist_ok=True)
    index.rebuild(rows(count, home), bases, [(b.weights, b.weights) for b in bases])
    return index

"""Adapters that strangers published: those kept in `tests/data/wild`, and the whole collection where it is there."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.support.shared_data import shared

KEPT = Path(__file__).resolve().parent.parent / "data" / "wild"


def rows(collection: Path) -> list[dict[str, str]]:
    """What is known of each folder of a collection: its manifest."""
    with (collection / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def is_kept(folder: str) -> bool:
    return (KEPT / folder).is_dir()


def wild(folder: str) -> Path:
    """A folder of the collection; the test skips where neither we nor this machine have it."""
    return KEPT / folder if is_kept(folder) else shared("wild") / folder

"""Merges of folders, as the tests of merges run them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge import MergeInput, MergeResult, merge


def run(out: Path, *inputs: tuple[Path, float], **options: Any) -> MergeResult:
    """Merge folders, each with its weight."""
    return merge([MergeInput(folder=f, label=f.name, weight=w) for f, w in inputs], out, **options)


def run_all(out: Path, folders: Sequence[Path], weights: Sequence[float], **options: Any) -> MergeResult:
    """Merge folders with as many weights."""
    return run(out, *zip(folders, weights, strict=True), **options)


def config_of(folder: Path) -> dict[str, Any]:
    """The config of an adapter."""
    read: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return read


def apply(method: str, deltas: Sequence[LowRank], weights: Sequence[float], **options: Any) -> Any:
    """What a method makes of one module."""
    return importlib.import_module(f"adapterhub.weights.merge.methods.{method}").merge(deltas, weights, **options)

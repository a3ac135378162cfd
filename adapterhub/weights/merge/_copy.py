"""One adapter of weight 1: the merge is the adapter, byte for byte, whatever kind of LoRA it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adapterhub.core.errors import shown
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.dtypes import DTYPES
from adapterhub.weights.merge._refusals import foreign, refuse
from adapterhub.weights.merge.source import MergeAdapter


def copy_into(source: MergeAdapter, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Copy the two files of `source` into `folder`, after reading every number.

    Raises:
        MergeRefused: it is no LoRA, or some numbers are not finite; every such tensor is listed.
    """
    label = shown(source.label)
    refuse([f"`{label}` {reason}" for reason in foreign(source)])
    tensors = source.factors.header.tensors
    bad = []
    for done, spec in enumerate(tensors, 1):
        if not source.factors.is_finite(spec):
            bad.append(f"`{shown(spec.name)}` in `{label}` holds NaN or infinite numbers")
        progress(done, len(tensors))
    refuse(bad)
    (folder / CONFIG_FILE).write_bytes(source.factors.config_bytes)
    source.factors.weights.copy_to(folder / WEIGHTS_FILE)


def ranks_of(source: MergeAdapter) -> dict[str, int]:
    """The rank of every module, as the config gives it."""
    return {module: f.layout.config_rank(f.rank) for module, f in source.factors.modules.items()}


def dtype_of(source: MergeAdapter) -> str:
    """The dtypes of the factors, in torch's names."""
    formats = {s.dtype for f in source.factors.modules.values() for s in (f.a, f.b)}
    return ", ".join(sorted(DTYPES[name].torch for name in formats))

"""Tells the dialect of the file where it is not PEFT's of today, and refuses one that has two meanings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adapterhub.formats.base.fingerprint import OUTPUT_HEADS
from adapterhub.formats.dialects import NAME_IT
from adapterhub.formats.dialects.programs import tinker
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    """Yield an adapter has one meaning; without a base, the shapes may still decide."""
    inner = subject.inner
    if inner is None:
        return
    if inner.unclear:
        is_open = inner.needs_base and subject.base_tensors is None
        yield Finding(
            "U_DIALECT" if is_open else "E_DIALECT",
            WEIGHTS_FILE,
            inner.problem,
            hint=("give the base with `--base`, or " if is_open else "") + NAME_IT,
        )
        return
    if subject.base_tensors is not None and tinker.trains_head(inner.raw) and not _has_head(subject.base_tensors):
        yield Finding(
            "E_UNSUPPORTED",
            WEIGHTS_FILE,
            "trains Tinker's `unembed_tokens`, and the head of the base is its embedding, which Tinker changes, too",
            hint="make a whole model with tinker_cookbook's `weights.build_hf_model`",
        )
    for note in inner.notes:
        yield Finding("N_DIALECT", WEIGHTS_FILE, note)
    if inner.dialect != inner.own:
        message = f"is in the dialect `{inner.dialect}` ({'; '.join(inner.evidence)}) and is read as PEFT's of today"
        yield Finding("N_DIALECT", WEIGHTS_FILE, message)


def _has_head(names: Iterable[str]) -> bool:
    """Return whether a base has an output head of its own."""
    heads = tuple(f"{head}.weight" for head in OUTPUT_HEADS)
    return any(name.endswith(heads) for name in names)

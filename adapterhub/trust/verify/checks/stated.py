"""Compares what the manifest states about an adapter with its tensors.

An install chooses by rank before it reads a tensor. A manifest that states a rank other than that of the weights would
install what the user did not request, and lists and searches would show a wrong rank.
"""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.core.errors import shown
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.report import some
from adapterhub.trust.verify.subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    """Rank, alpha, method, dtype, targets and parameters, each where the manifest states it."""
    manifest = subject.manifest
    if manifest is None:
        return
    facts = subject.facts
    if manifest.method[:1] and manifest.method[0] != facts.peft_type:
        yield _error(f"states the method {shown(manifest.method[0])}", facts.peft_type)
    if manifest.rank is not None and manifest.rank != facts.rank:
        yield _error(f"states rank {shown(manifest.rank)}", f"{facts.rank}, the rank of its tensors")
    if manifest.alpha is not None and manifest.alpha != facts.alpha:
        yield _error(f"states alpha {shown(manifest.alpha)}", f"{facts.alpha}, the alpha of its config")
    if manifest.dtype and manifest.dtype != facts.dtype:
        yield _error(f"states dtype {shown(manifest.dtype)}", f"{facts.dtype}, the dtype of its tensors")
    if manifest.parameters and manifest.parameters != facts.parameters:
        yield _error(f"states {shown(manifest.parameters)} parameters", f"{facts.parameters}, the size of its tensors")
    strange = sorted(set(manifest.target_modules) - set(facts.target_modules))
    if strange and facts.target_modules:
        yield _error(f"states the targets {some(strange)}", f"only {some(facts.target_modules)}")


def _error(message: str, expected: str) -> Finding:
    hint = "the manifest and the weights belong to different adapters; ask the publisher"
    return Finding("E_MANIFEST", MANIFEST_FILE, message, expected=expected, hint=hint)

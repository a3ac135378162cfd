"""Checks that the numbers are finite and not all zero."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.core.errors import shown
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.trust.verify.report import Finding
from adapterhub.trust.verify.subject import Subject

_LISTED = 5


def check(subject: Subject) -> Iterator[Finding]:
    """NaN and infinity, with the index of the first one in each tensor, and updates that do nothing."""
    numbers = subject.numbers
    odd = [(name, found.odd) for name, found in numbers.items() if found.odd is not None]
    for name, index in odd[:_LISTED]:
        yield Finding(
            code="E_NONFINITE",
            severity="error",
            where=WEIGHTS_FILE,
            message=f"`{shown(name)}` holds NaN or infinity, first at element {index}",
            expected="finite numbers",
            hint="the training diverged; take an earlier checkpoint",
        )
    if len(odd) > _LISTED:
        message = f"{len(odd) - _LISTED} more tensors hold NaN or infinity"
        yield Finding(code="E_NONFINITE", severity="error", where=WEIGHTS_FILE, message=message)
    for half in ("b", "a"):
        every = [spec for pair in subject.keys.pairs if (spec := getattr(pair, half)) is not None]
        if every and all(spec.name in numbers and numbers[spec.name].largest == 0 for spec in every):
            yield Finding(
                code="W_NOOP",
                severity="warning",
                where=WEIGHTS_FILE,
                message=f"every lora_{half.upper()} is zero: the adapter does nothing",
                hint="it was saved before it was trained, or its weights were not gathered",
            )

"""Checks that the numbers are finite, in the file and in the model, and not all zero.

Adapters run in float32 or less, where a larger number of float64 becomes infinity.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.report import some
from adapterhub.trust.verify.subject import Subject

_LISTED: Final = 5
_LARGEST_F32: Final = 3.4028234663852886e38
_EARLIER: Final = "the training diverged; take an earlier checkpoint"


def check(subject: Subject) -> Iterator[Finding]:
    """NaN and infinity, with the index of the first one in each tensor, and updates that do nothing."""
    odd: list[tuple[str, int]] = []
    large: list[str] = []
    largest = 0.0
    numbers = subject.numbers
    for name, found in numbers.items():
        if found.odd is not None:
            odd.append((name, found.odd))
        elif found.largest > _LARGEST_F32:
            large.append(name)
            largest = max(largest, found.largest)
    for name, index in odd[:_LISTED]:
        message = f"`{shown(name)}` holds NaN or infinity, first at element {index}"
        yield Finding("E_NONFINITE", WEIGHTS_FILE, message, expected="finite numbers", hint=_EARLIER)
    if len(odd) > _LISTED:
        yield Finding("E_NONFINITE", WEIGHTS_FILE, f"{len(odd) - _LISTED} more tensors hold NaN or infinity")
    if large:
        message = f"{some(large)} reach {largest:.4g}, which is infinity in float32"
        yield Finding("E_OVERFLOW", WEIGHTS_FILE, message, expected=f"at most {_LARGEST_F32:.4g}", hint=_EARLIER)
    for half in ("b", "a"):
        every = [spec.name for pair in subject.keys.pairs if (spec := getattr(pair, half)) is not None]
        if every and all(name in numbers and numbers[name].largest == 0 for name in every):
            message = f"every lora_{half.upper()} is zero: the adapter does nothing"
            hint = "it was saved before it was trained, or its weights were not gathered"
            yield Finding("W_NOOP", WEIGHTS_FILE, message, hint=hint)

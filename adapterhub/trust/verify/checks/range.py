"""Finds numbers that are finite in the file but not in the model: float64 beyond the range of float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.trust.verify.report import Finding, some
from adapterhub.trust.verify.subject import Subject

_LARGEST_F32: Final = 3.4028234663852886e38


def check(subject: Subject) -> Iterator[Finding]:
    """Adapters run in float32 or less, where a larger number becomes infinity."""
    numbers = subject.numbers
    found = [name for name, tensor in numbers.items() if tensor.odd is None and tensor.largest > _LARGEST_F32]
    if found:
        largest = max(numbers[name].largest for name in found)
        yield Finding(
            code="E_OVERFLOW",
            severity="error",
            where=WEIGHTS_FILE,
            message=f"{some(found)} reach {largest:.4g}, which is infinity in float32",
            expected=f"at most {_LARGEST_F32:.4g}",
            hint="the training diverged; take an earlier checkpoint",
        )

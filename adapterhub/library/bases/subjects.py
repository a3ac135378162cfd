"""An adapter beside the base that it is checked against."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adapterhub.library.bases.record import BaseRecord

if TYPE_CHECKING:
    from adapterhub.trust.verify import Subject


def part_for(subject: Subject, record: BaseRecord) -> BaseRecord:
    """The component of a pipeline that the adapter is for; the record itself for any other base."""
    manifest = subject.manifest
    declared, stated = (manifest.base.fingerprint, manifest.annotations) if manifest else (None, {})
    return record.narrowed((pair.module for pair in subject.keys.pairs), stated, declared=declared)


def beside(subject: Subject, record: BaseRecord) -> Subject:
    """The adapter with the facts of its base, of which a pipeline gives those of one component."""
    part = part_for(subject, record)
    tensors = {facts.name: facts for facts in part.tensors}
    return replace(subject, base_tensors=tensors, base_fingerprint=part.fingerprint, base_named=True)

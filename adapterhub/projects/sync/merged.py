"""What a merge of a project must show: the lines of its inputs' contracts that bind every merge hold for it.

A merge has no contract of its own, because its recipe alone decides its bytes. Its inputs' `never` and `leave_alone`
lines bind it, and so do the rules of the project.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adapterhub.core.errors import CouldNotTell, shown
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reading import contract_in
from adapterhub.formats.contract.rules import Rules
from adapterhub.library.library import Library
from adapterhub.projects.builds import label_of, locked_build
from adapterhub.projects.values import Lock, Locked, LockedMerge


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingLines:
    """The lines of one input's contract that bind a merge of it, as a contract without goldens."""

    parent: str
    contract: Contract


def binding_lines(library: Library, lock: Lock, merge: LockedMerge, rules: Rules | None) -> list[BindingLines]:
    """What a merge must keep, of each input that binds it; none if no input does, and no rule.

    Raises:
        CouldNotTell: an input is not here, or has no contract that can be read.
    """
    found: dict[str, BindingLines] = {}
    for entry in _inputs(lock, merge):
        build = locked_build(library, entry)
        if build is None:
            raise CouldNotTell(f"its input {shown(label_of(entry))} is not in the library")
        contract = contract_in(build.folder)
        if contract is None:
            raise CouldNotTell(f"its input {shown(label_of(entry))} has no contract")
        bound = contract.for_merges()
        if bound.lines or (rules is not None and rules.bind(bound)):
            found[bound.digest] = BindingLines(parent=label_of(entry), contract=bound)
    return list(found.values())


def _inputs(lock: Lock, merge: LockedMerge) -> Iterator[Locked]:
    """The adapters that a merge is made of, those of merges inside it included."""
    by_digest = {entry.digest: entry for entry in lock.entries.values()}
    for leaf in merge.step.leaves():
        entry = by_digest.get(leaf.digest) if leaf.digest is not None else None
        if entry is None:
            raise CouldNotTell(f"its input {shown(leaf.spec, 200)} is not in the lock")
        if isinstance(entry, LockedMerge):
            yield from _inputs(lock, entry)
        else:
            yield entry

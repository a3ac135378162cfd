"""What a merge must show: the lines of its parents' contracts that bind every merge hold for it.

A merge has no contract of its own, because only its recipe decides its bytes. Its parents' `never` and `leave_alone`
lines bind it, and so do the rules of a project.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import CouldNotTell, SpecError, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reader import Rules, contract_in
from adapterhub.formats.manifest import CONTRACT_FILE, Parent
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed

_MOST_PARENTS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingLines:
    """The lines of one parent's contract that bind a merge of it, as a contract without goldens."""

    parent: str
    contract: Contract


def is_bare_merge(build: Installed) -> bool:
    """Return whether a build was merged from others, and has no contract of its own."""
    return bool(build.manifest.parents) and build.manifest.file(CONTRACT_FILE) is None


def binding_lines(library: Library, merge: Installed, rules: Rules | None) -> list[BindingLines]:
    """Return the lines that a merge must keep, of each parent that binds it; none without such a parent or rule.

    Raises:
        CouldNotTell: a parent is not here, or has no contract that can be read.
    """
    found: dict[str, BindingLines] = {}
    for build in _parents(library, merge):
        label = f"{build.full_name} {build.manifest.version}"
        contract, listed = contract_in(build.folder), build.manifest.file(CONTRACT_FILE)
        if contract is None or listed is None or contract.digest != listed.sha256:
            raise CouldNotTell(
                f"its parent {shown(label, 200)} has no contract, or not that of its manifest",
                hint="`adapt contract record` records one",
            )
        bound = contract.for_merges()
        if bound.lines or (rules is not None and rules.bind(bound)):
            found[bound.digest] = BindingLines(parent=label, contract=bound)
    return list(found.values())


def _parents(library: Library, merge: Installed) -> Iterator[Installed]:
    """Yield the builds that a merge is made of, those of merges inside it included."""
    todo, seen = list(merge.manifest.parents), set[Digest]()
    while todo:
        parent = todo.pop(0)
        if parent.digest in seen:
            continue
        build = _installed(library, parent)
        if build is None or parent.digest is None or len(seen) == _MOST_PARENTS:
            raise CouldNotTell(
                f"its parent {shown(parent.spec, 200)} is not in the library",
                hint="`adapt install` its parent, then test again",
            )
        seen.add(parent.digest)
        if is_bare_merge(build):
            todo += build.manifest.parents
        else:
            yield build


def _installed(library: Library, parent: Parent) -> Installed | None:
    try:
        spec = AdapterSpec.parse(parent.spec)
    except SpecError:
        return None
    named = library.catalog.folders(spec.name, spec.namespace, digest=parent.digest or "")
    return next((build for build in library.still_in(named) if build.manifest.digest == parent.digest), None)

"""Installed names that are easily confused, and one update under two names or licences: one may imitate the other."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import shown
from adapterhub.core.specs import fold
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.library.audit._subject import AuditedAdapter, Surroundings
from adapterhub.library.store.catalog import Installed
from adapterhub.trust.findings import Finding


def check(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    """One finding for each installed name that is easily taken for this one, and for each copy of the update."""
    yield from _like_names(subject, around)
    if subject.build is not None:
        yield from _copies(subject.build, around)


def _copies(build: Installed, around: Surroundings) -> Iterator[Finding]:
    manifest = build.manifest
    for one in around.copies_of(build):
        other = around.build_with(parse_digest(one.build.digest))
        if other is None:
            continue
        differs = []
        if other.full_name != build.full_name:
            differs.append("name")
        if other.manifest.license != manifest.license:
            differs.append(f"licence ({other.manifest.license or 'none'}, here {manifest.license or 'none'})")
        is_declared = any(parent.digest == one.build.digest for parent in manifest.parents) or any(
            parent.digest == manifest.digest for parent in other.manifest.parents
        )
        if not differs or (is_declared and len(differs) == 1 and differs[0] == "name"):
            continue
        what = "the update" if one.cosine > 0 else "the negated update"
        message = f"has {what} of `{other.full_name}` {other.manifest.version} under another {' and '.join(differs)}"
        hint = f"`adapt compare {build.full_name}` shows how they differ; the licence of the first one counts for both"
        yield Finding("W_COPY", MANIFEST_FILE, shown(message, 400), hint=hint)


def _like_names(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    name = subject.target.name
    for other in around.names.like(name) if name else ():
        how = "which differs by one character"
        if fold(name) == fold(other):
            how = "which reads the same: case, `-_.`, 0 and O, 1 and l and I are easily mistaken"
        message = f"`{shown(name)}` looks like `{shown(other)}`, {how}"
        hint = (
            "make sure that both are meant; `adapt info NAME` tells where each belongs, `adapt remove` takes one away"
        )
        yield Finding("W_LOOK_ALIKE", MANIFEST_FILE, message, hint=hint)

"""The licences of an adapter, of every adapter it was merged from, and of the base, taken together.

Whether an adapter is a work derived from its base is not settled; here the terms of all parts are taken to reach the
whole, which errs to the careful side. A licence that no card states is reported as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Digest
from adapterhub.core.disk.files import read_plain
from adapterhub.core.errors import AdapterHubError, shown
from adapterhub.formats.cards.card import CARD_LIMIT_BYTES, split_card
from adapterhub.formats.licenses import CANNOT_JOIN, Term, joined, terms_of
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, Manifest
from adapterhub.library.audit._subject import AuditedAdapter, Composition, Part, Surroundings
from adapterhub.trust.findings import Finding

MAX_PARTS: Final = 200
"""Further ancestors are not followed, and a finding says so."""

_CODES: Final = {
    Term.NONCOMMERCIAL: "W_LICENSE_NONCOMMERCIAL",
    Term.NO_DERIVATIVES: "W_LICENSE_NO_DERIVATIVES",
    Term.SHARE_ALIKE: "W_LICENSE_SHARE_ALIKE",
    Term.CONDITIONS: "W_LICENSE_CONDITIONS",
}


def check(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    """Unknown licences, their conditions, and licences that conflict."""
    if subject.manifest is None:
        return
    composition = composition_of(subject, around)
    yield from _untold(composition, around)
    if composition.whole is None:
        return
    message = f"all parts together: {composition.whole.text}" + (", where known" if composition.unknown else "")
    yield Finding("N_LICENSE", MANIFEST_FILE, message)
    for term, code in _CODES.items():
        asking = [part for part in _known(composition) if term in _terms(part)]
        if asking and term in composition.whole.best.terms:
            parts = ", ".join(f"{p.expression.text} of {p.title}" for p in asking if p.expression)
            yield Finding(code, MANIFEST_FILE, f"{parts} {term.value}")
    yield from _wider(composition)
    yield from _conflicts(composition)


def composition_of(subject: AuditedAdapter, around: Surroundings) -> Composition:
    """Return the parts of a subject that has a manifest, ancestors included, each once."""
    assert subject.manifest is not None  # the caller made sure
    parts = [_stated("adapter", subject.target.name or subject.target.label, licence_in(subject.manifest))]
    parts += _ancestors(subject.manifest, around)
    parts.append(base_part(subject, around))
    known = [found for part in parts if (found := part.expression) is not None]
    unknown = tuple(part for part in parts if part.expression is None)
    return Composition(parts=tuple(parts), whole=joined(known), unknown=unknown)


# ---------------------------------------------------------------- parts
def _ancestors(manifest: Manifest, around: Surroundings) -> Iterator[Part]:
    todo, seen = list(manifest.parents), set[Digest]()
    count = 0
    while todo:
        parent = todo.pop(0)
        if parent.digest is not None and parent.digest in seen:
            continue
        count += 1
        if count > MAX_PARTS:
            yield Part(role="parent", name=parent.spec, stated=None, why_not=f"more than {MAX_PARTS} ancestors")
            return
        found = around.manifest_of(parent.digest) if parent.digest else None
        if found is None or parent.digest is None:
            yield Part(role="parent", name=parent.spec, stated=None, why_not="it is not here")
            continue
        seen.add(parent.digest)
        yield _stated("parent", parent.spec, licence_in(found))
        todo += found.parents


def base_part(subject: AuditedAdapter, around: Surroundings) -> Part:
    """Return the base of an adapter, with the licence that its card states where its folder is here."""
    label = subject.base.label
    try:
        record = around.base_of(subject.base.fingerprint)
    except AdapterHubError as error:
        return Part(role="base", name=label, stated=None, why_not=error.message)
    if record is None:
        return Part(role="base", name=label, stated=None, why_not="it is not registered here")
    if record.path is None or not record.path.is_dir():
        return Part(role="base", name=record.label, stated=None, why_not="its folder is not here")
    return _stated("base", record.label, _licence_of_card(record.path / CARD_FILE))


def _stated(role: str, name: str, stated: str | None) -> Part:
    reason = "" if stated else "it states none"
    return Part(role=role, name=name, stated=stated, why_not=reason)


def licence_in(manifest: Manifest) -> str | None:
    """Return the licence in a manifest, or in its card if that is more exact (`other` with a `license_name`)."""
    return manifest.license if _says(manifest.license) else _licence_in_card(manifest.card) or manifest.license


def _says(stated: str | None) -> bool:
    return stated is not None and stated.strip().lower() != "other"


def _licence_of_card(path: Path) -> str | None:
    try:
        text = read_plain(path, CARD_LIMIT_BYTES)[:CARD_LIMIT_BYTES].decode("utf-8", errors="replace")
    except OSError:
        return None
    return _licence_in_card(text)


def _licence_in_card(text: str) -> str | None:
    """`license` of the front matter; `license_name` where that is `other`, and all of a list."""
    matter, _ = split_card(text)
    stated = matter.get("license")
    if isinstance(stated, list) and stated and all(isinstance(one, str) for one in stated):
        return " AND ".join(stated)
    if isinstance(stated, str) and _says(stated):
        return stated
    named = matter.get("license_name")
    return named if isinstance(named, str) else stated if isinstance(stated, str) else None


# ---------------------------------------------------------------- what follows
def _known(composition: Composition) -> list[Part]:
    return [part for part in composition.parts if part.expression is not None]


def _terms(part: Part) -> frozenset[Term]:
    return part.expression.best.terms if part.expression else frozenset()


def _untold(composition: Composition, around: Surroundings) -> Iterator[Finding]:
    """Licences that are not known; an audit reports that of a base once, for the first of its adapters."""
    for part in composition.parts:
        if part.expression is None:
            why = f"`{shown(part.stated)}` is no SPDX expression" if part.stated else part.why_not
            message = f"cannot tell the licence of {part.title}: {why}"
        elif Term.UNKNOWN in _terms(part):
            message = f"cannot tell what {part.expression.text} of {part.title} requires: there is no rule for it here"
        else:
            continue
        hint = "read its card; `adapt add --license SPDX` and `license:` in a README state it"
        if part.role == "base":
            if message in around.told_bases:
                continue
            around.told_bases.add(message)
            hint = f"`license:` in the `{CARD_FILE}` of the base's folder states it"
        yield Finding("U_LICENSE", MANIFEST_FILE, message, hint=hint)


def _wider(composition: Composition) -> Iterator[Finding]:
    """Terms of a part that the adapter's own licence does not pass on."""
    own, *others = composition.parts
    if own.expression is None or Term.UNKNOWN in _terms(own):
        return
    for part in others:
        missing = _terms(part) - _terms(own) - {Term.UNKNOWN}
        if missing and part.expression:
            asks = " and ".join(sorted(term.value for term in missing))
            message = f"states {own.expression.text}, but {part.title} is under {part.expression.text}, which {asks}"
            hint = "state both, as in `--license 'Apache-2.0 AND CC-BY-NC-4.0'`, or ask its author"
            yield Finding("W_LICENSE_WIDER", MANIFEST_FILE, message, hint=hint)


def _conflicts(composition: Composition) -> Iterator[Finding]:
    """Licences that no one can meet at once, and share-alike licences that may conflict."""
    assert composition.whole is not None  # `check` made sure
    identifiers = sorted(composition.whole.best.identifiers)
    for pattern, term in CANNOT_JOIN:
        strict = [one for one in identifiers if re.fullmatch(pattern, one)]
        adding = [one for one in identifiers if term in terms_of(one.partition(" WITH ")[0]) and one not in strict]
        if strict and adding:
            message = f"{strict[0]} forbids adding restrictions, and {adding[0]} {term.value}: no one can meet both"
            yield Finding("W_LICENSE_CONFLICT", MANIFEST_FILE, message)
            return
    alike = [one for one in identifiers if Term.SHARE_ALIKE in terms_of(one.partition(" WITH ")[0])]
    if len(alike) > 1:
        message = f"cannot tell whether {' and '.join(alike)} can be met at once: each claims the whole for itself"
        yield Finding("U_LICENSE_CONFLICT", MANIFEST_FILE, message)

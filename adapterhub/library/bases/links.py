"""How bases relate in one library: by content, by copies that were proven here, and by what the user accepted.

A link is kept in the record of the copy. Its key is the digests of both: that of the copy is in the record, that of the
source in the link. No file gives itself one: an exported record has none, and a manifest cannot state one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from shlex import quote
from typing import Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import shown
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.copies import compare_copy
from adapterhub.formats.base.fingerprint import BaseComparison, BaseFingerprint, BaseHints, BaseVerdict
from adapterhub.library.bases.link import OF_A_SOURCE, CopyLink
from adapterhub.library.bases.record import BaseRecord

Hints = tuple[BaseHints, BaseHints]
Prove = Callable[[BaseRecord, BaseRecord], BaseComparison | None]
"""Compares the files of a source with those of a copy; None where they are not here."""

_PROVEN: Final = frozenset({BaseVerdict.SAME_WEIGHTS_QUANTISED, BaseVerdict.ACCEPTED_QUANTISED})
SIDES: Final = ("source", "copy")
"""What the evidence calls the two."""


# ---------------------------------------------------------------- making links
def linked(copy: BaseRecord, others: Iterable[BaseRecord], prove: Prove) -> BaseRecord:
    """Return the record of a copy with its links to `others`; links to bases that are no longer registered stay.

    `prove` is called if the sampled numbers do not prove a copy: files tell a fine-tune of the source from the source,
    a weight that an algorithm changed from another weight, and where the experts of a mixture lie.
    """
    if copy.fingerprint.copy is None or copy.components:
        return copy
    links = {link.source: link for link in copy.links}
    for source in others:
        if source.fingerprint.copy is not None or source.components or source.component:
            continue
        weights = source.fingerprint.weights
        known, samples = links.pop(weights, None), compare_copy(source.fingerprint, copy.fingerprint, SIDES)
        is_open = samples.verdict is not BaseVerdict.SAME_WEIGHTS_QUANTISED and not copy.fingerprint.copy.unknown
        files = prove(source, copy) if is_open else None
        if is_open and files is None and known is not None:
            links[weights] = known  # the files were here when it was made
            continue
        found = files or samples
        is_refuted = samples.verdict is BaseVerdict.LIKELY_SAME_QUANTISED and found.verdict is BaseVerdict.SAME_SHAPES
        if found.verdict in OF_A_SOURCE or is_refuted:
            links[weights] = CopyLink(
                source=weights,
                verdict=found.verdict,
                evidence=found.differences,
                accepted=known is not None and known.accepted,
            )
    return replace(copy, links=tuple(links[weights] for weights in sorted(links)))


def accepting(copy: BaseRecord, others: Sequence[BaseRecord]) -> BaseRecord:
    """Return the record with its likely sources accepted: one model, in whatever precision.

    None if several models are alike.

    The first source that is registered after an acceptance without one is the accepted one.
    """
    likely = [link for link in copy.links if link.verdict is BaseVerdict.LIKELY_SAME_QUANTISED]
    if not copy.accepts or not likely or (not any(link.accepted for link in likely) and rivals(copy, others)):
        return copy
    by_weights = {record.fingerprint.weights: record.fingerprint for record in others}
    chosen = next((link for link in likely if link.accepted), likely[0])

    def is_chosen(link: CopyLink) -> bool:
        one, other = by_weights.get(chosen.source), by_weights.get(link.source)
        return link == chosen or (one is not None and other is not None and compare(one, other).verdict.is_same_model)

    links = (replace(link, accepted=is_chosen(link)) if link in likely else link for link in copy.links)
    return replace(copy, links=tuple(links))


def rivals(copy: BaseRecord, others: Iterable[BaseRecord]) -> list[str]:
    """Return the names of registered bases of which a copy is likely made, if these are several models."""
    likely = {link.source for link in copy.links if link.verdict is BaseVerdict.LIKELY_SAME_QUANTISED}
    found = [record for record in others if record.fingerprint.weights in likely]
    apart = any(not compare(found[0].fingerprint, one.fingerprint).verdict.is_same_model for one in found[1:])
    return sorted({record.alias for record in found}) if apart else []


# ---------------------------------------------------------------- using links
def related(
    one: BaseFingerprint | None,
    other: BaseFingerprint | None,
    records: Sequence[BaseRecord],
    hints: Hints | None = None,
) -> BaseComparison:
    """Return how two bases relate, of which each may be one of `records`: by content, and by the links of these."""
    if one is None or other is None or one.weights == other.weights:
        return compare(one, other, hints=hints)
    known = {record.fingerprint.weights: record for record in records}
    if not any(_is_copy(each, known) for each in (one, other)):
        return compare(one, other, hints=hints)
    one, other = (_registered(each, known) for each in (one, other))  # what a file claims of a copy is not needed
    if (found := _direct(one.weights, other.weights, known)) is None:
        found = compare(one, other, hints=hints)
    if found.verdict.allows_attach:
        return found
    ways = [*_ways(one, other, known), *_ways(other, one, known)]
    best = next((way for verdict in _ORDER for way in ways if way.verdict is verdict), None)
    if best is not None and best.verdict in _PROVEN:
        return best
    return _unaccepted(found, one, other, known)


_ORDER: Final = (BaseVerdict.SAME_WEIGHTS_QUANTISED, BaseVerdict.ACCEPTED_QUANTISED)


def _is_copy(base: BaseFingerprint, known: Mapping[Digest, BaseRecord]) -> bool:
    return base.copy is not None or (base.weights in known and known[base.weights].fingerprint.copy is not None)


def _registered(base: BaseFingerprint, known: Mapping[Digest, BaseRecord]) -> BaseFingerprint:
    return known[base.weights].fingerprint if base.weights in known else base


def _links_of(weights: Digest, known: Mapping[Digest, BaseRecord]) -> Iterator[tuple[Digest, BaseComparison]]:
    """Yield the other end of each link that touches the base with these weights, and what the link says."""
    for record in known.values():
        facts = record.fingerprint.copy
        for link in record.links if facts is not None else ():
            if weights in (record.fingerprint.weights, link.source):
                end = link.source if weights == record.fingerprint.weights else record.fingerprint.weights
                yield end, link.comparison(facts.form if facts else "")


def _direct(one: Digest, other: Digest, known: Mapping[Digest, BaseRecord]) -> BaseComparison | None:
    return next((found for end, found in _links_of(other, known) if end == one), None)


def _ways(one: BaseFingerprint, other: BaseFingerprint, known: Mapping[Digest, BaseRecord]) -> Iterator[BaseComparison]:
    """Ways from `one` over a link of `other`: `one` is its other end in another precision, or one more copy of that."""
    for end, link in _links_of(other.weights, known):
        if (between := known.get(end)) is None or link.verdict not in _PROVEN:
            continue
        found = _direct(one.weights, end, known) or compare(one, between.fingerprint)
        if found.verdict.is_same_model or found.verdict in _PROVEN:
            weaker = found if found.verdict is BaseVerdict.ACCEPTED_QUANTISED else link
            said = f"both are forms of `{between.alias}`: {'; '.join((*found.differences[:1], *link.differences[:1]))}"
            yield replace(weaker, differences=(said,))


def _unaccepted(
    found: BaseComparison, one: BaseFingerprint, other: BaseFingerprint, known: Mapping[Digest, BaseRecord]
) -> BaseComparison:
    """Return the comparison where no link helps: its record accepts a likely copy, or the hint explains how to."""
    copy = next((known[each.weights] for each in (other, one) if each.copy and each.weights in known), None)
    if found.verdict is not BaseVerdict.LIKELY_SAME_QUANTISED or copy is None:
        return found
    accepted = [known[link.source].alias for link in copy.links if link.accepted and link.source in known]
    if copy.accepts and not any(link.accepted for link in copy.links):
        return replace(found, verdict=BaseVerdict.ACCEPTED_QUANTISED)
    if copy.accepts:
        of = f"`{accepted[0]}`" if accepted else "another base"
        return replace(found, differences=(f"`{copy.alias}` is accepted as a copy of {of}", *found.differences))
    where = quote(shown(str(copy.path), 200)) if copy.path else "COPY"
    hint = f"`adapt base add {where} --as {copy.alias} --accept likely` lets this copy stand for its source"
    return replace(found, hint=hint)


def copy_with_link(records: Iterable[BaseRecord], weights: Digest) -> BaseRecord | None:
    """Return the copy whose link says that it may stand for the base with these weights.

    A proven one before an accepted.
    """
    found: dict[BaseVerdict, BaseRecord] = {}
    for record in records:
        form = record.fingerprint.copy.form if record.fingerprint.copy else ""
        for link in record.links:
            if link.source == weights and link.is_source:
                found.setdefault(link.comparison(form).verdict, record)
    return next((found[verdict] for verdict in _ORDER if verdict in found), None)

"""Match an orphan with registered bases: by its adapter's declaration, by copied tensors, by names and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from adapterhub.formats.base.weight_reader import read_facts
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.identify._builds import Known
from adapterhub.library.identify._orphan import Orphan
from adapterhub.library.identify._report import Match, Sureness
from adapterhub.library.identify.families import layers_of
from adapterhub.library.library import Library
from adapterhub.trust.verify import Subject
from adapterhub.trust.verify.checks.fit import check
from adapterhub.trust.verify.subject import Listing

_LEAST_VALUES: Final = 64
"""A tensor of fewer numbers may be the same in two models by chance: a bias of zeros, a norm of ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """A base that has every module in its size; `short` where the adapter does not reach all of its layers."""

    record: BaseRecord
    is_named: bool
    is_quantised: bool
    short: str


def base_matches(
    library: Library, orphan: Orphan, builds: Sequence[Known], adapters: Sequence[Match]
) -> Iterator[Match]:
    """Bases that it is or may be for, and what its config names where that is not registered."""
    records = library.bases.list()
    matched: set[str] = set()
    for record, match in [*_declared(library, orphan, builds, adapters), *_copied(orphan, records)]:
        if match.name not in matched:
            matched |= {match.name, *(r.alias for r in records if record and r.fingerprint == record.fingerprint)}
            yield match
    fits = [fit for record in records if record.alias not in matched and (fit := _fit(orphan, record)) is not None]
    # a component that has every module says more than the pipeline that has the component
    wholes = {fit.record.alias.partition("/")[0] for fit in fits if fit.record.component}
    fits = [fit for fit in fits if fit.record.component or fit.record.alias not in wholes]
    kinds = {fit.record.fingerprint.structure for fit in fits}
    for fit in sorted(fits, key=lambda f: (not f.is_named, f.record.alias)):
        rivals = len({other.record.fingerprint.weights for other in fits})
        is_sure = not fit.is_quantised and (fit.is_named or (rivals == 1 and not fit.short and not matched))
        sure: Sureness = "likely" if is_sure else "possible"
        yield _match(fit.record, sure, _how(orphan, fit, rivals=rivals, shapes=len(kinds)))
    named = orphan.config.base_model_name_or_path if orphan.config else None
    if named and not matched and not any(is_named(orphan, record) for record in records):
        yield Match(what="base", name=named, sure="possible", how="its config names it, and a name proves nothing")


def _how(orphan: Orphan, fit: _Fit, *, rivals: int, shapes: int) -> str:
    parts = [f"has all {len(orphan.pairs)} modules in their sizes"]
    if fit.is_quantised:
        parts = ["has its modules, but is quantised, so their sizes cannot be compared"]
    if fit.is_named:
        parts.append("the config names it")
    if fit.short:
        parts.append(fit.short)
    if rivals > 1:
        same = "of the same shapes" if shapes == 1 else "that fit"
        parts.append(f"one of {rivals} registered bases {same}")
    return "; ".join(parts)


def _declared(
    library: Library, orphan: Orphan, builds: Sequence[Known], adapters: Sequence[Match]
) -> Iterator[tuple[BaseRecord | None, Match]]:
    """The base of an adapter that it is known to be, else of the manifest beside it."""
    known: dict[str, Known] = {build.manifest.digest: build for build in builds}
    proven = [known[m.digest] for m in adapters if m.sure == "proven" and m.digest in known]
    for build in proven:
        if build.base.fingerprint is not None:
            record = library.bases.by_fingerprint(build.base.fingerprint)
            name = record.alias if record else build.base.label
            how = f"`{build.name}` declares it by content"
            yield (
                record,
                Match(what="base", name=name, sure="proven", how=how, digest=build.base.fingerprint.weights),
            )
    if not proven and orphan.manifest is not None and (declared := orphan.manifest.base.fingerprint) is not None:
        record = library.bases.by_fingerprint(declared)
        name = record.alias if record else orphan.manifest.base.label
        how = "the manifest beside it declares it by content"
        yield record, Match(what="base", name=name, sure="likely", how=how, digest=declared.weights)


def _copied(orphan: Orphan, records: Sequence[BaseRecord]) -> Iterator[tuple[BaseRecord, Match]]:
    """Bases some tensor of which the orphan carries byte for byte, as PEFT saves embeddings."""
    if orphan.weights is None or orphan.keys is None:
        return
    names = {spec.name for pair in orphan.keys.pairs for spec in (pair.a, pair.b, pair.magnitude, pair.bias) if spec}
    if len(names) == len(orphan.weights.tensors):
        return
    facts = read_facts([orphan.weights.path], cache_folder=None)[orphan.weights.path]
    width = {spec.name: spec.elements for spec in orphan.weights.tensors}
    own = {(f.dtype, f.shape, f.sha256) for f in facts if width[f.name] >= _LEAST_VALUES and len(set(f.samples)) > 1}
    for record in records:
        common = [f.name for f in record.tensors if (f.dtype, f.shape, f.sha256) in own]
        if common:
            more = f" and {len(common) - 1} more" if len(common) > 1 else ""
            yield record, _match(record, "proven", f"carries its `{common[0]}`{more}, byte for byte")


def _fit(orphan: Orphan, record: BaseRecord) -> _Fit | None:
    """How the base has the orphan's modules; None when it lacks one or one has another size."""
    weights = orphan.plain
    if weights is None:
        return None
    config = orphan.config or AdapterConfig(peft_type="LORA", r=1, lora_alpha=1, target_modules="all-linear")
    subject = Subject(
        folder=orphan.path,
        listing=Listing(taken={}, findings=()),
        config=config,
        weights=weights,
        base_tensors={fact.name: fact for fact in record.tensors},
    )
    codes = {finding.code for finding in check(subject)}
    if "E_BASE_MISMATCH" in codes or not config.is_lora:
        return None
    mine = layers_of(pair.module for pair in orphan.pairs)
    theirs = layers_of(fact.name.rpartition(".")[0] for fact in record.tensors)
    short = f"it has {theirs} layers, the adapter is on the first {mine}" if 0 < mine < theirs else ""
    return _Fit(record=record, is_named=is_named(orphan, record), is_quantised="U_SHAPE" in codes, short=short)


def is_named(orphan: Orphan, record: BaseRecord) -> bool:
    """Whether the config names this base, by its Hub id, its alias or its folder."""
    named = orphan.config.base_model_name_or_path if orphan.config else None
    if not named:
        return False
    names = {record.alias, record.hub or "", record.hints.hub_id or "", str(record.path or "")}
    return named.rstrip("/").casefold() in {name.casefold() for name in names if name}


def _match(record: BaseRecord, sure: Sureness, how: str) -> Match:
    weights = record.fingerprint.weights
    return Match(what="base", name=record.alias, sure=sure, how=how, digest=weights, folder=record.path)

"""Resolves the adapters and the base of a fusion, checks their current files, and compares their bases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from adapterhub.core.digests import Progress
from adapterhub.core.errors import BaseMismatch, BaseNotFound, MergeRefused, RefusedAdapter, UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import Finder, FoundAdapter, with_weights
from adapterhub.formats.base.fingerprint import BaseVerdict, compare
from adapterhub.library.bases.families import Families
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import AdapterLike
from adapterhub.trust.verify import Subject
from adapterhub.weights.fuse._model import Model
from adapterhub.weights.fuse._source import own_reasons

_HINT_NO_BASE = "`adapt base add PATH --as NAME` registers a local copy; name it with `--base NAME`"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FuseRequest:
    """The base, the adapters and their verified files."""

    model: Model
    adapters: tuple[FoundAdapter, ...]
    subjects: tuple[Subject, ...]
    warnings: tuple[str, ...]


def find_request(
    adapter: AdapterLike | Sequence[AdapterLike] | Mapping[AdapterLike, float],
    library: Library,
    *,
    base: BaseSpec | str | None,
    weights: Sequence[float] | None,
    allow_base_mismatch: bool,
    reading: Progress | None,
) -> FuseRequest:
    """The adapters and the base, compared; see `prepare` for the arguments and the errors."""
    spec = BaseSpec.parse(base) if isinstance(base, str) else base
    if spec is not None and spec.kind == "path":
        library.bases.find(spec, progress=reading)  # read here, where its progress is reported
    pairs = with_weights(adapter, weights)
    warnings = [f"`{shown(str(what))}` has weight 0 and was left out" for what, weight in pairs if weight == 0]
    pairs = [pair for pair in pairs if pair[1] != 0]
    if not pairs:
        raise UsageProblem("nothing to fuse: every adapter has weight 0")
    finder = Finder(library, spec, lambda: _only_base(library), allow_base_mismatch=allow_base_mismatch)
    adapters = tuple(_find(finder, what, weight) for what, weight in pairs)
    record = _component(_base_of(library, adapters), adapters)
    model = Model.of(library.bases.current(record, progress=reading))
    check = _BaseCheck(library, model.record, allow_base_mismatch=allow_base_mismatch)
    warnings += [f"`{shown(one.label, 200)}` {warning}" for one in adapters for warning in one.warnings]
    warnings += [warning for one in adapters for warning in check.run(one)]
    subjects = tuple(_subject(one, model) for one in adapters)
    _check_each(adapters, subjects)
    return FuseRequest(model=model, adapters=adapters, subjects=subjects, warnings=tuple(warnings))


def _find(finder: Finder, what: AdapterLike, weight: float) -> FoundAdapter:
    try:
        return finder.find(what, weight)
    except RefusedAdapter as error:
        raise RefusedAdapter(f"`{shown(str(what), 200)}` was not fused", error.findings, hint=error.hint) from None


def _check_each(adapters: Sequence[FoundAdapter], subjects: Sequence[Subject]) -> None:
    is_alone = len(adapters) == 1 and adapters[0].weight == 1
    reasons = [
        f"`{shown(one.label)}` {reason}"
        for one, subject in zip(adapters, subjects, strict=True)
        for reason in own_reasons(subject, is_alone=is_alone)
    ]
    if reasons:
        raise MergeRefused("these adapters cannot be fused", reasons)


def _subject(adapter: FoundAdapter, model: Model) -> Subject:
    """The adapter's verified files, together with the facts of the base."""
    assert adapter.subject is not None  # the finder checks every folder
    return replace(
        adapter.subject, base_tensors=model.facts, base_fingerprint=model.record.fingerprint, base_named=True
    )


# ---------------------------------------------------------------- the base
def _base_of(library: Library, adapters: Sequence[FoundAdapter]) -> BaseRecord:
    """The named base, else the base that the adapters declare, else the only registered one."""
    named = {f.wanted.text: f.wanted.record for f in adapters if f.wanted is not None}
    absent = [text for text, record in named.items() if record is None]
    if absent:
        raise BaseNotFound(f"the weights of base `{shown(absent[0])}` are not on this machine", hint=_HINT_NO_BASE)
    records = [record for record in named.values() if record is not None]
    if len({record.fingerprint.weights for record in records}) > 1:
        listed = ", ".join(f"`{shown(text)}`" for text in named)
        raise UsageProblem(f"the adapters name several bases: {listed}", hint="fuse into one base at a time")
    if records:
        return records[0]
    declared = [f for f in adapters if f.base.fingerprint is not None]
    for one in declared:
        record = library.bases.by_fingerprint(one.base.fingerprint) if one.base.fingerprint else None
        if record is not None:
            return record
    if declared:
        raise BaseNotFound(
            f"the base of `{shown(declared[0].label, 200)}` ({declared[0].base.label}) is not registered",
            hint=_HINT_NO_BASE,
        )
    only = _only_base(library)
    if only is None:
        label = shown(adapters[0].label, 200)
        raise BaseNotFound(f"`{label}` does not declare its base", hint="name one with `--base BASE|PATH`")
    return only


def _component(record: BaseRecord, adapters: Sequence[FoundAdapter]) -> BaseRecord:
    """The component of a pipeline that all adapters were made for; the record itself for another base."""
    parts = {part.fingerprint: part for part in (record.narrowed(declared=one.base.fingerprint) for one in adapters)}
    return next(iter(parts.values())) if len(parts) == 1 else record


def _only_base(library: Library) -> BaseRecord | None:
    records = library.bases.list()
    return records[0] if len(records) == 1 else None


class _BaseCheck:
    """Compares the base with the base that an adapter was made for."""

    def __init__(self, library: Library, record: BaseRecord, *, allow_base_mismatch: bool) -> None:
        self.library = library
        self.record = record
        self.allow_base_mismatch = allow_base_mismatch

    def run(self, adapter: FoundAdapter) -> Iterator[str]:
        """The warnings for one adapter.

        Raises:
            BaseMismatch: the adapter was made for another base.
        """
        label, declared = shown(adapter.label, 200), adapter.base
        if declared.fingerprint is None:
            named = f"; its config names `{shown(declared.hints.hub_id)}`" if declared.hints.hub_id else ""
            yield f"`{label}` declares no base fingerprint{named}"
            return
        here = self.record.fingerprint
        comparison = compare(declared.fingerprint, here, hints=(declared.hints, self.record.hints))
        comparison = Families(self.library.bases).judged(comparison, declared.fingerprint, here)
        made_for = self.library.base_label(declared)
        claim = f"was made for base `{shown(made_for)}` ({declared.fingerprint.weights[7:19]})"
        if comparison.verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION:
            yield f"`{label}` {claim} in another precision: {'; '.join(comparison.differences)}"
        if comparison.verdict is BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY:
            yield f"`{label}` {claim} with a vocabulary of another size: {'; '.join(comparison.differences)}"
        if comparison.verdict is BaseVerdict.SAME_FAMILY:
            yield f"`{label}` {claim}: {comparison.differences[0]}"
        if comparison.verdict.allows_attach:
            return
        this = f"this is `{shown(self.record.label)}` ({here.weights[7:19]})"
        if comparison.verdict is BaseVerdict.SAME_SHAPES and self._is_overridden(adapter):
            yield f"`{label}` {claim}, but {this}; fused because the mismatch is allowed"
            return
        hint = "fuse the adapter with the base it was made for"
        if comparison.verdict is BaseVerdict.SAME_SHAPES:
            hint += ", or pass `--allow-base-mismatch`"
        lines = [f"`{label}` {claim}, but {this}", *(f"  {difference}" for difference in comparison.differences)]
        raise BaseMismatch("\n".join(lines), hint=hint)

    def _is_overridden(self, adapter: FoundAdapter) -> bool:
        """Whether the caller allows the mismatch, or its install for this base did."""
        if self.allow_base_mismatch or adapter.build is None:
            return self.allow_base_mismatch
        return self.library.mismatch_allowed(adapter.build, self.record.fingerprint)

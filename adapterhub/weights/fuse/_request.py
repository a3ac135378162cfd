"""From what a caller names to adapters and a base that go together, their files checked as they are now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from adapterhub.core.digests import Progress
from adapterhub.core.errors import BaseMismatch, BaseNotFound, MergeRefused, RefusedAdapter, UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import AdapterLike, Finder, Found, with_weights
from adapterhub.formats.base.fingerprint import BaseVerdict, compare
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.library import Library
from adapterhub.trust.verify import Subject
from adapterhub.weights.fuse._model import Model
from adapterhub.weights.fuse._source import own_reasons

_HINT_NO_BASE = "`adapt base add PATH --as NAME` registers a local copy; name it with `--base NAME`"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FuseRequest:
    """The base's files, and the adapters with what their files hold."""

    model: Model
    adapters: tuple[Found, ...]
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
    """The adapters and the base, compared; see `prepare` for the arguments and what is raised."""
    spec = BaseSpec.parse(base) if isinstance(base, str) else base
    if spec is not None and spec.kind == "path":
        library.bases.find(spec, progress=reading)  # read it here, where the progress is seen
    pairs = with_weights(adapter, weights)
    warnings = [f"`{shown(str(what))}` has weight 0 and was left out" for what, weight in pairs if weight == 0]
    pairs = [pair for pair in pairs if pair[1] != 0]
    if not pairs:
        raise UsageProblem("every adapter has weight 0: there is nothing to fuse")
    finder = Finder(library, spec, lambda: _only_base(library), allow_base_mismatch=allow_base_mismatch)
    adapters = tuple(_find(finder, what, weight) for what, weight in pairs)
    model = Model.of(_current_record(library, _base_of(library, adapters), reading))
    check = _BaseCheck(library, model.record, allow_base_mismatch=allow_base_mismatch)
    warnings += [f"`{shown(one.label, 200)}` {warning}" for one in adapters for warning in one.warnings]
    warnings += [warning for one in adapters for warning in check.run(one)]
    subjects = tuple(_subject(one, model) for one in adapters)
    _check_each(adapters, subjects)
    return FuseRequest(model=model, adapters=adapters, subjects=subjects, warnings=tuple(warnings))


def _find(finder: Finder, what: AdapterLike, weight: float) -> Found:
    try:
        return finder.find(what, weight)
    except RefusedAdapter as error:
        raise RefusedAdapter(f"`{shown(str(what), 200)}` was not fused", error.findings, hint=error.hint) from None


def _check_each(adapters: Sequence[Found], subjects: Sequence[Subject]) -> None:
    is_alone = len(adapters) == 1 and adapters[0].weight == 1
    reasons = [
        f"`{shown(one.label)}` {reason}"
        for one, subject in zip(adapters, subjects, strict=True)
        for reason in own_reasons(subject, is_alone=is_alone)
    ]
    if reasons:
        raise MergeRefused("these adapters cannot be fused", reasons)


def _subject(adapter: Found, model: Model) -> Subject:
    """The adapter's files, as they were verified when it was found, beside the base's facts."""
    assert adapter.subject is not None  # it was checked
    return replace(
        adapter.subject, base_tensors=model.facts, base_fingerprint=model.record.fingerprint, base_named=True
    )


# ---------------------------------------------------------------- the base
def _base_of(library: Library, adapters: Sequence[Found]) -> BaseRecord:
    """The base that is named, else the one that the adapters declare, else the only one there is."""
    named = {f.wanted.text: f.wanted.record for f in adapters if f.wanted is not None}
    absent = [text for text, record in named.items() if record is None]
    if absent:
        raise BaseNotFound(f"the weights of base `{shown(absent[0])}` are not on this machine", hint=_HINT_NO_BASE)
    records = [record for record in named.values() if record is not None]
    if len({record.fingerprint.weights for record in records}) > 1:
        listed = ", ".join(f"`{shown(text)}`" for text in named)
        raise UsageProblem(f"the adapters are asked for on several bases: {listed}", hint="fuse one base at a time")
    if records:
        return records[0]
    declared = [f for f in adapters if f.base.fingerprint is not None]
    for one in declared:
        record = library.bases.by_fingerprint(one.base.fingerprint) if one.base.fingerprint else None
        if record is not None:
            return record
    if declared:
        raise BaseNotFound(
            f"the base of `{shown(declared[0].label, 200)}` ({declared[0].base.label}) is not registered here",
            hint=_HINT_NO_BASE,
        )
    only = _only_base(library)
    if only is None:
        label = shown(adapters[0].label, 200)
        raise BaseNotFound(f"`{label}` does not say which base it is for", hint="name one with `--base BASE|PATH`")
    return only


def _only_base(library: Library) -> BaseRecord | None:
    records = library.bases.list()
    return records[0] if len(records) == 1 else None


def _current_record(library: Library, record: BaseRecord, reading: Progress | None) -> BaseRecord:
    """The base's files as they are now, under the alias that they are registered by.

    Raises:
        BaseNotFound: there are none.
        BaseMismatch: they are no longer those that were registered.
    """
    if record.path is None or not record.path.is_dir():
        raise BaseNotFound(
            f"the weights of base `{shown(record.label)}` are not on this machine",
            hint=f"`adapt base add PATH --as {record.alias or 'NAME'}` says where they are",
        )
    now = library.bases.look(record.path, progress=reading)
    if now.fingerprint.weights != record.fingerprint.weights:
        there, here = record.fingerprint.weights[7:19], now.fingerprint.weights[7:19]
        raise BaseMismatch(
            f"`{record.path}` holds other weights ({here}) than were registered as `{record.label}` ({there})",
            hint=f"`adapt base add {record.path} --as NAME` registers what is there now",
        )
    # of a record, the tensors as they lie in the files; of the folder, nothing but those
    return BaseRecord(
        alias=record.alias,
        path=now.path,
        hub=record.hub,
        fingerprint=now.fingerprint,
        hints=now.hints,
        tensors=now.tensors,
    )


class _BaseCheck:
    """Compares the base with the one that an adapter was made for."""

    def __init__(self, library: Library, record: BaseRecord, *, allow_base_mismatch: bool) -> None:
        self.library = library
        self.record = record
        self.allow_base_mismatch = allow_base_mismatch

    def run(self, adapter: Found) -> Iterator[str]:
        """Warnings.

        Raises:
            BaseMismatch: it was made for another base.
        """
        label, declared = shown(adapter.label, 200), adapter.base
        if declared.fingerprint is None:
            named = f"; its config names `{shown(declared.hints.hub_id)}`" if declared.hints.hub_id else ""
            yield f"`{label}` declares no base fingerprint{named}"
            return
        here = self.record.fingerprint
        comparison = compare(declared.fingerprint, here, hints=(declared.hints, self.record.hints))
        made_for = self.library.base_label(declared)
        claim = f"was made for base `{shown(made_for)}` ({declared.fingerprint.weights[7:19]})"
        if comparison.verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION:
            yield f"`{label}` {claim} in another precision: {'; '.join(comparison.differences)}"
        if comparison.verdict.allows_attach:
            return
        this = f"this is `{shown(self.record.label)}` ({here.weights[7:19]})"
        if comparison.verdict is BaseVerdict.SAME_SHAPES and self._is_overridden(adapter):
            yield f"`{label}` {claim}, {this}: fused all the same, as asked"
            return
        hint = "fuse it with the base it was made for"
        if comparison.verdict is BaseVerdict.SAME_SHAPES:
            hint += "; with `--allow-base-mismatch` it is fused all the same"
        lines = [f"`{label}` {claim}, {this}", *(f"  {difference}" for difference in comparison.differences)]
        raise BaseMismatch("\n".join(lines), hint=hint)

    def _is_overridden(self, adapter: Found) -> bool:
        """Whether the caller allows the mismatch now, or somebody did when the build was installed for this base."""
        if self.allow_base_mismatch or adapter.build is None:
            return self.allow_base_mismatch
        return self.library.mismatch_allowed(adapter.build, self.record.fingerprint)

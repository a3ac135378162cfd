"""The base that a request names, and the comparison of a build's base with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adapterhub.core.errors import BaseNotFound, SpecError
from adapterhub.core.specs import AdapterSpec, BaseSpec, hint_for_unknown_base
from adapterhub.formats.base.fingerprint import BaseComparison, BaseFingerprint, BaseVerdict
from adapterhub.formats.manifest import BaseRef
from adapterhub.library.bases.records import BaseRecord, Bases

if TYPE_CHECKING:
    from adapterhub.trust.verify import Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedBase:
    """`record` of `bases` when the base is known here by content; otherwise only a Hub id or the start of a digest."""

    text: str
    record: BaseRecord | None = None
    hub_id: str | None = None
    digest_prefix: str | None = None
    bases: Bases | None = field(default=None, repr=False, compare=False)

    def _nearest(self, record: BaseRecord, declared: BaseFingerprint | None) -> BaseComparison:
        """Return the comparison with the base, or with that component of a pipeline which fits."""
        nearest: BaseComparison | None = None
        for each in (record, *record.parts()):
            assert self.bases is not None  # a record comes with them
            found = self.bases.judged(declared, each.fingerprint)
            if found.verdict.allows_attach:
                return found
            if nearest is None or (found.verdict is BaseVerdict.SAME_SHAPES is not nearest.verdict):
                nearest = found
        assert nearest is not None  # the base itself was compared
        return nearest

    def judge(self, base: BaseRef) -> BaseComparison:
        """Compare the base that a build declares with this one."""
        if self.record is not None:
            verdict = self._nearest(self.record, base.fingerprint)
            if verdict.verdict is BaseVerdict.UNKNOWN and base.hints.hub_id:
                named = f"it declares no fingerprint; its config names `{base.hints.hub_id}`"
                return BaseComparison(verdict=BaseVerdict.UNKNOWN, differences=(named,))
            return verdict
        if self.digest_prefix is not None:
            if base.fingerprint is None:
                return BaseComparison(verdict=BaseVerdict.UNKNOWN, differences=("it declares no fingerprint",))
            if base.fingerprint.weights.startswith(self.digest_prefix):
                return BaseComparison(verdict=BaseVerdict.SAME_WEIGHTS, differences=())
            return BaseComparison(
                verdict=BaseVerdict.DIFFERENT, differences=(f"base weights {base.fingerprint.weights[:19]}",)
            )
        if base.hints.hub_id == self.hub_id:
            only_named = f"the base is known by name only; `adapt base add {self.hub_id}` compares by content"
            return BaseComparison(verdict=BaseVerdict.UNKNOWN, differences=(only_named,))
        return BaseComparison(verdict=BaseVerdict.DIFFERENT, differences=(f"its config names `{base.label}`",))


def requested_base(spec: BaseSpec | None, bases: Bases, of: AdapterSpec | None = None) -> RequestedBase | None:
    """Return the base that `spec` names, looked up in `bases`; None for no base. `of` is the adapter that names it.

    Raises:
        BaseNotFound: no alias or folder by that name.
        SpecError: as `BaseNotFound`, for a name in `of` that reads as something else, which the hint names.
    """
    if spec is None:
        return None
    try:
        return RequestedBase(text=str(spec), record=bases.find(spec), bases=bases)
    except BaseNotFound:
        if spec.kind == "hub":
            return RequestedBase(text=str(spec), hub_id=spec.text)
        if spec.kind == "digest":
            return RequestedBase(text=str(spec), digest_prefix=spec.text)
        if of is not None and (hint := hint_for_unknown_base(of)):
            raise SpecError(f"@{spec.text}", "no base has that name", hint=hint) from None
        raise


def part_for(subject: Subject, record: BaseRecord) -> BaseRecord:
    """Return the component of a pipeline that the adapter is for; the record itself for any other base."""
    manifest = subject.manifest
    declared, stated = (manifest.base.fingerprint, manifest.annotations) if manifest else (None, {})
    return record.narrowed((pair.module for pair in subject.keys.pairs), stated, declared=declared)


def beside(subject: Subject, record: BaseRecord, bases: Bases) -> Subject:
    """Return the adapter with the facts of its base, of which a pipeline gives those of one component."""
    part = part_for(subject, record)
    known = part.known_weights
    tensors = None if known is None else {facts.name: facts for facts in known}
    return subject.beside(tensors, part.fingerprint, part.hints.model_type, bases.judged)

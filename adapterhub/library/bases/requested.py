"""The base that a request names, and the comparison of a build's base with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapterhub.core.errors import BaseNotFound, SpecError
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseVerdict, Comparison, compare
from adapterhub.formats.manifest import BaseRef
from adapterhub.library.bases.families import Families
from adapterhub.library.bases.records import BaseRecord, Bases


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedBase:
    """`record` when the base is known here by content; otherwise only a Hub id or the start of a digest."""

    text: str
    record: BaseRecord | None = None
    hub_id: str | None = None
    digest_prefix: str | None = None
    families: Families | None = field(default=None, repr=False, compare=False)

    def _nearest(self, record: BaseRecord, base: BaseRef) -> Comparison:
        """The comparison with the base, or with that component of a pipeline which fits."""
        compared = [self._compared(base.fingerprint, each.fingerprint) for each in (record, *record.parts())]
        return next((c for c in compared if c.verdict.allows_attach), min(compared, key=_closeness))

    def _compared(self, declared: BaseFingerprint | None, here: BaseFingerprint) -> Comparison:
        found = compare(declared, here)
        return self.families.judged(found, declared, here) if self.families else found

    def judge(self, base: BaseRef) -> Comparison:
        """Compare the base that a build declares with this one."""
        if self.record is not None:
            verdict = self._nearest(self.record, base)
            if verdict.verdict is BaseVerdict.UNKNOWN and base.hints.hub_id:
                named = f"it declares no fingerprint; its config names `{base.hints.hub_id}`"
                return Comparison(verdict=BaseVerdict.UNKNOWN, differences=(named,))
            return verdict
        if self.digest_prefix is not None:
            if base.fingerprint is None:
                return Comparison(verdict=BaseVerdict.UNKNOWN, differences=("it declares no fingerprint",))
            if base.fingerprint.weights.startswith(self.digest_prefix):
                return Comparison(verdict=BaseVerdict.SAME_WEIGHTS, differences=())
            return Comparison(
                verdict=BaseVerdict.DIFFERENT, differences=(f"base weights {base.fingerprint.weights[:19]}",)
            )
        if base.hints.hub_id == self.hub_id:
            only_named = f"the base is known by name only; `adapt base add {self.hub_id}` compares by content"
            return Comparison(verdict=BaseVerdict.UNKNOWN, differences=(only_named,))
        return Comparison(verdict=BaseVerdict.DIFFERENT, differences=(f"its config names `{base.label}`",))


def _closeness(comparison: Comparison) -> bool:
    return comparison.verdict is not BaseVerdict.SAME_SHAPES


def requested_base(spec: BaseSpec | None, bases: Bases, hint: str = "") -> RequestedBase | None:
    """The base that `spec` names, looked up in `bases`; None for no base. `hint` is for a name that nothing has.

    Raises:
        BaseNotFound: no alias or folder by that name.
        SpecError: as `BaseNotFound`, for a name that reads as something else; `hint` says what.
    """
    if spec is None:
        return None
    try:
        return RequestedBase(text=str(spec), record=bases.find(spec), families=Families(bases))
    except BaseNotFound:
        if spec.kind == "hub":
            return RequestedBase(text=str(spec), hub_id=spec.text)
        if spec.kind == "digest":
            return RequestedBase(text=str(spec), digest_prefix=spec.text)
        if hint:
            raise SpecError(f"@{spec.text}", "no base has that name", hint=hint) from None
        raise

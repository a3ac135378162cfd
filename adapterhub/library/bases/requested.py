"""The base that a request names, and the comparison of a build's base with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from adapterhub.core.arguments import parsed
from adapterhub.core.digests import Digest, canonical_json, parse_digest, strict_json
from adapterhub.core.disk.files import read_plain
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import BaseMismatch, BaseNotFound, Malformed, NotFound, SpecError, UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.base.fingerprint import BaseComparison, BaseFingerprint, BaseVerdict, compare
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import BaseRef
from adapterhub.library.bases.records import BaseRecord, Bases

if TYPE_CHECKING:
    from adapterhub.trust.verify import Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedBase:
    """`record` when the base is known here by content; otherwise only a Hub id or the start of a digest."""

    text: str
    record: BaseRecord | None = None
    hub_id: str | None = None
    digest_prefix: str | None = None
    families: Families | None = field(default=None, repr=False, compare=False)

    def _nearest(self, record: BaseRecord, base: BaseRef) -> BaseComparison:
        """The comparison with the base, or with that component of a pipeline which fits."""
        compared = [self._compared(base.fingerprint, each.fingerprint) for each in (record, *record.parts())]
        return next((c for c in compared if c.verdict.allows_attach), min(compared, key=_closeness))

    def _compared(self, declared: BaseFingerprint | None, here: BaseFingerprint) -> BaseComparison:
        found = compare(declared, here)
        return self.families.judged(found, declared, here) if self.families else found

    def judge(self, base: BaseRef) -> BaseComparison:
        """Compare the base that a build declares with this one."""
        if self.record is not None:
            verdict = self._nearest(self.record, base)
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


def _closeness(comparison: BaseComparison) -> bool:
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


_SCHEMA: Final = "adapterhub/family/1"
_LIMIT_BYTES: Final = 1 << 20
_FEWEST: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Member(Documented, keys="alias weights"):
    """One base of a family."""

    alias: Annotated[str, "when the family was declared"]
    weights: Annotated[Digest, "which identify it"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(Documented, keys="name members"):
    """Bases of the same shapes whose adapters may run on one another."""

    name: str
    members: tuple[Member, ...]

    def has(self, weights: Digest) -> bool:
        """Whether a base with these weights is a member."""
        return any(member.weights == weights for member in self.members)


@parsed
class Families:
    """The families of the library whose bases are `bases`."""

    def __init__(self, bases: Bases) -> None:
        self._bases = bases
        self._folder = bases.folder.parent / "families"
        self._root = Root(bases.folder.parent)

    def all(self) -> tuple[Family, ...]:
        """Every family, by name.

        Raises:
            Malformed: a file is damaged.
        """
        return tuple(_read(path) for path in sorted(self._folder.glob("[!.]*.json")))

    def declare(self, name: str, records: Sequence[BaseRecord]) -> Family:
        """Record a family, in place of an earlier one of that name.

        Raises:
            UsageProblem: the name is no word, fewer than two bases are given, or one is not registered.
            BaseMismatch: two of them do not have the same shapes.
        """
        if BaseSpec.parse(name).kind != "alias":
            raise UsageProblem(f"`{shown(name)}` is no name for a family", hint="expected one word such as `sdxl`")
        lone = next((record for record in records if not record.alias or record.component), None)
        if lone is not None:
            hint = "`adapt base add PATH --as NAME` registers one" if not lone.alias else "name the pipeline"
            raise UsageProblem(f"`{shown(lone.label)}` is no registered base, expected members of a family", hint=hint)
        if len({record.fingerprint.weights for record in records}) < _FEWEST:
            raise UsageProblem("a family has at least two bases", hint=f"adapt base family {shown(name)} sdxl pony")
        for record in records[1:]:
            found = compare(records[0].fingerprint, record.fingerprint)
            if found.verdict is not BaseVerdict.SAME_SHAPES and not found.verdict.is_same_model:
                raise BaseMismatch(
                    f"`{records[0].alias}` and `{record.alias}` are no family, their verdict is {found.verdict.name}\n"
                    + "\n".join(f"  {line}" for line in found.differences),
                    hint="the members of a family have the same tensors in the same shapes",
                )
        members = tuple(Member(alias=record.alias, weights=record.fingerprint.weights) for record in records)
        family = Family(name=name, members=members)
        self._root.write(self._folder / f"{name}.json", canonical_json({"schema": _SCHEMA} | family.to_json()))
        return family

    def remove(self, name: str) -> Family:
        """Forget a family; its bases stay.

        Raises:
            NotFound: there is none of that name.
        """
        family = next((family for family in self.all() if family.name == name), None)
        if family is None:
            raise NotFound(f"no family `{shown(name)}`", hint="`adapt base family` lists all")
        try:
            (self._folder / f"{name}.json").unlink()
        except OSError as error:
            raise self._root.explain(error) from error
        return family

    def judged(
        self, comparison: BaseComparison, one: BaseFingerprint | None, other: BaseFingerprint | None
    ) -> BaseComparison:
        """The comparison of two bases; SAME_FAMILY in place of SAME_SHAPES where both belong to one family."""
        if comparison.verdict is not BaseVerdict.SAME_SHAPES or one is None or other is None:
            return comparison
        families = self.all()
        a, b = (self._bases.by_fingerprint(each) if families else None for each in (one, other))
        if a is None or b is None or a.component != b.component:
            return comparison
        keys = [self._bases.get(record.alias.partition("/")[0]).fingerprint.weights for record in (a, b)]
        family = next((family for family in families if all(map(family.has, keys))), None)
        if family is None:
            return comparison
        said = f"`{a.alias}` and `{b.alias}` are of the family `{family.name}`, which you declared"
        return BaseComparison(verdict=BaseVerdict.SAME_FAMILY, differences=(said, *comparison.differences))


def _read(path: Path) -> Family:
    try:
        value = strict_json(read_plain(path, _LIMIT_BYTES), limit_bytes=_LIMIT_BYTES)
        if not isinstance(value, dict) or value.get("schema") != _SCHEMA or value.get("name") != path.stem:
            raise ValueError(f"expected {_SCHEMA} of the name `{path.stem}`")  # noqa: TRY301 - gathered as one
        members = value.get("members")
        if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
            raise ValueError("members: expected a list of objects")  # noqa: TRY301 - as above
        read = tuple(Member(alias=str(m.get("alias")), weights=parse_digest(m.get("weights"))) for m in members)
    except (ValueError, OSError) as error:
        hint = "delete the file and declare the family again with `adapt base family`"
        raise Malformed(f"{shown(str(path), 200)}: not a usable family: {error}", hint=hint) from None
    return Family(name=path.stem, members=read)


def part_for(subject: Subject, record: BaseRecord) -> BaseRecord:
    """The component of a pipeline that the adapter is for; the record itself for any other base."""
    manifest = subject.manifest
    declared, stated = (manifest.base.fingerprint, manifest.annotations) if manifest else (None, {})
    return record.narrowed((pair.module for pair in subject.keys.pairs), stated, declared=declared)


def beside(subject: Subject, record: BaseRecord) -> Subject:
    """The adapter with the facts of its base, of which a pipeline gives those of one component."""
    part = part_for(subject, record)
    tensors = {facts.name: facts for facts in part.tensors}
    return replace(subject, base_tensors=tensors, base_fingerprint=part.fingerprint, base_named=True)

"""Families of bases that the user declared: the adapters of one member may run on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Protocol

from adapterhub.core.digests import Digest, canonical_json, parse_digest, strict_json
from adapterhub.core.disk.files import read_plain
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import BaseMismatch, Malformed, NotFound, UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseComparison, BaseFingerprint, BaseVerdict
from adapterhub.formats.documented import Documented
from adapterhub.library.bases.record import BaseRecord


class Known(Protocol):
    """The registered bases, as families need them."""

    folder: Path

    def by_fingerprint(self, fingerprint: BaseFingerprint) -> BaseRecord | None:
        """Return the registered base that adapters made for `fingerprint` run on."""

    def get(self, alias: str) -> BaseRecord:
        """Return the base registered as `alias`."""


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
        """Return whether a base with these weights is a member."""
        return any(member.weights == weights for member in self.members)


class Families:
    """The families of the library whose bases are `bases`."""

    def __init__(self, bases: Known) -> None:
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
            UsageProblem: the name is not a word, fewer than two bases are given, or one is not registered.
            BaseMismatch: two of them do not have the same shapes.
        """
        if BaseSpec.parse(name).kind != "alias":
            raise UsageProblem(f"`{shown(name)}` is not a name for a family", hint="expected one word such as `sdxl`")
        lone = next((record for record in records if not record.alias or record.component), None)
        if lone is not None:
            hint = "`adapt base add PATH --as NAME` registers one" if not lone.alias else "name the pipeline"
            raise UsageProblem(
                f"`{shown(lone.label)}` is not a registered base, expected members of a family", hint=hint
            )
        if len({record.fingerprint.weights for record in records}) < _FEWEST:
            raise UsageProblem("a family has at least two bases", hint=f"adapt base family {shown(name)} sdxl pony")
        for record in records[1:]:
            found = compare(records[0].fingerprint, record.fingerprint)
            if found.verdict is not BaseVerdict.SAME_SHAPES and not found.verdict.is_same_model:
                raise BaseMismatch(
                    f"`{records[0].alias}` and `{record.alias}` are not a family: their verdict is "
                    f"{found.verdict.name}\n" + "\n".join(f"  {line}" for line in found.differences),
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
        """Return the comparison of two bases; SAME_FAMILY in place of SAME_SHAPES where both belong to one family."""
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

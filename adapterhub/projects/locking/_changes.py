"""The differences between two locks, as readable lines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal

from adapterhub.core.errors import shown
from adapterhub.core.specs import AdapterName, version_of
from adapterhub.distribution.remote_kinds import kind_named
from adapterhub.formats.documented import Documented
from adapterhub.projects.lock.staleness import policy_changes
from adapterhub.projects.values import Lock, Locked, LockedAdapter, LockedBase, LockedMerge, LockedSource

_SHORT: Final = 19
_SIGNS: Final = {"added": "+", "removed": "-", "changed": "~"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Documented, keys="kind key text"):
    """A difference from the previous lock. `key` is None for the base and the policy; `text` describes it."""

    kind: Annotated[Literal["added", "removed", "changed"], "`added`, `changed` or `removed`"]
    key: Annotated[AdapterName | None, "the name in the project; null for the base and the policy"]
    text: Annotated[str, "as text"]
    before: Locked | None = None
    after: Locked | None = None

    @property
    def line(self) -> str:
        """`~ legal-qa  1.2.0 -> 1.3.0`."""
        return f"{_SIGNS[self.kind]} {self.key}  {self.text}" if self.key else f"{_SIGNS[self.kind]} {self.text}"

    @property
    def short(self) -> str:
        """`~ legal-qa  1.2.0 -> 1.3.0`: the versions alone, without digests and places."""
        before, after = self.before, self.after
        text = self.text
        if before is None or after is None:
            one = before or after
            text = one.version if one else text
        elif before.digest != after.digest and isinstance(after, LockedMerge):
            text = "merged again"
        elif before.version != after.version:
            text = f"{before.version} -> {after.version}"
        elif before.digest != after.digest:
            text = f"{after.version}, another build"
        return replace(self, text=text).line


def changes_between(before: Lock | None, after: Lock) -> tuple[Change, ...]:
    """Every difference, sorted by name; without `before`, all of `after` is new."""
    found: list[Change] = []
    old = before.entries if before else {}
    now = after.entries
    if (text := _base_text(before.base if before else None, after.base)) is not None:
        found.append(Change(kind="changed" if before and before.base else "added", key=None, text=text))
    if before is not None:
        found += [Change(kind="changed", key=None, text=text) for text in policy_changes(before.policy, after.policy)]
    for key in sorted(old.keys() | now.keys()):
        one, other = old.get(key), now.get(key)
        if one is None and other is not None:
            found.append(Change(kind="added", key=key, text=_about(other), after=other))
        elif other is None and one is not None:
            found.append(Change(kind="removed", key=key, text=_about(one), before=one))
        elif one is not None and other is not None and one != other:
            found.append(Change(kind="changed", key=key, text=_difference(one, other), before=one, after=other))
    return tuple(found)


def _about(entry: Locked) -> str:
    name = entry.name if isinstance(entry, LockedAdapter) else "merge"
    rank = f" rank {entry.rank}" if entry.rank else ""
    return f"{name} {entry.version}{rank}  {entry.digest[:_SHORT]}  {place_text(entry.source)}"


def place_text(source: LockedSource) -> str:
    """Where a locked build comes from, in words."""
    if source.is_library:
        return "from the library"
    return f"from {shown(kind_named(source.kind).describe(source.address, source.pin), 200)}"


def _difference(one: Locked, other: Locked) -> str:
    """The fields that differ, the most important first."""
    told = []
    if isinstance(one, LockedAdapter) and isinstance(other, LockedAdapter):
        if one.name != other.name:
            told.append(f"{one.name} -> {other.name}")
        if version_of(one.version) == version_of(other.version) and one.digest != other.digest:
            told.append(f"{one.version}, another build of that version")
    elif type(one) is not type(other):
        told.append("a merge now" if isinstance(other, LockedMerge) else "no longer a merge")
    elif isinstance(one, LockedMerge) and isinstance(other, LockedMerge) and one.step != other.step:
        told.append("different recipe or inputs")
    if one.version != other.version:
        told.append(f"{one.version} -> {other.version}")
    if one.digest != other.digest:
        told.append(f"{one.digest[:_SHORT]} -> {other.digest[:_SHORT]}")
    if one.rank != other.rank:
        told.append(f"rank {one.rank or 'none'} -> {other.rank or 'none'}")
    if one.source != other.source:
        told.append(f"{place_text(one.source)} -> {place_text(other.source)}")
    if isinstance(one, LockedAdapter) and isinstance(other, LockedAdapter) and one.wanted != other.wanted:
        told.append(f"asked for as `{shown(other.wanted)}`")
    if one.group != other.group:
        told.append(f"group {one.group or 'none'} -> {other.group or 'none'}")
    return "  ".join(told) or "recorded differently"


def _base_text(one: LockedBase | None, other: LockedBase | None) -> str | None:
    if one == other:
        return None
    if other is None:
        return "the project no longer has a base"
    if one is None:
        return f"base {other.spec}  {(other.weights or 'known by name only')[:_SHORT]}"
    names = f"{one.spec} -> {other.spec}" if one.spec != other.spec else one.spec
    return f"base {names}  {(one.weights or 'unknown')[:_SHORT]} -> {(other.weights or 'unknown')[:_SHORT]}"

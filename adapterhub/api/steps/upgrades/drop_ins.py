"""`upgrade --test` in a project: what takes the place of a locked build passes the contract of that build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from adapterhub.api.steps.contracts.subjects import Models, subject_of_build
from adapterhub.api.steps.contracts.syncing import base_of_lock
from adapterhub.api.steps.contracts.testing import Question, verdict_on
from adapterhub.core.errors import AdapterHubError, BehaviourChanged, shown
from adapterhub.formats.contract.reading import contract_in
from adapterhub.formats.contract.results import Tested
from adapterhub.projects.builds import locked_build
from adapterhub.projects.values import LockedAdapter

if TYPE_CHECKING:
    from adapterhub.core.arguments import Testing
    from adapterhub.core.specs import AdapterName
    from adapterhub.library.library import Library
    from adapterhub.projects.reporting import Bars, Reporter
    from adapterhub.projects.values import Lock, Locked

WORDS: Final = {"PASS": "drop-in", "CHANGED": "behaviour changed", "UNKNOWN": "no verdict is possible"}
"""What a verdict by the older contract means for an upgrade."""

Bring = Callable[["Lock", Sequence["Locked"]], object]
"""Brings builds of a lock into the library."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DropIn:
    """How a newer build does by the contract of the locked one; without `is_kept` it does not take its place."""

    before: LockedAdapter
    after: LockedAdapter
    tested: Tested
    is_kept: bool

    @property
    def line(self) -> str:
        """`a  1.0.1 -> 1.1.0  drop-in`."""
        why = self.tested.broken or ([self.tested.detail] if self.tested.detail else [])
        told = ": ".join([WORDS.get(self.tested.verdict, "no contract to be held to"), *why[:1]])
        return f"{self.after.key}  {self.before.version} -> {self.after.version}  {shown(told, 400)}"

    def to_json(self) -> dict[str, Any]:
        """The JSON value."""
        value = {"key": self.after.key, "from": self.before.version, "to": self.after.version, "kept": self.is_kept}
        return value | {"digest": self.after.digest, "tests": [self.tested.to_json()]}


@dataclass(slots=True)
class UpgradeTest:
    """Holds newer builds to the contracts of those that they replace; `results` has a verdict for each."""

    library: Library
    testing: Testing
    bars: Bars
    out: Reporter
    results: list[DropIn] = field(default_factory=list)

    def __call__(self, before: Lock, after: Lock, bring: Bring) -> dict[AdapterName, LockedAdapter]:
        """Of each build that would be replaced, the one to lock: the newer one if it may, else the older one."""
        found: dict[AdapterName, LockedAdapter] = {}
        models = Models(self.library.bases)
        for new in after.adapters:
            old = before.entries.get(new.key)
            if not isinstance(old, LockedAdapter) or old.digest == new.digest:
                continue
            tested = self._verdict(before, old, after, new, bring, models)
            one = DropIn(before=old, after=new, tested=tested, is_kept=tested.passed or self.testing == "warn")
            self.results.append(one)
            found[new.key] = new if one.is_kept else old
            if not tested.passed:
                self.out.warn(one.line if one.is_kept else f"not upgraded: {one.line}")
        return found

    def _verdict(
        self, before: Lock, old: LockedAdapter, after: Lock, new: LockedAdapter, bring: Bring, models: Models
    ) -> Tested:
        empty = Tested(name=new.name, version=new.version, digest=new.digest, verdict="UNKNOWN", reason="refused")
        try:
            bring(before, [old])
            bring(after, [new])
            was, now = locked_build(self.library, old), locked_build(self.library, new)
            if was is None or now is None:
                return Tested(name=new.name, version=new.version, verdict="NONE")
            if (contract := contract_in(was.folder)) is None:
                return Tested(name=new.name, version=new.version, digest=new.digest, verdict="NONE")
            question = Question(on=base_of_lock(self.library, after), contract=contract, is_foreign=True)
            return verdict_on(self.library, subject_of_build(now), question, bars=self.bars, models=models)
        except AdapterHubError as error:
            return replace(empty, detail=error.message.splitlines()[0])

    def ensure_taken(self, before: Lock, after: Lock) -> None:
        """Refuse a lock in which a build was replaced by another than those that may take its place.

        Raises:
            BehaviourChanged: names each; the project file may not allow the locked release any more.
        """
        allowed = {(one.after.key, one.after.digest) for one in self.results if one.is_kept}
        wrong = [
            entry.key
            for entry in after.adapters
            if (old := before.entries.get(entry.key)) is not None
            and old.digest != entry.digest
            and (entry.key, entry.digest) not in allowed
        ]
        if wrong:
            names = ", ".join(f"`{key}`" for key in wrong)
            raise BehaviourChanged(
                f"{names} cannot stay as locked, and what would replace it did not pass. Nothing was changed",
                hint="`--accept-changes` takes it; else require the locked release in `adapters.toml`",
            )

"""What a project asks of the contracts of its builds: before a sync changes folders, and before an upgrade."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from adapterhub.api.steps.contracts.testing import Question
from adapterhub.core.errors import AdapterHubError, BehaviourChanged
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.contract.results import Tested
from adapterhub.projects.builds import locked_build
from adapterhub.projects.locking import DropIn
from adapterhub.projects.values import LockedAdapter

if TYPE_CHECKING:
    from adapterhub.api.steps.contracts.gating import ContractGate
    from adapterhub.core.specs import AdapterName
    from adapterhub.library.library import Library
    from adapterhub.projects.values import Lock, Locked

Bring = Callable[["Lock", Sequence["Locked"]], object]
"""Brings builds of a lock into the library."""


def admit_locked(gate: ContractGate, lock: Lock, entries: Sequence[Locked]) -> None:
    """Test the builds of a lock on its base; one without a contract is named, and comes in.

    The policy `tests` of a project is what demands a contract.

    Raises:
        BehaviourChanged, CouldNotTell: one does not pass; names all of these.
    """
    builds = [build for entry in entries if (build := locked_build(gate.library, entry)) is not None]
    question = replace(gate.question, on=base_of_lock(gate.library, lock))
    gate.admit_all(builds, question, undone="No folder was changed")


def base_of_lock(library: Library, lock: Lock) -> BaseSpec | None:
    """The base of a project by its name here; None where the lock names none."""
    if lock.base is None:
        return None
    here = (record for record in library.bases.list() if record.fingerprint.weights == lock.base.weights)
    return BaseSpec.parse(next((record.alias for record in here if record.alias), lock.base.spec))


@dataclass(slots=True)
class DropIns:
    """Holds newer builds to the contracts of those that they replace; `results` has a verdict for each."""

    gate: ContractGate
    bring: Bring
    results: list[DropIn] = field(default_factory=list)

    def choose(self, before: Lock, after: Lock) -> dict[AdapterName, LockedAdapter]:
        """Of each build that would be replaced, the one to lock: the newer one if it may, else the older one."""
        found: dict[AdapterName, LockedAdapter] = {}
        for new in after.adapters:
            old = before.entries.get(new.key)
            if not isinstance(old, LockedAdapter) or old.digest == new.digest:
                continue
            tested = self._verdict(before, old, after, new)
            one = DropIn(before=old, after=new, tested=tested, kept=tested.passed or self.gate.testing == "warn")
            self.results.append(one)
            found[new.key] = new if one.kept else old
            if not tested.passed:
                self.gate.out.warn(one.line if one.kept else f"not upgraded: {one.line}")
        return found

    def _verdict(self, before: Lock, old: LockedAdapter, after: Lock, new: LockedAdapter) -> Tested:
        library = self.gate.library
        bare = Tested(name=new.name, version=new.version, digest=new.digest, verdict="NONE")
        try:
            self.bring(before, [old])
            self.bring(after, [new])
            was, now = locked_build(library, old), locked_build(library, new)
            if was is None or now is None or (contract := contract_in(was.folder)) is None:
                return bare
            return self.gate.ask(now, Question(on=base_of_lock(library, after), contract=contract, is_foreign=True))
        except AdapterHubError as error:
            return replace(bare, verdict="UNKNOWN", reason="refused", detail=error.message.splitlines()[0])

    def ensure_taken(self, before: Lock, after: Lock) -> None:
        """Refuse a lock in which a build was replaced by another than those that may take its place.

        Raises:
            BehaviourChanged: names each; the project file may not allow the locked release any more.
        """
        allowed = {(one.after.key, one.after.digest) for one in self.results if one.kept}
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
                hint="`--test=warn` takes it; otherwise require the locked release in `adapters.toml`",
            )

"""Move an adapter to a related base: look at both, try the ways, hold each to the contract, and add the best one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from adapterhub.api.steps.contracts.recording import LeftOutInput, where_recorded
from adapterhub.api.steps.contracts.testing import (
    ContractSubject,
    Models,
    Tester,
    TestQuestion,
    base_for,
)
from adapterhub.core.errors import (
    AdapterHubError,
    BaseNotFound,
    BehaviourChanged,
    CouldNotTell,
    Incompatible,
    UsageProblem,
    problem_list,
    shown,
)
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.contract.contract import ENCODERS, FEWEST_GOLDENS, IMAGE, Contract
from adapterhub.formats.contract.reader import Plan, Wanted
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import CONTRACT_FILE, Parent
from adapterhub.library.intake.clashes import Bump
from adapterhub.library.intake.description import Description
from adapterhub.library.upkeep.damage import ensure_manifest_unchanged
from adapterhub.weights.port import BaseDistance, OpenedPort, opened
from adapterhub.weights.port.catalogue import COPY, names
from adapterhub.weights.port.prediction import Prediction, predict

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.installed import Added
    from adapterhub.library.library import Library
    from adapterhub.projects.session import Session

RECIPE: Final = "port"
"""The method that the recipe of a port names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortTry(Documented):
    """A method that was tried, and the contract's verdict on it on the new base."""

    method: str
    verdict: Annotated[str, "as in `Tested`; empty where the method does not apply"] = ""
    outcome: Annotated[str, "as in `Tested`"] = ""
    drift: Annotated[float | None, "as in `Tested`"] = None
    same: Annotated[float | None, "as in `Tested`"] = None
    retention: Annotated[float | None, "as in `Tested`"] = None
    reason: Annotated[str, "what there is against it"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortLook(Documented, keys="adapter base to bases distance prediction notes"):
    """The facts that the files give before any run."""

    adapter: Annotated[str, "spec or folder"]
    base: Annotated[str, "the base that it was made for"]
    to: Annotated[str, "the new base"]
    bases: Annotated[str, "how the two compare, a verdict of `base compare`"]
    distance: Annotated[BaseDistance | None, "null where the files do not hold plain numbers, or are away"]
    prediction: Prediction
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The way that was chosen: the folder that it wrote, and the verdict on it where there is a contract."""

    method: str
    folder: Path
    result: Tested | None


@dataclass(slots=True, kw_only=True)
class Port:
    """A port that was planned: the adapter, its base where that is here, and the new one; `tries` are those so far."""

    library: Library
    session: Session
    subject: ContractSubject
    to: BaseSpec
    old: BaseRecord | None
    new: BaseRecord
    bases: BaseVerdict
    tries: list[PortTry] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The adapter as lineage names it."""
        build = self.subject.build
        return f"{build.full_name}=={build.manifest.version}" if build else self.subject.label

    # ------------------------------------------------------------ before any run
    @contextmanager
    def opened(self) -> Iterator[OpenedPort]:
        """Provide the adapter and both bases; raises as `weights.port.opened`."""
        expected = self.subject.manifest.digests if self.subject.manifest else None
        base = self.subject.base.fingerprint if self.subject.base else None
        if base is None and self.old is not None:
            base = self.old.fingerprint
        with opened(self.subject.folder, expected, self.label, base, self.old, self.new) as run:
            yield run

    def looked(self, run: OpenedPort) -> PortLook:
        """Return the distance by the files."""
        with self.session.out.steps("compare bases", unit="weights") as progress:
            distance = run.distance(progress)
        return PortLook(
            adapter=self.label,
            base=self.old.label if self.old else self.subject.base.label if self.subject.base else "unknown",
            to=self.new.label,
            bases=self.bases.name,
            distance=distance,
            prediction=predict(distance),
            notes=run.notes,
        )

    def contract(self, *, unproved: bool) -> Contract | None:
        """Return the adapter's contract; None without one that can be asked, where `unproved` permits that.

        Raises:
            CouldNotTell: there is none, or it cannot be tested on another base.
        """
        contract, label = self.subject.contract(), shown(self.label, 200)
        if unproved or (contract is not None and contract.visibility == "public" and contract.kind != IMAGE):
            return None if contract is None or contract.visibility != "public" or contract.kind == IMAGE else contract
        if contract is None:
            raise CouldNotTell(
                f"`{label}` has no contract, so a port cannot be judged. Nothing was written",
                hint=f"`adapt contract record {label}` records one on its own base; `--unproved` ports without",
            )
        what = "draws images" if contract.kind == IMAGE else "holds only digests"
        raise CouldNotTell(
            f"the contract of `{label}` {what}, and cannot run on another base. Nothing was written",
            hint="`--unproved` ports without",
        )

    # ------------------------------------------------------------ the ways
    def best(
        self, run: OpenedPort, contract: Contract | None, method: str | None, scratch: Path, *, unproved: bool
    ) -> Chosen:
        """Write the adapter by each way below `scratch`, or by the one that is fixed, and choose by the contract.

        A way that works ends the search. Without a contract nothing can be chosen, so it is `copy` or the fixed one.

        Raises:
            BehaviourChanged, CouldNotTell: none passes, and `unproved` does not permit that.
            UsageProblem: the fixed method does not apply.
        """
        found: list[Chosen] = []
        tester = Tester(self.library, self.session)
        for name in [method or COPY] if method or contract is None else names():
            problem = run.obstacle(name)
            if problem and method:
                raise UsageProblem(f"{problem}. Nothing was written", hint="`--method copy` takes any adapter")
            if problem:
                self.tries.append(PortTry(method=name, reason=problem))
                continue
            folder = scratch / name
            with self.session.out.steps(f"port by {name}", unit="modules") as progress:
                run.write(name, folder, progress)
            result = None if contract is None else self._verdict(tester, folder, name, contract)
            self.tries.append(_tried(name, result))
            found.append(Chosen(method=name, folder=folder, result=result))
            if result is not None and result.outcome == "works":
                break
        chosen = min(found, key=_order)
        if not unproved and chosen.result is not None and not chosen.result.passed:
            raise self._refusal(chosen.method, chosen.result)
        return chosen

    def _verdict(self, tester: Tester, folder: Path, name: str, contract: Contract) -> Tested:
        question = TestQuestion(on=self.to, is_other_base=True, contract=contract, is_foreign=True)
        subject = ContractSubject(folder=folder, label=f"{self.subject.name} by {name}", manifest=None)
        try:
            return tester.verdict(subject, question)
        except AdapterHubError as error:
            lines = (line.strip() for line in error.message.splitlines()[:2])
            return Tested(name=name, verdict="UNKNOWN").unknown("refused", ": ".join(lines))

    def _refusal(self, method: str, result: Tested) -> AdapterHubError:
        label, base = shown(self.label, 200), shown(self.new.label)
        rows = [shown(f"{one.method}: {', '.join(filter(None, (one.verdict, one.reason)))}", 400) for one in self.tries]
        hint = f"train it again on `{base}`; `--unproved` writes the {method} all the same, without a contract"
        if result.verdict == "UNKNOWN":
            title = f"no verdict is possible on `{label}` on `{base}`. Nothing was written"
            return CouldNotTell(problem_list(title, rows), hint=hint)
        title = f"`{label}` does not pass its contract on `{base}`. Nothing was written"
        return BehaviourChanged(problem_list(title, rows), hint=hint)

    # ------------------------------------------------------------ the new build
    def recorded(self, contract: Contract, chosen: Chosen) -> tuple[Contract, tuple[LeftOutInput, ...]]:
        """Return the contract of the port, recorded on the new base, and what it leaves out with the reason.

        The demands and bounds stay, and so do the prompts that the port answers as the adapter did. Every number is
        measured again, that of the new base too.

        Raises:
            Incompatible: too few answers are left, or the plain new base answers like that.
        """
        from adapterhub.inference.contracts.recording import record

        subject = ContractSubject(folder=chosen.folder, label=self.subject.label, manifest=None)
        is_encoder = contract.kind in ENCODERS
        same = {case.id for case in chosen.result.cases if case.same} if chosen.result else set()
        kept = [golden for golden in contract.distinct if is_encoder or golden.id in same]
        plan = Plan(
            goldens=tuple(Wanted(id=one.id, asked=one.asked) for one in kept if one.asked is not None),
            expects=contract.expects,
            leave_alone=contract.leave_alone,
            bounds=contract.bounds,
        )
        how: dict[str, Any] = {"kind": contract.kind, "count": max(FEWEST_GOLDENS, len(kept)), "margin": 0.0}
        how["vectors"] = any(golden.vector is not None for golden in contract.goldens)
        models = Models(self.library)
        with (
            models.of(
                subject, self.new, dtype="auto", kind=contract.kind if is_encoder else None, is_other_base=True
            ) as (model, tokenizer, _),
            self.session.out.steps("record", unit="prompts") as progress,
        ):
            where = where_recorded(subject, self.new, model, tokenizer)
            made = record(model, tokenizer, plan, contract.prompt, where, **how, progress=progress)
        gone = {golden.id for golden in contract.distinct} - {golden.id for golden in kept}
        left_out = [LeftOutInput(id=name, reason="is answered otherwise on the new base") for name in sorted(gone)]
        return made.contract, (*left_out, *(LeftOutInput(*one) for one in made.left_out))

    def description(self, chosen: Chosen, about: Description) -> Description:
        """Return the new build's description: `about`, and its origin."""
        manifest, record, result = self.subject.manifest, self.new, chosen.result
        recipe: dict[str, Any] = {"method": RECIPE, "options": {"by": chosen.method}, "to": record.fingerprint.weights}
        if self.subject.base is not None and self.subject.base.fingerprint is not None:
            recipe["base"] = self.subject.base.fingerprint.weights
        measured = {} if result is None else {"drift": result.drift, "same": result.same, "retention": result.retention}
        return replace(
            about,
            parents=(Parent(digest=manifest.digest if manifest else None, spec=self.label, weight=1.0),),
            recipe=recipe,
            metrics={f"port_{key}": float(f"{n:.3g}") for key, n in measured.items() if n is not None},
            prompt=manifest.prompt if manifest else None,
            examples=manifest.examples if manifest else (),
        )

    def add(self, chosen: Chosen, contract: Contract | None, about: Description, bump: Bump | None) -> Added:
        """Add the chosen folder to the library, as a build for the new base."""
        if contract is not None:
            (chosen.folder / CONTRACT_FILE).write_bytes(contract.to_bytes())
        return self.library.add(chosen.folder, self.description(chosen, about), base=self.new, bump=bump)


def plan_port(library: Library, session: Session, subject: ContractSubject, to: BaseSpec) -> Port:
    """Find both bases.

    Raises:
        UsageProblem: the new base is the adapter's own, or a copy of it, so nothing is to be moved.
        BaseNotFound, BaseMismatch: the new base is not here, or its files are not the registered ones.
        Incompatible: it is a pipeline.
    """
    if subject.build is not None:
        ensure_manifest_unchanged(library, subject.build)
    new = base_for(library, subject, to)
    label = shown(subject.label, 200)
    if library.bases.pipeline_of(new) is not None:
        raise Incompatible(f"`{label}`: adapters of pipelines are not ported", hint="train it again on the new base")
    old: BaseRecord | None
    try:
        old = base_for(library, subject, None)
    except BaseNotFound:
        old = None
    declared = (
        subject.base.fingerprint if subject.base and subject.base.fingerprint else old.fingerprint if old else None
    )
    verdict = library.bases.judged(declared, new.fingerprint).verdict
    if verdict.stands_for or verdict is BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY:
        raise UsageProblem(
            f"`{label}` needs no port: base `{shown(new.label)}` has the weights that it was made for "
            f"({verdict.name}). Nothing was written",
            hint=f"`adapt run {label} --base {shown(new.label)}` runs it there",
        )
    return Port(library=library, session=session, subject=subject, to=to, old=old, new=new, bases=verdict)


def _tried(name: str, result: Tested | None) -> PortTry:
    if result is None:
        return PortTry(method=name)
    return PortTry(
        method=name,
        verdict=result.verdict,
        outcome=result.outcome,
        drift=result.drift,
        same=result.same,
        retention=result.retention,
        reason="; ".join(result.why),
    )


def _order(chosen: Chosen) -> tuple[int, float, float]:
    """Return a sort key: by outcome, then the least drift, or change of labels, then the most equal answers."""
    result = chosen.result
    if result is None:
        return (0, 0.0, 0.0)
    order = ("works", "drifts", "broken", "cannot_run", "")
    moved = result.drift if result.drift is not None else result.kl if result.kl is not None else 0.0
    return (2 * order.index(result.outcome) + (not result.passed), moved, -(result.same or 0.0))

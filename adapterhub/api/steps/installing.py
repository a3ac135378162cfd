"""Install: one spec, from the places that a session knows, and what a library upgrades.

`adapt add` takes two functions from here, so each imports what it needs: contracts and projects cost half its start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adapterhub.api.opened import report_warnings
from adapterhub.core.errors import AdapterHubError, BehaviourChanged, CouldNotTell, shown
from adapterhub.core.ranks import ANY_RANK, RankRange

if TYPE_CHECKING:
    from pathlib import Path

    from adapterhub.api.steps.contracts.gating import ContractGate
    from adapterhub.core.arguments import Testing
    from adapterhub.core.digests import Progress
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.distribution.install import Gate, InstallPlan
    from adapterhub.distribution.outdated import Offer
    from adapterhub.distribution.resolve import Objection
    from adapterhub.formats.contract.results import Tested
    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.intake.description import Description
    from adapterhub.library.library import Added, Library
    from adapterhub.library.transfer import Source
    from adapterhub.projects.places import SpecSources
    from adapterhub.projects.reporting import Bars, Reporter
    from adapterhub.projects.session import Session
    from adapterhub.trust.signing.policy import SignaturePolicy


def plan_one(
    session: Session,
    spec: AdapterSpec,
    sources_of: Callable[[AdapterSpec], Sequence[Source]],
    *,
    base: BaseSpec | None = None,
    base_is_typed: bool = True,
    bounds: RankRange = ANY_RANK,
    allow_base_mismatch: bool = False,
    objection: Objection | None = None,
) -> InstallPlan:
    """Choose the build for one spec; `base` is for a spec without one, and must be its own where it was typed.

    Raises:
        NoCompatibleRelease, AdapterNotFound, SpecError: as `plan_install` and `wanted_from`.
    """
    from adapterhub.distribution.install import plan_install
    from adapterhub.distribution.moving import exact_at
    from adapterhub.projects.session import wanted_from

    library, sources = session.library, sources_of(spec)
    spec, followed = exact_at(library, spec, sources)
    plan = plan_install(
        library,
        spec,
        sources,
        wanted=wanted_from(library, spec, base if spec.base is None or base_is_typed else spec.base),
        bounds=bounds,
        allow_base_mismatch=allow_base_mismatch,
        objection=objection,
    )
    for warning in plan.resolution.warnings:
        session.out.warn(warning)
    session.note_once(plan.resolution.note)
    return replace(plan, followed=followed)


class _Held:
    """Keeps what a plan reports until its turn comes; all else is as the reporter."""

    def __init__(self, out: Reporter) -> None:
        self._out = out
        self._told: list[tuple[bool, str]] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the reporter has
        return getattr(self._out, name)

    def note(self, text: str) -> None:
        self._told.append((False, text))

    def warn(self, text: str) -> None:
        self._told.append((True, text))

    def tell(self, session: Session) -> None:
        for is_warning, text in self._told:
            (session.out.warn if is_warning else session.note_once)(text)


def plan_all(
    session: Session,
    specs: Sequence[AdapterSpec],
    sources_of: SpecSources,
    plan: Callable[[Session, AdapterSpec, Callable[[AdapterSpec], Sequence[Source]]], InstallPlan],
) -> list[InstallPlan]:
    """The build for each spec as `plan` chooses it, several at a time where servers are asked; reports in order.

    Raises:
        AdapterHubError: the first one of a spec for which `plan` raises.
    """
    from adapterhub.distribution.install import look_ahead
    from adapterhub.distribution.remote_kinds import kind_of
    from adapterhub.library.transfer import AT_ONCE, together

    places = [sources_of(spec) for spec in specs]  # here, because it may ask the user
    are_servers = any(kind_of(source.place).is_server for one in places for source in one)
    held = [_Held(session.out) for _ in specs]

    def planned(number: int, _: object) -> InstallPlan:
        inside = replace(session, out=held[number], _noted=set())
        return plan(inside, specs[number], lambda _spec: places[number])

    plans = []
    if are_servers:
        lacking = [n for n, spec in enumerate(specs) if not session.library.builds_named(spec.name, spec.namespace)]
        look_ahead(session.library, [specs[n] for n in lacking], [places[n] for n in lacking])
    with contextlib.closing(together(range(len(specs)), planned, at_once=AT_ONCE if are_servers else 1)) as answers:
        for one, answer in zip(held, answers, strict=True):
            one.tell(session)
            if isinstance(answer, AdapterHubError):
                raise answer
            plans.append(answer)
    return plans


def install_all(
    session: Session,
    plans: Sequence[InstallPlan],
    sources_of: SpecSources,
    signatures: SignaturePolicy | None,
    *,
    bars: Bars,
    what: str,
    gate: Gate | None = None,
) -> Iterator[Added | None]:
    """Carry out plans of `plan_one` under one bar, and give the results in their order.

    A result is None for a build that was there already. Several builds come from servers at a time, except with a
    `gate`. After the first refusal no other is begun; those that arrived are kept. Warnings of checks are reported.

    Raises:
        BehaviourChanged, CouldNotTell: `gate` does not let a build in; it was not installed.
        AdapterHubError: the first refusal.
    """
    from adapterhub.distribution.install import forget_ahead, run_install
    from adapterhub.distribution.remote_kinds import kind_of
    from adapterhub.library.transfer import AT_ONCE, together

    def carry_out(plan: InstallPlan, progress: Progress) -> Added | None:
        policy = signatures or sources_of.policy_of(plan.source)
        return run_install(session.library, plan, progress, signatures=policy, gate=gate)

    are_servers = any(kind_of(plan.source.place).is_server for plan in plans)
    at_once = AT_ONCE if are_servers and gate is None else 1
    with (
        contextlib.ExitStack() as after,
        bars.progress(f"install {what}", sum(plan.copy_bytes for plan in plans)) as progress,
        contextlib.closing(together(plans, carry_out, progress, at_once=at_once)) as answers,
    ):
        after.callback(forget_ahead, [plan.source for plan in plans])
        for answer in answers:
            if isinstance(answer, AdapterHubError):
                raise answer
            report_warnings(session, answer)
            yield answer


def add_described(
    session: Session, folder: Path, base: BaseSpec | None = None, *, progress: Progress | None = None
) -> Added | None:
    """Take in a folder as the `adapterhub.json` in it describes it, byte for byte; None where it has none.

    So a build that another library published, or that the Hub's client downloaded, keeps its name, version and digest.

    Raises:
        MalformedManifest: the file breaks its format.
        DigestMismatch: other files differ from it; nothing was stored.
        NoCompatibleRelease: it is for another base than `base`.
        ReleaseExists: the name and version exist with other bytes.
        SignatureRefused: as for an install.
    """
    from adapterhub.trust.verify import Report, manifest_in

    manifest = manifest_in(folder)
    if manifest is None:
        return None
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.install import plan_install, run_install
    from adapterhub.library.directory import PublishedDirectory
    from adapterhub.library.library import Added
    from adapterhub.projects.session import wanted_from

    library = session.library
    spec = AdapterSpec(namespace=None, name=manifest.name, base=base, specifiers="", digest_prefix=manifest.digest)
    wanted = wanted_from(library, spec, None)
    plan = plan_install(library, spec, [PublishedDirectory(folder)], wanted=wanted)
    added = run_install(library, plan, progress)
    if added is not None or plan.present is None:
        return added
    return Added(build=plan.present, report=Report.of([]), created=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What is known of a folder before it is added; `notes` tells the user what was guessed."""

    about: Description
    record: BaseRecord | None
    notes: tuple[str, ...]


def describe_folder(
    library: Library,
    folder: Path,
    *,
    name: str | None,
    version: str | None,
    record: BaseRecord | None,
    guess: bool,
    prompt: PromptForm | None,
    task: str | None,
    description: str,
    license: str | None,  # noqa: A002 - the option's name
    examples: Sequence[str] = (),
    named_after: Path | None = None,
    base_sha256: str = "",
) -> Described:
    """Name, base and prompt form of a PEFT output folder: what was given, else what the folder says for certain.

    `named_after` is the path that gives the name, where it is not the folder's own; `base_sha256` as for `guess_base`.

    Raises:
        SpecError: `name` or `version` does not parse.
        UsageProblem: no name can be made of the folder's, or a text, its chat template or an example is too long to
            keep.
    """
    from adapterhub.core.specs import parse_name, parse_released
    from adapterhub.library.identify.guess import guess_base, guess_name
    from adapterhub.library.intake.description import Description, check_description, checked_examples
    from adapterhub.library.intake.prompts import choose_form, says_nothing

    own = guess_name(named_after or folder) if name is None else parse_name(name)
    about = Description(
        name=own,
        version=parse_released(version or "1.0.0"),
        task=task,
        description=description,
        license=license,
        prompt=prompt,
        examples=checked_examples(examples),
    )
    check_description(about)
    notes: list[str] = []
    if record is None and guess and folder.is_dir():
        guessed = guess_base(library, folder, base_sha256)
        record = guessed.record
        notes.append(guessed.sentence(own))
    chosen = choose_form(folder, prompt, record.hints if record else None)
    about = replace(about, prompt=chosen.form)
    if not (description or examples or task) and says_nothing(folder):
        notes.append(f"no description: a search finds `{own}` by its name alone; `--description TEXT` gives one")
    return Described(about=about, record=record, notes=tuple(note for note in (*notes, chosen.note) if note))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Upgraded:
    """One name of the library with a newer release; `added` is None in a preview, or where it was there already.

    `tested` says how the newer release does by the contract of the one that was installed, where that was tested;
    without `is_kept` it was not let in.
    """

    offer: Offer
    plan: InstallPlan
    added: Added | None
    tested: Tested | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the release is in the library, or may come in."""
        return self.tested is None or self.added is not None or self.plan.present is not None

    def __repr__(self) -> str:
        taken = self.offer.allowed
        return (
            f"<Upgraded {self.offer.request.key} {self.offer.request.version} -> {taken.version if taken else 'none'}>"
        )


def upgrade_library(
    session: Session,
    specs: Sequence[AdapterSpec],
    *,
    remote: str | None,
    token: str | None,
    offline: bool,
    places: tuple[Path, ...],
    signatures: SignaturePolicy | None,
    dry_run: bool,
    testing: Testing | None = None,
    bars: Bars,
) -> list[Upgraded]:
    """Install the newest release of each installed name, or of those in `specs`, beside what is there.

    With `testing`, each must pass the contract of the installed one; those that do not are not let in by `keep`.
    """
    from adapterhub.distribution.install import plan_install, run_install
    from adapterhub.distribution.outdated import offers
    from adapterhub.projects.upgrades import library_requests

    library = session.library
    asked = library_requests(session, specs, remote=remote, token=token, offline=offline, places=places)
    with bars.steps("check", unit="adapters") as progress:
        found = offers(library, asked, progress)
    best: dict[int, Offer] = {}
    for offer in found:
        if offer.yanked is not None:
            session.out.warn(_yanked_text(offer))
        if offer.problem is not None:
            session.out.warn(f"`{offer.request.key}`: {offer.problem.splitlines()[0]}")
        elif offer.has_allowed and id(offer.request) not in best:
            best[id(offer.request)] = offer
    done: list[Upgraded] = []
    for offer in best.values():
        one, taken = offer.request, offer.allowed
        assert taken is not None  # `has_allowed`
        spec = replace(one.spec, namespace=taken.namespace, digest_prefix=taken.digest)
        sources = [source for source in one.sources() if source.label == offer.place]
        plan = plan_install(library, spec, sources, wanted=one.wanted)
        for warning in plan.resolution.warnings:
            session.out.warn(warning)
        added = tested = None
        if not dry_run:
            gate = _drop_in_gate(session, one.digest, testing, bars=bars)
            with bars.progress(f"install {one.key}", plan.copy_bytes) as bytes_done:
                try:
                    added = run_install(library, plan, bytes_done, signatures=signatures, gate=gate)
                except (BehaviourChanged, CouldNotTell) as error:
                    if gate is None or not gate.results:
                        raise
                    session.out.warn(f"`{one.key}` was not upgraded: {error.message.splitlines()[0]}")
            tested = gate.results[-1] if gate is not None and gate.results else None
        report_warnings(session, added)
        done.append(Upgraded(offer=offer, plan=plan, added=added, tested=tested))
    return done


def _drop_in_gate(session: Session, digest: str, testing: Testing | None, *, bars: Bars) -> ContractGate | None:
    """Tests what is to take the place of an installed build by the contract of that one.

    Raises:
        CouldNotTell: the installed build has no contract, and `testing` wants one kept.
    """
    if testing is None:
        return None
    from adapterhub.api.steps.contracts.gating import contract_gate
    from adapterhub.api.steps.contracts.testing import Question
    from adapterhub.formats.contract.reading import contract_in

    library = session.library
    build = next((build for build in library.installed() if build.manifest.digest == digest), None)
    contract = contract_in(build.folder) if build is not None else None
    if contract is not None:
        return contract_gate(library, testing, Question(contract=contract, is_foreign=True), bars=bars, out=session.out)
    what = f"`{shown(build.full_name)}` {build.manifest.version}" if build is not None else "the installed release"
    if testing == "keep":
        raise CouldNotTell(
            f"{what} has no contract that a newer release could be held to. Nothing was installed",
            hint="`adapt contract record NAME` records one; `--accept-changes` upgrades without",
        )
    session.out.warn(f"{what} has no contract that the newer release could be held to")
    return None


def _yanked_text(offer: Offer) -> str:
    """That an installed build was yanked, and what to do about it."""
    one = offer.request
    said = f"`{one.key}=={one.version}` was yanked: {shown(offer.yanked or 'no reason given', 200)}"
    if offer.allowed is None:
        return f"{said}; {offer.place} has no other release that fits"
    return f"{said}; {offer.allowed.version} replaces it, and `adapt remove '{one.key}=={one.version}'` removes it"

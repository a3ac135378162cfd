"""Bring adapters into a library: add, install and upgrade them; and see what could be upgraded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, overload

from adapterhub.api.opened import (
    BaseLike,
    OpenedLibrary,
    SpecLike,
    base_of,
    paths_of,
    record_of,
    report_card,
    report_likeness,
    report_warnings,
    spec_of,
)
from adapterhub.core.arguments import Count, LoadIn, Namespace, Precision, StrPath, Testing, parsed, path_of
from adapterhub.core.digests import Progress
from adapterhub.core.display import listed
from adapterhub.core.errors import AdapterHubError, BehaviourChanged, CouldNotTell, UsageProblem, shown
from adapterhub.core.ranks import RankRange, Ranks
from adapterhub.core.specs import AdapterSpec, BaseSpec, parse_name, parse_released
from adapterhub.formats.documented import Documented
from adapterhub.library.installed import Added
from adapterhub.library.intake.clashes import Bump, check_naming
from adapterhub.library.intake.description import Description
from adapterhub.trust.signing.policy import SignaturePolicy

if TYPE_CHECKING:
    from adapterhub.api.steps.contracts.gating import ContractGate
    from adapterhub.distribution.install import Install, InstallPlan
    from adapterhub.distribution.outdated import Offer, Upgraded, UpgradeRequest
    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.projects.places import Asked, SpecSources, Where
    from adapterhub.projects.session import Session
    from adapterhub.projects.trust import RevokedProject, TrustedProject

_T = TypeVar("_T")
_MOST_TOLD = 10


@parsed
class WithInstalling(OpenedLibrary):
    """Everything that brings adapters into a library."""

    def add(
        self,
        folder: StrPath,
        description: Description | str = "",
        *,
        name: str | None = None,
        version: str | None = None,
        bump: Bump | None = None,
        variant: bool = False,
        task: str | None = None,
        examples: Sequence[str] = (),
        license: str | None = None,  # noqa: A002 - the option's name
        prompt: PromptForm | None = None,
        base: BaseLike | None = None,
        guess_base: bool = True,
        namespace: Namespace | None = None,
        metrics: Mapping[str, Any] | None = None,
        dialect: str = "",
        progress: Progress | None = None,
    ) -> Added:
        """Take in what PEFT or another program wrote, after checking it.

        Args:
            folder: what PEFT's `save_pretrained` wrote; or a LoRA file or folder of diffusers, kohya, ComfyUI or MLX.
            description: one sentence for lists and search; or a whole `Description`, then without `name` and the rest.
            name: name of the adapter; default: the folder's, in lower case. A folder with an `adapterhub.json` is taken
                in as that describes it, if you give no name and describe nothing else.
            version: PEP 440 version; default: 1.0.0.
            bump: `patch`, `minor` or `major`: take the next free version where the name exists for this base.
            variant: add a build of another rank to a version that exists.
            task: what it is for, such as `legal-qa`.
            examples: up to 16 prompts that show what the adapter is for; searches also look for words in them.
            license: an SPDX expression; default: the one that the folder's README names.
            prompt: how the adapter wants to be asked; default: what the folder says for certain, such as a Modelfile.
            base: the base it was trained on; default: the registered one that it fits, if it fits exactly one.
            guess_base: False leaves the base unknown, until `pin`, where none is given; also that of a folder trained
                from a local path.
            namespace: as in `acme/legal-qa`.
            metrics: figures of its training or evaluation, such as `{"eval_loss": 0.41}`; JSON values.
            dialect: the program whose layout its stacked experts have, such as `peft@0.18` or `unsloth`, where the
                files leave it open.
            progress: called with the bytes that were read since the last call.

        Returns:
            `.build` is the installed adapter, `.report` its checks; `.created` is False when it was there already.

        Raises:
            RefusedAdapter, AdapterNotFound: damaged or hostile files, NaN, no pairs, no folder; nothing was stored.
            BaseMismatch, BaseNotFound, Malformed: it does not fit `base`, which is not known here, or cannot be read.
            ReleaseExists: the name and version exist for this base with other bytes or at another rank.
            UsageProblem: no name can be made of the folder's, or arguments exclude each other.

        Example:
            >>> library.add("out/summarize", name="summarize", base="base-7b", task="summarize").build  # doctest: +SKIP
            <Adapter summarize 1.0.0 rank 4 for base-7b, 12.5 kB>
        """
        from adapterhub.library.identify import guess
        from adapterhub.library.identify.guess import guess_name
        from adapterhub.library.intake.description import check_description, checked_examples
        from adapterhub.library.intake.foreign import peft_folder
        from adapterhub.library.intake.prompts import choose_form, says_nothing

        check_naming(bump, variant=variant, version=version)
        if base is not None and not guess_base:
            raise UsageProblem("`--base` and `--no-base` exclude each other")
        folder, record = path_of(folder), None if base is None else record_of(self, base)
        told = (description, name, version, task, examples, license, namespace, bump, variant, prompt, metrics, dialect)
        with contextlib.ExitStack() as stack:
            if progress is None:
                progress = stack.enter_context(self.reports.progress(f"add {name or folder.name}", size_given(folder)))
            if guess_base and not any(told) and (taken := self._add_described(folder, base_of(base), progress)):
                return self._reported(taken)
            notes = list[str]()
            ready = stack.enter_context(peft_folder(self.store, folder, record, progress, self.bases))
            if not isinstance(description, Description):
                description = Description(
                    name=guess_name(ready.named_after) if name is None else parse_name(name),
                    version=parse_released(version or "1.0.0"),
                    task=task,
                    description=description,
                    license=license,
                    prompt=prompt,
                    examples=checked_examples(examples),
                    metrics=metrics or {},
                    dialect=dialect,
                )
                check_description(description)
                if record is None and guess_base and ready.folder.is_dir():
                    guessed = guess.guess_base(self, ready.folder, ready.header.base_sha256)
                    record = guessed.record
                    notes.append(guessed.sentence(description.name))
                chosen = choose_form(ready.folder, prompt, record.hints if record else None)
                if not (description.description or examples or task) and says_nothing(ready.folder):
                    notes.append(
                        f"no description: a search finds `{description.name}` by its name alone; `--description TEXT` "
                        "gives one"
                    )
                description = replace(description, prompt=chosen.form)
                notes.append(chosen.note)
            added = super().add(
                ready.folder,
                ready.described(description),
                base=record,
                namespace=namespace,
                bump=bump,
                variant=variant,
                guess_base=guess_base,
                progress=progress,
            )
        if not guess_base:
            notes.append(f"the base is unknown; record it with `adapt base pin {description.name} BASE`")
        for note in filter(None, (*ready.notes, *notes)) if added.created else ():
            self.reports.note(note)
        return self._reported(added)

    def _add_described(self, folder: Path, base: BaseSpec | None, progress: Progress) -> Added | None:
        """Take in a folder as the `adapterhub.json` in it describes it, byte for byte; None if it has none.

        So a build that another library published, or that the Hub's client downloaded, keeps its name, version and
        digest.

        Raises:
            MalformedManifest: the file breaks its format.
            DigestMismatch: other files differ from it; nothing was stored.
            NoCompatibleRelease: it is for another base than `base`.
            ReleaseExists: the name and version exist with other bytes.
            SignatureRefused: as for an install.
        """
        from adapterhub.trust.verify import Report, manifest_in

        manifest = manifest_in(folder) if folder.is_dir() else None
        if manifest is None:
            return None
        from adapterhub.distribution.install import plan_install, run_install
        from adapterhub.library.directory import PublishedDirectory
        from adapterhub.projects.session import wanted_from

        spec = AdapterSpec(namespace=None, name=manifest.name, base=base, specifiers="", digest_prefix=manifest.digest)
        plan = plan_install(self, spec, [PublishedDirectory(folder)], wanted=wanted_from(self, spec, None))
        added = run_install(self, plan, progress)
        if added is not None or plan.present is None:
            return added
        return Added(build=plan.present, report=Report.of([]), created=False)

    def _reported(self, added: Added) -> Added:
        report_warnings(self.session, added)
        report_card(self.session, added)
        report_likeness(self.session, added)
        return added

    # ------------------------------------------------------------ install
    def install(
        self,
        *specs: SpecLike,
        requirements: Requirements | StrPath | Iterable[StrPath] = (),
        places: StrPath | Iterable[StrPath] = (),
        base: BaseLike | None = None,
        rank: Ranks | None = None,
        dry_run: bool = False,
        allow_base_mismatch: bool = False,
        accept_repository: str | Iterable[str] = (),
        exclude_newer: str | None = None,
        test: Testing | None = None,
        dtype: Precision | None = None,
        load_in: LoadIn | None = None,
        signatures: SignaturePolicy | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Sequence[Install]:
        """Install adapters that fit a base, from `places`, then from the servers that have their namespaces.

        Args:
            specs: such as `acme/legal-qa@base-7b>=1.2,<2`.
            requirements: what `Library.requirements` returns, or files with a spec per line; `-` is stdin.
            places: libraries, directories of published builds or PEFT folders to look in, as `--from` names them.
            base: the base, where a spec names none.
            rank: this rank, or one in a range: `8`, `"4-16"`, `"4-"`, `"-16"`.
            dry_run: choose, and change nothing: `.release`, `.copy_bytes` and `.missing` describe what would be
                installed.
            allow_base_mismatch: take a build for other weights of the same shapes; recorded.
            accept_repository: repositories that may supply an adapter though its name came from another.
            exclude_newer: take no release newer than a day (`2026-01-31`), a time or an age (`7d`).
            test: `keep` a build only if it answers as its contract records on your base, or only `warn`.
            dtype: for `test`: the precision of the base.
            load_in: for `test`: quantise the base's linear layers.
            signatures: `require`, `warn` or `off` for this call.
            remote: ask only this server, a remote's name or a URL.
            token: access token for it.
            offline: open no connection.

        Returns:
            One for each spec, in order: `.build` is the installed adapter, `.folder` its plain PEFT folder.

        Raises:
            AdapterNotFound, BaseNotFound, NotFound, Malformed: no place has it; no such base, place or remote.
            NoCompatibleRelease: releases exist, none fits; `.refusals` holds a reason for each.
            SignatureRefused, NamespaceBound: a policy forbids it; nothing was fetched.
            DigestMismatch, RemoteUnreachable: one could not be fetched whole; nor was a later one.
            BehaviourChanged, CouldNotTell: one does not pass its test; it was not installed.
            UsageProblem: there is nothing to install.
        """
        from adapterhub.projects.places import Asked, SpecSources, Where

        where = Where(places=paths_of(places), remote=remote, token=token, offline=offline)
        return install_specs(
            SpecSources(self.session, where),
            specs_of(specs, requirements),
            Asked(
                base=base_of(base),
                bounds=RankRange.of(rank),
                allow_base_mismatch=allow_base_mismatch,
                exclude_newer=exclude_newer,
                accepted=accept_repository,
            ),
            signatures=signatures,
            gate=gate_of(self.session, test, dtype=dtype, load_in=load_in),
            dry_run=dry_run,
        )

    # ------------------------------------------------------------ newer releases
    @overload
    def upgrade(
        self,
        *specs: SpecLike,
        check: Literal[True],
        dry_run: bool = ...,
        test: Testing | None = ...,
        places: StrPath | Iterable[StrPath] = ...,
        signatures: SignaturePolicy | None = ...,
        remote: str | None = ...,
        token: str | None = ...,
        offline: bool = ...,
        jobs: Count = ...,
    ) -> Sequence[Offer]: ...
    @overload
    def upgrade(
        self,
        *specs: SpecLike,
        check: Literal[False] = ...,
        dry_run: bool = ...,
        test: Testing | None = ...,
        places: StrPath | Iterable[StrPath] = ...,
        signatures: SignaturePolicy | None = ...,
        remote: str | None = ...,
        token: str | None = ...,
        offline: bool = ...,
        jobs: Count = ...,
    ) -> Sequence[Upgraded]: ...
    def upgrade(
        self,
        *specs: SpecLike,
        check: bool = False,
        dry_run: bool = False,
        test: Testing | None = None,
        places: StrPath | Iterable[StrPath] = (),
        signatures: SignaturePolicy | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
        jobs: Count = 8,
    ) -> Sequence[Offer] | Sequence[Upgraded]:
        """Install the newest release of each installed name beside the older, which stays until you remove it.

        Args:
            specs: upgrade only these.
            check: change nothing, and return what each place offers: `.has_newer`, `.yanked`, `.problem`.
            dry_run: install nothing, and test nothing.
            test: `keep` takes a release only if it passes the contract of the installed one; `warn` takes it with a
                warning. `.tested` holds the verdict.
            places: other places to look in, as `--from` names them.
            signatures: `require`, `warn` or `off` for this call.
            remote: ask only this server.
            token: access token for it.
            offline: look in directories only.
            jobs: ask for so many adapters at a time.

        Raises:
            AdapterNotFound: one of `places` is not a folder of adapters, or nothing of a name is installed.
        """
        from adapterhub.distribution.install import plan_install, run_install
        from adapterhub.distribution.outdated import Upgraded, offers
        from adapterhub.projects.places import Where
        from adapterhub.projects.upgrades import library_requests

        ensure_upgrade(check=check, dry_run=dry_run, test=test, signatures=signatures)
        out, where = self.reports, Where(places=paths_of(places), remote=remote, token=token, offline=offline)
        asked = library_requests(self.session, [spec_of(spec) for spec in specs], where)
        if check:
            return offers_for(self.session, asked, jobs, where)
        with out.steps("check", unit="adapters") as progress:
            found = offers(self, asked, progress, jobs=jobs)
        best: dict[int, Offer] = {}
        for offer in found:
            if offer.yanked is not None:
                out.warn(_yanked_text(offer))
            if offer.problem is not None:
                out.warn(f"`{offer.request.key}`: {offer.problem.splitlines()[0]}")
            elif offer.has_allowed:
                best.setdefault(id(offer.request), offer)
        done: list[Upgraded] = []
        for offer in best.values():
            one, taken = offer.request, offer.allowed
            assert taken is not None  # `has_allowed`
            spec = replace(one.spec, namespace=taken.namespace, digest_prefix=taken.digest)
            sources = [source for source in one.sources() if source.label == offer.place]
            plan = plan_install(self, spec, sources, wanted=one.wanted)
            for warning in plan.resolution.warnings:
                out.warn(warning)
            added = gate = None
            if not dry_run:
                gate = self._drop_in_gate(one.digest, test)
                with out.progress(f"install {one.key}", plan.copy_bytes) as bytes_done:
                    try:
                        added = run_install(self, plan, bytes_done, signatures=signatures, gate=gate)
                    except (BehaviourChanged, CouldNotTell) as error:
                        if gate is None or not gate.results:
                            raise
                        out.warn(f"`{one.key}` was not upgraded: {error.message.splitlines()[0]}")
            report_warnings(self.session, added)
            tested = gate.results[-1] if gate is not None and gate.results else None
            done.append(Upgraded(offer=offer, plan=plan, added=added, tested=tested))
        return done

    def requirements(self) -> Requirements:
        """Return the installed builds, one `name==version#sha256:…` each, for `install(requirements=…)`."""
        return Requirements.of(f"{b.full_name}=={b.manifest.version}#{b.manifest.digest}" for b in self.installed())

    # ------------------------------------------------------------ projects
    @property
    def trusted_projects(self) -> Sequence[TrustedProject]:
        """The projects whose servers may be asked."""
        from adapterhub.projects.trust import TrustedProjects

        return tuple(TrustedProjects(self.root).all())

    def trust_project(self, folder: StrPath | None = None, *, revoke: bool = False) -> TrustedProject | RevokedProject:
        """Agree to the servers that a project names, for its folder and the servers that its file lists now.

        Args:
            folder: of the project; default: the one that the library is used in.
            revoke: take the agreement back; the folder need not be there any more.

        Raises:
            NotFound: there is no project.
            NamespaceBound: it claims a name or a namespace of a remote of yours.
        """
        from adapterhub.projects.trust import RevokedProject, TrustedProjects, trust_project

        place = self.session.need_project().folder if folder is None else path_of(folder)
        if revoke:
            return RevokedProject(project=place, revoked=TrustedProjects(self.root).revoke(place))
        return trust_project(self.session, place)

    def _drop_in_gate(self, digest: str, test: Testing | None) -> ContractGate | None:
        """Test the replacement of an installed build by the contract of that one.

        Raises:
            CouldNotTell: the installed build has no contract, and `test` wants one kept.
        """
        if test is None:
            return None
        from adapterhub.api.steps.contracts.gating import ContractGate
        from adapterhub.api.steps.contracts.testing import TestQuestion
        from adapterhub.formats.contract.reader import contract_in

        build = next((build for build in self.installed() if build.manifest.digest == digest), None)
        contract = contract_in(build.folder) if build is not None else None
        if contract is not None:
            return ContractGate(self.session, test, TestQuestion(contract=contract, is_foreign=True))
        what = f"`{shown(build.full_name)}` {build.manifest.version}" if build is not None else "the installed release"
        if test == "keep":
            raise CouldNotTell(
                f"{what} has no contract that a newer release could be held to. Nothing was installed",
                hint="`adapt contract record NAME` records one; `--test=warn` upgrades without",
            )
        self.reports.warn(f"{what} has no contract that the newer release could be held to")
        return None


def _yanked_text(offer: Offer) -> str:
    """Return that an installed build was yanked, and what to do about it."""
    one = offer.request
    said = f"`{one.key}=={one.version}` was yanked: {shown(offer.yanked or 'no reason given', 200)}"
    if offer.allowed is None:
        return f"{said}; {offer.place} has no other release that fits"
    return f"{said}; {offer.allowed.version} replaces it, and `adapt remove '{one.key}=={one.version}'` removes it"


# ---------------------------------------------------------------- install, for a library and for a project
def specs_of(specs: Sequence[SpecLike], requirements: Requirements | StrPath | Iterable[StrPath]) -> list[AdapterSpec]:
    """Return the specs and those in the files `requirements`.

    Raises:
        UsageProblem: there is none.
    """
    from adapterhub.distribution.requirements import read_requirements

    if isinstance(requirements, Requirements):
        listed = list(map(AdapterSpec.parse, requirements.requirements))
    else:
        listed = list(chain.from_iterable(map(read_requirements, paths_of(requirements))))
    found = [*map(spec_of, specs), *listed]
    if not found:
        hint = "run `adapt install NAME@BASE`; in a project, `adapt sync` installs the locked adapters"
        raise UsageProblem(
            "nothing to install: the list is empty" if requirements else "give at least one adapter to install",
            hint=hint,
        )
    return found


def gate_of(
    session: Session, test: Testing | None, *, dtype: str | None = None, load_in: str | None = None
) -> ContractGate | None:
    """Return the gate for builds that are to be installed; None if no test is requested.

    Raises:
        UsageProblem: an option of a test is given without one.
    """
    if test is None:
        if given := "--dtype" if dtype else "--load-in" if load_in else "":
            raise UsageProblem(f"`{given}` needs `--test`", hint=f"add `--test`, or drop `{given}`")
        return None
    from adapterhub.api.steps.contracts.gating import ContractGate
    from adapterhub.api.steps.contracts.testing import TestQuestion

    return ContractGate(session, test, TestQuestion(dtype=dtype or "auto", load_in=load_in))


def install_specs(
    where: SpecSources,
    specs: Sequence[AdapterSpec],
    asked: Asked,
    *,
    signatures: SignaturePolicy | None = None,
    gate: ContractGate | None = None,
    dry_run: bool = False,
) -> list[Install]:
    """Choose a build for each spec and install it, unless `dry_run`; several at a time come from servers.

    After the first refusal no other is begun; those that arrived are kept.

    Raises:
        AdapterHubError: the first refusal.
    """
    from adapterhub.distribution.install import Install, forget_ahead, look_ahead, run_install
    from adapterhub.distribution.remote_kinds import kind_of
    from adapterhub.library.transfer import AT_ONCE, together
    from adapterhub.projects.places import objection_from, plan_one, project_base

    session, library = where.session, where.session.library
    objection, base = objection_from(session, asked.exclude_newer), project_base(session)
    places = list(map(where, specs))  # here, because it may ask the user
    are_servers = any(kind_of(source.place).is_server for one in places for source in one)
    accepted = [asked.accepted] if isinstance(asked.accepted, str) else asked.accepted

    def planned(number: int, _: object) -> InstallPlan:
        return plan_one(session, specs[number], places[number], asked, base=base, objection=objection)

    if are_servers:
        lacking = [n for n, spec in enumerate(specs) if not library.builds_named(spec.name, spec.namespace)]
        look_ahead(library, [specs[n] for n in lacking], [places[n] for n in lacking])
    plans: list[InstallPlan] = []
    at_once = AT_ONCE if are_servers else 1
    with (
        library.accepting(accepted),
        contextlib.closing(together(range(len(specs)), planned, at_once=at_once)) as answers,
    ):
        for chosen in answers:
            plan = _or_raise(chosen)
            for warning in plan.resolution.warnings:
                session.out.warn(warning)
            session.note_once(plan.resolution.note)
            plans.append(plan)
    if dry_run:
        return [Install(plan=plan) for plan in plans]

    def carry_out(plan: InstallPlan, progress: Progress) -> Added | None:
        policy = signatures or where.policy_of(plan.source)
        return run_install(library, plan, progress, signatures=policy, gate=gate)

    done: list[Install] = []
    what = specs[0].full_name if len(specs) == 1 else f"{len(specs)} adapters"
    are_servers = any(kind_of(plan.source.place).is_server for plan in plans)
    with (
        contextlib.ExitStack() as after,
        library.accepting(accepted),
        session.out.progress(f"install {what}", sum(map(attrgetter("copy_bytes"), plans))) as progress,
        contextlib.closing(
            together(plans, carry_out, progress, at_once=AT_ONCE if are_servers and gate is None else 1)
        ) as results,
    ):
        after.callback(forget_ahead, list(map(attrgetter("source"), plans)))
        for plan, answer in zip(plans, results, strict=True):
            added = _or_raise(answer)
            report_warnings(session, added)
            tests = (gate.results[-1],) if gate else None
            done.append(Install(plan=plan, added=added, tests=tests))
    return done


def ensure_upgrade(*, check: bool, dry_run: bool, test: Testing | None, signatures: SignaturePolicy | None) -> None:
    """Raise `UsageProblem` for options of `upgrade` that do not go together."""
    if test and dry_run:
        raise UsageProblem("`--dry-run` and `--test` exclude each other: a test brings the newer build")
    if check and (dry_run or test or signatures):
        raise UsageProblem("`--check` changes nothing; drop `--dry-run`, `--test` and `--signatures`")


_OFFERS_KEPT_S: Final = 3600.0


def offers_for(
    session: Session, asked: Sequence[UpgradeRequest], jobs: int, where: Where, project: Path | None = None
) -> Sequence[Offer]:
    """Return the offers of each place, with `jobs` requests at a time; the session reports what no place has.

    A check that was interrupted within the hour goes on where it stopped.
    """
    from adapterhub import __version__
    from adapterhub.core.disk.home import LOCK_FILE, PROJECT_FILE
    from adapterhub.distribution.outdated import offers
    from adapterhub.library.upkeep.interrupted import Interrupted, digest_of_facts, facts_below, facts_of

    root = session.root
    about: list[object] = [
        __version__,
        [*map(str, where.places)],
        where.remote,
        where.token,
        where.offline,
        str(project),
    ]
    about += [facts_of(project, PROJECT_FILE, LOCK_FILE)] if project else []
    records = ("remotes.json", "config.json", "credentials.json", "trusted_keys.json", "origins", "pins")
    header = digest_of_facts([about, facts_of(root, *records), facts_below(root / "bases")])
    before, is_over = Interrupted(root, "upgrade", header, kept_s=_OFFERS_KEPT_S), False
    if before.said:
        session.out.note(before.said)
    try:
        with session.out.steps("check", unit="adapters") as progress:
            found = offers(session.library, asked, progress, jobs=jobs, before=before)
        is_over = True
    finally:
        before.close(is_over=is_over)
    seen = {id(offer.request) for offer in found}
    if nowhere := [f"`{one.key}`" for one in asked if id(one) not in seen]:
        more = f" and {len(nowhere) - _MOST_TOLD} more" if len(nowhere) > _MOST_TOLD else ""
        session.out.note(f"no source has {', '.join(nowhere[:_MOST_TOLD]) + more if more else listed(nowhere)}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements(Documented, keys="requirements output"):
    """A plain list of requirements for `adapt install -r`."""

    requirements: Annotated[tuple[str, ...], "`name==version#sha256:digest`"]
    output: Annotated[Path | None, "with --output: the file"] = None

    @classmethod
    def of(cls, lines: Iterable[str]) -> Requirements:
        """Return the lines in order."""
        return cls(requirements=tuple(sorted(lines)))

    @property
    def text(self) -> str:
        """One adapter a line."""
        return "".join(f"{line}\n" for line in self.requirements)

    def written(self, place: Path) -> Requirements:
        """Write the lines to a file."""
        from adapterhub.core.disk.files import write_output

        write_output(place, self.text.encode())
        return replace(self, output=place)


def _or_raise(answer: _T | AdapterHubError) -> _T:
    if isinstance(answer, AdapterHubError):
        raise answer
    return answer


def size_given(path: Path) -> int | None:
    """Bytes that adding `path` reads, as far as its names tell; a foreign file is read once more to convert it."""
    if path.is_file():
        return 2 * path.stat().st_size
    return sum(p.stat().st_size for p in path.glob("adapter_*") if p.is_file()) or None if path.is_dir() else None

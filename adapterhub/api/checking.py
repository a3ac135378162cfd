"""Check adapters from Python: verify, ask what engines make of them, and audit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, overload

from adapterhub.api.arguments import AdapterLike, BaseLike, OfSession, base_of, text_of
from adapterhub.core.arguments import Count, parsed, path_of
from adapterhub.core.display import html_table
from adapterhub.core.errors import AdapterHubError, RefusedAdapter, UsageProblem, shown
from adapterhub.core.specs import AdapterSpec, names_folder
from adapterhub.formats.documented import Documented
from adapterhub.projects.session import wanted_from
from adapterhub.trust.findings import BySeverity

if TYPE_CHECKING:
    from adapterhub.core.digests import Progress
    from adapterhub.core.specs import BaseSpec
    from adapterhub.distribution.withdrawal import FindSource
    from adapterhub.formats.engines import Verdict
    from adapterhub.formats.peft.config import AdapterConfig
    from adapterhub.formats.safetensors.file import TensorFile
    from adapterhub.library.audit import Audit, Audited, AuditedAdapter, Surroundings
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.heads import Logged
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.store.origins import Origin
    from adapterhub.library.transfer import Source
    from adapterhub.library.upkeep.damage import Damage
    from adapterhub.projects.session import Session
    from adapterhub.trust.findings import Finding
    from adapterhub.trust.verify import Report


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Verified(Documented, keys="adapter status=report.status findings=report.findings facts=report.facts"):
    """The report of `verify` on one adapter."""

    adapter: Annotated[str, "as given, or name and version"]
    report: Report


class Reports(BySeverity, Mapping[str, "Report"]):
    """The reports of adapters, by their labels, and what they have found together."""

    def __init__(self, verified: Sequence[Verified]) -> None:
        self._verified = tuple(verified)

    def __getitem__(self, label: str) -> Report:
        return {one.adapter: one.report for one in self._verified}[label]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(one.adapter for one in self._verified))

    def __len__(self) -> int:
        return len(list(iter(self)))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of every report."""
        return tuple(finding for one in self._verified for finding in one.report.findings)

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 12 for wrong bytes, otherwise 3 for errors, 17 for unknowns, or 0."""
        from adapterhub.trust.verify import exit_code_of

        return exit_code_of(self.findings, {"error", "unknown"})

    def documents(self) -> Iterator[dict[str, Any]]:
        """Return the documents of each, one by one."""
        return (one.to_json() for one in self._verified)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the JSON value."""
        return [*self.documents()]

    def __repr__(self) -> str:
        return f"<Reports {self.status}: {len(self)} adapter{'s' * (len(self) != 1)}>"

    def _repr_html_(self) -> str:
        rows = [
            (one.adapter, one.report.status, f and f.code, f and f.where, f and f.message)
            for one in self._verified
            for f in one.report.findings or (None,)
        ]
        return html_table(("adapter", "status", "code", "where", "finding"), rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedFolder:
    """One adapter: its files, what `verify` found in them, and its base, if it is known."""

    label: str
    folder: Path
    report: Report
    record: BaseRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked(Documented, keys="adapter=label status=report.status errors=report.errors verdicts", title="Judged"):
    """The verdicts of several engines on one adapter."""

    label: Annotated[str, "the folder as given, or name and version"]
    report: Report
    verdicts: Annotated[tuple[Verdict, ...], "one for each engine, in the order given"]

    def says_yes(self, verdict: Verdict) -> bool:
        """Return whether the engine reads the adapter right, and the adapter is sound."""
        return verdict.ok and not self.report.errors

    @property
    def ok(self) -> bool:
        """Whether every engine reads it right."""
        return all(map(self.says_yes, self.verdicts))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
        verdicts = [{**verdict.to_json(), "ok": self.says_yes(verdict)} for verdict in self.verdicts]
        return {**Documented.to_json(self), "verdicts": verdicts}


@parsed
class Checking(OfSession):
    """Everything that judges adapters and changes nothing. A plain folder of PEFT needs no library."""

    @overload
    def verify(
        self,
        *adapters: AdapterLike,
        base: BaseLike | None = ...,
        strict: bool = ...,
        offline: bool = ...,
        jobs: Count = ...,
    ) -> Reports: ...
    @overload
    def verify(
        self, *adapters: AdapterLike, engines: str | Sequence[str], base: BaseLike | None = ...
    ) -> Sequence[Checked]: ...
    def verify(
        self,
        *adapters: AdapterLike,
        engines: str | Sequence[str] | None = None,
        base: BaseLike | None = None,
        strict: bool = False,
        offline: bool = False,
        jobs: Count = 1,
    ) -> Reports | Sequence[Checked]:
        """Check bytes, format, tensor pairs and shapes, scale, numbers, base and signature.

        With `engines`, whether these read the adapters right instead. An adapter that declares its base, installed or a
        folder with a manifest, is compared with the registered one.

        Args:
            adapters: installed adapters (specs or builds), or folders; default: every installed one, and the store.
            engines: such as `vllm@0.32`, `llama.cpp`, `peft`; `all` or none in the list means all that are known.
            base: stands in where an adapter declares no base.
            strict: a file beside a signature that it does not cover is an error.
            offline: ask no server whether it has yanked an adapter; what it said last counts.
            jobs: check so many of all adapters at a time, each in a process of its own. A check of all adapters that
                was interrupted continues within a week and skips adapters whose files have not changed; one that
                finished starts again.

        Returns:
            The report of each adapter by its label. `.status` of all is `ok`, `failed` or `unknown`; `.errors`,
            `.warnings`, `.unknowns` and `.notes` are those of all. With `engines`, for each adapter `.verdicts` with
            `.ok`, `.reasons` and `.flags`.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            AdapterNotFound, NoCompatibleRelease: nothing installed answers to a spec.
            RefusedAdapter: the files of one cannot be judged for an engine.
            UsageProblem: no such engine; or one is asked, and `strict` is given.
        """
        session, texts, spec = self.session, [text_of(one) for one in adapters], base_of(base)
        if engines is not None:
            if strict:
                raise UsageProblem("`--engine` does not use `--strict`; leave it out")
            return _checked(session.project_library, texts, engines, spec)

        @cache
        def opened() -> Library:
            return session.project_library

        record = opened().bases.find(spec) if spec is not None else None
        find_source = None if offline else self.session.place_source
        total = bytes_to_check(opened, texts) if self.reports.shows_bars else None
        with self.reports.progress("verify", total) as progress:
            run = _Run(find_source=find_source, jobs=jobs, note=self.reports.note)
            found = list(reports_of(opened, texts, record, progress, run=run))
        return Reports([Verified(adapter=label, report=_strictly(one) if strict else one) for label, one in found])

    def audit(
        self,
        *adapters: AdapterLike,
        offline: bool = False,
        verify: bool = False,
        log: bool = False,
        ignore: Sequence[str] = (),
        strict: bool = False,
    ) -> Audit:
        """Audit signatures, strays, base, lineage, licences, names and withdrawals; nothing is changed.

        Args:
            adapters: specs, builds or folders; default: every installed adapter, and the store.
            offline: ask no server whether an adapter was withdrawn.
            verify: also read every byte.
            log: also check with the logs of servers that they have each version and have only grown; inside a project,
                also for each version that it locks.
            ignore: codes of findings to leave out.
            strict: let warnings and unknowns set `.exit_code` as well.

        Returns:
            A sequence with `.target` and `.report` of each adapter; `.counts` by severity, `.exit_code`, `.to_sarif()`.

        Raises:
            AdapterNotFound, NoCompatibleRelease: one is not here.
            UsageProblem: no finding has such a code.
        """
        from adapterhub.library.audit import Audit, Surroundings, audit, store_report
        from adapterhub.trust.explaining import explanations

        for code in ignore:
            if code not in explanations() or code.isdigit():
                raise UsageProblem(f"unknown audit code `{code}`", hint="`adapt help codes` lists all codes")

        def find_source(origin: Origin) -> Source:
            return self.session.place_source(origin.place)

        library, texts = self.session.library, [text_of(one) for one in adapters]
        with self.reports.progress("audit", None) as progress:
            around = Surroundings(
                library=library,
                find_source=None if offline else find_source,
                with_bytes=verify,
                with_log=log,
                progress=progress,
            )
            found = [*audit(_audit_subjects(library, texts, around), around, ignore=ignore)]
            found += _locked_elsewhere(self.session, ignore, offline=offline) if log and not texts else ()
        broken = None if texts else store_report(library)
        return Audit(adapters=(*found, *([broken] if broken else [])), strict=strict, root=library.root)


def _checked(
    library: Library, adapters: Sequence[str], engines: str | Sequence[str], base: BaseSpec | None
) -> list[Checked]:
    """Return the verdicts of engines on adapters."""
    from adapterhub.formats.engines import names, parse_target

    asked = [engines] if isinstance(engines, str) else list(engines)
    chosen = list(names()) if "all" in asked or not asked else asked
    for target in chosen:
        parse_target(target)
    return [checked_by(one, chosen) for one in subjects_to_check(library, adapters, base)]


# ---------------------------------------------------------------- verify
@dataclass(frozen=True, kw_only=True)
class _Run:
    """The way to check: in how many processes, and what finds the server of a build, which knows if it was yanked.

    Without `find_source`, what was seen before counts.
    """

    find_source: FindSource | None = None
    jobs: int = 1
    note: Callable[[str], None] = lambda _text: None


def reports_of(
    opened: Callable[[], Library],
    adapters: Sequence[str],
    record: BaseRecord | None,
    progress: Progress | None = None,
    *,
    run: _Run | None = None,
) -> Iterator[tuple[str, Report]]:
    """Each adapter's label and report, every installed one where `adapters` is empty; `record` stands in for a base.

    Folders are what begins as a path does. `opened` gives the library, which a plain folder of PEFT does not need.
    """
    run = run or _Run()
    if not adapters:
        yield from _everything(opened(), record, progress, run)
    for text in adapters:
        if names_folder(text):
            folder = _there(text)
            report, _ = _folder_report(folder, record, opened, progress)
            yield text, _with_signature(opened, folder, report)
        else:
            from adapterhub.distribution.choosing import look_up
            from adapterhub.distribution.withdrawal import why_withdrawn
            from adapterhub.library.upkeep.checked import with_signature

            library, spec = opened(), AdapterSpec.parse(text)
            build, _ = look_up(library, spec, wanted=wanted_from(library, spec, None))
            why = why_withdrawn(library, build, run.find_source)
            report = with_signature(library, build, library.verify_build(build, record, progress), yanked=why)
            yield f"{build.full_name} {build.manifest.label}", report


def bytes_to_check(opened: Callable[[], Library], adapters: Sequence[str]) -> int:
    """How many bytes `reports_of` reads of the same adapters, unless a file changes meanwhile or its header is damaged.

    Raises:
        AdapterNotFound, NoCompatibleRelease: no installed adapter matches.
    """

    def folder_of(text: str) -> Path:
        if names_folder(text):
            return _there(text)
        from adapterhub.distribution.choosing import look_up

        library, spec = opened(), AdapterSpec.parse(text)
        return look_up(library, spec, wanted=wanted_from(library, spec, None))[0].folder

    from adapterhub.library.upkeep.checked import weights_bytes

    if adapters:
        return sum(map(weights_bytes, map(folder_of, adapters)))
    from adapterhub.library.upkeep.damage import hashed_with, unhashed_bytes

    library, total = opened().past_damage(), 0
    hashed: set[tuple[int, int, str]] = set()
    for build in library.installed():
        total += weights_bytes(build.folder)
        hashed.update(hashed_with(build))
    return total + unhashed_bytes(library, hashed)


def _there(text: str) -> Path:
    """Return the path that the user typed.

    Raises:
        AdapterNotFound: nothing is there; the hint offers the nearest path.
    """
    from adapterhub.core.disk.files import ensure_there

    path = path_of(text)
    ensure_there(path, hint="`adapt list` shows adapters that need no path")
    return path


def _everything(
    library: Library, record: BaseRecord | None, progress: Progress | None, run: _Run
) -> Iterator[tuple[str, Report]]:
    """Check every installed build, then the store and its records, which are reported only if they have findings."""
    from adapterhub.distribution.withdrawal import withdrawn_builds
    from adapterhub.library.store.catalog import build_folders
    from adapterhub.library.upkeep.checked import BuildCheck, on_cores, weights_bytes
    from adapterhub.library.upkeep.damage import damaged_index, damaged_objects
    from adapterhub.library.upkeep.interrupted import Interrupted
    from adapterhub.trust.findings import Finding
    from adapterhub.trust.verify import Report

    library = library.past_damage()  # what is damaged is reported, and the check goes on
    yanked = withdrawn_builds(library, library.installed(), run.find_source)
    check = BuildCheck(root=library.root, base=record, yanked=yanked, progress=progress if run.jobs == 1 else None)
    before, is_over = Interrupted(library.root, "verify", check.header()), False
    if before.said:
        run.note(before.said)
    hint = "`adapt doctor --repair` repairs what it can"
    found: list[Finding] = []
    missing: list[Damage] = []
    hashed: set[tuple[int, int, str]] = set()
    same: dict[Report, Report] = {}

    def is_broken(folder: Path, reason: str) -> Finding:
        return Finding("E_MANIFEST", folder.relative_to(library.root).as_posix(), reason, hint=hint)

    try:
        found += [is_broken(path, "is a link") for path in build_folders(library.root, links=True)]
        asked = ((folder, before.before(str(folder))) for folder in build_folders(library.root))
        for one in on_cores(check, asked, run.jobs):
            if one.key and one.own is not None:
                before.keep(str(one.folder), one.key, one.own.to_json())
            if one.broken:
                found.append(is_broken(one.folder, one.broken))
            if one.report is None:
                continue
            hashed.update(one.hashed)
            missing += one.missing
            if progress is not None and run.jobs > 1:
                progress(weights_bytes(one.folder))
            yield one.label, same.setdefault(one.report, one.report)
        damages = (*damaged_objects(library, hashed, progress, before), *missing, *damaged_index(library))
        found += [damage.finding(library.root) for damage in damages]
        found += record_findings(library.root)
        is_over = True
    finally:
        before.close(is_over=is_over)
    if found:
        yield "the store", Report.of(found)


def record_findings(root: Path) -> Iterator[Finding]:
    """Return a finding for each record of a library that is damaged."""
    from adapterhub.library.upkeep.damage import damaged_records
    from adapterhub.projects.trust import TrustedProjects

    return damaged_records(root, {"trusted_projects.json": TrustedProjects(root).all})


def _with_signature(opened: Callable[[], Library], folder: Path, report: Report) -> Report:
    """Return the report on a folder, with findings about its signature, which covers its manifest or else its files."""
    from adapterhub.formats.manifest import MANIFEST_FILE, SIGNATURE_FILE

    if not os.path.lexists(folder / SIGNATURE_FILE):
        return report
    from adapterhub.formats.release import Release
    from adapterhub.library.admission import Admission, signature_findings
    from adapterhub.library.directory import PlainFolder
    from adapterhub.trust.signing.appraisal import provenance_of
    from adapterhub.trust.verify.checks.digests import read_manifest_file
    from adapterhub.trust.verify.subject import list_folder

    try:
        entry = list_folder(folder).taken.get(MANIFEST_FILE)
        if entry is not None:
            manifest = read_manifest_file(entry)
            release = Release(manifest=manifest, namespace=None, origin=str(folder))
        else:
            release = PlainFolder(folder).releases(AdapterSpec.parse("unnamed"))[0]
    except (AdapterHubError, OSError):  # the report already has these problems
        return report
    place = os.path.abspath(folder)  # noqa: PTH100 - keeps links: the name that the user gave stays
    return _joined(report, signature_findings(Admission(opened()), release, lambda: provenance_of(folder), place))


def _joined(report: Report, found: Sequence[Finding]) -> Report:
    from adapterhub.trust.verify import Report

    return Report.of([*report.findings, *found], report.facts)


def _strictly(report: Report) -> Report:
    """Return the report with an error for each file that the signature does not cover."""
    from adapterhub.library.admission import as_error
    from adapterhub.trust.verify import Report

    return Report.of([as_error(finding) for finding in report.findings], report.facts)


# ---------------------------------------------------------------- check
def _folder_report(
    folder: Path, named: BaseRecord | None, opened: Callable[[], Library], progress: Progress | None = None
) -> tuple[Report, BaseRecord | None]:
    """Verify a folder, and return its base: `named`, which may be a pipeline, or that of its manifest."""
    from adapterhub.trust.verify import Report, open_subject, verify

    subject, findings = open_subject(folder, progress=progress)
    if subject is None:
        return Report.of(findings), named
    record = named
    if named is None and (manifest := subject.manifest) is not None:
        record = opened().bases.by_fingerprint(manifest.base.fingerprint)
    if record is not None:
        from adapterhub.library.bases.requested import beside

        subject = beside(subject, record, opened().bases)
    return verify(subject, seen=findings), record


def subjects_to_check(library: Library, adapters: Sequence[str], base: BaseSpec | None) -> list[VerifiedFolder]:
    """Return the adapters, every installed one where none is given, each verified.

    `base` stands in for one not declared.
    """
    from adapterhub.distribution.choosing import look_up

    named = library.bases.find(base) if base is not None else None

    def of_build(build: Installed) -> VerifiedFolder:
        declared = build.base.fingerprint
        record = library.bases.by_fingerprint(declared) if declared is not None else named
        label = f"{build.full_name}=={build.manifest.version}"
        report = library.verify_build(build, record)
        return VerifiedFolder(label=label, folder=build.folder, report=report, record=record)

    if not adapters:
        return [of_build(build) for build in library.installed()]
    requested = []
    for text in adapters:
        if names_folder(text):
            folder = _there(text)
            report, record = _folder_report(folder, named, lambda: library)
            requested.append(VerifiedFolder(label=text, folder=folder, report=report, record=record))
        else:
            spec = AdapterSpec.parse(text)
            build, _ = look_up(library, spec, wanted=wanted_from(library, spec, base))
            requested.append(of_build(build))
    return requested


def checked_by(adapter: VerifiedFolder, targets: Sequence[str]) -> Checked:
    """Return the verdicts of the engines `targets` on an adapter.

    Raises:
        RefusedAdapter: its files cannot be judged.
    """
    from adapterhub.formats.engines import judge
    from adapterhub.inference.engine_bases import base_facts
    from adapterhub.trust.verify import read_headers

    headers = read_headers(adapter.folder) if adapter.report.facts is not None else None
    if headers is None:
        listed = [(f.code, f"{f.where}: {f.message}" if f.where else f.message) for f in adapter.report.errors]
        raise RefusedAdapter(f"cannot check `{shown(adapter.label, 200)}`", listed)
    facts, dialect = base_facts(adapter.record), _dialect_of(adapter, *headers)
    verdicts = tuple(judge(target, *headers, base=facts, dialect=dialect) for target in targets)
    return Checked(label=adapter.label, report=adapter.report, verdicts=verdicts)


def _dialect_of(adapter: VerifiedFolder, config: AdapterConfig, weights: TensorFile) -> str:
    """Return the layout of stacked experts in the file, told beside the base; `peft` where it has none."""
    from adapterhub.formats.dialects import PEFT, may_differ
    from adapterhub.trust.verify import open_subject

    if not may_differ(config, weights):
        return PEFT
    record = adapter.record
    known: dict[str, Any] = {"base_tensors": record.tensors, "base_type": record.hints.model_type} if record else {}
    subject, _ = open_subject(adapter.folder, **known)
    return subject.inner.dialect if subject is not None and subject.inner is not None else PEFT


# ---------------------------------------------------------------- audit
def _audit_subjects(library: Library, adapters: Sequence[str], around: Surroundings) -> Iterator[AuditedAdapter]:
    from adapterhub.library.audit import subject_of_build, subject_of_folder

    if not adapters:
        yield from map(subject_of_build, around.library.installed())
    for text in adapters:
        if names_folder(text):
            folder = _there(text)
            yield subject_of_folder(folder, text)
        else:
            yield from map(subject_of_build, _builds(library, text))


def _locked_elsewhere(session: Session, ignore: Sequence[str], *, offline: bool) -> Iterator[Audited]:
    """Audit what the project locks from servers and the library lacks: whether their logs have it."""
    from adapterhub.distribution.remote_kinds import kind_named
    from adapterhub.library.audit import Audited, AuditTarget
    from adapterhub.library.audit.log import logged_finding
    from adapterhub.projects.builds import exact_spec, label_of, locked_build
    from adapterhub.projects.lock.lockfile import previous_lock
    from adapterhub.projects.places import ProjectSources, Where
    from adapterhub.projects.sync.bringing import locked_one
    from adapterhub.projects.values import LockedAdapter
    from adapterhub.trust.verify import Report

    project, library = session.project, session.library
    lock = None if project is None else previous_lock(project)
    if project is None or lock is None:
        return
    sources = ProjectSources(session, project, Where(offline=offline))
    sources.settle(lock)
    for entry in lock.entries.values():
        is_of_server = not entry.source.is_library and kind_named(entry.source.kind).is_server
        if not isinstance(entry, LockedAdapter) or not is_of_server or locked_build(library, entry) is not None:
            continue

        def look(entry: LockedAdapter = entry) -> Logged | None:
            source = next(sources.of_locked(entry))
            return library.heads.check(source, locked_one(entry, source.releases(exact_spec(entry)), source))

        finding = logged_finding(entry.source.address, None if offline else look)
        label, is_ignored = f"{label_of(entry)} (locked)", finding.code in ignore
        yield Audited(
            target=AuditTarget(
                label=label, folder=project.folder, name=entry.name, version=entry.version, digest=entry.digest
            ),
            report=Report.of([] if is_ignored else [finding]),
            ignored=int(is_ignored),
        )


def _builds(library: Library, text: str) -> list[Any]:
    """Every installed build that a spec matches, not only the newest."""
    from adapterhub.library.aliasing import without_alias

    spec = without_alias(library, AdapterSpec.parse(text))
    wanted = wanted_from(library, spec, None)
    builds = [
        build
        for build in library.builds_named(spec.name, spec.namespace)
        if spec.matches(build.manifest.version)
        and build.manifest.digest.startswith(spec.digest_prefix or "sha256:")
        and (wanted is None or wanted.judge(build.base).verdict.allows_attach)
    ]
    if not builds:
        raise library.not_installed(text)
    return builds

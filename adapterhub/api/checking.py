"""Check adapters from Python: verify, ask what engines make of them, and audit."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapterhub.api.arguments import AdapterLike, BaseLike, base_of, text_of
from adapterhub.core.arguments import parsed, path_of
from adapterhub.core.display import html_table
from adapterhub.core.errors import AdapterHubError, RefusedAdapter, UsageProblem, shown
from adapterhub.core.specs import AdapterSpec, names_folder
from adapterhub.formats.documented import Documented
from adapterhub.projects.session import wanted_from
from adapterhub.trust.severities import BySeverity

if TYPE_CHECKING:
    from adapterhub.core.digests import Progress
    from adapterhub.core.specs import BaseSpec
    from adapterhub.distribution.withdrawal import FindSource
    from adapterhub.formats.engines import Verdict
    from adapterhub.library.audit import Audit, AuditedAdapter, Surroundings
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.store.origins import Origin
    from adapterhub.library.transfer import Source
    from adapterhub.projects.reporting import Reporter
    from adapterhub.projects.session import Session
    from adapterhub.trust.verify import Finding, Report


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
        """Of the command: 12 for wrong bytes, else 3 for errors, else 17 for unknowns, else 0."""
        from adapterhub.trust.verify import exit_code_of

        return exit_code_of(self.findings, {"error", "unknown"})

    def to_json(self) -> list[dict[str, Any]]:
        """The JSON value."""
        return [one.to_json() for one in self._verified]

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
        """Whether the engine reads the adapter right, and the adapter is sound."""
        return verdict.ok and not self.report.errors

    @property
    def ok(self) -> bool:
        """Whether every engine reads it right."""
        return all(map(self.says_yes, self.verdicts))

    def to_json(self) -> dict[str, Any]:
        """The JSON value."""
        verdicts = [{**verdict.to_json(), "ok": self.says_yes(verdict)} for verdict in self.verdicts]
        return {**Documented.to_json(self), "verdicts": verdicts}


@parsed
class Checking:
    """Everything that judges adapters and changes nothing. A folder needs no library, unless it is signed."""

    session: Session
    reports: Reporter

    def verify(
        self, *adapters: AdapterLike, base: BaseLike | None = None, strict: bool = False, offline: bool = False
    ) -> Reports:
        """Check bytes, format, tensor pairs and shapes, scale, numbers, base and signature.

        Args:
            adapters: installed adapters (specs or builds), or folders; default: every installed one, and the store.
            base: stands in where an adapter declares no base.
            strict: a file beside a signature that it does not cover is an error.
            offline: ask no server whether it has yanked an adapter; what it said last counts.

        Returns:
            The report of each adapter by its label. `.status` of all is `ok`, `failed` or `unknown`; `.errors`,
            `.warnings`, `.unknowns` and `.notes` are those of all.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            AdapterNotFound, NoCompatibleRelease: nothing installed answers to a spec.
        """
        session, texts, spec = self.session, [text_of(one) for one in adapters], base_of(base)

        @cache
        def opened() -> Library:
            return session.project_library

        record = opened().bases.find(spec) if spec is not None else None
        find_source = None if offline else self.session.place_source
        total = bytes_to_check(opened, texts) if self.reports.shows_bars else None
        with self.reports.progress("verify", total) as progress:
            found = list(reports_of(opened, texts, record, progress, find_source=find_source))
        return Reports([Verified(adapter=label, report=_strictly(one) if strict else one) for label, one in found])

    def check(
        self, *adapters: AdapterLike, engines: str | Sequence[str] = (), base: BaseLike | None = None
    ) -> Sequence[Checked]:
        """Whether engines read adapters right: for each adapter `.verdicts` with `.ok`, `.reasons` and `.flags`.

        Args:
            adapters: specs, builds or folders; default: every installed adapter.
            engines: such as `vllm@0.32`, `llama.cpp`, `peft`; default: all that are known.
            base: stands in where an adapter declares no base.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            RefusedAdapter, AdapterNotFound: the files of one cannot be judged, or are not here.
            UsageProblem: no such engine.
        """
        from adapterhub.formats.engines import names, parse_target

        chosen = [engines] if isinstance(engines, str) else list(engines) or list(names())
        for target in chosen:
            parse_target(target)
        subjects = subjects_to_check(self.session.project_library, [text_of(one) for one in adapters], base_of(base))
        return [checked_by(one, chosen) for one in subjects]

    def audit(
        self,
        *adapters: AdapterLike,
        offline: bool = False,
        verify: bool = False,
        ignore: Sequence[str] = (),
        strict: bool = False,
    ) -> Audit:
        """Audit signatures, strays, base, lineage, licences, names and withdrawals; nothing is changed.

        Args:
            adapters: specs, builds or folders; default: every installed adapter, and the store.
            offline: ask no server whether an adapter was withdrawn.
            verify: read every byte, too.
            ignore: codes of findings to leave out.
            strict: let warnings and unknowns set `.exit_code`, too.

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
                library=library, find_source=None if offline else find_source, with_bytes=verify, progress=progress
            )
            found = [*audit(_audit_subjects(library, texts, around), around, ignore=ignore)]
        broken = None if texts else store_report(library)
        return Audit(adapters=(*found, *([broken] if broken else [])), strict=strict, root=library.root)


def checking_of(session: Session, reports: Reporter) -> Checking:
    """The checks of a session; they report to `reports`."""
    checking = Checking()
    checking.session, checking.reports = session, reports
    return checking


# ---------------------------------------------------------------- verify
def reports_of(
    opened: Callable[[], Library],
    adapters: Sequence[str],
    record: BaseRecord | None,
    progress: Progress | None = None,
    *,
    find_source: FindSource | None = None,
) -> Iterator[tuple[str, Report]]:
    """Each adapter's label and report, every installed one where `adapters` is empty; `record` stands in for a base.

    Folders are what begins as a path does. `find_source` finds the server of a build, which knows if it was yanked;
    without it, what was seen before counts. `opened` gives the library, which an unsigned folder does not need.
    """
    if not adapters:
        yield from _everything(opened(), record, progress, find_source)
    for text in adapters:
        if names_folder(text):
            folder = _there(text)
            report = _folder_report(folder, record, progress)
            yield text, _with_signature(opened, folder, report)
        else:
            from adapterhub.distribution.choosing import look_up
            from adapterhub.distribution.withdrawal import why_withdrawn

            library, spec = opened(), AdapterSpec.parse(text)
            build, _ = look_up(library, spec, wanted=wanted_from(library, spec, None))
            why = why_withdrawn(library, build, find_source)
            report = report_of_build(library, build, record, progress, yanked=why)
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

    if adapters:
        return sum(map(_weights_bytes, map(folder_of, adapters)))
    from adapterhub.library.upkeep.damage import unhashed_bytes

    library = opened()
    builds = list(library.installed())
    return sum(_weights_bytes(build.folder) for build in builds) + unhashed_bytes(library, builds)


def _there(text: str) -> Path:
    """The path that the user typed.

    Raises:
        AdapterNotFound: nothing is there; the hint offers the nearest path.
    """
    from adapterhub.core.disk.files import ensure_there

    path = path_of(text)
    ensure_there(path, hint="`adapt list` shows adapters that need no path")
    return path


def _weights_bytes(folder: Path) -> int:
    """The size of the numbers in a folder's weights file; 0 when it cannot be read."""
    from adapterhub.formats.manifest import WEIGHTS_FILE

    path = folder / WEIGHTS_FILE
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait
            return 0
        with path.open("rb") as file:
            return max(0, facts.st_size - 8 - int.from_bytes(file.read(8), "little"))
    except OSError:
        return 0


def _everything(
    library: Library, record: BaseRecord | None, progress: Progress | None, find_source: FindSource | None
) -> Iterator[tuple[str, Report]]:
    """Check every installed build, then the store and its records, which are reported only if they have findings."""
    from adapterhub.distribution.withdrawal import withdrawn_builds
    from adapterhub.library.installed import while_installed
    from adapterhub.library.library import Library as Local
    from adapterhub.library.upkeep.damage import damaged_index, damaged_objects
    from adapterhub.trust.verify import Finding, Report

    library = Local(library.root)
    library.bases.passes_over_damage = True
    verified = []
    yanked = withdrawn_builds(library, library.installed(), find_source)
    for build in library.installed():
        if build.folder != library.folder_for(build.manifest, build.namespace):
            continue  # its manifest names another build; `library.broken()` reports it
        why = yanked.get(build.manifest.digest)
        try:
            report = while_installed(build, partial(report_of_build, library, build, record, progress, yanked=why))
        except AdapterHubError as error:  # a damaged record, which is reported by itself
            message = f"the check could not run: {error.message}"
            unknown = Finding(code="U_CHECK", severity="unknown", where="", message=message, hint=error.hint)
            report = Report.of([unknown])
        if report is None:
            continue
        verified.append(build)
        yield f"{build.full_name} {build.manifest.label}", report
    hint = "`adapt doctor --repair` repairs what it can"
    findings = [
        Finding(code="E_MANIFEST", severity="error", where=where, message=broken.reason, hint=hint)
        for broken in library.broken()
        if (where := broken.folder.relative_to(library.root).as_posix())
    ]
    damages = (*damaged_objects(library, verified, progress), *damaged_index(library))
    findings += [damage.finding(library.root) for damage in damages]
    findings += record_findings(library.root)
    if findings:
        yield "the store", Report.of(findings)


def record_findings(root: Path) -> Iterator[Finding]:
    """A finding for each record of a library that is damaged."""
    from adapterhub.library.upkeep.damage import damaged_records
    from adapterhub.projects.trust import TrustedProjects

    return damaged_records(root, {"trusted_projects.json": TrustedProjects(root).all})


def report_of_build(
    library: Library,
    build: Installed,
    record: BaseRecord | None,
    progress: Progress | None,
    *,
    yanked: str | None = None,
) -> Report:
    """The report on an installed build, with findings about its signature, and one if it was `yanked`."""
    from adapterhub.formats.manifest import MANIFEST_FILE
    from adapterhub.formats.release import Release
    from adapterhub.library.admission import Admission, signature_findings
    from adapterhub.trust.verify import Finding

    report = library.verify_build(build, record, progress)
    release = Release(manifest=build.manifest, namespace=build.namespace, origin=library.label)
    place = library.origins.place_of(build.manifest.digest, build.full_name)
    found = [*signature_findings(Admission(library), release, lambda: library.provenance(release), place)]
    if yanked is not None:
        message = f"yanked on {shown(place, 200)}: {shown(yanked or 'no reason given', 200)}"
        found.append(Finding(code="W_YANKED", severity="warning", where=MANIFEST_FILE, message=message))
    return _joined(report, found)


def _with_signature(opened: Callable[[], Library], folder: Path, report: Report) -> Report:
    """The report on a folder, with findings about its signature, which covers its manifest or else its files."""
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
    """The report with an error for each file that the signature does not cover."""
    from adapterhub.library.admission import as_error
    from adapterhub.trust.verify import Report

    return Report.of([as_error(finding) for finding in report.findings], report.facts)


# ---------------------------------------------------------------- check
def _folder_report(folder: Path, record: BaseRecord | None, progress: Progress | None = None) -> Report:
    """What `verify` finds in a folder; `record` is its base, or the pipeline that has its base."""
    from adapterhub.trust.verify import Report, open_subject, verify

    subject, findings = open_subject(folder, progress=progress)
    if subject is None:
        return Report.of(findings)
    if record is not None:
        from adapterhub.library.bases.requested import beside

        subject = beside(subject, record)
    return verify(subject, seen=findings)


def subjects_to_check(library: Library, adapters: Sequence[str], base: BaseSpec | None) -> list[VerifiedFolder]:
    """The adapters, every installed one where none is given, each verified; `base` stands in for one not declared."""
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
            report = _folder_report(folder, named)
            requested.append(VerifiedFolder(label=text, folder=folder, report=report, record=named))
        else:
            spec = AdapterSpec.parse(text)
            build, _ = look_up(library, spec, wanted=wanted_from(library, spec, base))
            requested.append(of_build(build))
    return requested


def checked_by(adapter: VerifiedFolder, targets: Sequence[str]) -> Checked:
    """What the engines `targets` make of an adapter.

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
    facts = base_facts(adapter.record)
    verdicts = tuple(judge(target, *headers, base=facts) for target in targets)
    return Checked(label=adapter.label, report=adapter.report, verdicts=verdicts)


# ---------------------------------------------------------------- audit
def _audit_subjects(library: Library, adapters: Sequence[str], around: Surroundings) -> Iterator[AuditedAdapter]:
    from adapterhub.library.audit import subject_of_build, subject_of_folder

    if not adapters:
        yield from map(subject_of_build, around.installed)
    for text in adapters:
        if names_folder(text):
            folder = _there(text)
            yield subject_of_folder(folder, text)
        else:
            yield from map(subject_of_build, _builds(library, text))


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

"""Plans an install, then carries it out.

The library comes first, then each source in order. The first place with a fitting release decides, so a place listed
later never overrides one listed earlier.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import IO, Annotated

from adapterhub.core.digests import Digest, Progress
from adapterhub.core.disk.files import write_file
from adapterhub.core.errors import no_adapter
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import first_fitting, follow
from adapterhub.distribution.resolve import Objection, Resolution
from adapterhub.formats.alias import Alias
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.contract.reader import has_contract
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import CONTRACT_FILE, MANIFEST_FILE, SIGNATURE_FILE, FileEntry, Manifest
from adapterhub.formats.release import Release
from adapterhub.library.admission import Admission, InstallRequest, Repositories
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.bases.requested import RequestedBase
from adapterhub.library.installed import Added, InstalledRelease
from adapterhub.library.intake.staging import Staging, attach_signature
from adapterhub.library.intake.statements import statements_at, take_statements
from adapterhub.library.library import Library
from adapterhub.library.results import results_at, take_results
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Receiver, Source, copy
from adapterhub.trust.findings import Finding
from adapterhub.trust.signing.appraisal import read_signature
from adapterhub.trust.signing.trust import GivenPolicy
from adapterhub.trust.verify import Report

Gate = Callable[[Path, Release], None]
"""Looks at the files of a build before it appears in the library, and raises where it may not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallPlan:
    """What an install would do. `present` is the build if it is already installed; then nothing is copied.

    `followed` is the alias of a source that chose the build; the library follows it once the build is there.
    """

    release: Release
    source: Source
    wanted: RequestedBase | None
    resolution: Resolution
    present: Installed | None
    missing: tuple[FileEntry, ...]
    asked: InstallRequest
    followed: Alias | None = None

    @property
    def copy_bytes(self) -> int:
        """Bytes that would be fetched."""
        return sum(map(attrgetter("size_bytes"), self.missing))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile(Documented, title="InstallFile"):
    """A file of a build to install."""

    path: str
    size_bytes: int
    sha256: Digest
    fetch: Annotated[bool, "whether it would be fetched; false: the library has it"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallRefusal(Documented):
    """A release that does not fit, and why."""

    release: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Install(
    Documented,
    keys="name=plan.release.full_name version=plan.release.manifest.version rank=plan.release.manifest.rank"
    " digest=plan.release.manifest.digest base_verdict source=plan.release.origin present=is_present path=folder"
    " copy_bytes files refused base?=added.build.base_name created?=added.created"
    " size_bytes?=added.build.manifest.size_bytes warnings?=added.report.warnings same_as?=added.same_as"
    " tests? linked?",
):
    """A build that was installed, or would be."""

    plan: InstallPlan
    added: Added | None = None
    tests: Annotated[tuple[Tested, ...] | None, "with --test: how it does by its contract"] = None
    linked: Annotated[Path | None, "with --save: its folder in the project"] = None

    @property
    def release(self) -> Release:
        """The chosen release."""
        return self.plan.release

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return self.plan.release.manifest

    @property
    def base_verdict(self) -> BaseVerdict:
        """How the base that it was made for compares with the requested one."""
        return self.plan.resolution.chosen.verdict

    @property
    def is_present(self) -> bool:
        """Whether it is installed already."""
        return self.plan.present is not None if self.added is None else not self.added.created

    @property
    def build(self) -> Installed | None:
        """The installed build; None if it would only be installed."""
        return self.added.build if self.added else self.plan.present

    @property
    def folder(self) -> Path | None:
        """Its folder; null with --dry-run unless installed."""
        return self.build.folder if self.build else None

    @property
    def copy_bytes(self) -> int:
        """Bytes to fetch."""
        return self.plan.copy_bytes

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        """Its files."""
        fetch = {entry.path for entry in self.plan.missing}
        return tuple(
            PlannedFile(path=e.path, size_bytes=e.size_bytes, sha256=e.sha256, fetch=e.path in fetch)
            for e in self.manifest.files
        )

    @property
    def refused(self) -> tuple[InstallRefusal, ...]:
        """Newer releases that do not fit."""
        return tuple(InstallRefusal(release=one, reason=why) for one, why in self.plan.resolution.refusals)

    @property
    def has_contract(self) -> bool:
        """Whether it has a behaviour contract that can be asked."""
        return self.folder is not None and self.manifest.file(CONTRACT_FILE) is not None and has_contract(self.folder)

    def __repr__(self) -> str:
        state = "Already there:" if self.is_present else "Installed" if self.added else "Would install"
        what = f"{self.release.full_name} {self.manifest.version} from {self.release.origin}>"
        return f"<{state} {repr(self.build).removeprefix('<Adapter ') if self.build else what}"


def look_ahead(library: Library, specs: Sequence[AdapterSpec], places: Sequence[Sequence[Source]]) -> None:
    """Let each server of `places` answer at once what it will be asked about those `specs` that it may offer."""
    asked: dict[int, tuple[Source, list[AdapterSpec]]] = {}
    admission = Admission(library)
    for spec, sources in zip(specs, places, strict=True):
        for source in admission.of_places(sources, spec.namespace):
            asked.setdefault(id(source), (source, []))[1].append(spec)
    for source, wanted in asked.values():
        if (look := getattr(source, "look_ahead", None)) is not None:
            look(wanted)


@contextlib.contextmanager
def looking_ahead(library: Library, specs: Sequence[AdapterSpec], places: Sequence[Sequence[Source]]) -> Iterator[None]:
    """As `look_ahead`, for the requests of a block."""
    try:
        look_ahead(library, specs, places)
        yield
    finally:
        forget_ahead(source for one in places for source in one)


def forget_ahead(places: Iterable[Source]) -> None:
    """Drop what servers answered ahead to requests that never came: it may be old soon."""
    for source in places:
        if (look := getattr(source, "look_ahead", None)) is not None:
            look(())


def plan_install(
    library: Library,
    spec: AdapterSpec,
    sources: Sequence[Source],
    *,
    wanted: RequestedBase | None,
    bounds: RankRange = ANY_RANK,
    allow_base_mismatch: bool = False,
    objection: Objection | None = None,
    library_first: bool = True,
) -> InstallPlan:
    """Choose the build for `spec`. `objection` applies a policy, as in `resolve`.

    Without `library_first`, only the sources decide: they may have a newer build than the library.

    Raises:
        NoCompatibleRelease: one reason per release of every place.
        AdapterNotFound: no place has an adapter of that name.
    """
    places = (library, *sources) if library_first else tuple(sources)
    while True:
        found = first_fitting(
            library, spec, places, wanted, bounds, allow_base_mismatch=allow_base_mismatch, objection=objection
        )
        if found is None:
            asked = ", ".join(source.label for source in places)
            hint = library.nearest(spec.full_name) or "`--from DIR` also searches a folder; `org/name` searches the Hub"
            raise no_adapter(spec.full_name, asked, hint=hint)
        release, source, resolution = found
        spec = replace(spec, name=release.manifest.name)  # the spec may name a repository
        if source is library and isinstance(release, InstalledRelease):
            here = release.build if (release.build.folder / MANIFEST_FILE).exists() else None
        else:
            here = _installed(library, release)
        if source is library and here is None:
            continue  # another process removed it meanwhile
        return InstallPlan(
            release=release,
            source=source,
            wanted=wanted,
            resolution=resolution,
            present=here,
            missing=() if here else tuple(e for e in release.manifest.files if not library.store.has_blob(e.sha256)),
            asked=asked_of(library, spec, release, wanted, bounds),
        )


def run_install(
    library: Library,
    plan: InstallPlan,
    progress: Progress | None = None,
    *,
    signatures: GivenPolicy = None,
    gate: Gate | None = None,
) -> Added | None:
    """Carry a plan out. Returns None when the build was already installed; the same policies and `gate` apply to it.

    `signatures` overrides the user's policies. The findings include what the signature proves. A build for other
    weights than requested, which only `allow_base_mismatch` permits, is recorded as a mismatch.

    Raises:
        SignatureRefused: by policy, or because the signature is false; nothing was fetched.
        NamespaceBound: the namespace belongs to another server.
    """
    record = plan.wanted.record if plan.wanted else None
    added: Added | None = None
    source = plan.source if plan.source is not library else None
    if plan.present is not None:
        admission = Admission(library)
        is_vouched = source is not None and not admission.is_ours(plan.present)
        admitted = vouched(library, plan, signatures) if is_vouched else None
        if admitted is None:
            admission.ensure_usable(plan.present, signatures)
        if gate is not None:
            gate(plan.present.folder, plan.release)
        offered = Beside.at(source, plan.release) if source else None  # the last that a server may refuse
        if admitted is not None:
            vouch(library, plan.present, plan.source.place, plan.release.repository, admitted)
    else:
        admitted = admit(library, plan.release, plan.source, plan.asked, signatures)
        offered = Beside.at(source, plan.release) if source else None
        destination = Expecting(library, record, gate)
        admitted.remember()
        copy(plan.release, plan.source, destination, progress, signature=admitted.signature)
        assert destination.added is not None  # `copy` published
        admitted.arrived()
        report = Report.of([*destination.added.report.findings, admitted.finding], destination.added.report.facts)
        added = replace(destination.added, report=report)
    build = plan.present or (added.build if added else None)
    if build and offered is not None:
        if added or library.origins.of(build.manifest.digest) is None:
            library.note_origin(build, plan.source.place, plan.release.repository)
        offered.take(library, build)
        if plan.release.claimed_at:
            Repositories(library.root).bind(plan.release.claimed_at, build.full_name, plan.release.repository)
    if build and record and plan.resolution.chosen.verdict is BaseVerdict.SAME_SHAPES:
        library.allow_mismatch(build, record)
    if plan.followed is not None:
        follow(library, plan.followed)
    return added


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a place offers beside a build, unverified: signed results of tests, and how the build was made."""

    results: Sequence[bytes]
    statements: Sequence[bytes]

    @classmethod
    def at(cls, source: Source, release: Release) -> Beside:
        """Ask the place."""
        return cls(results=results_at(source, release), statements=statements_at(source, release))

    def take(self, library: Library, build: Installed) -> None:
        """Keep in the library what is sound."""
        take_results(library, self.results, build.manifest.digest, build.full_name)
        take_statements(library, self.statements, build)


def _installed(library: Library, release: Release) -> Installed | None:
    """Return the build of `library` that a release of another place is.

    Raises:
        NamespaceBound: another build has its version, from a place that the namespace does not belong to.
    """
    place = library.folder_for(release.manifest, release.namespace)
    if any(one.is_symlink() for one in (place.parent.parent, place.parent, place)):
        return None
    try:
        here = library.read_build(place)
    except FileNotFoundError:
        return None
    if here.manifest.digest == release.digest:
        return here
    Admission(library).ensure_own_origin(here)
    return None


def asked_of(
    library: Library, spec: AdapterSpec, release: Release, wanted: RequestedBase | None, bounds: RankRange
) -> InstallRequest:
    """Return the part of a request that decides which signed versions count."""
    declared = release.manifest.base.fingerprint
    record = wanted.record if wanted else library.bases.by_fingerprint(declared) if declared else None
    named = [record.fingerprint.weights] if record else []
    return InstallRequest(
        spec=spec,
        bases=tuple(dict.fromkeys([*named, declared.weights if declared else ""])),
        ranks=bounds,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A build that may come in: the signature to store, the finding to show, and what records its signer and version.

    `remember` comes before the files are fetched, so that a crash forgets nothing, and not in a preview. `arrived`
    comes after them: it keeps the head of the log that has the build.
    """

    signature: bytes | None
    finding: Finding
    remember: Callable[[], None]
    arrived: Callable[[], None]


def vouched(library: Library, plan: InstallPlan, policy: GivenPolicy) -> Admitted:
    """Decide whether an installed build may be used because the source of `plan` also offers it; writes nothing.

    Raises:
        SignatureRefused, NamespaceBound: as `admit`, for the offer and for the signature that the build has here.
    """
    assert plan.present is not None
    admitted = admit(library, plan.release, plan.source, plan.asked, policy)
    if admitted.signature is None or read_signature(plan.present.folder / SIGNATURE_FILE) is not None:
        Admission(library).ensure_usable(plan.present, policy, place=plan.source.place)
    return admitted


def vouch(library: Library, build: Installed, place: str, repository: str, admitted: Admitted) -> None:
    """Record that a repository of `place` also offers an installed build, and keep its signature."""
    if admitted.signature is not None and read_signature(build.folder / SIGNATURE_FILE) is None:
        attach_signature(library.store, build.folder, admitted.signature)
    library.note_origin(build, place, repository)
    admitted.remember()
    admitted.arrived()


def admit(
    library: Library,
    release: Release,
    source: Source,
    asked: InstallRequest,
    policy: GivenPolicy,
) -> Admitted:
    """Apply the signature policies to a build of `source`; writes nothing.

    Raises:
        SignatureRefused: the policy forbids it, or the signature is false.
        NamespaceBound: the namespace belongs to another server.
        LogMismatch: as `Heads.check`.
    """
    admission = Admission(library)
    admission.ensure_place_allowed(source.place, release.namespace)
    logged = library.heads.check(source, release)
    provenance = source.provenance(release)
    decision = admission.admit(release, provenance, source.place, asked, policy)
    message = f"`{release.full_name}` {release.manifest.version} {decision.appraisal.message}"

    def arrived() -> None:
        if logged is not None:
            logged.remember()

    return Admitted(
        signature=provenance.signature,
        finding=Finding("W_SIGNATURE" if decision.warns else "N_SIGNATURE", SIGNATURE_FILE, message),
        remember=partial(admission.remember, release, decision, asked),
        arrived=arrived,
    )


@dataclass
class Expecting:
    """A library as a destination for builds that should fit `base`; `added` is the result of the last copy."""

    _library: Library
    _base: BaseRecord | None
    _gate: Gate | None = None
    added: Added | None = None

    @property
    def label(self) -> str:
        """The library in words."""
        return self._library.label

    @contextlib.contextmanager
    def receive(self, release: Release) -> Iterator[Receiver]:
        """See `transfer.Destination`."""
        with self._library.receive(release, self._base) as incoming:
            yield incoming if self._gate is None else _Gated(incoming, release, self._gate)
        self.added = incoming.added


@dataclass(frozen=True, slots=True)
class _Gated:
    """A staging whose files a gate sees before they are published."""

    staging: Staging
    release: Release
    gate: Gate

    def has(self, entry: FileEntry) -> bool:
        return self.staging.has(entry)

    def put(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None = None) -> None:
        self.staging.put(entry, stream, progress)

    def sign(self, signature: bytes) -> bool:
        return self.staging.sign(signature)

    def publish(self) -> None:
        self.gate(self.staging.folder, self.release)
        self.staging.publish()


@contextmanager
def borrowed(
    library: Library, plan: InstallPlan, progress: Progress | None = None, *, signatures: GivenPolicy = None
) -> Iterator[Installed | Path]:
    """Provide the build of a plan: the installed one, or a folder in the library's `tmp` until the block ends.

    The policies of `run_install` apply. The files are hashed while they are fetched; who loads them verifies them.

    Raises:
        SignatureRefused, NamespaceBound: a policy forbids it; nothing was fetched.
        RefusedAdapter, DigestMismatch, RemoteUnreachable, DiskFull: it cannot be fetched whole.
    """
    if plan.present is not None:
        Admission(library).ensure_usable(plan.present, signatures)
        yield plan.present
        return
    admitted = admit(library, plan.release, plan.source, plan.asked, signatures)
    admitted.remember()
    with library.receive(plan.release, plan.wanted.record if plan.wanted else None) as staging:
        copy(plan.release, plan.source, _Lent(staging), progress)
        with library.store.os_errors_as_refusals():
            write_file(staging.folder / MANIFEST_FILE, plan.release.manifest.to_bytes())
        admitted.arrived()
        yield staging.folder


class _Lent:
    """A staging that stays open after a copy and publishes nothing; both ends of `transfer.Destination`."""

    label = "a temporary folder of the library"

    def __init__(self, staging: Staging) -> None:
        self._staging = staging

    @contextmanager
    def receive(self, release: Release) -> Iterator[Receiver]:  # noqa: ARG002 - the Destination protocol
        yield self

    def has(self, entry: FileEntry) -> bool:
        return self._staging.has(entry)

    def put(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None = None) -> None:
        self._staging.put(entry, stream, progress)

    def sign(self, signature: bytes) -> bool:
        raise AssertionError(signature)  # `borrowed` passes none on

    def publish(self) -> None:
        """Nothing: a loan is not installed."""

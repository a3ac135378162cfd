"""Chooses the base of a project and a build for each of its adapters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.core.arguments import path_of
from adapterhub.core.digests import Digest, digest_of
from adapterhub.core.errors import AdapterHubError, BaseNotFound, NoCompatibleRelease, NotFound, no_adapter
from adapterhub.core.specs import AdapterSpec, BaseSpec
from adapterhub.distribution.choosing import candidates_of
from adapterhub.distribution.remote_kinds import kind_named, kind_of
from adapterhub.distribution.resolve import Candidate, Objection, Resolution, resolve
from adapterhub.formats.contract.reader import MAX_BYTES, claims_contract
from adapterhub.formats.manifest import CONFIG_FILE, CONTRACT_FILE
from adapterhub.formats.release import Release
from adapterhub.library.admission import Admission
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.bases.requested import RequestedBase, requested_base
from adapterhub.library.library import Library
from adapterhub.library.transfer import Source
from adapterhub.projects.builds import declared_by
from adapterhub.projects.lock.conflicts import (
    ProjectClash,
    conflict,
    in_two_remotes,
    kept_out,
    left_notice,
    moved_base,
    other_remotes_notice,
    yanked_hint,
)
from adapterhub.projects.lock.lockfile import wanted_text
from adapterhub.projects.values import (
    AdapterRequirement,
    Lock,
    LockedAdapter,
    LockedBase,
    LockedFile,
    LockedSource,
    Project,
    ProjectRemote,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseChoice:
    """The base that adapters have to fit, the base to lock, and whether that differs from the locked one."""

    wanted: RequestedBase | None
    locked: LockedBase | None
    is_new: bool


def base_choice(library: Library, project: Project, previous: Lock | None, *, takes_new: bool) -> BaseChoice:
    """Return the base that `project` names; `takes_new` accepts weights other than the locked ones.

    For a base that is not registered here, the lock's record is used.

    Raises:
        BaseNotFound: no base has that name, and none is locked.
        ProjectConflict: its weights differ from the locked ones.
    """
    old = previous.base if previous else None
    if project.base is None:
        return BaseChoice(wanted=None, locked=None, is_new=previous is not None and old is not None)
    text = str(project.base)
    if old is not None and old.spec != text:
        old = None
    is_new = previous is not None and old is None
    try:
        wanted = requested_base(in_project(project.base, project.folder), library.bases)
    except BaseNotFound as error:
        if old is None or old.weights is None:
            raise BaseNotFound(f"the project is for base `{text}`: {error.message}", hint=error.hint) from None
        wanted = None
    record = wanted.record if wanted else None
    if record is None:
        if old is not None and old.weights is not None:
            return BaseChoice(wanted=RequestedBase(text=text, digest_prefix=old.weights), locked=old, is_new=False)
        hub_id = wanted.hub_id if wanted else None
        return BaseChoice(wanted=wanted, locked=LockedBase(spec=text, hub_id=hub_id), is_new=is_new)
    locked = _locked(text, record)
    if previous is not None and old is not None and old.weights != locked.weights:
        moved = moved_base(old, record, declared_by(library, previous), library.bases.judged)
        if moved is not None and not takes_new:
            raise conflict([moved])
        if moved is None and old.weights is not None:
            return BaseChoice(wanted=wanted, locked=old, is_new=False)  # the same base in another precision
        is_new = True
    return BaseChoice(wanted=wanted, locked=locked, is_new=is_new)


def base_moved_since(library: Library, lock: Lock) -> ProjectClash | None:
    """Return the clash if the locked base's name now stands for other weights in this library.

    Reads no weight files.
    """
    if lock.base is None or (spec := BaseSpec.parse(lock.base.spec)).kind == "path":
        return None  # only hashing the folder could tell
    try:
        record = library.bases.find(spec)
    except AdapterHubError:  # not registered here, or ambiguous: nothing to compare with
        return None
    return moved_base(lock.base, record, declared_by(library, lock), library.bases.judged)


def in_project(base: BaseSpec, folder: Path) -> BaseSpec:
    """Return a base as the project in `folder` means it: paths are relative to that folder."""
    if base.kind != "path":
        return base
    return BaseSpec(kind="path", text=str(folder / path_of(base.text)))


def weights_of(library: Library, project: Project, base: BaseSpec) -> str | None:
    """Return the weights digest of a known base; None if it is not known."""
    try:
        found = requested_base(in_project(base, project.folder), library.bases)
    except AdapterHubError:
        return None
    return found.record.fingerprint.weights if found and found.record else None


def _locked(text: str, record: BaseRecord) -> LockedBase:
    fingerprint = record.fingerprint
    return LockedBase(
        spec=text,
        weights=fingerprint.weights,
        tensors=fingerprint.tensors,
        structure=fingerprint.structure,
        hub_id=record.hints.hub_id,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The build to lock, and warnings as whole sentences."""

    entry: LockedAdapter
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Requirements that every adapter of a project has to fit. `now` is Unix time."""

    library: Library
    project: Project
    base: BaseChoice
    refuse: Objection | None
    now: float

    def spec_of(self, wanted: AdapterRequirement) -> AdapterSpec:
        """Return the requests for the places."""
        return replace(wanted.spec, base=wanted.spec.base or self.project.base)


@dataclass(frozen=True, slots=True)
class _Offer:
    """Offer of one place for one name. `remote` is its name in the project; "" for one of the user's places."""

    source: Source
    remote: str
    releases: Sequence[Release]
    candidates: Sequence[Candidate]


def choose_build(
    asking: Asking,
    wanted: AdapterRequirement,
    sources: Sequence[Source],
    *,
    keep: LockedAdapter | None = None,
    before: LockedAdapter | None = None,
) -> Chosen:
    """Return the build for `wanted` from the first place with a fitting one; `keep` is preferred if it still fits.

    `before` is the build that was locked; a warning says if it was yanked and another one replaces it.

    Raises:
        AdapterNotFound: no place has the name.
        NoCompatibleRelease: one reason per release of every place.
        ProjectConflict: remotes of the project have different bytes for it.
    """
    search = _Search(asking, wanted, sources)
    chosen = (search.first(keep.digest) if keep else None) or search.first(None)
    if chosen is None:
        raise search.refusal()
    return replace(chosen, warnings=(*chosen.warnings, *search.left(before, chosen.entry)))


class _Search:
    """The places of one adapter, each queried at most once."""

    def __init__(self, asking: Asking, wanted: AdapterRequirement, sources: Sequence[Source]) -> None:
        self._asking, self._wanted = asking, wanted
        self._every_source = (*sources, asking.library)
        self._sources = Admission(asking.library).of_places(self._every_source, wanted.spec.namespace)
        self._offers: list[_Offer] = []
        self._yanked: dict[Digest, str] = {}
        base = wanted.spec.base
        self._judged = asking.base.wanted
        if self._judged is None and base is not None:
            self._judged = requested_base(in_project(base, asking.project.folder), asking.library.bases)
        self._spec = asking.spec_of(wanted)

    def first(self, digest: Digest | None) -> Chosen | None:
        """Return the choice of the first place with a fitting build, restricted to `digest` if given."""
        found: list[tuple[_Offer, Resolution]] = []
        by_remote: defaultdict[str, list[Candidate]] = defaultdict(list)
        for offer in self._each():
            # query every remote of the project: different bytes for one release are refused
            if found and (not offer.remote or not found[0][0].remote or digest is not None):
                break
            if offer.remote:
                by_remote[offer.remote] += offer.candidates
            try:
                found.append((offer, self._resolved(offer.candidates, digest)))
            except (NoCompatibleRelease, NotFound):
                continue
        if digest is None and (clash := in_two_remotes(self._wanted, by_remote)):
            raise conflict([clash])
        return self._chosen(*found[0], found[1:]) if found else None

    def refusal(self) -> AdapterHubError:
        """Return why there is no choice."""
        library, wanted = self._asking.library, self._wanted
        everything = {c.digest: c for offer in self._offers for c in offer.candidates}
        if not everything:
            Admission(library).ensure_owner_asked(self._every_source, wanted.spec.namespace)
        if not everything and wanted.remote is not None:
            hint = f'`{wanted.key}` names `remote = "{wanted.remote}"`, so it is not looked up anywhere else'
            return no_adapter(self._spec.full_name, f"remote `{wanted.remote}`", hint=hint)
        if not everything:
            asked = ", ".join(source.label for source in self._sources)
            hint = library.nearest(self._spec.full_name) or (
                f"`adapt search {self._spec.name} --remote NAME` searches a server; name places under `[remotes]` "
                "of the project file or with `adapt remote add`"
            )
            return no_adapter(self._spec.full_name, asked, hint=hint)
        try:
            self._resolved(list(everything.values()), None)
        except NoCompatibleRelease as error:
            hint = kept_out(self._asking.project.policy, wanted, everything.values(), self._asking.now)
            hint = hint or yanked_hint(wanted, everything.values())
            return NoCompatibleRelease(error.summary, error.refusals, hint=hint or error.hint)
        except AdapterHubError as error:
            return error
        raise AssertionError("a release fits all places together but no single one")

    def _each(self) -> Iterator[_Offer]:
        """Yield the builds of the places, in order; empty places are skipped."""
        library, project = self._asking.library, self._asking.project
        for number, source in enumerate(self._sources):
            if number == len(self._offers):
                releases = [one for one in source.releases(self._spec) if self._may_be_from(source, one)]
                candidates = self._with_yanks(candidates_of(library, releases, self._judged, source.label))
                if source is not library:
                    library.saw_yanks(source.place, releases)
                remote = "" if source is library else remote_of(project, source.place)
                self._offers.append(_Offer(source, remote, releases, candidates))
            if self._offers[number].candidates:
                yield self._offers[number]

    def _with_yanks(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates; one that an earlier place has yanked is also yanked here."""
        for one in candidates:
            if one.yanked is not None and not one.strange:
                self._yanked.setdefault(one.digest, one.yanked)
        if not self._yanked:
            return list(candidates)
        return [replace(one, yanked=self._yanked.get(one.digest)) for one in candidates]

    def left(self, before: LockedAdapter | None, now: LockedAdapter) -> list[str]:
        """Return a notice that the build locked before was yanked, if another one replaces it."""
        if before is None or before.digest == now.digest or before.digest not in self._yanked:
            return []
        return [left_notice(before, self._yanked[before.digest], now)]

    def _may_be_from(self, source: Source, release: Release) -> bool:
        """Return whether a build of the library came from the remote that the adapter names, if it names one."""
        library, remote = self._asking.library, self._wanted.remote
        if remote is None or source is not library:
            return True
        origin = library.origins.of(release.digest)
        return origin is not None and remote_of(self._asking.project, origin.place) == remote

    def _resolved(self, candidates: Sequence[Candidate], digest: Digest | None) -> Resolution:
        wanted = self._wanted
        return resolve(
            replace(self._spec, digest_prefix=digest) if digest else self._spec,
            candidates,
            ranks=wanted.ranks,
            allow_base_mismatch=None,
            objection=self._asking.refuse,
            base_given=self._judged is not None,
        )

    def _chosen(self, offer: _Offer, resolution: Resolution, others: Sequence[tuple[_Offer, Resolution]]) -> Chosen:
        elsewhere: dict[str, Candidate] = {}
        for other, theirs in others:
            if other.remote != offer.remote:
                elsewhere.setdefault(other.remote, theirs.chosen)
        notice = other_remotes_notice(self._wanted, (offer.remote, resolution.chosen), elsewhere)
        chosen = resolution.chosen.digest, resolution.chosen.repository
        release = next(r for r in offer.releases if (r.digest, r.repository) == chosen)
        if offer.source is not self._asking.library:
            self._asking.library.heads.check(offer.source, release)
        else:
            place = self._asking.library.folder_for(release.manifest, release.namespace)
            Admission(self._asking.library).ensure_usable(self._asking.library.read_build(place))
        entry = locked_adapter(self._asking.project, self._asking.library, self._wanted, release, offer.source)
        return Chosen(entry=entry, warnings=(*resolution.warnings, *([notice] if notice else [])))


def locked_adapter(
    project: Project, library: Library, wanted: AdapterRequirement, release: Release, source: Source
) -> LockedAdapter:
    """Return a build of `source` as a lock entry."""
    manifest = release.manifest
    fingerprint = manifest.base.fingerprint
    return LockedAdapter(
        key=wanted.key,
        wanted=wanted_text(wanted),
        name=release.full_name,
        version=manifest.version,
        digest=manifest.digest,
        base=fingerprint.weights if fingerprint else None,
        rank=manifest.rank,
        source=locked_source(project, library, release, source),
        files=LockedFile.all_of(manifest),
        group=wanted.group,
        contract=_contract_of(release, source) if project.policy.looks_at_tests else None,
    )


def _contract_of(release: Release, source: Source) -> Digest | None:
    """Return the digest of the build's behaviour contract; None without one. An `evals.jsonl` may be something else."""
    entry = release.manifest.file(CONTRACT_FILE)
    if entry is None or entry.size_bytes > MAX_BYTES:
        return None
    with source.open(release, entry) as stream:
        raw = stream.read(entry.size_bytes + 1)
    return entry.sha256 if digest_of(raw) == entry.sha256 and claims_contract(raw) else None


def locked_source(project: Project, library: Library, release: Release, source: Source) -> LockedSource:
    """Describe the place where a build of `source` is available, in words that mean the same on every machine.

    A build of the library comes from where the library got it, as long as others can reach that place.
    """
    place, is_library = source.place, source is library
    if is_library:
        origin = library.origins.of(release.digest)
        if origin is None:
            return LockedSource()
        place = origin.place
    kind = kind_of(place)
    if is_library and not kind.is_server and (Path(place) / CONFIG_FILE).is_file():
        return LockedSource()  # a folder that was added has no manifest, so the build cannot be had from it
    remote = next((one for one in project.remotes if _is_at(project, one, place)), None)
    address = remote.address if remote else kind.address_of(place, project.folder)
    if not address:
        return LockedSource()
    pin = {} if is_library else kind.pin(source, release)
    return LockedSource(remote=remote.name if remote else "", kind=kind.name, address=address, pin=pin)


def remote_of(project: Project, place: str) -> str:
    """Return the project's name for a place as `Source.place` writes it; "" when the project does not name it."""
    return next((remote.name for remote in project.remotes if _is_at(project, remote, place)), "")


def _is_at(project: Project, remote: ProjectRemote, place: str) -> bool:
    return kind_named(remote.kind).is_at(remote.address, place, project.folder)

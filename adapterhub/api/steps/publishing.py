"""Publish: push to a server or a directory, pull plain files, copy between two servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.steps.contracts.stating import contract_line, sign_results
from adapterhub.api.steps.finding import choose_release
from adapterhub.api.steps.keys import sign_build
from adapterhub.core.arguments import path_of
from adapterhub.core.errors import NotAllowed, NotFound, UsageProblem, problem_list, shown
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec, BaseSpec, names_folder, parse_namespace
from adapterhub.distribution.mirroring import MirrorPlan, RepositoryPattern, plan_mirror, yank_copies
from adapterhub.distribution.moving import exact_at
from adapterhub.formats.release import Release
from adapterhub.library.admission.admission import Admission
from adapterhub.library.intake.statements import files_in
from adapterhub.library.remotes import OCI, kind_in
from adapterhub.library.results import ResultFiles, results_at
from adapterhub.library.store.origins import is_url
from adapterhub.library.transfer import Copied, copy, publishable
from adapterhub.projects.session import hub_of, wanted_from

if TYPE_CHECKING:
    from adapterhub.api.steps.contracts.gating import ContractGate
    from adapterhub.distribution.hub import Hub
    from adapterhub.distribution.resolve import Objection
    from adapterhub.formats.cards.card import Card
    from adapterhub.formats.manifest import Manifest
    from adapterhub.library.library import Library
    from adapterhub.library.remotes import Remote
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.transfer import Destination, Source
    from adapterhub.projects.reporting import Bars
    from adapterhub.projects.session import Session
    from adapterhub.trust.signing.keys import SigningKey
    from adapterhub.trust.signing.policy import SignaturePolicy


# ---------------------------------------------------------------- push
@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a push sent, and where to."""

    release: Release
    place: Destination
    copied: Copied
    is_signed: bool

    @property
    def url(self) -> str:
        """The commit on a server, "" for a directory."""
        return getattr(self.place, "commit_url", "")


def push_build(
    session: Session,
    build: Installed,
    to: str,
    *,
    signer: SigningKey | None = None,
    private: bool = False,
    remote: str | None = None,
    token: str | None = None,
    offline: bool = False,
    gate: ContractGate | None = None,
    bars: Bars,
) -> Pushed:
    """Send an installed build to the repository or the directory `to`; with `signer`, sign it first.

    Raises:
        SignatureRefused, NamespaceBound: it may not be used here, so it is not passed on either.
        BehaviourChanged, CouldNotTell: `gate` does not let it out; nothing was sent.
    """
    from adapterhub.distribution.hub import HubRepository

    library = session.library
    release = publishable(release_of(library, build))
    if signer is not None:
        sign_build(library, build, build.namespace or _namespace_in(to), signer)
    Admission(library).ensure_usable(build)
    signature = library.provenance(release).signature
    place = place_for(session, to, private=private, remote=remote, token=token, offline=offline)
    if signer is not None and isinstance(place, HubRepository):
        place.signs_again = True
    for note in card_at(place, release, build.folder).notes:
        session.out.note(note)
    if gate is not None:
        gate.before_sending(build)
        if signer is not None:
            sign_results(library, build, gate.results, signer)
    results = ResultFiles.of_library(library.store, release.digest).current(build.full_name)
    made = files_in(library.store, release.digest).read()
    with bars.progress(f"push {build.full_name}", build.manifest.size_bytes) as progress:
        copied = copy(release, library, place, progress, signature=signature, results=results, statements=made)
    _tell_refused(session, place)
    if gate is None:
        session.out.note(contract_line(library, build))
    return Pushed(release=release, place=place, copied=copied, is_signed=signature is not None)


def _namespace_in(to: str) -> str | None:
    """The namespace that a build gets at the place `to`: the word before the name of the repository."""
    words = to.partition("://")[2].split("/")[1:] if is_url(to) else to.split("/")
    return None if names_folder(to) or len(words) < 2 else words[-2]  # noqa: PLR2004 - a namespace and a name


def push_results(
    session: Session,
    build: Installed,
    to: str,
    *,
    remote: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> int:
    """Send the signed results on an installed build to the repository that has it; returns how many it has taken.

    Raises:
        NotFound: no result was signed here.
        UsageProblem: `to` is a directory, or a server that keeps no results.
        NotAllowed: the server takes none of them; each reason is listed.
    """
    if names_folder(to) or is_url(to):
        kind = "an image" if is_url(to) else "a directory"
        raise UsageProblem(f"`{shown(to)}` is {kind}", hint="`adapt push` without `--results` copies results, too")
    results = ResultFiles.of_library(session.library.store, build.manifest.digest).current(build.full_name)
    if not results:
        raise NotFound(
            f"there is no signed result on {build.full_name} {build.manifest.label}. Nothing was sent",
            hint=f"`adapt test {build.full_name} --sign --key NAME` makes one",
        )
    hub = server_for(session, to, remote, token=token, offline=offline)
    if not hub.keeps_results:
        raise UsageProblem(f"{hub.endpoint} keeps no signed results of tests. Nothing was sent")
    place = hub.to(to)
    count = place.send_results(build.manifest, results)
    if not count:
        raise NotAllowed(problem_list(f"{place.label} takes none of the results", place.refused_results))
    _tell_refused(session, place)
    return count


def _tell_refused(session: Session, place: Destination) -> None:
    for reason in getattr(place, "refused_results", ()):
        session.out.warn(f"a signed result was not taken: {reason}")


def release_of(library: Library, build: Installed) -> Release:
    """The release that `push` publishes of an installed build, with the Hub id that its base has here."""
    return Release(
        manifest=build.manifest,
        namespace=build.namespace,
        origin=library.label,
        base_hub_id=library.bases.hub_id_of(build.base),
    )


def place_for(
    session: Session,
    to: str,
    *,
    private: bool = False,
    remote: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Destination:
    """The directory or the repository `to`; no request is sent."""
    if names_folder(to):
        from adapterhub.library.directory import PublishedDirectory

        return PublishedDirectory(path_of(to))
    there, repository = _registry_of(session, to, remote) if is_url(to) else (_remote_for(session, to, remote), to)
    opened = session.named_source(there, remote or there.name or there.url, token=token, offline=offline)
    if there.kind == OCI:
        from adapterhub.distribution.oci import OciRegistry

        if private:
            raise UsageProblem("an OCI registry itself decides who may read a repository; leave out `--private`")
        assert isinstance(opened, OciRegistry)
        return opened.to(repository)
    return hub_of(opened).to(repository, private=private)


def _registry_of(session: Session, to: str, remote: str | None) -> tuple[Remote, str]:
    """The remote and the repository of `oci://HOST/REPOSITORY[:TAG]`: the remote that has the longest part of it."""
    host, _, path = to.removeprefix(f"{OCI}://").partition("/")
    if kind_in(to) != OCI or not path or remote:
        raise UsageProblem(
            f"`{shown(to)}` is no place to push to: expected `org/repo` with `--remote`, `oci://host/repo[:tag]` "
            "without, or a directory"
        )
    known = [one for one in session.remotes.all() if one.kind == OCI and to.startswith(f"{one.url}/")]
    found = max(known, key=lambda one: len(one.url), default=None) or session.remotes.get(f"{OCI}://{host}")
    return found, to[len(found.url) + 1 :] if to.startswith(f"{found.url}/") else path


def card_at(place: Destination, release: Release, folder: Path) -> Card:
    """The card of a release as `place` would show it; `folder` has its files.

    Raises:
        Malformed: a server would refuse its metadata.
    """
    from adapterhub.distribution.hub import HubRepository
    from adapterhub.formats.cards.card import make_card
    from adapterhub.formats.cards.widget import contract_shown

    contract = contract_shown(folder)
    if isinstance(place, HubRepository):
        return place.card_of(release, contract)
    return make_card(release.manifest, base_hub_id=release.base_hub_id, contract=contract)


def tag_at(place: Destination, manifest: Manifest) -> str:
    """The tag that a build gets at a place."""
    from adapterhub.distribution.hub import version_tag
    from adapterhub.distribution.oci import OciRepository

    return place.tag_for(manifest) if isinstance(place, OciRepository) else version_tag(manifest)


def _remote_for(session: Session, to: str, remote: str | None) -> Remote:
    """The remote that `--remote` names, else that of the namespace, else the default one."""
    owners = [] if remote else session.remotes.of_namespace(to.partition("/")[0])
    return owners[0] if owners else session.remote(remote)


def server_for(session: Session, to: str, remote: str | None, *, token: str | None, offline: bool) -> Hub:
    """The server of `--remote`, else that of the namespace, else the default remote."""
    found = _remote_for(session, to, remote)
    return hub_of(session.named_source(found, remote or found.name, token=token, offline=offline))


def server_of(session: Session, spec: AdapterSpec, remote: str | None, *, token: str | None, offline: bool) -> Hub:
    """The server of `--remote`, else that of the spec's namespace.

    Raises:
        UsageProblem: the spec names no namespace.
    """
    if spec.namespace is None:
        raise UsageProblem(
            f"`{spec}` names no namespace. Nothing was changed", hint=f"name it in full, as in `acme/{spec}`"
        )
    return server_for(session, spec.full_name, remote, token=token, offline=offline)


# ---------------------------------------------------------------- pull
@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What a pull wrote, and which release it is."""

    release: Release
    copied: Copied


def pull_release(
    session: Session,
    spec: AdapterSpec,
    folder: Path,
    *,
    base: BaseSpec | None = None,
    bounds: RankRange = ANY_RANK,
    objection: Objection | None = None,
    signatures: SignaturePolicy | None = None,
    remote: str | None = None,
    token: str | None = None,
    offline: bool = False,
    bars: Bars,
) -> Pulled:
    """Write the plain files of a build, of the library or of a server, to a new folder, checked as an install is."""
    from adapterhub.distribution.install import admit, asked_of
    from adapterhub.library.admission.admission import Admission
    from adapterhub.library.directory import BuildFolder
    from adapterhub.projects.places import SpecSources

    library = session.library
    sources: list[Source] = [] if remote else [library]
    if not offline:
        sources += session.sources_of(spec, remote, token=token)
    spec, _ = exact_at(library, spec, sources)
    wanted = wanted_from(library, spec, base)
    release, source, _ = choose_release(
        session, library, spec, sources, wanted=wanted, bounds=bounds, objection=objection
    )
    if source is library:
        Admission(library).ensure_usable(
            library.read_build(library.folder_for(release.manifest, release.namespace)), signatures
        )
        signature = library.provenance(release).signature
    else:
        asked = asked_of(library, spec, release, wanted, bounds)
        policy = signatures or SpecSources(session, (), remote=remote, token=token, offline=offline).policy_of(source)
        admitted = admit(library, release, source, asked, policy)
        admitted.remember()
        signature = admitted.signature
        if admitted.finding.severity == "warning":
            session.out.warn(f"[{admitted.finding.code}] {admitted.finding.message}")
    with bars.progress(f"pull {release.full_name}", release.manifest.size_bytes) as progress:
        copied = copy(release, source, BuildFolder(folder), progress, signature=signature)
    return Pulled(release=release, copied=copied)


# ---------------------------------------------------------------- mirror
@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """One build that was or would be copied between two servers; `copied` is None for a preview.

    `size_bytes` is None, and `digest` may be, where two listings already show that the build is there.
    """

    name: str
    version: str
    digest: str | None
    size_bytes: int | None
    origin: str
    commit: str
    to: str
    copied: Copied | None


def mirror_releases(
    session: Session,
    specs: Sequence[AdapterSpec | RepositoryPattern],
    *,
    origin: str,
    target: str,
    namespace: str | None = None,
    base: BaseSpec | None = None,
    bounds: RankRange = ANY_RANK,
    private: bool = False,
    tests: bool = False,
    dry_run: bool = False,
    ignore_bindings: bool = False,
    bars: Bars,
) -> Iterator[Mirrored]:
    """Copy each of `specs` from the server `origin` to the server `target`, one after the other.

    A pattern copies every released version that the target lacks and that is not yanked. A copy of what is yanked is
    yanked, too; aliases stay behind. With `tests`, signed results go along, also on versions that the target has.

    Raises:
        UsageProblem: both are one server, or a pattern comes with a base or rank.
        NamespaceBound: a namespace belongs to another remote, before anything is asked.
    """
    there, here = session.remote(origin), session.remote(target)
    if there.url == here.url:
        raise UsageProblem(f"`--from` and `--to` are both {there.url}")
    if namespace is not None:
        parse_namespace(namespace)
    library = session.library
    if not ignore_bindings:
        _check_bindings(library, specs, namespace, there.url, here.url)
    if (base is not None or bounds != ANY_RANK) and any(isinstance(spec, RepositoryPattern) for spec in specs):
        raise UsageProblem("a pattern copies builds of every base and rank; leave out the base and the rank")
    source_hub, target_hub = session.hub(there), session.hub(here)

    def send(release: Release, source: Source, to: str) -> Copied | None:
        if dry_run:
            return None
        with bars.progress(f"mirror {release.full_name}", release.manifest.size_bytes) as progress:
            signature = source.provenance(release).signature
            to_repository = target_hub.to(to, private=private, mends=True)
            results = results_at(source, release) if tests else ()
            copied = copy(publishable(release), source, to_repository, progress, signature=signature, results=results)
        _tell_refused(session, to_repository)
        return copied

    if not source_hub.is_public_hub:
        session.note_once("aliases stay behind; `adapt alias set NAME SPEC --remote SERVER` sets one where you need it")
    for spec in specs:
        if isinstance(spec, RepositoryPattern):
            plan = plan_mirror(spec, source_hub, target_hub, namespace)
            for repo, to in plan.yanked:
                yank_copies(source_hub, repo, target_hub, to, session.out.note, dry_run=dry_run)
            yield from _mirror_pattern(plan, source_hub, target_hub, send, tests=tests, dry_run=dry_run)
            continue
        sources: list[Source] = [source_hub] if spec.namespace else [source_hub.within(n) for n in there.namespaces]
        wanted = wanted_from(library, spec, base)
        release, source, _ = choose_release(
            session, library, spec, sources, wanted=wanted, bounds=bounds, ignore_bindings=ignore_bindings
        )
        repo, commit = source_hub.repository_of(release)
        to = f"{namespace}/{repo.partition('/')[2]}" if namespace else repo
        copied = send(release, source, to)
        yank_copies(source_hub, repo, target_hub, to, session.out.note, dry_run=dry_run)
        yield _mirrored(release, f"{there.url}/{repo}", commit, f"{here.url}/{to}", copied)


def _mirrored(release: Release, origin: str, commit: str, to: str, copied: Copied | None) -> Mirrored:
    manifest = release.manifest
    return Mirrored(
        name=release.full_name,
        version=manifest.version,
        digest=release.digest,
        size_bytes=manifest.size_bytes,
        origin=origin,
        commit=commit,
        to=to,
        copied=copied,
    )


def _mirror_pattern(
    plan: MirrorPlan,
    source: Hub,
    target: Hub,
    send: Callable[[Release, Source, str], Copied | None],
    *,
    tests: bool,
    dry_run: bool,
) -> Iterator[Mirrored]:
    for planned in plan.releases:
        if planned.is_there and dry_run:
            continue
        one = planned.release
        origin_url, to_url = f"{source.endpoint}/{one.repo}", f"{target.endpoint}/{planned.to}"
        if (tests or not planned.is_there) and not dry_run:
            found = source.release_at(one.repo, one.commit, planned.spec)
            if found is not None:  # else the tag is on something other than an adapter
                yield _mirrored(found, origin_url, one.commit, to_url, send(found, source, planned.to))
            continue
        yield Mirrored(
            name=f"{planned.spec.namespace}/{planned.spec.name}",
            version=one.version,
            digest=planned.digest,
            size_bytes=None,
            origin=origin_url,
            commit=one.commit,
            to=to_url,
            copied=Copied(sent_files=0, sent_bytes=0, present_files=0) if planned.is_there else None,
        )


def _check_bindings(
    library: Library, specs: Sequence[AdapterSpec | RepositoryPattern], namespace: str | None, there: str, here: str
) -> None:
    """Raise before any query if a namespace would be read or written at another server than the user gave it to.

    Raises:
        NamespaceBound: the message names both servers.
    """
    admission = Admission(library)
    hint = "`--ignore-bindings` copies it anyway"
    for spec in specs:
        admission.ensure_place_allowed(there, spec.namespace, hint=hint)
    admission.ensure_place_allowed(here, namespace, hint=hint)

"""Publish: push to a server or a directory, pull plain files, copy between two servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from adapterhub.api.steps.finding import choose_release
from adapterhub.core.digests import Digest
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec, BaseSpec, parse_namespace
from adapterhub.distribution.choosing import exact_at
from adapterhub.distribution.mirroring import MirrorPlan, RepositoryPattern, plan_mirror, yank_copies
from adapterhub.formats.documented import Documented
from adapterhub.formats.release import Release
from adapterhub.formats.treelog import witness_key
from adapterhub.library.admission import Admission
from adapterhub.library.remotes import HUB_NAME, HUB_URL
from adapterhub.library.results import results_at
from adapterhub.library.transfer import Copied, copy, publishable
from adapterhub.projects.session import hub_of, wanted_from

if TYPE_CHECKING:
    from adapterhub.distribution.hub import Hub
    from adapterhub.distribution.resolve import Objection
    from adapterhub.library.library import Library
    from adapterhub.library.remotes import Remote
    from adapterhub.library.transfer import Destination, Source
    from adapterhub.projects.session import Session
    from adapterhub.trust.signing.policy import SignaturePolicy

JOB_TOKEN_S: Final = 600.0
"""How long a mirror uses the token that a job got for a repository, which lasts for 15 minutes."""


# ---------------------------------------------------------------- servers
def remote_for(session: Session, to: str, remote: str | None) -> Remote:
    """Return the remote that `--remote` names, or that of the namespace, or the default one."""
    owners = [] if remote else session.remotes.of_namespace(to.partition("/")[0])
    return owners[0] if owners else session.remote(remote)


def job_token(session: Session, place: Remote, named: str, repository: str) -> str | None:
    """Return a token for one repository by the identity of this job in a CI.

    None outside of one, or where a token is known.

    Raises:
        NotAllowed: the server does not trust this job.
    """
    if place.kind != HUB_NAME or place.url == HUB_URL or session.has_token(place, named):
        return None
    from adapterhub.distribution.hub.identity import publish_token

    return publish_token(place.url, repository, session.variables)


def opened_to_write(
    session: Session,
    place: Remote,
    named: str,
    repository: str,
    *,
    token: str | None,
    offline: bool,
    sends: bool = True,
) -> Source:
    """Open a remote, called `named`, to write to one repository: in a job of a CI without a token by its identity.

    Unless something `sends`, no request is made.

    Raises:
        NotAllowed: as `job_token`.
    """
    if sends and not offline:
        token = token or job_token(session, place, named, repository)
    return session.named_source(place, named, token=token, offline=offline)


@dataclass
class MirrorTarget:
    """The server that a mirror writes to, called `named`. A preview asks for no token of a job."""

    session: Session
    place: Remote
    named: str
    is_preview: bool
    _opened: dict[str, tuple[float, Hub]] = field(default_factory=dict)

    @cached_property
    def hub(self) -> Hub:
        """The server with the token that is kept for it, or with none."""
        return self.session.hub(self.place)

    def of(self, repository: str) -> Hub:
        """Return the server to write to one repository: in a job of a CI without a token by its identity."""
        if self.is_preview:
            return self.hub
        until, hub = self._opened.get(repository, (0.0, self.hub))
        if time.monotonic() >= until:
            token = job_token(self.session, self.place, self.named, repository)
            hub = self.session.hub(self.place, token=token) if token else self.hub
            self._opened[repository] = time.monotonic() + JOB_TOKEN_S, hub
        return hub


def server_for(session: Session, to: str, remote: str | None, *, token: str | None, offline: bool) -> Hub:
    """Return the server of `--remote`, or that of the namespace, or the default remote."""
    found = remote_for(session, to, remote)
    return hub_of(session.named_source(found, remote or found.name, token=token, offline=offline))


def server_of(session: Session, spec: AdapterSpec, remote: str | None, *, token: str | None, offline: bool) -> Hub:
    """Return the server of `--remote`, or that of the spec's namespace.

    Raises:
        UsageProblem: the spec names no namespace.
    """
    if spec.namespace is None:
        raise UsageProblem(
            f"`{spec}` names no namespace. Nothing was changed", hint=f"name it in full, as in `acme/{spec}`"
        )
    return server_for(session, spec.full_name, remote, token=token, offline=offline)


def tell_refused(session: Session, place: Destination) -> None:
    """Warn of the signed results that a place did not take."""
    for reason in getattr(place, "refused_results", ()):
        session.out.warn(f"a signed result was not taken: {reason}")


# ---------------------------------------------------------------- pull
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Pulled(
    Documented,
    keys="name=release.full_name version=release.manifest.version digest=release.digest source=release.origin"
    " path=folder sent_files=copied.sent_files sent_bytes=copied.sent_bytes",
):
    """A build whose files were written to a folder."""

    release: Release
    folder: Annotated[Path, "a path on this machine"]
    copied: Copied

    def __repr__(self) -> str:
        what = f"{self.release.full_name} {self.release.manifest.version}"
        return f"<Pulled {what} to {self.folder}, {self.copied.sent_files} files>"


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
) -> Pulled:
    """Write the plain files of a build, of the library or of a server, to a new folder, checked as an install is."""
    from adapterhub.distribution.install import admit, asked_of
    from adapterhub.library.directory import BuildFolder
    from adapterhub.projects.places import SpecSources, Where

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
        policy = signatures or SpecSources(session, Where(remote=remote, token=token, offline=offline)).policy_of(
            source
        )
        admitted = admit(library, release, source, asked, policy)
        admitted.remember()
        signature = admitted.signature
        if admitted.finding.severity == "warning":
            session.out.warn(f"[{admitted.finding.code}] {admitted.finding.message}")
    with session.out.progress(f"pull {release.full_name}", release.manifest.size_bytes) as progress:
        copied = copy(release, source, BuildFolder(folder), progress, signature=signature)
    return Pulled(release=release, folder=folder, copied=copied)


# ---------------------------------------------------------------- mirror
@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored(Documented, keys="name version digest from=origin commit to size_bytes created? sent_bytes?"):
    """A build that was copied to another server, or would be."""

    name: str
    version: str
    digest: Annotated[Digest | None, "null where the listings of a pattern do not name it"]
    size_bytes: Annotated[int | None, "null for a build of a pattern that was not copied"]
    origin: str
    commit: str
    to: str
    copied: Copied | None

    @property
    def created(self) -> bool | None:
        """False: it existed already; left out of a preview."""
        return None if self.copied is None else self.copied.sent_files > 0

    @property
    def sent_bytes(self) -> int | None:
        """Left out of a preview."""
        return None if self.copied is None else self.copied.sent_bytes


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
    witness: bool = False,
    dry_run: bool = False,
    ignore_bindings: bool = False,
) -> Iterator[Mirrored]:
    """Copy each of `specs` from the server `origin` to the server `target`, one after the other.

    A pattern copies every released version that the target lacks and that is not yanked. A copy of a yanked version is
    yanked as well; aliases are not copied. With `tests`, signed results are copied, also on versions that the target
    has.

    Each is looked up in the log of `origin`, whose head is kept once the copy is there. A `witness` co-signs the heads.

    Raises:
        LogMismatch: the log of `origin` has another past than was seen, or another release; it was not copied.
        UsageProblem: both are one server, or a pattern comes with a base or rank.
        NamespaceBound: a namespace belongs to another remote, before anything is asked.
    """
    there, here, signs = session.remote(origin), session.remote(target), witness and not dry_run
    if there.url == here.url:
        raise UsageProblem(
            f"`--from` and `--to` are both {there.url}",
            hint="name two different servers; `adapt remote list` shows them",
        )
    library = session.library
    namespace = None if namespace is None else parse_namespace(namespace)
    if not ignore_bindings:
        _check_bindings(library, specs, namespace, there.url, here.url)
    if (base is not None or bounds != ANY_RANK) and any(isinstance(spec, RepositoryPattern) for spec in specs):
        raise UsageProblem("a pattern copies builds of every base and rank; leave out the base and the rank")
    source_hub, targets = session.hub(there), MirrorTarget(session, here, target, is_preview=dry_run)

    def send(release: Release, source: Source, to: str) -> Copied | None:
        if dry_run:
            return None
        with session.out.progress(f"mirror {release.full_name}", release.manifest.size_bytes) as progress:
            logged = library.heads.check(source, release)
            signature = source.provenance(release).signature
            to_repository = targets.of(to).to(to, private=private, mends=True)
            results = results_at(source, release) if tests else ()
            copied = copy(publishable(release), source, to_repository, progress, signature=signature, results=results)
        tell_refused(session, to_repository)
        if logged is not None:
            logged.remember()
        return copied

    if not source_hub.is_public_hub:
        session.note_once("aliases stay behind; `adapt alias set NAME SPEC --remote SERVER` sets one where you need it")
    seen: set[str] = set()
    for spec in specs:
        if isinstance(spec, RepositoryPattern):
            plan = plan_mirror(spec, source_hub, targets.hub, namespace)
            for repo, to in plan.yanked:
                yank_copies(source_hub, repo, targets.of(to), to, session.out.note, dry_run=dry_run)
            seen |= {planned.release.repo for planned in plan.releases}
            yield from _mirror_pattern(plan, source_hub, targets.hub, send, tests=tests, dry_run=dry_run)
            continue
        sources: list[Source] = [source_hub] if spec.namespace else [source_hub.within(n) for n in there.namespaces]
        wanted = wanted_from(library, spec, base)
        release, source, _ = choose_release(
            session, library, spec, sources, wanted=wanted, bounds=bounds, ignore_bindings=ignore_bindings
        )
        repo, commit = source_hub.repository_of(release)
        seen.add(repo)
        to = f"{namespace}/{repo.partition('/')[2]}" if namespace else repo
        copied = send(release, source, to)
        yank_copies(source_hub, repo, targets.of(to), to, session.out.note, dry_run=dry_run)
        yield _mirrored(release, f"{there.url}/{repo}", commit, f"{here.url}/{to}", copied)
    if signs:
        _cosign(session, library, source_hub, sorted(seen))


def _cosign(session: Session, library: Library, source: Hub, repos: Sequence[str]) -> None:
    """Co-sign the logs of some repositories of a server."""
    signer = library.heads.witness()
    session.out.note(f"the key of this witness is {witness_key(signer.seed)}")
    for log in source.cosign(signer, repos, library.heads):
        session.out.note(f"co-signed the log `{shown(log, 200)}` of {source.endpoint}")


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

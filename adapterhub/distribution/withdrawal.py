"""Withdraws releases from a server: yanks a version, takes that back, deletes a version or a repository."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import (
    SEARCH_THERE,
    AdapterHubError,
    AdapterNotFound,
    AmbiguousSpec,
    UsageProblem,
    no_adapter,
    shown,
)
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import candidates_of
from adapterhub.distribution.kinds.hub import hub_behind
from adapterhub.distribution.resolve import resolve
from adapterhub.formats.documented import Documented
from adapterhub.library.admission import Admission
from adapterhub.library.bases.requested import RequestedBase
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.store.origins import address_in
from adapterhub.library.transfer import Source

if TYPE_CHECKING:
    from adapterhub.distribution.hub import Hub, PublishedVersion

MAX_REASON_CHARACTERS: Final = 500
NO_REASON: Final = "no reason given"
_LISTED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Withdrawn(Documented, keys="server repo versions yanked done=is_done"):
    """What was withdrawn from a repository of `server`, or would be.

    `versions` are yanked, not yanked any more, or deleted; a repository that is deleted has all of its versions here.
    `yanked` is the reason of a yank, None after `yank --undo` and `delete`. `is_done` is False for a preview, and where
    there was nothing to do.
    """

    server: str
    repo: str
    versions: Annotated[tuple[str, ...], "the version; all of them for a repository that is deleted"]
    yanked: Annotated[str | None, "the reason of the yank; null after `yank --undo` and `delete`"] = None
    is_done: Annotated[bool, "false: a preview, or nothing was to be done"] = False

    def __repr__(self) -> str:
        what = f"yanked: {self.yanked}" if self.yanked is not None else "done" if self.is_done else "nothing done"
        return f"<Withdrawn {self.repo} {', '.join(self.versions)}, {what}>"


# ---------------------------------------------------------------- withdraw
def yank(
    hub: Hub, library: Library, spec: AdapterSpec, wanted: RequestedBase | None, reason: str, *, dry_run: bool = False
) -> Withdrawn:
    """Yank the version that `spec` names: nothing new installs it, and what is locked goes on. Again: a new reason.

    Raises:
        As `find_version`.
        UsageProblem: the reason has more than 500 characters or a control character.
        NotAllowed: the token may not write to the repository.
    """
    reason = parse_reason(reason)
    found = find_version(hub, library, spec, wanted)
    is_new = found.yanked != reason and not dry_run
    if is_new:
        hub.withdrawal.yank(found.repo, found.version or "", reason)
    return Withdrawn(
        server=hub.endpoint, repo=found.repo, versions=(found.version or "",), yanked=reason, is_done=is_new
    )


def unyank(
    hub: Hub, library: Library, spec: AdapterSpec, wanted: RequestedBase | None, *, dry_run: bool = False
) -> Withdrawn:
    """Take the yank of a version back; raises the errors of `yank`."""
    found = find_version(hub, library, spec, wanted)
    is_new = found.yanked is not None and not dry_run
    if is_new:
        hub.withdrawal.unyank(found.repo, found.version or "")
    return Withdrawn(server=hub.endpoint, repo=found.repo, versions=(found.version or "",), is_done=is_new)


def plan_deletion(hub: Hub, library: Library, spec: AdapterSpec, wanted: RequestedBase | None) -> Withdrawn:
    """Return the target of `delete`: the version that `spec` names, or without one the repository of that name.

    Raises:
        As `find_version`.
        AdapterNotFound: there is no such repository.
    """
    if spec.is_exact:
        found = find_version(hub, library, spec, wanted)
        return Withdrawn(server=hub.endpoint, repo=found.repo, versions=(found.version or "",))
    if spec.specifiers or spec.base is not None:
        raise UsageProblem(
            f"`{spec}` names neither one version nor a repository. Nothing was deleted",
            hint=f"`adapt delete '{spec.full_name}==VERSION'` deletes a version, `adapt delete ORG/REPO` a repository",
        )
    versions = tuple(one.version or "" for one in hub.versions(spec.full_name))
    return Withdrawn(server=hub.endpoint, repo=spec.full_name, versions=versions)


def delete(hub: Hub, spec: AdapterSpec, plan: Withdrawn) -> Withdrawn:
    """Carry out a plan of `plan_deletion` for `spec`.

    Raises:
        NotAllowed: the token may not delete it.
    """
    if spec.is_exact:
        hub.withdrawal.delete_version(plan.repo, plan.versions[0])
    else:
        hub.withdrawal.delete_repository(plan.repo)
    return Withdrawn(server=plan.server, repo=plan.repo, versions=plan.versions, is_done=True)


def parse_reason(text: str) -> str:
    """Return a reason as servers take it.

    Raises:
        UsageProblem: it has more than 500 characters or a control character.
    """
    text = text.strip() or NO_REASON
    if len(text) > MAX_REASON_CHARACTERS:
        raise UsageProblem(f"the reason has {len(text)} characters, expected at most {MAX_REASON_CHARACTERS}")
    if not text.isprintable():
        raise UsageProblem(f"the reason `{shown(text)}` has a control character, expected one line of plain text")
    return text


def find_version(hub: Hub, library: Library, spec: AdapterSpec, wanted: RequestedBase | None) -> PublishedVersion:
    """Return the published version that `spec` names: by the name of its repository, or by the name of the adapter.

    Raises:
        UsageProblem: it names not one version.
        AmbiguousSpec: several repositories have a build of this version.
        AdapterNotFound, NoCompatibleRelease: there is none.
    """
    here = _versions(hub, spec.full_name)
    if not spec.is_exact:
        known = [f"`=={one.version}`" for one in here[:_LISTED]]
        raise UsageProblem(
            f"`{spec}` names no version. Nothing was changed",
            hint=f"name one, as in `{spec.full_name}=={here[0].version}`; it has {', '.join(known)}"
            if known
            else f"name one, as in `{spec.full_name}==1.0.0`",
        )
    same = [one for one in here if _is_named(one, spec)]
    if same and spec.base is None:
        return same[0]
    releases = [one for one in hub.releases(spec) if spec.matches(one.manifest.version)]
    if spec.digest_prefix is not None:
        releases = [one for one in releases if one.digest.startswith(spec.digest_prefix)]
    if spec.base is not None and releases:
        chosen = resolve(
            spec, candidates_of(library, releases, wanted, hub.label), base_given=wanted is not None
        ).chosen
        releases = [one for one in releases if (one.digest, one.repository) == (chosen.digest, chosen.repository)]
    places = dict.fromkeys(hub.repository_of(release) for release in releases)
    if len(places) > 1:
        version = releases[0].manifest.version
        raise AmbiguousSpec(
            f"{len(places)} repositories have `{spec}`; name one",
            [(f"{repo}=={version}", f"commit {commit[:12]}") for repo, commit in places],
        )
    for repo, commit in places:
        for one in _versions(hub, repo):
            if one.commit == commit:
                return one
    others = ", ".join(str(one.version) for one in here[:_LISTED])
    raise no_adapter(spec, hub.label, hint=f"`{spec.full_name}` has {others}" if others else SEARCH_THERE)


def _versions(hub: Hub, repo: str) -> list[PublishedVersion]:
    try:
        return hub.versions(repo)
    except AdapterNotFound:
        return []


def _is_named(one: PublishedVersion, spec: AdapterSpec) -> bool:
    is_asked = spec.matches(one.version or "")
    return is_asked and (spec.digest_prefix is None or (one.digest or "").startswith(spec.digest_prefix))


_SERVERS_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """A build that this library has from a server; `repository` is "" if it is not known."""

    digest: Digest
    spec: AdapterSpec
    place: str
    repository: str = ""

    @property
    def address(self) -> str:
        """Whose word on the build counts."""
        return address_in(self.place, self.repository)


FindSource = Callable[[str], "Source | None"]
"""Returns the server at a URL; None if it may not be asked. It may raise."""


def withdrawn_builds(
    library: Library, builds: Iterable[Installed], find_source: FindSource | None
) -> dict[Digest, str]:
    """Return the same as `withdrawn`, for installed builds; those that came from no server are passed over."""
    here = []
    for build in builds:
        origin = library.origins.under(build.manifest.digest, build.full_name)
        if origin is not None and origin.is_server:
            spec = AdapterSpec.parse(f"{build.full_name}=={build.manifest.version}")
            digest, repository = build.manifest.digest, origin.repository
            here.append(Here(digest=digest, spec=spec, place=origin.place, repository=repository))
    return withdrawn(library, here, find_source)


def why_withdrawn(library: Library, build: Installed, find_source: FindSource | None) -> str | None:
    """Return the reason for one installed build; None if it was not yanked."""
    return withdrawn_builds(library, [build], find_source).get(build.manifest.digest)


def withdrawn(
    library: Library,
    builds: Iterable[Here],
    find_source: FindSource | None,
    *,
    call: Callable[[str, Callable[[], None]], None] = lambda _, ask: ask(),
) -> dict[Digest, str]:
    """Return the reason of each of `builds` that its server has yanked, by its digest.

    Each server is asked once, and its answer is remembered. Its last answer counts if it may not be asked, or does
    not answer within a few seconds. Only the server that a namespace belongs to has a say in it, and there only the
    repository that a build came from. `call` makes the requests to the server at a URL, or leaves them out by raising
    an `AdapterHubError`.
    """
    by_place: dict[str, list[Here]] = {}
    admission = Admission(library)
    for one in builds:
        if admission.may_offer(one.place, one.spec.namespace):
            by_place.setdefault(one.place, []).append(one)

    def ask(place: str) -> None:
        source = find_source(place) if find_source is not None else None
        hub = hub_behind(source) if source is not None else None
        if hub is None:
            return
        here = by_place[place]
        came_from = {one.digest: one.repository for one in here if one.repository}
        told = hub.hurried().yanked({one.digest: one.spec for one in here}, came_from)
        for one in here:
            library.yanks.note(one.digest, one.address, told.get(one.digest))

    def ask_quietly(place: str) -> None:
        try:
            call(place, lambda: ask(place))
        except AdapterHubError:  # not needed: what was seen before counts
            return

    if by_place and find_source is not None:
        with ThreadPoolExecutor(_SERVERS_AT_ONCE) as pool:
            list(pool.map(ask_quietly, by_place))
    found = {one.digest: library.yanks.reason(one.digest, one.address) for some in by_place.values() for one in some}
    return {digest: reason for digest, reason in found.items() if reason is not None}

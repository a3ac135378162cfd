"""The builds that a search proposes for a trial: installed ones, and those of a server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adapterhub.api.steps.contracts.subjects import subject_of_build
from adapterhub.api.steps.find.tried import NotTried
from adapterhub.api.steps.searching import search_installed, search_server
from adapterhub.core.errors import AdapterHubError, shown

if TYPE_CHECKING:
    from pathlib import Path

    from adapterhub.core.digests import Progress
    from adapterhub.core.specs import BaseSpec
    from adapterhub.distribution.hub import Search, SearchHit
    from adapterhub.distribution.install import InstallPlan
    from adapterhub.formats.manifest import Manifest
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.places import SpecSources
    from adapterhub.projects.session import Session
    from adapterhub.trust.signing.policy import SignaturePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A build to try. `lend` gives its files while a block runs; `fetch_bytes` of them are not on this machine.

    `ensure_undamaged` raises for files on this machine that are not those of the manifest.
    """

    name: str
    manifest: Manifest
    spec: str
    fetch_bytes: int
    lend: Callable[[Progress | None], AbstractContextManager[Installed | Path]]
    ensure_undamaged: Callable[[], None] = lambda: None


def search_candidates(
    session: Session,
    base: BaseSpec,
    most: int,
    query: Mapping[str, Any],
    *,
    far: bool = False,
    remote: str | None = None,
    token: str | None = None,
    signatures: SignaturePolicy | None = None,
) -> tuple[list[Candidate], list[NotTried]]:
    """The first builds for a base in the order of the search, and those that are yanked or that `install` would refuse.

    `query` has the conditions of `find_installed` and of a server's `Search`; `far` is for the library.

    Raises:
        RemoteUnreachable, NotAllowed: the server does not answer, or not to you.
    """
    if remote is None:
        return _installed(session, base, most, {**query, "far": far})
    from adapterhub.distribution.hub import Search

    return _of_server(session, base, Search(**query, limit=most), remote=remote, token=token, signatures=signatures)


def _installed(
    session: Session, base: BaseSpec, most: int, query: Mapping[str, Any]
) -> tuple[list[Candidate], list[NotTried]]:
    library = session.library
    rows = search_installed(session, base, limit=most, **query)
    builds = list(library.still_in(session.root / row.folder for row in rows))
    yanked = {build.spec: why for build in builds if (why := library.yanked(build)) is not None}
    found = [
        Candidate(
            name=build.full_name,
            manifest=build.manifest,
            spec=build.spec,
            fetch_bytes=0,
            lend=lambda _progress, build=build: contextlib.nullcontext(build),  # type: ignore[misc]  # a bound default
            ensure_undamaged=subject_of_build(build).ensure_undamaged,
        )
        for build in builds
        if build.spec not in yanked
    ]
    left_out = [
        NotTried(name=spec, reason=f"yanked: {shown(why or 'no reason given', 200)}") for spec, why in yanked.items()
    ]
    return found, left_out


def _of_server(
    session: Session,
    base: BaseSpec,
    search: Search,
    *,
    remote: str,
    token: str | None,
    signatures: SignaturePolicy | None,
) -> tuple[list[Candidate], list[NotTried]]:
    """The builds, each as `install` would choose it. Nothing is fetched but manifests and signatures."""
    from adapterhub.projects.places import SpecSources

    hub = session.named_hub(remote, token=token, offline=False)
    where = SpecSources(session, (), remote=remote, token=token, offline=False)
    found: list[Candidate] = []
    left_out: list[NotTried] = []
    for hit, _ in search_server(session, hub, base, search):
        try:
            found.append(_planned(session, hit, base, where, signatures))
        except AdapterHubError as error:
            left_out.append(NotTried(name=hit.repo, reason=error.message.splitlines()[0]))
    return found, left_out


def _planned(
    session: Session, hit: SearchHit, base: BaseSpec, where: SpecSources, signatures: SignaturePolicy | None
) -> Candidate:
    from adapterhub.api.steps.installing import plan_one
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.borrowing import borrowed
    from adapterhub.distribution.install import admit
    from adapterhub.projects.places import objection_from

    spec = AdapterSpec.parse(hit.repo)
    if hit.digest is not None:
        spec = replace(spec, digest_prefix=hit.digest)
    objection = objection_from(session, None)
    plan: InstallPlan = plan_one(session, spec, where, base=base, objection=objection)
    policy = signatures or where.policy_of(plan.source)
    if plan.present is None:
        admit(session.library, plan.release, plan.source, plan.asked, policy)  # a kept loss needs no fetch
    manifest = plan.release.manifest
    return Candidate(
        name=plan.release.full_name,
        manifest=manifest,
        spec=f"{plan.release.full_name}=={manifest.version}#{manifest.digest[:19]}",
        fetch_bytes=plan.copy_bytes,
        lend=lambda progress: borrowed(session.library, plan, progress, signatures=policy),
    )


def first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, each build once: one may be installed under two full names."""
    return list({one.manifest.digest: one for one in reversed(candidates)}.values())[::-1]

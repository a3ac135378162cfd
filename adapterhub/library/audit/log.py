"""Whether the log of the server that an adapter came from has it, and only grew since this library saw it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

from adapterhub.core.errors import AdapterHubError, AdapterNotFound, DigestMismatch, LogMismatch, Malformed, shown
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.library.audit._subject import AuditedAdapter, Surroundings
from adapterhub.library.heads import Logged
from adapterhub.trust.findings import Finding


def check(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    """Name the job that published the build; with `--log` its entry and the head of the log, which others can compare.

    It keeps no head.
    """
    build = subject.build
    if build is None:
        return
    library, digest = around.library, build.manifest.digest
    origin = library.origins.under(digest, build.full_name)
    try:
        publication = library.heads.publication(origin, build.manifest)
    except Malformed as error:
        yield Finding("E_LOG", MANIFEST_FILE, error.message, hint=error.hint)
        return
    if origin is not None and publication is not None:
        message = f"{publication.job.by}, published it at {publication.time}, as {shown(origin.place, 200)} attests"
        yield Finding("N_PUBLISHER", MANIFEST_FILE, message)
    if not around.with_log or origin is None or not origin.is_server:
        return

    def look() -> Logged | None:
        same = [one for one in around.ask(origin) if one.digest == digest]
        mine = [one for one in same if one.repository == origin.repository] or same
        if not mine:
            raise AdapterNotFound(digest)
        return library.heads.check(around.source_of(origin), mine[0])

    yield logged_finding(origin.place, None if around.find_source is None else look)


def logged_finding(place: str, look: Callable[[], Logged | None] | None) -> Finding:
    """Tell whether a build is in the log of its server; without `look`, which finds it there, no server is asked."""
    place = shown(place, 200)
    try:
        logged = None if look is None else look()
        unknown, hint = f"{place} was not contacted (`--offline`)" if look is None else f"{place} has no log", ""
    except (LogMismatch, DigestMismatch) as error:
        return Finding("E_LOG", MANIFEST_FILE, error.message, hint=error.hint)
    except AdapterNotFound:
        logged, unknown, hint = None, f"{place} does not offer it any more", ""
    except AdapterHubError as error:
        logged, unknown, hint = None, error.message.splitlines()[0], error.hint
    if logged is None:
        return Finding("U_LOG", MANIFEST_FILE, f"cannot tell whether it is in a log: {unknown}", hint=hint)
    root = base64.b64encode(logged.head.root).decode()
    where = f"entry {logged.index} of {logged.head.size} in `{shown(logged.head.origin, 200)}`, root {root}"
    return Finding("N_LOG", MANIFEST_FILE, f"is in the log of {place}: {where}{logged.witness}")

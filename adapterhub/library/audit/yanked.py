"""Whether the place that an adapter came from has withdrawn it since, or has it no more."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.core.errors import AdapterHubError, AdapterNotFound, shown
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.library.audit._subject import Subject, Surroundings
from adapterhub.trust.verify import Finding, Severity


def check(subject: Subject, around: Surroundings) -> Iterator[Finding]:
    """What its server says now. What was added from a folder or merged here was published nowhere."""
    if subject.build is None or subject.manifest is None:
        return
    origin = around.library.origins.of(subject.manifest.digest)
    if origin is None and subject.manifest.recipe:
        return  # a merge, made in the library, has no origin; an installed build always has one
    if origin is None:
        yield _finding("U_YANKED", "unknown", "cannot tell whether it was withdrawn: it has no recorded origin")
        return
    if not origin.is_server:
        return
    if around.find_source is None:
        message = f"cannot tell whether it was withdrawn: {shown(origin.place, 200)} was not contacted (`--offline`)"
        yield _finding("U_YANKED", "unknown", message)
        return
    try:
        releases = around.ask(origin)
    except AdapterNotFound:
        releases = ()
    except AdapterHubError as error:
        message = f"cannot tell whether it was withdrawn: {error.message.splitlines()[0]}"
        yield _finding("U_YANKED", "unknown", message, hint=error.hint)
        return
    same = [release for release in releases if release.digest == subject.manifest.digest]
    if not same:
        message = f"{shown(origin.place, 200)} does not offer it any more as `{shown(origin.name)}`"
        yield _finding("W_GONE", "warning", message, hint="ask the operator of the server why it is gone")
    for reason in (release.yanked for release in same if release.yanked is not None):
        message = f"was withdrawn on {shown(origin.place, 200)}: {shown(reason or 'no reason given', 200)}"
        hint = f"`adapt install {shown(origin.name)}` installs another version; `adapt remove` removes this one"
        yield _finding("E_YANKED", "error", message, hint=hint)
        return


def _finding(code: str, severity: Severity, message: str, *, hint: str = "") -> Finding:
    return Finding(code=code, severity=severity, where=MANIFEST_FILE, message=message, hint=hint)

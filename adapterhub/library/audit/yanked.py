"""Whether the place that an adapter came from has withdrawn it since, or has it no more."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.core.errors import AdapterHubError, AdapterNotFound, shown
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.formats.release import Release
from adapterhub.library.audit._subject import AuditedAdapter, Surroundings
from adapterhub.trust.findings import Finding


def check(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    """Yield the server's answer now, or its last one where it does not answer or may not be asked.

    What was added from a folder or made here was published nowhere.
    """
    build = subject.build
    if build is None:
        return
    library, digest = around.library, build.manifest.digest
    origin = library.origins.under(digest, build.full_name)
    if origin is None and (build.manifest.recipe or library.origins.is_made_here(digest)):
        return
    if origin is None:
        yield Finding("U_YANKED", MANIFEST_FILE, "cannot tell whether it was withdrawn: it has no recorded origin")
        return
    if not origin.is_server:
        return
    unknown, hint = f"{shown(origin.place, 200)} was not contacted (`--offline`)", ""
    same: list[Release] | None = None
    if around.find_source is not None:
        try:
            same = [one for one in around.ask(origin) if one.digest == digest]
        except AdapterNotFound:
            same = []
        except AdapterHubError as error:
            unknown, hint = error.message.splitlines()[0], error.hint
    if same:
        library.saw_yanks(origin.place, same)
    if same == []:
        message = f"{shown(origin.place, 200)} does not offer it any more as `{shown(origin.name)}`"
        yield Finding("W_GONE", MANIFEST_FILE, message, hint="ask the operator of the server why it is gone")
    reason = library.yanked(build)
    if reason is not None and same != []:
        message = f"was withdrawn on {shown(origin.place, 200)}: {shown(reason or 'no reason given', 200)}"
        hint = f"`adapt install {shown(origin.name)}` installs another version; `adapt remove` removes this one"
        yield Finding("E_YANKED", MANIFEST_FILE, message, hint=hint)
    elif same is None:
        yield Finding("U_YANKED", MANIFEST_FILE, f"cannot tell whether it was withdrawn: {unknown}", hint=hint)

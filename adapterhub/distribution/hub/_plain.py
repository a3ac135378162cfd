"""The adapter in a PEFT repository without a manifest."""

from __future__ import annotations

from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.http.plain import described
from adapterhub.distribution.http.wire import Wire, file_path
from adapterhub.distribution.hub._listing import files_of
from adapterhub.formats.manifest import CARD_FILE, CONFIG_FILE, MEDIA_TYPES
from adapterhub.formats.release import Release


def plain_release(wire: Wire, repo: str, commit: str, spec: AdapterSpec, *, version: str | None) -> Release | None:
    """The adapter at one commit, under the name in `spec`; None if there is no adapter.

    Raises:
        RefusedAdapter: the adapter is not safe to store.
    """
    origin = f"{repo} at {commit[:12]}"
    with wire.plainly(f"`{origin}`"):
        files = files_of(wire, repo, commit, [*MEDIA_TYPES, CARD_FILE])
    if CONFIG_FILE not in files:
        return None
    placed = {file_path(repo, commit, path): item for path, item in files.items()}
    return described(wire, placed, spec, origin=origin, version=version or f"0+{commit[:12]}")

"""Looks whether the servers of the adapters in use have yanked them, apart from the path of any request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from adapterhub.core.digests import Digest
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.withdrawal import FindSource, Here, withdrawn
from adapterhub.inference.serving.access.denied import Denied
from adapterhub.inference.serving.unreachable import UnreachableRemotes

if TYPE_CHECKING:
    from adapterhub.library.library import Library

YANKS_S: Final = 60.0
"""How often a server looks for yanks."""


def look_for_yanks(
    library: Library,
    served: Mapping[Digest, str],
    denied: Denied,
    find_source: FindSource | None,
    remotes: UnreachableRemotes,
) -> None:
    """Deny those of `served`, labels by digest, that their servers yanked, and allow those whose yank was taken back.

    Each server gets one request, none while it rests after a failure; then what it said last counts. With None for
    `find_source`, no server is asked: what `adapt sync`, `info` or `verify` saw still counts.
    """
    labels = dict(served)
    if denied.withdrawn():  # their leases are gone
        builds = [build for build in library.installed() if build.manifest.digest in denied.withdrawn()]
        labels |= {build.manifest.digest: f"{build.full_name}=={build.manifest.version}" for build in builds}
    here = []
    for digest, label in labels.items():
        spec = AdapterSpec.parse(label)
        origin = library.origins.under(digest, spec.full_name)
        if origin is not None and origin.is_server:
            here.append(Here(digest=digest, spec=spec, place=origin.place, repository=origin.repository))
    found = withdrawn(library, here, find_source, call=remotes.call)
    for build in here:
        if build.digest in found:
            denied.deny(build.digest, found[build.digest])
        else:
            denied.allow(build.digest)

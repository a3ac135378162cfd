"""A new build from an installed one: the same adapter with a contract and the contract's prompt form."""

from __future__ import annotations

import io
from dataclasses import replace

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import NotAllowed, shown
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.manifest import CONTRACT_FILE, MEDIA_TYPES, FileEntry, Manifest
from adapterhub.formats.release import Release
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.trust.verify import Report


def with_contract(manifest: Manifest, contract: Contract) -> Manifest:
    """Return the manifest of the same adapter with `contract`, under the same version."""
    raw = contract.to_bytes()
    entry = FileEntry(
        path=CONTRACT_FILE, sha256=digest_of(raw), size_bytes=len(raw), media_type=MEDIA_TYPES[CONTRACT_FILE]
    )
    files = (*(one for one in manifest.files if one.path != CONTRACT_FILE), entry)
    return replace(manifest, files=tuple(sorted(files, key=lambda one: one.path))).with_prompt(contract.prompt)


def add_contract(library: Library, build: Installed, contract: Contract) -> Added:
    """Install the adapter of `build` with `contract` under the next version; `build` itself never changes.

    The same contract again gives the build that has it. A kill at any point leaves the new build whole or absent.

    Raises:
        NotAllowed: the build came from a server, whose releases get no new versions here.
    """
    if (origin := library.origins.under(build.manifest.digest, build.full_name)) is not None and origin.is_server:
        what = f"`{build.full_name}` {build.manifest.version}"
        raise NotAllowed(
            f"{what} was published at {shown(origin.place, 200)}, and a release never changes. Nothing was changed",
            hint="`adapt contract record --detached DIR` writes the contract beside it",
        )
    manifest = with_contract(build.manifest, contract)
    if manifest.digest == build.manifest.digest:
        return Added(build=build, report=Report.of([]), created=False)
    fingerprint = build.base.fingerprint
    manifest = library.namesakes(manifest.name, build.namespace, fingerprint).named(manifest, "patch")
    release = Release(manifest=manifest, namespace=build.namespace, origin=f"`{build.full_name}` with its contract")
    record = library.bases.by_fingerprint(fingerprint) if fingerprint else None
    with library.receive(release, record) as staging:
        for entry in manifest.files:
            if staging.has(entry):
                continue
            if entry.path == CONTRACT_FILE:
                staging.put(entry, io.BytesIO(contract.to_bytes()))
            else:
                with library.open(release, entry) as stream:
                    staging.put(entry, stream)
        staging.publish()
    assert staging.added is not None  # `publish` sets it
    return staging.added

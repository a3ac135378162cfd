"""A build for as long as a block runs: fetched and checked as for an install, and never installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from adapterhub.core.digests import Progress
from adapterhub.core.disk.files import write_file
from adapterhub.distribution.install import InstallPlan, admit
from adapterhub.formats.manifest import MANIFEST_FILE, FileEntry
from adapterhub.formats.release import Release
from adapterhub.library.admission.admission import Admission
from adapterhub.library.intake.staging import Staging
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Receiver, copy
from adapterhub.trust.signing.trust import GivenPolicy


@contextmanager
def borrowed(
    library: Library, plan: InstallPlan, progress: Progress | None = None, *, signatures: GivenPolicy = None
) -> Iterator[Installed | Path]:
    """The build of a plan: the installed one, else a folder in the library's `tmp` that goes when the block ends.

    The policies of `run_install` apply. The files are hashed while they are fetched; who loads them verifies them.

    Raises:
        SignatureRefused, NamespaceBound: a policy forbids it; nothing was fetched.
        RefusedAdapter, DigestMismatch, RemoteUnreachable, DiskFull: it cannot be fetched whole.
    """
    if plan.present is not None:
        Admission(library).ensure_usable(plan.present, signatures)
        yield plan.present
        return
    admit(library, plan.release, plan.source, plan.asked, signatures).remember()
    with library.receive(plan.release, plan.wanted.record if plan.wanted else None) as staging:
        copy(plan.release, plan.source, _Lent(staging), progress)
        with library.store.os_errors_as_refusals():
            write_file(staging.folder / MANIFEST_FILE, plan.release.manifest.to_bytes())
        yield staging.folder


class _Lent:
    """A staging that stays open after a copy and publishes nothing; both ends of `transfer.Destination`."""

    label = "a temporary folder of the library"

    def __init__(self, staging: Staging) -> None:
        self._staging = staging

    @contextmanager
    def receive(self, release: Release) -> Iterator[Receiver]:  # noqa: ARG002 - the Destination protocol
        yield self

    def has(self, entry: FileEntry) -> bool:
        return self._staging.has(entry)

    def put(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None = None) -> None:
        self._staging.put(entry, stream, progress)

    def sign(self, signature: bytes) -> bool:
        raise AssertionError(signature)  # `borrowed` passes none on

    def publish(self) -> None:
        """Nothing: a loan is not installed."""

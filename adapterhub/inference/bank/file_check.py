"""Checking the files of adapters that a bank loads, each only once as long as they do not change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterNotFound
from adapterhub.distribution.finding import Identify, check_folder
from adapterhub.formats.manifest import Manifest
from adapterhub.inference.bank.origins import Stamp, changed, digests_of, stamp_of
from adapterhub.trust.verify import Subject, open_files


class FileCheck:
    """Checks and opens the files of adapters: reads their bytes into memory, and hashes and uses them there.

    For a build in the store, only the digests are compared with its manifest: `add` verified the rest. Any other folder
    goes through all checks of `verify`.
    """

    def __init__(self, library_root: Path) -> None:
        self._builds = library_root / "adapters"
        self._done: dict[tuple[Path, Stamp], tuple[Mapping[str, Digest], tuple[str, ...]]] = {}

    def __call__(
        self, folder: Path, label: str, manifest: Manifest | None, identify: Identify | None = None
    ) -> tuple[Subject | None, tuple[str, ...]]:
        """The files and the warnings; see `check_folder` for the errors.

        Returns None for files that have not changed since they were checked: the caller may not need them, and `again`
        opens them.
        """
        try:
            key = (folder, stamp_of(folder))
        except AdapterNotFound:
            return check_folder(folder, label, manifest, identify, to_attach=True)  # raises, and names the missing file
        if key in self._done:
            return None, self._done[key][1]
        warnings: tuple[str, ...] = ()
        if manifest is not None and folder.is_relative_to(self._builds):
            subject = open_files(folder, manifest.digests, in_memory=True)
        else:
            subject, warnings = check_folder(folder, label, manifest, identify, in_memory=True, to_attach=True)
        self._done[key] = digests_of(subject, manifest), warnings
        return subject, warnings

    def again(self, folder: Path) -> Subject:
        """The files of an adapter that was checked before, read again.

        Raises:
            Conflict, DigestMismatch: they have changed since.
        """
        done = self._done.get((folder, stamp_of(folder)))
        if done is None:
            raise changed(folder)
        return open_files(folder, done[0], in_memory=True)

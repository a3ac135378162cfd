"""The bases that the user chose for builds: pins, and bases of the same shapes that were allowed in spite of others.

pins/<64 hex of the manifest>.json                        the fingerprint of the base
mismatches/<64 hex of the manifest>-<12 hex of the base>.json   {"adapter", "base", "named"}
"""

from __future__ import annotations

from pathlib import Path

from adapterhub.core.digests import canonical_json, hex_of, strict_json
from adapterhub.core.disk.files import read_plain
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import MalformedManifest
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.manifest import BaseRef, Manifest
from adapterhub.library.bases.records import BaseRecord

_LIMIT_BYTES = 64 << 20


class Pins:
    """The records of the library under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = Root(root)

    def pin(self, manifest: Manifest, base: BaseRecord) -> None:
        """Record `base` as the base of a build that declares none."""
        self._root.write(self._pin_path(manifest), canonical_json(base.fingerprint.to_json()))

    def base_of(self, manifest: Manifest) -> BaseRef:
        """The base that a manifest declares, or the one pinned for it.

        Raises:
            MalformedManifest: the pin is damaged.
        """
        if manifest.base.fingerprint is not None:
            return manifest.base
        path = self._pin_path(manifest)
        try:
            value = strict_json(read_plain(path, _LIMIT_BYTES), limit_bytes=_LIMIT_BYTES)
            fingerprint = BaseFingerprint.from_json(value, "pin")
        except FileNotFoundError:
            return manifest.base
        except ValueError as error:
            raise MalformedManifest(str(path), [str(error)], hint="delete it and pin the base again") from None
        return BaseRef(fingerprint=fingerprint, hints=manifest.base.hints)

    def allow_mismatch(self, manifest: Manifest, base: BaseRecord) -> None:
        """Record that the user chose to run a build on a base with other weights of the same shapes."""
        note = {"adapter": manifest.digest, "base": base.fingerprint.weights, "named": base.label}
        self._root.write(self._mismatch_path(manifest, base.fingerprint), canonical_json(note))

    def mismatch_allowed(self, manifest: Manifest, base: BaseFingerprint) -> bool:
        """Whether `allow_mismatch` was called for this build and these weights."""
        return self._mismatch_path(manifest, base).is_file()

    def _pin_path(self, manifest: Manifest) -> Path:
        return self._root.root / "pins" / f"{hex_of(manifest.digest)}.json"

    def _mismatch_path(self, manifest: Manifest, base: BaseFingerprint) -> Path:
        return self._root.root / "mismatches" / f"{hex_of(manifest.digest)}-{hex_of(base.weights)[:12]}.json"

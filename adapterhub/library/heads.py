"""The last head of each log that this library saw, so that a registry cannot take back what it told.

    witness.key                                             the private key of this library as a witness
    logs/<64 hex of the place>.json                             {"place", "key", "heads": {origin: signed head}}
    published/<64 hex of the manifest>/<64 hex of the file>.json    who published a build, as a registry attests it

The first head of a registry counts as it comes, with its key. From then on the key stays, and each head has to extend
the one that is here. An attestation counts where the key of its registry signed it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.digests import Digest, canonical_json, digest_of, hex_of
from adapterhub.core.disk.files import check_private, read_json, read_owned
from adapterhub.core.errors import Malformed, NotAllowed, shown
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.publication import Publication, released_digests
from adapterhub.formats.signature import SIGNATURE_LIMIT_BYTES
from adapterhub.formats.treelog import Head, LogKey, LogSigner, head_in, new_seed, opened_note
from adapterhub.library.store.blobs import Store
from adapterhub.library.store.origins import Origin
from adapterhub.library.store.signed_files import SignedFiles

if TYPE_CHECKING:
    from adapterhub.formats.release import Release
    from adapterhub.library.transfer import Source

MOST_KEPT: Final = 20
"""Attestations on one build."""
_LIMIT_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLog:
    """The key of a registry, and the last signed head of each of its logs by origin."""

    key: LogKey
    heads: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A release that is the entry `index` of a log with this head; `remember` keeps the head.

    `publication` is what the registry attests of the job that published it, None if none did. `witness` names the
    trusted witness that co-signed the head, and when; "" if none is requested.
    """

    head: Head
    index: int
    witness: str = ""
    publication: Publication | None
    remember: Callable[[], None]


@dataclass(frozen=True)
class Heads:
    """The heads of one library."""

    _store: Store

    def check(self, source: Source, release: Release) -> Logged | None:
        """Return the place of a build in the log of its server; None if it has none.

        Raises:
            LogMismatch: the log does not have it, or has another past than this library saw.
        """
        check: Callable[[Release, Heads], Logged | None] | None = getattr(source, "check_logged", None)
        return None if check is None else check(release, self)

    def of(self, place: str) -> SeenLog | None:
        """Return the last head of a registry; None before its first log.

        Raises:
            Malformed: the file is damaged. Without it a registry could show another past.
        """
        path = self.path(place)
        try:
            value = read_json(path, _LIMIT_BYTES)
            heads = {str(origin): str(note) for origin, note in value["heads"].items()}
            for note in heads.values():
                head_in(note)
            return SeenLog(key=LogKey.parse(value["key"]), heads=heads)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise Malformed(
                f"`{path}` holds no heads of a log: {shown(str(error), 200)}",
                hint="if no one else writes to this library, remove the file: the next head then counts as it comes",
            ) from None

    def note(self, place: str, key: LogKey, origin: str, note: str) -> None:
        """Remember a head, whose signature was checked, unless a larger one of its log was seen meanwhile."""
        seen = self.of(place) or SeenLog(key=key)
        known = seen.heads.get(origin)
        of_log = LogKey(origin, key.public)
        if known == note or (known and opened_note(known, of_log).size >= opened_note(note, of_log).size):
            return
        value = {"place": place, "key": str(seen.key), "heads": {**seen.heads, origin: note}}
        with contextlib.suppress(NotAllowed):  # a library that cannot be written is still good to read
            self._store.write(self.path(place), canonical_json(value), sync=False)

    def keep(self, manifest: Digest, attestation: bytes) -> None:
        """Keep an attestation on a build, which was checked; at most `MOST_KEPT`."""
        files = self._published(manifest)
        if attestation in (present := files.read()) or len(present) >= MOST_KEPT:
            return
        with contextlib.suppress(NotAllowed):
            files.add(attestation)

    def publication(self, origin: Origin | None, manifest: Manifest) -> Publication | None:
        """Return who published a build in the repository that it came from, as the registry there attested.

        Raises:
            Malformed: as `of`.
        """
        seen, digests = None if origin is None else self.of(origin.place), released_digests(manifest)
        if origin is None or seen is None:
            return None
        for raw in self._published(manifest.digest).read():
            with contextlib.suppress(ValueError):
                found = Publication.opened(raw, seen.key)
                if found.digest in digests and found.repository.lower() == origin.repository.lower():
                    return found
        return None

    def _published(self, manifest: Digest) -> SignedFiles:
        return SignedFiles(self._store.root / "published", manifest, self._store, limit_bytes=SIGNATURE_LIMIT_BYTES)

    def witness(self) -> LogSigner:
        """Return the key by which this library co-signs the logs that it mirrors; the first call makes it.

        Raises:
            NotAllowed: others can read or write the file.
            Malformed: it holds no key.
            StoreLocked: another process makes the key.
        """
        path = self._store.root / "witness.key"
        if not path.exists():
            with self._store.lock("witness", exclusive=True):  # two first calls at once make one key
                if not path.exists():
                    self._store.write(path, new_seed().hex().encode(), mode=0o600)
        try:
            seed = bytes.fromhex(read_owned(path, "co-signs logs", limit_bytes=64).decode())
        except ValueError:
            seed = b""
        if len(seed) != 32:
            raise Malformed(f"`{path}` holds no key of a witness", hint="remove the file to make a new key")
        check_private(path, "is a private key")
        return LogSigner(seed)

    def path(self, place: str) -> Path:
        """Return the file of a registry."""
        return self._store.root / "logs" / f"{hex_of(digest_of(place.encode()))}.json"

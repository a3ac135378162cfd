"""Checks a registry's log: the release that it offers is in the log, and the log only grew since it was last seen."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from adapterhub.core.dates import Moment
from adapterhub.core.digests import strict_json
from adapterhub.core.errors import LogMismatch, SpecError, shown
from adapterhub.core.specs import version_key, version_of
from adapterhub.distribution.http.wire import HttpError, Wire, is_missing
from adapterhub.formats.publication import Publication, released_digests
from adapterhub.formats.release import Release
from adapterhub.formats.treelog import (
    Head,
    LogKey,
    LogSigner,
    cosignature,
    extends,
    head_in,
    includes,
    leaf_hash,
    opened_note,
)
from adapterhub.library.heads import Heads, Logged, SeenLog

if TYPE_CHECKING:
    from adapterhub.distribution.hub._versions import PublishedVersion

FEATURE: Final = "log"
_BASE: Final = "api/adapt/v1/tlog"
_RELEASING: Final = ("version.published", "version.recorded")
_MOST_HASHES: Final = 128
MOST_AGE_S: Final = 30 * 86400
"""The greatest age of a cosignature: an older head could hide later entries."""


def path_of(repo: str, version: str) -> str:
    """Return the path of the proof of a release."""
    return f"{_BASE}/releases/{repo}/{quote(version, safe='')}"


class RegistryLog:
    """The log of one server. `key` is the one that the server names; the one that was seen first counts.

    A `witness` must have co-signed each head, not more than `MOST_AGE_S` ago.
    """

    def __init__(self, wire: Wire, key: str | None, *, is_anonymous: bool, witness: LogKey | None = None) -> None:
        self._wire, self._key, self._is_anonymous, self._witness = wire, key, is_anonymous, witness
        self._proven: dict[str, tuple[str, Head]] = {}
        """The newest head of each log that was checked here, so that each is proven to extend the last one once."""

    def check(self, place: PublishedVersion, release: Release, heads: Heads) -> Logged | None:
        """Return the place of a release in the log; None if the server never had a log, or the build is not a release.

        Raises:
            LogMismatch: the log is gone, has another key, has forgotten or changed something, or has another digest;
                or the registry's attestation of the job that published the release is not the one of its entry.
            RemoteUnreachable: the server does not answer.
        """
        seen = heads.of(self._wire.endpoint)
        if self._key is None:
            if seen is not None or self._witness is not None:
                lacks = "any more, and had one" if seen is not None else "that a witness could have co-signed"
                raise self._refusal(heads, f"has no log {lacks}")
            return None
        version = place.version
        if version is None or _is_local(version):
            return None
        told = self._told(place.repo, version, heads)
        try:
            key = LogKey.parse(self._key) if seen is None else seen.key
            origin, note, entry, index, hashes = _parts(told)
            self._check_origin(key, origin, told["private"])
            head = self._head(key, origin, note, seen)
        except (ValueError, LookupError, TypeError) as error:
            raise self._refusal(heads, f"cannot be believed: {shown(str(error), 200)}") from None
        if not includes(head.root, head.size, index, leaf_hash(entry), hashes):
            raise self._refusal(heads, f"cannot be believed: the proof of `{place.repo}` {version} is wrong")
        self._check_growth(head, note, seen, place.repo, heads)
        witness = self._witnessed(note, head, f"`{place.repo}` {version}")
        said = self._said(entry, place.repo, version, release, heads)
        publication = self._publication(key, said, told.get("attestation"), place.repo, version, heads)

        def remember() -> None:
            heads.note(self._wire.endpoint, key, origin, note)
            if publication is not None:
                heads.keep(release.digest, told["attestation"].encode())

        return Logged(head=head, index=index, witness=witness, publication=publication, remember=remember)

    def _witnessed(self, note: str, head: Head, what: str) -> str:
        """Return which witness co-signed a head, and when, in words; "" without one."""
        if self._witness is None:
            return ""
        found = cosignature(note, head, self._witness)
        if found is not None and found[0] >= time.time() - MOST_AGE_S:
            return f", co-signed by {self._witness.name} at {Moment(found[0] * 1000).text}"
        when = f": the last time was {MOST_AGE_S // 86400} days ago or more" if found is not None else ""
        raise LogMismatch(
            f"the witness {self._witness.name} has not co-signed the log of {self._wire.endpoint} with {what}{when}. "
            "Nothing was fetched",
            hint="wait until the witness has run `adapt mirror --witness` again; if it has, the registry shows you "
            "and the witness different logs: ask its operator",
        )

    def cosign(self, signer: LogSigner, repos: Iterable[str], heads: Heads) -> list[str]:
        """Co-sign the heads of the logs that `repos` are in, which extend the last ones seen; return their origins.

        Raises:
            LogMismatch: the server has no log, or one has another past than this library saw; it was not co-signed.
            RemoteUnreachable, NotAllowed: the server does not answer, or does not list this witness.
        """
        if self._key is None:
            raise self._refusal(heads, "has nothing to co-sign")
        private = () if self._is_anonymous else dict.fromkeys(repos)
        done = [self._cosign(signer, None, heads), *(self._cosign(signer, repo, heads) for repo in private)]
        return [origin for origin in done if origin]

    def _cosign(self, signer: LogSigner, repo: str | None, heads: Heads) -> str:
        """Co-sign the log of the public repositories, or of a private one; return its origin, "" if it has none."""
        seen = heads.of(self._wire.endpoint)
        with self._wire.plainly("head of the log"):
            try:
                of = "" if repo is None else f"/of/{repo}"
                note = self._wire.get(f"{_BASE}{of}/checkpoint").decode()
            except HttpError as error:
                if repo is None or not is_missing(error):
                    raise
                return ""  # a public repository is in the log of all
        try:
            key = LogKey.parse(str(self._key)) if seen is None else seen.key
            origin = note.partition("\n")[0]
            self._check_origin(key, origin, repo is not None)
            head = opened_note(note, LogKey(origin, key.public))
        except ValueError as error:
            raise self._refusal(heads, f"cannot be believed: {shown(str(error), 200)}") from None
        self._check_growth(head, note, seen, repo or "", heads)
        if self._proven[origin][1].size > head.size:
            raise self._refusal(heads, "is shorter than it was")
        heads.note(self._wire.endpoint, key, origin, note)
        own = [line for line in note.splitlines(keepends=True) if line.startswith(f"\N{EM DASH} {origin} ")]
        body = {"checkpoint": "".join([head.text, "\n", *own, signer.cosign(head, int(time.time()))]), "repo": repo}
        with self._wire.plainly("cosignature"):
            self._wire.put(f"{_BASE}/cosignatures", json.dumps(body).encode(), "POST")
        return origin

    def _told(self, repo: str, version: str, heads: Heads) -> Any:
        asked = None if self._witness is None else {"witness": self._witness.name}
        with self._wire.plainly(f"log entry of `{repo}` {version}"):
            try:
                return self._wire.json(path_of(repo, version), asked)
            except HttpError as error:
                if not is_missing(error):
                    raise
        raise self._refusal(heads, f"does not have `{repo}` {shown(version)}, which the server offers")

    def _check_origin(self, key: LogKey, origin: str, private: object) -> None:
        """Raise `ValueError` for a log that is not the one to ask."""
        if origin == key.name:
            return
        if private is not True or not origin.startswith(f"{key.name}/"):
            raise ValueError("it is the log of another registry")
        if self._is_anonymous:
            raise ValueError("it calls a repository private that anyone may read")

    def _head(self, key: LogKey, origin: str, note: str, seen: SeenLog | None) -> Head:
        """Return the head of a note; the signature of one that was checked before is not checked again."""
        known = self._proven.get(origin)
        if known is not None and known[0] == note:
            return known[1]
        if seen is not None and seen.heads.get(origin) == note:
            return head_in(note)  # its signature was checked when this library took it
        return opened_note(note, LogKey(origin, key.public))

    def _check_growth(self, head: Head, note: str, seen: SeenLog | None, repo: str, heads: Heads) -> None:
        """Raise unless one of this head and the last one extends the other."""
        known = self._proven.get(head.origin)
        last = known[1] if known else None
        if seen is not None and (stored := seen.heads.get(head.origin)) is not None:
            kept = head_in(stored)
            last = kept if last is None or kept.size > last.size else last
        if last is not None and (last.size, last.root) != (head.size, head.root):
            old, new = sorted((last, head), key=lambda one: one.size)
            if not extends(old, new, self._growth(old, new, repo)):
                what = "is shorter than it was" if head.size < last.size else "has another past than it had"
                raise self._refusal(
                    heads, f"{what}: {last.size} entries were seen before, and {head.size} now do not agree with them"
                )
        if last is None or head.size >= last.size:
            self._proven[head.origin] = (note, head)

    def _growth(self, old: Head, new: Head, repo: str) -> list[bytes]:
        """Return the proof of the server that one head extends the other; empty if it has none."""
        if old.size in (0, new.size):
            return []
        of = f"/of/{repo}" if "/" in new.origin.partition("/")[2] else ""
        with self._wire.plainly("consistency of the log"):
            try:
                told = self._wire.json(f"{_BASE}{of}/consistency", {"old": old.size, "new": new.size})
                return _hashes(told)
            except HttpError as error:
                if not is_missing(error):
                    raise
            except (ValueError, LookupError, TypeError):
                pass
        return []

    def _said(self, entry: bytes, repo: str, version: str, release: Release, heads: Heads) -> dict[str, Any]:
        """Return the entry, checked to be that of the release."""
        try:
            said = strict_json(entry)
        except ValueError:
            said = None
        if not isinstance(said, dict) or said.get("kind") not in _RELEASING:
            raise self._refusal(heads, f"has no release at its entry of `{repo}` {version}")
        named = str(said.get("repository")).lower() == repo.lower()
        if not named or version_key(str(said.get("version"))) != version_key(version):
            raise self._refusal(heads, f"has another release at its entry of `{repo}` {version}")
        if said.get("digest") not in released_digests(release.manifest):
            raise self._refusal(
                heads, f"has `{repo}` {version} as {shown(said.get('digest'))}, and the server offers {release.digest}"
            )
        return said

    def _publication(
        self, key: LogKey, said: dict[str, Any], attestation: object, repo: str, version: str, heads: Heads
    ) -> Publication | None:
        """Return what the registry attests of the job that published a release; None if its entry names none."""
        what, stated = f"who published `{repo}` {version}", said.get("publisher")
        if stated is None and attestation is None:
            return None
        if not isinstance(attestation, str) or stated is None:
            has, lacks = ("log", "server") if stated is not None else ("server", "log")
            raise self._refusal(
                heads, f"does not agree on {what}: the {has} has a job of a CI, and the {lacks} has none"
            )
        try:
            found = Publication.opened(attestation.encode(), key)
            same_version = version_key(found.version) == version_key(version)
        except ValueError as error:
            raise self._refusal(
                heads, f"cannot be believed on {what}: the attestation {shown(str(error), 200)}"
            ) from None
        if found.repository.lower() != repo.lower() or not same_version or found.digest != said["digest"]:
            offered = f"`{shown(found.repository)}` {shown(found.version)}, {found.digest}"
            raise self._refusal(heads, f"does not agree on {what}: the attestation is of {offered}")
        if found.job.stated != stated:
            raise self._refusal(heads, f"does not agree on {what}: the attestation names another job than the log")
        return found

    def _refusal(self, heads: Heads, what: str) -> LogMismatch:
        return LogMismatch(
            f"the log of {self._wire.endpoint} {what}. Nothing was fetched",
            hint="ask its operator, and compare the head with those of other clients; if the log began again for a "
            f"good reason, remove `{heads.path(self._wire.endpoint)}`",
        )


def _parts(told: Any) -> tuple[str, str, bytes, int, list[bytes]]:
    """Origin, checkpoint, entry, index and proof of an answer; raises for one of another form."""
    note, entry, index = told["checkpoint"], told["entry"], told["index"]
    if not isinstance(note, str) or not isinstance(entry, str) or type(index) is not int:
        raise ValueError("its answer has another form")
    return note.partition("\n")[0], note, entry.encode(), index, _hashes(told)


def _hashes(told: Any) -> list[bytes]:
    found = [bytes.fromhex(one) for one in told["hashes"][:_MOST_HASHES]]
    if any(len(one) != 32 for one in found):
        raise ValueError("a hash in its answer has another length")
    return found


def _is_local(version: str) -> bool:
    try:
        return version_of(version).local is not None
    except SpecError:
        return True

"""Proofs of a signature about a build: its signer, whether it is for this adapter, and whether the build is unchanged.

`examine` checks one signature. A false one (broken, forged, over other files, for another adapter) is refused. If the
result depends on the user's trust, it is an `Appraisal`, and the policy decides (`library.admission`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from adapterhub.core.digests import Digest, canonical_json, parse_digest, strict_json
from adapterhub.core.disk.files import not_read, read_owned, write_durably
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import Malformed, NotAllowed, SignatureRefused, SpecError, shown
from adapterhub.core.specs import parse_version
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, SIGNATURE_FILE, Manifest
from adapterhub.formats.release import Provenance
from adapterhub.formats.signature import Bundle, Identity, Statement, pre_authentication, read_statement
from adapterhub.trust.signing.trust import Trust, TrustedKey, day_text

_LIMIT_BYTES: Final = 64 << 20
_FETCH_AGAIN: Final = "fetch the adapter again, or ask its publisher to sign it again with `adapt key sign`"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstUseBuild:
    """The newest signed version for one base (a digest, or "" if it is unknown) and one rank."""

    base: str
    rank: int | None
    version: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
        return {"base": self.base, "rank": self.rank, "version": self.version}


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstUse:
    """The record of one name. `signer` is the fingerprint of the key that signed the latest admitted build."""

    signer: Digest
    builds: tuple[FirstUseBuild, ...]


class FirstUseFile:
    """The records of the library under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.path = root / "seen_signatures.json"

    def of(self, full_name: str) -> FirstUse | None:
        """Return the record of a full name; None if it was never admitted with a signature.

        Raises:
            Malformed: the file is damaged; no name may count as new then.
            NotAllowed: others own or can write the file or its folder.
        """
        return self._read().get(full_name)

    def remember(self, full_name: str, build: FirstUseBuild, signer: Digest) -> None:
        """Record a version that a trusted key signed; an older one changes only the signer."""
        with Root(self._root).lock("trust", exclusive=True):
            everything = self._read()
            known = everything.get(full_name)
            builds = {(b.base, b.rank): b for b in known.builds} if known else {}
            before = builds.get((build.base, build.rank))
            if before is None or is_older(before.version, build.version):
                builds[build.base, build.rank] = build
            found = FirstUse(signer=signer, builds=tuple(builds.values()))
            if found != known:
                self._write({**everything, full_name: found})

    def _read(self) -> dict[str, FirstUse]:
        try:
            raw = read_owned(self.path, "says which signed versions were seen", limit_bytes=_LIMIT_BYTES)
            value = strict_json(raw, limit_bytes=_LIMIT_BYTES)
            return {name: _seen(item) for name, item in value["adapters"].items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise not_read(error, self.path, NotAllowed) from None
        except (ValueError, KeyError, TypeError, AttributeError, SpecError) as error:
            raise Malformed(
                f"`{self.path}`: {error}", hint="mend the file; deleting it forgets which signed versions were seen"
            ) from None

    def _write(self, everything: Mapping[str, FirstUse]) -> None:
        value = {
            name: {"signer": seen.signer, "builds": [b.to_json() for b in seen.builds]}
            for name, seen in everything.items()
        }
        try:
            write_durably(self.path, canonical_json({"adapters": value}) + b"\n", mode=0o600)
        except OSError as error:
            raise Root(self._root).explain(error) from error


def is_older(version: str, other: str) -> bool:
    """Return whether `version` comes before `other` by PEP 440."""
    from packaging.version import Version

    return Version(version) < Version(other)


def _seen(item: Any) -> FirstUse:
    builds = []
    for build in item["builds"]:
        rank = build["rank"]
        if not isinstance(build["base"], str) or not (rank is None or type(rank) is int):
            raise ValueError("builds: expected a text `base` and a number `rank`")
        builds.append(FirstUseBuild(base=build["base"], rank=rank, version=parse_version(build["version"])))
    return FirstUse(signer=parse_digest(item["signer"]), builds=tuple(builds))


MAX_ENTRIES: Final = 20_000


def provenance_of(folder: Path, *, follow_links: bool = False) -> Provenance:
    """Return the signature in a folder and what lies beside it; links count as links unless `follow_links` is set.

    Raises:
        SignatureRefused: `model.sig` is not a regular file, or is too large.
    """
    files: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            is_link = entry.is_symlink() and not follow_links
            kind = "link" if is_link else "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
            files[entry.name] = kind
            if len(files) > MAX_ENTRIES:
                break  # not an adapter; the first names suffice to report unsigned files
    return Provenance(signature=read_signature(folder / SIGNATURE_FILE, follow_links=follow_links), files=files)


def read_signature(path: Path, *, follow_links: bool = False) -> bytes | None:
    """Return the bytes of a signature file; None if there is none.

    Raises:
        SignatureRefused: it is not a regular file, or is too large.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW))
    except FileNotFoundError:
        return None
    except OSError as error:
        what = "is a link" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
        raise _odd(path, what) from None
    from adapterhub.formats.signature import SIGNATURE_LIMIT_BYTES

    if not stat.S_ISREG(os.fstat(handle).st_mode):  # before `fdopen`, which has its own error for a folder
        os.close(handle)
        raise _odd(path, "is not a regular file")
    with os.fdopen(handle, "rb") as stream:
        raw = stream.read(SIGNATURE_LIMIT_BYTES + 1)
    return bounded(raw, str(path))


def bounded(raw: bytes, where: str) -> bytes:
    """Return the bytes, unless they are too many for a signature.

    Raises:
        SignatureRefused: more than 1 MiB.
    """
    from adapterhub.formats.signature import SIGNATURE_LIMIT_BYTES

    if len(raw) > SIGNATURE_LIMIT_BYTES:
        raise _odd(Path(where), f"holds more than {SIGNATURE_LIMIT_BYTES} bytes, which no signature does")
    return raw


def _odd(path: Path, what: str) -> SignatureRefused:
    return SignatureRefused(f"`{shown(str(path), 200)}`", f"it {what}", reason="broken", hint=_FETCH_AGAIN)


Standing = Literal["trusted", "unsigned", "unknown_key", "out_of_scope", "expired", "other_name"]

OF_GIT: Final = frozenset({".git", ".gitattributes", ".gitignore", ".github", ".cache"})
"""What a clone or download of a repository leaves in the folder; never part of an adapter."""

_OURS: Final = frozenset({*MEDIA_TYPES, MANIFEST_FILE, CARD_FILE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """The worth of a build's signature. `message` is a clause: `is signed by …`, `is not signed`."""

    standing: Standing
    message: str
    signer: str | None = None
    fingerprint: Digest | None = None


UNSIGNED: Final = Appraisal(standing="unsigned", message="is not signed")


def examine(
    manifest: Manifest,
    namespace: str | None,
    provenance: Provenance,
    trust: Trust,
    *,
    places: Sequence[str] = (),
    now: float,
) -> Appraisal:
    """Appraise the signature of a build that is offered as `manifest` in `namespace`.

    `places` are the address of the place that offers it, and the name of the remote. The caller compares the files
    with the digests of the manifest.

    Raises:
        SignatureRefused: the signature is broken, forged, over other files, or for another adapter.
    """
    offered = Identity.of(manifest, namespace)
    if provenance.signature is None:
        return UNSIGNED
    try:
        bundle = Bundle.parse(provenance.signature)
    except ValueError as error:
        raise _refusal(offered, f"`{SIGNATURE_FILE}` {shown(str(error), 200)}", "broken") from None
    if (revoked := trust.revoked_of(bundle.hint)) is not None:
        raise _refusal(offered, f"it {revoked.clause}", "revoked")
    key = trust.key_of(bundle.hint)
    if key is not None and not _is_genuine(key, bundle):
        raise _refusal(
            offered, f"the signature was not made with the key `{key.name}` that it names: it is forged", "forged"
        )
    try:
        statement = read_statement(bundle.payload)
    except ValueError as error:
        raise _refusal(offered, f"`{SIGNATURE_FILE}` {shown(str(error), 200)}", "broken") from None
    wrong = list(_contradictions(statement, manifest, offered, provenance))
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise _refusal(offered, f"{wrong[0][1]}{more}", wrong[0][0])
    if key is None:
        text = f"is signed by the unknown key {bundle.hint}"
        return Appraisal(standing="unknown_key", message=text, fingerprint=bundle.hint)
    return _standing(key, statement, offered, places, now)


def _is_genuine(key: TrustedKey, bundle: Bundle) -> bool:
    parsed = key.key.parse(key.key.pem.encode(), f"trusted key {key.name}")
    return parsed.verifies(bundle.signature, pre_authentication(bundle.payload))


def _standing(key: TrustedKey, statement: Statement, offered: Identity, places: Sequence[str], now: float) -> Appraisal:
    """Return the worth of a genuine signature by a trusted key."""

    def judged(standing: Standing, message: str) -> Appraisal:
        return Appraisal(standing=standing, message=message, signer=key.name, fingerprint=key.fingerprint)

    identity = statement.identity
    if identity is None:
        return judged("other_name", f"is signed by `{key.name}`, but not for this name and version")
    if key.is_over(now):
        assert key.not_after is not None
        return judged("expired", f"is signed by `{key.name}`, a key that ended on {day_text(key.not_after)[:10]}")
    name = known_name(identity, offered)
    if not key.covers(name, places):
        return judged("out_of_scope", f"is signed by `{key.name}`, which is not trusted for `{shown(name)}` from there")
    return judged("trusted", f"is signed by `{key.name}`")


def known_name(signed: Identity, offered: Identity) -> str:
    """Return the full name for first use and scopes, in the namespace that the offer or the signature names."""
    return offered.full_name if offered.namespace else signed.full_name


def _contradictions(
    statement: Statement, manifest: Manifest, offered: Identity, provenance: Provenance
) -> Iterator[tuple[str, str]]:
    """`(reason, clause)` for everything that contradicts the signature, the most important first."""
    if statement.identity is not None:
        for difference in statement.identity.differences(offered):
            yield "renamed", f"it was signed as another adapter: {difference}"
    signed, beside = statement.files, provenance.files
    expected = {entry.path: entry.sha256 for entry in manifest.files}
    if statement.identity is not None or MANIFEST_FILE in signed:
        expected[MANIFEST_FILE] = manifest.digest
    for name, digest in expected.items():
        if name not in signed:
            yield "extra_file", f"`{name}` is not signed"
        elif signed[name] != digest:
            yield "changed_file", f"`{name}` is {digest[:19]}…, but {signed[name][:19]}… was signed"
    for name in sorted(signed.keys() - expected.keys() - {CARD_FILE}):
        # a stranger's signature over a whole repository also names files that no adapter has, which are not taken
        if statement.identity is not None or name in _OURS:
            yield "missing_file", f"`{shown(name)}` is signed and missing"
    if beside is not None:
        yield from _strays(signed, beside)


def _strays(signed: Mapping[str, Digest], beside: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Files that were added to the folder after signing, and signed files that are missing."""
    for name in sorted(signed.keys() & _OURS - {CARD_FILE} - beside.keys()):
        yield "missing_file", f"`{name}` is signed and missing"
    for name, kind in sorted(beside.items()):
        is_passed_over = name == SIGNATURE_FILE or name in OF_GIT or (name == CARD_FILE and kind == "file")
        is_signed = name in signed if kind == "file" else any(path.startswith(f"{name}/") for path in signed)
        if kind == "link":
            yield "link", f"`{shown(name)}` is a link, but a file was signed"
        elif not is_passed_over and not is_signed:
            what = "" if kind == "file" else f", a {kind}," if kind == "folder" else ", no file,"
            yield "extra_file", f"`{shown(name)}`{what} was not there when it was signed"


def unsigned_beside(provenance: Provenance) -> tuple[str, ...]:
    """Return the files of `OF_GIT` beside a signature that does not cover them, sorted; none without a signature.

    Such a signature proves nothing about these files, so anyone may have changed them. A policy that requires
    signatures refuses a folder that holds them.
    """
    if provenance.signature is None or provenance.files is None:
        return ()
    try:
        signed = read_statement(Bundle.parse(provenance.signature).payload).files
    except ValueError:  # `examine` reports it
        return ()
    names = sorted(OF_GIT & provenance.files.keys())
    return tuple(name for name in names if name not in signed and not any(p.startswith(f"{name}/") for p in signed))


def _refusal(offered: Identity, clause: str, reason: str) -> SignatureRefused:
    return SignatureRefused(
        f"`{offered.full_name}` {shown(offered.version)}",
        clause,
        reason=reason,
        hint="the files are not the signed ones; get them from the author, and inform the operator of the server",
    )

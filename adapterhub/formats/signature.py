"""The file `model.sig`: an OpenSSF Model Signing (OMS) v1.0 bundle, written and read with the standard library alone.

The bundle is that of `formats.signed`. Its statement, in-toto v1, names the SHA-256 of each file, the digest over these
as the subject, and what was signed. `model_signing` reads it. Our one addition is the field `adapter` of the predicate,
with the adapter, version, base, rank and parents that were signed; verifiers of OMS v1.0 ignore it. The bytes come from
strangers: size, depth, repeated keys, types and names are all checked, and the content counts as claims only.

Sources: OMS v1.0 (github.com/ossf/model-signing-spec), in-toto Statement v1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from adapterhub.core.digests import Digest, canonical_json, hex_of, strict_json
from adapterhub.core.errors import shown
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, Manifest
from adapterhub.formats.signed import JSON_WORDS, SIGNATURE_LIMIT_BYTES, SignedObject

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
MAX_FILES: Final = 1024

_ROOM_FOR_NAMES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a signature was made for. `namespace` is None if the signer gave none, `base` if it was unknown."""

    name: str
    version: str
    namespace: str | None = None
    base: str | None = None
    rank: int | None = None
    parents: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest, namespace: str | None) -> Identity:
        """Of a build: its base by the digest of the weights, its parents by digest, or by spec where none is known."""
        return cls(
            name=manifest.name,
            version=manifest.version,
            namespace=namespace,
            base=manifest.base.fingerprint.weights if manifest.base.fingerprint else None,
            rank=manifest.rank,
            parents=tuple(parent.digest or parent.spec for parent in manifest.parents),
        )

    @property
    def full_name(self) -> str:
        """`acme/legal-qa` or `legal-qa`."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def differences(self, other: Identity) -> list[str]:
        """The differences of `other`, which is offered; a namespace that one side leaves open matches any."""
        mine = self if other.namespace else replace(self, namespace=None)
        theirs = other if self.namespace else replace(other, namespace=None)
        pairs: list[tuple[str, object, object]] = [("name", mine.full_name, theirs.full_name)]
        pairs += [(field, getattr(self, field), getattr(other, field)) for field in ("version", "base", "rank")]
        found = [
            f"{field} {shown(signed)}, offered {shown(offered)}"
            for field, signed, offered in pairs
            if signed != offered
        ]
        return found if self.parents == other.parents else [*found, "other parents"]

    def to_json(self) -> dict[str, Any]:
        """The field `adapter`."""
        value: dict[str, Any] = {"name": self.name, "version": self.version, "base": self.base, "rank": self.rank}
        value["parents"] = list(self.parents)
        return value | ({"namespace": self.namespace} if self.namespace else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What was signed: the SHA-256 of each file by its name, and, where our signer made it, for which adapter."""

    files: Mapping[str, Digest]
    identity: Identity | None


def statement_bytes(files: Mapping[str, Digest], identity: Identity) -> bytes:
    """The bytes to sign: a statement over `files`, all of them named and none ignored."""
    resources = [{"name": name, "algorithm": "sha256", "digest": hex_of(files[name])} for name in sorted(files)]
    subject = {"name": identity.full_name, "digest": {"sha256": hex_of(_root(files[name] for name in sorted(files)))}}
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
    predicate = {"serialization": serialization, "resources": resources, "adapter": identity.to_json()}
    return canonical_json(
        {"_type": STATEMENT_TYPE, "subject": [subject], "predicateType": PREDICATE_TYPE, "predicate": predicate}
    )


def read_statement(payload: bytes) -> Statement:
    """Read the signed bytes strictly.

    Raises:
        ValueError: the message is the reason.
    """
    top = SignedObject(strict_json(payload, limit_bytes=SIGNATURE_LIMIT_BYTES), "statement")
    top.expect("_type", STATEMENT_TYPE)
    top.expect("predicateType", PREDICATE_TYPE)
    subjects = top.items("subject")
    if len(subjects) != 1:
        raise ValueError(f"statement.subject: expected one, got {len(subjects)}")
    predicate = top.inner("predicate")
    serialization = predicate.inner("serialization")
    serialization.expect("method", "files")
    serialization.expect("hash_type", "sha256")
    files: dict[str, Digest] = {}
    resources = predicate.items("resources")
    if not 0 < len(resources) <= MAX_FILES:
        raise ValueError(f"statement.predicate.resources: expected 1 to {MAX_FILES} files, got {len(resources)}")
    for resource in resources:
        resource.expect("algorithm", "sha256")
        name = resource.text("name")
        _check_name(name)
        if name in files:
            raise ValueError(f"names `{shown(name)}` twice")
        files[name] = resource.hexadecimal("digest")
    if subjects[0].inner("digest").hexadecimal("sha256") != _root(files.values()):
        raise ValueError("contradicts itself: the digest of its subject is not that of its files")
    adapter = predicate.inner("adapter") if "adapter" in predicate.value else None
    return Statement(files=files, identity=_identity(adapter) if adapter else None)


def signed_files(manifest: Manifest, card: Digest | None = None) -> dict[str, Digest]:
    """The files that our signatures cover: those of the build, its manifest and, if there is one, its card."""
    files = {entry.path: entry.sha256 for entry in manifest.files} | {MANIFEST_FILE: manifest.digest}
    return files | ({CARD_FILE: card} if card else {})


def _root(digests: Iterable[Digest]) -> Digest:
    hasher = hashlib.sha256()
    for digest in digests:
        hasher.update(bytes.fromhex(hex_of(digest)))
    return Digest("sha256:" + hasher.hexdigest())


def _check_name(name: str) -> None:
    parts = name.split("/")
    odd = not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts)
    if odd or len(name) > _ROOM_FOR_NAMES:
        raise ValueError(f"names the file `{shown(name)}`, which is no path inside a folder")


def _identity(adapter: SignedObject) -> Identity:
    namespace, base, rank = (adapter.value.get(key) for key in ("namespace", "base", "rank"))
    parents = adapter.value.get("parents")
    for key, item, kind in (("namespace", namespace, str), ("base", base, str), ("rank", rank, int)):
        if item is not None and type(item) is not kind:
            raise ValueError(f"statement.predicate.adapter.{key}: expected {JSON_WORDS[kind]}, got {shown(item)}")
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ValueError("statement.predicate.adapter.parents: expected a list of texts")
    return Identity(
        name=adapter.text("name"),
        version=adapter.text("version"),
        namespace=namespace,
        base=base,
        rank=rank,
        parents=tuple(parents),
    )

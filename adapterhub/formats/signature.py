"""The file `model.sig`: an OpenSSF Model Signing (OMS) v1.0 bundle, written and read with only the standard library.

The bundle is that of `formats.signed`. Its statement, in-toto v1, names the SHA-256 of each file, the digest over these
as the subject, and what was signed. `model_signing` reads it. Our one addition is the field `adapter` of the predicate,
with the adapter, version, base, rank and parents that were signed; verifiers of OMS v1.0 ignore it. The bytes come from
strangers: size, depth, repeated keys, types and names are all checked, and the content counts as claims only.

Sources: OMS v1.0 (github.com/ossf/model-signing-spec), in-toto Statement v1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final

from adapterhub.core.digests import Digest, canonical_json, digest_of, hex_of, parse_digest, strict_json
from adapterhub.core.errors import Malformed, shown
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, Manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

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
        """Return the differences of `other`, which is offered; a namespace that one side leaves open matches any."""
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
        """Return the field `adapter`."""
        value: dict[str, Any] = {"name": self.name, "version": self.version, "base": self.base, "rank": self.rank}
        value["parents"] = list(self.parents)
        return value | ({"namespace": self.namespace} if self.namespace else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What was signed: the SHA-256 of each file by its name, and, where our signer made it, for which adapter."""

    files: Mapping[str, Digest]
    identity: Identity | None


def statement_bytes(files: Mapping[str, Digest], identity: Identity) -> bytes:
    """Return the bytes to sign: a statement over `files`, all of them named and none ignored."""
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
    """Return the files that our signatures cover: those of the build, its manifest and, if there is one, its card."""
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
        raise ValueError(f"names the file `{shown(name)}`, which is not a path inside a folder")


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


SIGNATURE_LIMIT_BYTES: Final = 1 << 20
KEY_LIMIT_BYTES: Final = 16 << 10
BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"

_HEX = re.compile(r"[0-9a-f]{64}")
_CURVES: Final = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A parsed bundle, not yet verified. `hint` is the fingerprint of the key it names."""

    hint: Digest
    payload: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """Return the file."""
        envelope = {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(self.signature).decode(), "keyid": ""}],
        }
        material = {"publicKey": {"hint": hex_of(self.hint)}, "tlogEntries": []}
        value = {"mediaType": BUNDLE_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}
        return json.dumps(value, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, raw: bytes) -> Bundle:
        """Strict read.

        Raises:
            ValueError: the message is the reason.
        """
        if not raw:
            raise ValueError("is empty")
        top = SignedObject(strict_json(raw, limit_bytes=SIGNATURE_LIMIT_BYTES), "")
        top.expect("mediaType", BUNDLE_TYPE)
        material = top.inner("verificationMaterial")
        if "publicKey" not in material.value:
            raise ValueError("was not made with a key: verificationMaterial.publicKey is missing")
        hint = material.inner("publicKey").hexadecimal("hint")
        envelope = top.inner("dsseEnvelope")
        envelope.expect("payloadType", PAYLOAD_TYPE)
        signatures = envelope.items("signatures")
        if len(signatures) != 1:
            raise ValueError(f"dsseEnvelope.signatures: expected one signature, got {len(signatures)}")
        return cls(hint=hint, payload=envelope.base64("payload"), signature=signatures[0].base64("sig"))


def pre_authentication(payload: bytes) -> bytes:
    """Return the bytes that a DSSE signature is made over: `DSSEv1 <length> <type> <length> <payload>`."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A public key as its one PEM text. `fingerprint` is the SHA-256 of that text, as `sha256sum KEY.pub` prints it."""

    pem: Annotated[str, "the key in PEM format"]

    @property
    def fingerprint(self) -> Digest:
        """The name of the key in bundles."""
        return digest_of(self.pem.encode())

    @classmethod
    def parse(cls, raw: bytes, where: str) -> PublicKey:
        """Return the key in a PEM text, in its normal form.

        Raises:
            Malformed: it is not a key, or of a kind that OMS does not use.
        """
        from cryptography.hazmat.primitives import serialization

        if b"PRIVATE KEY" in raw[:KEY_LIMIT_BYTES]:
            raise Malformed(f"`{where}` is a private key; give the public half", hint="`adapt key show NAME` prints it")
        if (keys := raw.count(b"-----BEGIN ")) > 1:
            raise Malformed(
                f"`{where}` holds {keys} keys or certificates, expected one public key. Nothing was changed",
                hint="write each key to a file of its own, and trust each under its own name",
            )
        try:
            key = serialization.load_pem_public_key(bounded_key(raw))
        except Exception as error:  # noqa: BLE001 - whatever the parser raises means that this is no key
            raise Malformed(
                f"`{where}` is not a public key in PEM: {shown(str(error), 120)}",
                hint="`adapt key show NAME > key.pub` writes one",
            ) from None
        return public_half(key, where)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Return whether `signature` (ASN.1) was made over `data` with the private half."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = serialization.load_pem_public_key(self.pem.encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)  # `parse` made sure
        try:
            key.verify(signature, data, ec.ECDSA(hash_of(key)))
        except InvalidSignature:
            return False
        return True


def bounded_key(raw: bytes) -> bytes:
    """Return the bytes of a key's file; raises `ValueError` when they are more than any key needs."""
    if len(raw) > KEY_LIMIT_BYTES:
        raise ValueError(f"more than {KEY_LIMIT_BYTES} bytes")
    return raw


def public_half(key: object, where: str) -> PublicKey:
    """Return the public key as a value; raises `Malformed` for a kind that OMS does not use."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise Malformed(f"`{where}` is not a key on P-256, P-384 or P-521", hint="`adapt key new NAME` makes one")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return PublicKey(pem=key.public_bytes(serialization.Encoding.PEM, form).decode())


def hash_of(key: EllipticCurvePublicKey) -> Any:
    """Return the hash that goes with the curve of a key."""
    from cryptography.hazmat.primitives import hashes

    return getattr(hashes, _CURVES[key.curve.name])()


JSON_WORDS: Final[Mapping[type, str]] = {str: "a text", int: "an integer", dict: "an object", list: "a list"}


class SignedObject:
    """An untrusted JSON object, read by expected types; every error names its path."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{path or 'the file'}: expected an object")
        self.value: dict[str, Any] = value
        self._path = path

    def _at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _take(self, key: str, kind: type) -> Any:
        item = self.value.get(key)
        if type(item) is not kind:
            got = shown(item) if key in self.value else "nothing"
            raise ValueError(f"{self._at(key)}: expected {JSON_WORDS[kind]}, got {got}")
        return item

    def text(self, key: str) -> str:
        """Return a text."""
        found: str = self._take(key, str)
        return found

    def expect(self, key: str, value: str) -> None:
        """Raise unless the member has this value."""
        if self.value.get(key) != value:
            raise ValueError(f"{self._at(key)}: expected `{value}`, got {shown(self.value.get(key))}")

    def inner(self, key: str) -> SignedObject:
        """Return an object inside."""
        return SignedObject(self._take(key, dict), self._at(key))

    def items(self, key: str) -> list[SignedObject]:
        """Return a list of objects."""
        return [SignedObject(item, f"{self._at(key)}[{n}]") for n, item in enumerate(self._take(key, list))]

    def hexadecimal(self, key: str) -> Digest:
        """Return a SHA-256."""
        text = self.text(key)
        if not _HEX.fullmatch(text):
            raise ValueError(f"{self._at(key)}: expected 64 lower-case hex digits, got {shown(text)}")
        return parse_digest(f"sha256:{text}")

    def base64(self, key: str) -> bytes:
        """Return the bytes behind a text in base64."""
        try:
            return base64.b64decode(self.text(key), validate=True)
        except binascii.Error as error:
            raise ValueError(f"{self._at(key)}: not base64: {error}") from None


MADE_PREDICATE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:adapterhub:merge:1"
BUILDER: Final = "urn:adapterhub"


def made_statement(manifest: Manifest, full_name: str, version: str) -> dict[str, Any]:
    """Return the statement about a build that has a recipe; `version` is that of adapterhub."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f"{full_name} {manifest.version}", "digest": {"sha256": hex_of(manifest.digest)}}],
        "predicateType": MADE_PREDICATE,
        "predicate": {
            "buildDefinition": _definition(manifest),
            "runDetails": {"builder": {"id": BUILDER, "version": {"adapterhub": version}}},
        },
    }


def _definition(manifest: Manifest) -> dict[str, Any]:
    """Return the parents, each with the digest of its manifest and its weight, and then the base."""
    materials: list[dict[str, Any]] = [
        {"name": parent.spec, "annotations": {"weight": parent.weight}}
        | ({"digest": {"sha256": hex_of(parent.digest)}} if parent.digest else {})
        for parent in manifest.parents
    ]
    if manifest.base.fingerprint is not None:
        digest = {"sha256": hex_of(manifest.base.fingerprint.weights)}
        materials.append({"name": "base", "digest": digest})
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {"recipe": dict(manifest.recipe)},
        "internalParameters": {},
        "resolvedDependencies": materials,
    }


def check_made(payload: bytes, manifest: Manifest) -> None:
    """Compare the bytes of a statement with the manifest that it is offered for.

    Raises:
        ValueError: it is not such a statement, is about another build, or differs from the manifest; the first
            difference.
    """
    top = SignedObject(strict_json(payload, limit_bytes=SIGNATURE_LIMIT_BYTES), "statement")
    top.expect("_type", STATEMENT_TYPE)
    top.expect("predicateType", MADE_PREDICATE)
    subjects = top.items("subject")
    about = subjects[0].inner("digest").hexadecimal("sha256") if len(subjects) == 1 else None
    if about != manifest.digest:
        raise ValueError(f"is about {shown(about)}, not about {manifest.digest}")
    definition = top.inner("predicate").inner("buildDefinition")
    definition.expect("buildType", BUILD_TYPE)
    for key, value in _definition(manifest).items():
        if canonical_json(definition.value.get(key)) != canonical_json(value):
            raise ValueError(f"{key}: says otherwise than the manifest")

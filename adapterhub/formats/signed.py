"""What is signed, and the half of a key that checks it: a sigstore bundle with a DSSE envelope, and an ECDSA key.

    bundle     sigstore bundle v0.3: the hint (SHA-256 of the public key's PEM) and a DSSE envelope
    envelope   the signed bytes, base64, and one signature over their pre-authentication encoding

Signatures of builds and signed results of tests have this form. The bytes come from strangers: size, depth, repeated
keys and types are checked, and the content counts as claims only. `cryptography` is imported where a key is used.

Sources: DSSE v1.0 protocol (secure-systems-lab), sigstore bundle v0.3.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from adapterhub.core.digests import Digest, digest_of, hex_of, parse_digest, strict_json
from adapterhub.core.errors import Malformed, shown

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

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
        """The file."""
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
    """The bytes that a DSSE signature is made over: `DSSEv1 <length> <type> <length> <payload>`."""
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
        """The key in a PEM text, in its normal form.

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
            raise Malformed(f"`{where}` is not a public key in PEM: {shown(str(error), 120)}") from None
        return public_half(key, where)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` (ASN.1) was made over `data` with the private half."""
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
    """The bytes of a key's file; raises `ValueError` when they are more than any key needs."""
    if len(raw) > KEY_LIMIT_BYTES:
        raise ValueError(f"more than {KEY_LIMIT_BYTES} bytes")
    return raw


def public_half(key: object, where: str) -> PublicKey:
    """The public key as a value; raises `Malformed` for a kind that OMS does not use."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise Malformed(f"`{where}` is not a key on P-256, P-384 or P-521", hint="`adapt key new NAME` makes one")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return PublicKey(pem=key.public_bytes(serialization.Encoding.PEM, form).decode())


def hash_of(key: EllipticCurvePublicKey) -> Any:  # noqa: ANN401 - a hash of `cryptography`
    """The hash that goes with the curve of a key."""
    from cryptography.hazmat.primitives import hashes

    return getattr(hashes, _CURVES[key.curve.name])()


JSON_WORDS: Final[Mapping[type, str]] = {str: "a text", int: "an integer", dict: "an object", list: "a list"}


class SignedObject:
    """An untrusted JSON object, read by expected types; every error names its path."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{path or 'the file'}: expected an object")  # noqa: TRY004 - callers name the file
        self.value: dict[str, Any] = value
        self._path = path

    def _at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _take(self, key: str, kind: type) -> Any:  # noqa: ANN401 - of the type `kind`
        item = self.value.get(key)
        if type(item) is not kind:
            got = shown(item) if key in self.value else "nothing"
            raise ValueError(f"{self._at(key)}: expected {JSON_WORDS[kind]}, got {got}")
        return item

    def text(self, key: str) -> str:
        """A text."""
        found: str = self._take(key, str)
        return found

    def expect(self, key: str, value: str) -> None:
        """Raise unless the member has this value."""
        if self.value.get(key) != value:
            raise ValueError(f"{self._at(key)}: expected `{value}`, got {shown(self.value.get(key))}")

    def inner(self, key: str) -> SignedObject:
        """An object inside."""
        return SignedObject(self._take(key, dict), self._at(key))

    def items(self, key: str) -> list[SignedObject]:
        """A list of objects."""
        return [SignedObject(item, f"{self._at(key)}[{n}]") for n, item in enumerate(self._take(key, list))]

    def hexadecimal(self, key: str) -> Digest:
        """A SHA-256."""
        text = self.text(key)
        if not _HEX.fullmatch(text):
            raise ValueError(f"{self._at(key)}: expected 64 lower-case hex digits, got {shown(text)}")
        return parse_digest(f"sha256:{text}")

    def base64(self, key: str) -> bytes:
        """The bytes behind a text in base64."""
        try:
            return base64.b64decode(self.text(key), validate=True)
        except binascii.Error as error:
            raise ValueError(f"{self._at(key)}: not base64: {error}") from None

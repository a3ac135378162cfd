"""ECDSA keys: the public half as a value, the private half in a file of its owner.

    keys/<name>.pem   private key, PKCS #8, encrypted unless the user chose otherwise; mode 0600
    keys/<name>.pub   public key, to give to others

New keys are P-256; P-384 and P-521, which OMS allows as well, are checked too. `cryptography` is imported where a key
is made, opened or used, and nowhere else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.arguments import parsed
from adapterhub.core.digests import Progress
from adapterhub.core.disk.files import check_private, digest_of_file, make_folder, not_read, write_durably
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import (
    Conflict,
    DigestMismatch,
    Malformed,
    NotAllowed,
    NotFound,
    SignatureRefused,
    UsageProblem,
    shown,
)
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, Manifest
from adapterhub.formats.signature import (
    Bundle,
    Identity,
    PublicKey,
    bounded_key,
    hash_of,
    pre_authentication,
    public_half,
    read_statement,
    signed_files,
    statement_bytes,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def parse_key_name(text: str) -> str:
    """Return the name of a key.

    Raises:
        UsageProblem: unless it is 1 to 64 letters, digits and `._@-` and begins with a letter or digit.
    """
    if not _NAME.fullmatch(text):
        raise UsageProblem(f"`{shown(text)}` is not a valid key name: expected 1 to 64 of a-z, A-Z, 0-9 and `._@-`")
    return text


class SigningKey:
    """An opened private key."""

    def __init__(self, key: EllipticCurvePrivateKey, name: str) -> None:
        self._key = key
        self.name = name
        self.public = public_half(key.public_key(), name)

    def sign(self, data: bytes) -> bytes:
        """Return an ECDSA signature over `data`, ASN.1."""
        from cryptography.hazmat.primitives.asymmetric import ec

        return self._key.sign(data, ec.ECDSA(hash_of(self._key.public_key())))

    @classmethod
    def parse(cls, raw: bytes, password: str | None, *, name: str, where: str) -> SigningKey:
        """Open a private key in PEM.

        Raises:
            NotAllowed: the password is missing or wrong.
            Malformed: it is not a private key, or of a kind that OMS does not use.
        """
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            key = serialization.load_pem_private_key(bounded_key(raw), password.encode() if password else None)
        except TypeError as error:
            if password:  # a password for a key that has none
                return cls.parse(raw, None, name=name, where=where)
            raise NotAllowed(
                f"`{where}` is encrypted, and no password was given", hint="in CI, set ADAPTERHUB_PASSWORD"
            ) from error
        except Exception as error:  # noqa: BLE001 - the library has many classes for the same two facts
            if password and b"ENCRYPTED" in raw:
                raise NotAllowed(
                    f"`{where}`: the password is wrong", hint="set ADAPTERHUB_PASSWORD, or type it again"
                ) from None
            raise Malformed(
                f"`{where}` is not a private key in PEM: {shown(str(error), 120)}",
                hint="`adapt key new NAME` makes a key",
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Malformed(f"`{where}` is not an elliptic-curve key", hint="`adapt key new NAME` makes one")
        return cls(key, name)


@parsed
class KeyFolder:
    """The user's own keys, below the library's root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / "keys"

    def names(self) -> list[str]:
        """Return the names of all keys."""
        return sorted(path.stem for path in self._folder.glob("*.pem"))

    def path(self, name: str) -> Path:
        """Return the path of the private key, whether it exists or not."""
        return self._folder / f"{parse_key_name(name)}.pem"

    def public_path(self, name: str) -> Path:
        """Return the path of the public key, whether it exists or not."""
        return self._folder / f"{parse_key_name(name)}.pub"

    def public(self, name: str) -> PublicKey:
        """Return the public half.

        Raises:
            NotFound: no key has that name.
        """
        path = self.public_path(name)
        try:
            return PublicKey.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise self._missing(name) from None

    def is_encrypted(self, name: str) -> bool:
        """Return whether the private half needs a password."""
        return b"ENCRYPTED" in self._read(name)

    def open(self, name: str, password: str | None) -> SigningKey:
        """Return the private half.

        Raises:
            NotFound: no key has that name.
            NotAllowed: others may read the file, or the password is missing or wrong.
        """
        return SigningKey.parse(self._read(name), password, name=name, where=str(self.path(name)))

    def new(self, name: str, password: str | None) -> PublicKey:
        """Make a P-256 pair; without a password the private key is not encrypted.

        Raises:
            Conflict: a key has that name already.
        """
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        path = self.path(name)
        with Root(self._root).lock("trust", exclusive=True):
            if path.exists():
                raise Conflict(f"there is a key `{name}` already; nothing was changed", hint="choose another name")
            key = ec.generate_private_key(ec.SECP256R1())
            encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
            if password:
                encryption = serialization.BestAvailableEncryption(password.encode())
            pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
            public = public_half(key.public_key(), name)
            try:
                make_folder(self._folder)
                self._folder.chmod(0o700)
                write_durably(self.public_path(name), public.pem.encode(), mode=0o644)
                write_durably(path, pem, mode=0o600)  # last: the private key takes the name
            except OSError as error:
                raise Root(self._root).explain(error) from error
        return public

    def _read(self, name: str) -> bytes:
        path = self.path(name)
        try:
            raw = path.read_bytes()
            check_private(path, "is a private key")
        except FileNotFoundError:
            raise self._missing(name) from None
        except OSError as error:
            raise not_read(error, path, NotAllowed) from None
        return raw

    def _missing(self, name: str) -> NotFound:
        names = ", ".join(f"`{known}`" for known in self.names())
        return NotFound(
            f"no key `{shown(name)}` of your own; there {'are ' + names if names else 'is none'}",
            hint=f"`adapt key new {shown(name)}` makes one",
        )


def sign_folder(
    folder: Path, manifest: Manifest, namespace: str | None, key: SigningKey, progress: Progress | None = None
) -> bytes:
    """Return the bytes of `model.sig` for the build in `folder`, after comparing every file with `manifest`.

    Raises:
        DigestMismatch: a file differs; nothing is signed.
    """
    expected = signed_files(manifest)
    for name, digest in expected.items():
        try:
            actual, _ = digest_of_file(folder / name, progress)
        except OSError as error:
            raise DigestMismatch(f"{folder / name}", expected=digest, actual=str(error.strerror)) from None
        if actual != digest:
            hint = "nothing was signed; `adapt doctor --repair` fetches the file again where it can"
            where = f"{folder / name}" if name != MANIFEST_FILE else str(folder / MANIFEST_FILE)
            raise DigestMismatch(where, expected=digest, actual=actual, hint=hint)
    card = folder / CARD_FILE
    files = signed_files(manifest, digest_of_file(card)[0] if card.is_file() and not card.is_symlink() else None)
    payload = statement_bytes(files, Identity.of(manifest, namespace))
    bundle = Bundle(hint=key.public.fingerprint, payload=payload, signature=key.sign(pre_authentication(payload)))
    return bundle.to_bytes()


def is_signed_by(raw: bytes | None, manifest: Manifest, namespace: str | None, key: PublicKey) -> bool:
    """Return whether `raw` is a signature by `key` over this build, apart from the card."""
    if raw is None:
        return False
    try:
        bundle = Bundle.parse(raw)
        statement = read_statement(bundle.payload)
    except (ValueError, SignatureRefused):
        return False
    expected = signed_files(manifest)
    is_same = statement.identity == Identity.of(manifest, namespace) and expected.items() <= statement.files.items()
    is_ours = bundle.hint == key.fingerprint
    return is_same and is_ours and key.verifies(bundle.signature, pre_authentication(bundle.payload))

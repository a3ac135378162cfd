"""Sign an installed build: hash its files again, and sign the digests with the identity of the build."""

from __future__ import annotations

from pathlib import Path

from adapterhub.core.digests import Progress
from adapterhub.core.disk.files import digest_of_file
from adapterhub.core.errors import DigestMismatch, SignatureRefused
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, Manifest
from adapterhub.formats.signature import Identity, read_statement, signed_files, statement_bytes
from adapterhub.formats.signed import Bundle, PublicKey, pre_authentication
from adapterhub.trust.signing.keys import SigningKey


def sign_folder(
    folder: Path, manifest: Manifest, namespace: str | None, key: SigningKey, progress: Progress | None = None
) -> bytes:
    """The bytes of `model.sig` for the build in `folder`, after comparing every file with `manifest`.

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
    """Whether `raw` is a signature by `key` over this build, apart from the card."""
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

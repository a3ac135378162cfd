"""Names the signer of a build, where the namespace knows the key."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub.core.digests import hex_of
from adapterhub.formats.administration import NamespaceRule
from adapterhub.formats.manifest import MANIFEST_FILE, MEDIA_TYPES, WEIGHTS_FILE
from adapterhub.formats.signature import read_statement
from adapterhub.formats.signed import SIGNATURE_LIMIT_BYTES, Bundle, PublicKey, pre_authentication

COVERED = (*MEDIA_TYPES, MANIFEST_FILE)
"""The files that a signature must name where a build has them."""


def signer_of(raw: bytes, files: Mapping[str, str], rule: NamespaceRule) -> str | None:
    """The name of the key of the namespace that signed these files (path to sha256), in the bytes of a `model.sig`.

    None for a signature that does not hold, does not cover the build, was made for another namespace, or is by a key
    that the namespace does not know.
    """
    if len(raw) > SIGNATURE_LIMIT_BYTES:
        return None
    try:
        bundle = Bundle.parse(raw)
        known = rule.key_of(bundle.hint)
        if known is None or not PublicKey(pem=known.pem).verifies(bundle.signature, pre_authentication(bundle.payload)):
            return None
        said = read_statement(bundle.payload)
    except ValueError:
        return None
    mine = {path: files[path] for path in COVERED if path in files}
    signed = {path: hex_of(digest) for path, digest in said.files.items()}
    elsewhere = said.identity is not None and said.identity.namespace not in {None, rule.namespace}
    return known.name if WEIGHTS_FILE in mine and mine.items() <= signed.items() and not elsewhere else None

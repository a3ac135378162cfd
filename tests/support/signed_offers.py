"""Builds that exist in memory only, and their signatures, for tests of what is decided about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from adapterhub.core.digests import digest_of
from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import CONFIG_FILE, MEDIA_TYPES, WEIGHTS_FILE, BaseRef, FileEntry, Manifest, Parent
from adapterhub.formats.release import Provenance, Release
from adapterhub.formats.signature import Bundle, Identity, pre_authentication, signed_files, statement_bytes
from adapterhub.trust.signing.keys import SigningKey


def key(number: int, name: str = "key") -> SigningKey:
    """The same key for the same number."""
    return SigningKey(ec.derive_private_key(1000 + number, ec.SECP256R1()), name)


ANN, BEN = key(1, "ann"), key(2, "ben")


def manifest(version: str = "1.0.0", *, rank: int | None = 4, parents: tuple[Parent, ...] = ()) -> Manifest:
    files = tuple(
        FileEntry(path=name, sha256=digest_of(name.encode()), size_bytes=len(name), media_type=MEDIA_TYPES[name])
        for name in (CONFIG_FILE, WEIGHTS_FILE)
    )
    return Manifest(
        name=parse_name("legal-qa"),
        version=version,
        base=BaseRef(),
        method=("LORA",),
        files=files,
        rank=rank,
        parents=parents,
    )


def release(version: str = "1.0.0", *, namespace: str | None = "acme", rank: int | None = 4) -> Release:
    return Release(manifest=manifest(version, rank=rank), namespace=namespace, origin="the shelf")


def statement(offered: Release) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(
        statement_bytes(signed_files(offered.manifest), Identity.of(offered.manifest, offered.namespace))
    )
    return value


def signed(
    offered: Release,
    by: SigningKey = ANN,
    change: Callable[[dict[str, Any]], object] = lambda _: None,
    *,
    beside: dict[str, str] | None = None,
) -> Provenance:
    """The signature of `by` over a build, after `change` of what it says."""
    value = statement(offered)
    change(value)
    payload = json.dumps(value).encode()
    bundle = Bundle(hint=by.public.fingerprint, payload=payload, signature=by.sign(pre_authentication(payload)))
    return Provenance(signature=bundle.to_bytes(), files=beside)

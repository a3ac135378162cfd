"""Signed statements about how builds were made: signed with a key as `model.sig` is, and checked each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub.core.digests import Digest, digest_of
from adapterhub.core.errors import SignatureRefused, shown
from adapterhub.formats.made import check_made
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.signed import SIGNATURE_LIMIT_BYTES
from adapterhub.trust.signing.results import ResultStanding, opened, standing_of
from adapterhub.trust.signing.trust import Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedStatement:
    """Who states how a build was made. `standing` says whether the user trusts the key for this adapter."""

    digest: Digest
    key: Digest
    signer: str | None
    standing: ResultStanding


def read_made(
    raw: bytes, trust: Trust, *, full_name: str, manifest: Manifest, places: Sequence[str] = (), now: float
) -> SignedStatement:
    """Read a signed statement that is offered for a build, which is named `full_name` here.

    `places` are the address of the place that the build came from, and the name of that remote.

    Raises:
        SignatureRefused: it is broken, forged, or says otherwise than the manifest.
    """

    def refused(clause: str, reason: str) -> SignatureRefused:
        what = f"a statement of how `{shown(full_name)}` was made"
        return SignatureRefused(what, clause, reason=reason, ending="It does not count")

    bundle, key = opened(raw, trust, SIGNATURE_LIMIT_BYTES, refused)
    try:
        check_made(bundle.payload, manifest)
    except ValueError as error:
        raise refused(f"it {shown(str(error), 200)}", "broken") from None
    return SignedStatement(
        digest=digest_of(raw),
        key=bundle.hint,
        signer=key.name if key else None,
        standing=standing_of(key, full_name, places, now),
    )

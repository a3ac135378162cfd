"""Signed results of tests: made by a tester's key, and checked each time they are read.

The file is a bundle as `model.sig` is, over an in-toto statement of another type, so neither counts as the other. A
result proves that the tester saw a verdict on these bytes, by this contract, on this base, and nothing about others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from adapterhub.core.digests import Digest, canonical_json, digest_of
from adapterhub.core.errors import SignatureRefused, shown
from adapterhub.formats.contract.results import CLOCKS_DIFFER_S, RESULT_LIMIT_BYTES, Attested
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.signature import SIGNATURE_LIMIT_BYTES, Bundle, check_made, pre_authentication
from adapterhub.trust.signing.keys import SigningKey
from adapterhub.trust.signing.trust import Trust, TrustedKey, day_text

ResultStanding = Literal["trusted", "unknown_key", "out_of_scope", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedResult(
    Documented,
    keys="name=result.name digest=result.manifest contract=result.contract rules=result.rules"
    " base_weights=result.base dtype=result.dtype load_in=result.load_in base_alone=result.base_alone"
    " verdict=result.verdict outcome=result.outcome sequence=result.sequence time signer key standing statement=digest",
):
    """A result that a tester signed."""

    result: Attested
    digest: Annotated[Digest, "of the file"]
    key: Annotated[Digest, "fingerprint of the key"]
    signer: Annotated[str | None, "name of the key here; null for an unknown one"]
    standing: Annotated[ResultStanding, "`trusted`, `unknown_key`, `out_of_scope` or `expired`"]

    @property
    def time(self) -> str:
        """RFC 3339."""
        return day_text(int(self.result.time))

    @property
    def by(self) -> str:
        """The signer in words."""
        return f"`{self.signer}`" if self.signer else f"the unknown key {self.key[:19]}…"


def sign_result(statement: Mapping[str, Any], key: SigningKey) -> bytes:
    """Return the bytes of a signed result."""
    payload = canonical_json(dict(statement))
    signature = key.sign(pre_authentication(payload))
    return Bundle(hint=key.public.fingerprint, payload=payload, signature=signature).to_bytes()


def read_result(
    raw: bytes, trust: Trust, *, full_name: str, manifest: Digest, places: Sequence[str] = (), now: float
) -> SignedResult:
    """Read a signed result that is offered for the build `manifest`, which is named `full_name` here.

    `places` are the address of the place that the build came from, and the name of that remote.

    Raises:
        SignatureRefused: it is broken, forged, about another build, or from the future.
    """

    def refused(clause: str, reason: str) -> SignatureRefused:
        return SignatureRefused(
            f"a result for `{shown(full_name)}`",
            clause,
            reason=reason,
            hint="`adapt test NAME --sign` makes a result of your own",
            ending="It does not count",
        )

    bundle, key = opened(raw, trust, RESULT_LIMIT_BYTES, refused)
    try:
        result = Attested.parse(bundle.payload)
    except ValueError as error:
        raise refused(f"its content is wrong: `{shown(str(error), 200)}`", "broken") from None
    if result.manifest != manifest:
        raise refused(f"it is about {result.manifest[:19]}…, not about {manifest[:19]}…", "other_build")
    if result.time > now + CLOCKS_DIFFER_S:
        raise refused(f"it is dated {day_text(int(result.time))}, in the future", "future")
    return SignedResult(
        result=result,
        digest=digest_of(raw),
        key=bundle.hint,
        signer=key.name if key else None,
        standing=standing_of(key, full_name, places, now),
    )


def opened(
    raw: bytes, trust: Trust, limit_bytes: int, refused: Callable[[str, str], SignatureRefused]
) -> tuple[Bundle, TrustedKey | None]:
    """Return a bundle, and the trusted key that made it; None for a key that is unknown. `refused` makes the error.

    Raises:
        SignatureRefused: it is broken, or not made with the key that it names.
    """
    try:
        if len(raw) > limit_bytes:
            raise ValueError(f"holds more than {limit_bytes >> 10} KiB")  # noqa: TRY301 - one refusal for all
        bundle = Bundle.parse(raw)
    except ValueError as error:
        raise refused(f"it {shown(str(error), 200)}", "broken") from None
    if (revoked := trust.revoked_of(bundle.hint)) is not None:
        raise refused(f"it {revoked.clause}", "revoked")
    key = trust.key_of(bundle.hint)
    if key is not None:
        parsed = key.key.parse(key.key.pem.encode(), f"trusted key {key.name}")
        if not parsed.verifies(bundle.signature, pre_authentication(bundle.payload)):
            raise refused(f"it was not made with the key `{key.name}` that it names: it is forged", "forged")
    return bundle, key


def standing_of(key: TrustedKey | None, full_name: str, places: Sequence[str], now: float) -> ResultStanding:
    """Return whether the user trusts a key for an adapter."""
    if key is None:
        return "unknown_key"
    if key.is_over(now):
        return "expired"
    return "trusted" if key.covers(full_name, places) else "out_of_scope"


def newest(results: Iterable[SignedResult]) -> list[SignedResult]:
    """Return the results that no later one by the same key on the same question supersedes, the latest first.

    A result by a key that is not trusted supersedes none by a trusted one: keys differ.
    """
    found: dict[object, SignedResult] = {}
    for one in results:
        question = (one.key, one.result.question)
        before = found.get(question)
        if before is None or _order(before) < _order(one):
            found[question] = one
    return sorted(found.values(), key=_order, reverse=True)


def _order(one: SignedResult) -> tuple[int, bool, str]:
    # of two with one number, the CHANGED one counts
    return one.result.sequence, one.result.verdict == "CHANGED", one.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedStatement:
    """A signed statement of how a build was made. `standing` is the user's trust in the key for this adapter."""

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
        hint = "`adapt key sign NAME --statement` signs how an adapter of yours was merged"
        return SignatureRefused(what, clause, reason=reason, hint=hint, ending="It does not count")

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

"""Checks that the adapter declares the given base, as far as it declares one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import shown
from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseVerdict
from adapterhub.formats.manifest import CONFIG_FILE, MANIFEST_FILE
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.subject import Subject

CLAIM_KEYS: Final = ("base_model_hash", "base_model_sha256", "base_sha256")
"""Settings in which some trainers record the hash of their base; no PEFT release reads them."""

_FORCE: Final = (
    "get the adapter that was made for this base; `adapt install --allow-base-mismatch` overrides where shapes agree"
)
_ACCEPT: Final = "`adapt base add PATH --accept likely` accepts the copy"
_REGISTER: Final = "register the base in floats with `adapt base add PATH`: each copy is compared with it"
_UNKNOWN_FORMAT: Final = "use the base itself, or a copy of it in a format that is known here"

_DECIDED: Final = {
    BaseVerdict.SAME_FAMILY: "was made for another base of its family",
    BaseVerdict.ACCEPTED_QUANTISED: "was made for a base of which this is likely a copy, which you accepted",
}
"""What a user decided about a base, by the verdict that follows."""


def claims_base(config: AdapterConfig) -> bool:
    """Return whether the config names its base by a hash."""
    return any(config.extra.get(key) is not None for key in CLAIM_KEYS)


def check(subject: Subject) -> Iterator[Finding]:
    """Compare the manifest's fingerprint, and hashes in the config, with the given base."""
    yield from _claims(subject)
    given, manifest = subject.given_base, subject.manifest
    if given is None:
        message = "not compared with a base: none was given, or the one it was made for is not registered here"
        hint = "`--base BASE` names one; `adapt base add PATH` registers it"
        yield Finding("U_BASE", "", message, hint=hint)
        return
    if manifest is None:
        return  # a plain PEFT folder claims nothing: its shapes are all there is
    comparison = subject.judge(manifest.base.fingerprint, given)
    differs = "; ".join(shown(d, 160) for d in comparison.differences[:4]) if comparison.differences else ""
    if comparison.verdict is BaseVerdict.UNKNOWN:
        message = "declares no fingerprint of its base, so only shapes can be compared"
        yield Finding("U_BASE", MANIFEST_FILE, message)
    elif not comparison.verdict.allows_attach:
        yield Finding(
            "E_BASE_MISMATCH",
            MANIFEST_FILE,
            f"was made for {comparison.verdict.made_for}: {differs or comparison.verdict.value}",
            expected=f"base {given.weights[7:19]}",
            hint=comparison.hint or _way(comparison.verdict, manifest.base.fingerprint, given),
        )
    elif comparison.verdict is BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY:
        message = f"was made for this base before its vocabulary was resized: {differs}"
        yield Finding("W_BASE_RESIZED", MANIFEST_FILE, message)
    elif comparison.verdict in _DECIDED:
        yield Finding("W_BASE_ALLOWED", MANIFEST_FILE, f"{_DECIDED[comparison.verdict]}: {differs}")
    elif differs:
        message = f"same base in another form: {differs}"
        yield Finding("N_BASE", MANIFEST_FILE, message)


def _way(verdict: BaseVerdict, *bases: BaseFingerprint | None) -> str:
    """Return the way to run the adapter, or an alternative."""
    if verdict is BaseVerdict.LIKELY_SAME_QUANTISED:
        return _ACCEPT
    if verdict is BaseVerdict.CANNOT_TELL:
        return _UNKNOWN_FORMAT if any(one and one.copy and one.copy.unknown for one in bases) else _REGISTER
    return _FORCE


def _claims(subject: Subject) -> Iterator[Finding]:
    """Errors for hashes that cannot be read, and for those that the given base does not have."""
    given = subject.given_base
    known = {given.weights, given.tensors, given.structure, given.files} if given else set()
    for key in CLAIM_KEYS:
        claim = subject.config.extra.get(key)
        if claim is None:
            continue
        try:
            digest = parse_digest(claim if str(claim).startswith("sha256:") else f"sha256:{claim}")
        except ValueError:
            message, expected = f"`{key}` is {shown(claim)}", "sha256:<64 lower-case hex digits>"
            yield Finding("E_CONFIG", CONFIG_FILE, message, expected=expected)
            continue
        if given is None:
            message = f"`{key}` names the base it needs; none was given for comparison"
            yield Finding("U_BASE", CONFIG_FILE, message)
        elif digest not in known:
            yield Finding(
                "E_BASE_MISMATCH",
                CONFIG_FILE,
                f"`{key}` is {digest}, which is another base",
                expected=f"{given.weights}",
                hint=_FORCE,
            )

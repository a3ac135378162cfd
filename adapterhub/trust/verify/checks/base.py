"""Checks that the adapter declares the given base, as far as it declares one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import shown
from adapterhub.formats.base.fingerprint import BaseVerdict, compare
from adapterhub.formats.manifest import CONFIG_FILE, MANIFEST_FILE
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.trust.verify.report import Finding
from adapterhub.trust.verify.subject import Subject

CLAIM_KEYS: Final = ("base_model_hash", "base_model_sha256", "base_sha256")
"""Settings in which some trainers record the hash of their base; no PEFT release reads them."""

_FORCE: Final = (
    "get the adapter that was made for this base; `adapt install --allow-base-mismatch` overrides where shapes agree"
)


def claims_base(config: AdapterConfig) -> bool:
    """Whether the config names its base by a hash."""
    return any(config.extra.get(key) is not None for key in CLAIM_KEYS)


def check(subject: Subject) -> Iterator[Finding]:
    """Compare the manifest's fingerprint, and hashes in the config, with the given base."""
    yield from _claims(subject)
    given, manifest = subject.given_base, subject.manifest
    if given is None:
        message = "not compared with a base: none was given, or the one it was made for is not registered here"
        hint = "`--base BASE` names one; `adapt base add PATH` registers it"
        yield Finding(code="U_BASE", severity="unknown", where="", message=message, hint=hint)
        return
    if manifest is None:
        return  # a plain PEFT folder claims nothing: its shapes are all there is
    comparison = compare(manifest.base.fingerprint, given)
    differs = "; ".join(shown(d, 160) for d in comparison.differences[:4])
    if comparison.verdict is BaseVerdict.UNKNOWN:
        message = "declares no fingerprint of its base, so only shapes can be compared"
        yield Finding(code="U_BASE", severity="unknown", where=MANIFEST_FILE, message=message)
    elif not comparison.verdict.allows_attach:
        yield Finding(
            code="E_BASE_MISMATCH",
            severity="error",
            where=MANIFEST_FILE,
            message=f"was made for another base: {differs or comparison.verdict.value}",
            expected=f"base {given.weights[7:19]}",
            hint=_FORCE,
        )
    elif comparison.verdict is BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY:
        message = f"was made for this base before its vocabulary was resized: {differs}"
        yield Finding(code="W_BASE_RESIZED", severity="warning", where=MANIFEST_FILE, message=message)
    elif differs:
        message = f"same base in another form: {differs}"
        yield Finding(code="N_BASE", severity="note", where=MANIFEST_FILE, message=message)


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
            yield Finding(code="E_CONFIG", severity="error", where=CONFIG_FILE, message=message, expected=expected)
            continue
        if given is None:
            message = f"`{key}` names the base it needs; none was given for comparison"
            yield Finding(code="U_BASE", severity="unknown", where=CONFIG_FILE, message=message)
        elif digest not in known:
            yield Finding(
                code="E_BASE_MISMATCH",
                severity="error",
                where=CONFIG_FILE,
                message=f"`{key}` is {digest}, which is another base",
                expected=f"{given.weights}",
                hint=_FORCE,
            )

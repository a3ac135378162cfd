"""The values of a signature policy: `require`, `warn` or `off`."""

from __future__ import annotations

from typing import Literal, get_args

from adapterhub.core.errors import shown

SignaturePolicy = Literal["require", "warn", "off"]


SIGNATURE_POLICIES: tuple[SignaturePolicy, ...] = get_args(SignaturePolicy)


def strict_policy(stored: object) -> tuple[SignaturePolicy, str]:
    """Return the policy that a setting stands for, and its fault; a setting that is not a policy means `require`."""
    for policy in SIGNATURE_POLICIES:
        if stored == policy:
            return policy, ""
    return "require", f"`{shown(stored)}` counts as `require`; expected one of {', '.join(SIGNATURE_POLICIES)}"

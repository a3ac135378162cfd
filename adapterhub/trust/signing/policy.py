"""The values of a signature policy: `require`, `warn` or `off`."""

from __future__ import annotations

from typing import Literal, get_args

SignaturePolicy = Literal["require", "warn", "off"]


SIGNATURE_POLICIES: tuple[SignaturePolicy, ...] = get_args(SignaturePolicy)

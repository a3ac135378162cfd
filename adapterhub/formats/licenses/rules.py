"""The table of licence terms, and hub names of licences without an SPDX identifier.

The terms are coarse. A term shows that you should read the licence; the lack of one never shows that you need not.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


class Term(enum.Enum):
    """A condition on use or distribution. The value is the wording in findings."""

    NONCOMMERCIAL = "forbids commercial use"
    NO_DERIVATIVES = "forbids sharing changed versions"
    SHARE_ALIKE = "requires the same licence for whatever is made from it"
    CONDITIONS = "sets its own conditions on use, names or scale"
    UNKNOWN = "is not known here"


PERMISSIVE: Final[frozenset[Term]] = frozenset()

_RULES: Final[tuple[tuple[str, frozenset[Term]], ...]] = (
    # Creative Commons and data licences
    (r"CC0-1\.0|CC-PDDC|PDDL-1\.0|CC-BY-\d.*|ODC-By-1\.0|CDLA-Permissive-.*|etalab-2\.0", PERMISSIVE),
    (r"CC-BY-SA-\d.*|ODbL-1\.0|CDLA-Sharing-.*", frozenset({Term.SHARE_ALIKE})),
    (r"CC-BY-NC-SA-\d.*", frozenset({Term.NONCOMMERCIAL, Term.SHARE_ALIKE})),
    (r"CC-BY-NC-ND-\d.*", frozenset({Term.NONCOMMERCIAL, Term.NO_DERIVATIVES})),
    (r"CC-BY-NC-\d.*", frozenset({Term.NONCOMMERCIAL})),
    (r"CC-BY-ND-\d.*", frozenset({Term.NO_DERIVATIVES})),
    (r"PolyForm-Noncommercial-.*|LicenseRef-NonCommercial", frozenset({Term.NONCOMMERCIAL})),
    # software licences
    (r"MIT|MIT-0|Apache-.*|BSD-.*|0BSD|ISC|Zlib|BSL-1\.0|NCSA|PostgreSQL|Unlicense|WTFPL|Python-2\.0.*", PERMISSIVE),
    (r"AFL-3\.0|ECL-2\.0|Artistic-2\.0|UPL-1\.0|MulanPSL-.*|BlueOak-1\.0\.0|MS-PL|OFL-1\.1.*", PERMISSIVE),
    (r"[AL]?GPL-.*|GFDL-.*|MPL-.*|EPL-.*|EUPL-.*|OSL-.*|CECILL-.*|CDDL-.*|MS-RL", frozenset({Term.SHARE_ALIKE})),
    # licences of models
    (r"C-UDA-1\.0|LicenseRef-(Llama|Gemma|OpenRAIL|CustomModel).*", frozenset({Term.CONDITIONS})),
)
"""Patterns over whole SPDX identifiers, with the terms of those licences. The first match counts."""

CANNOT_JOIN: Final[tuple[tuple[str, Term], ...]] = (
    (r"A?GPL-.*", Term.NONCOMMERCIAL),
    (r"A?GPL-.*", Term.CONDITIONS),
    (r"A?GPL-.*|CC-BY-SA-.*", Term.NO_DERIVATIVES),
    (r"CC-BY-SA-.*", Term.NONCOMMERCIAL),
)
"""Pairs that cannot be joined: a licence that forbids further restrictions, and a restriction in another part."""

_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bsd": "BSD-3-Clause",
        "cc": "LicenseRef-CreativeCommons",
        "gfdl": "GFDL-1.3-or-later",
        "gpl": "GPL-2.0-or-later",
        "lgpl": "LGPL-2.1-or-later",
        "odbl": "ODbL-1.0",
        "odc-by": "ODC-By-1.0",
        "pddl": "PDDL-1.0",
        "gemma": "LicenseRef-Gemma",
        "openrail": "LicenseRef-OpenRAIL",
        "openrail++": "LicenseRef-OpenRAIL",
        "apple-amlr": "LicenseRef-NonCommercial",
        "h-research": "LicenseRef-NonCommercial",
        "intel-research": "LicenseRef-NonCommercial",
        "deepfloyd-if-license": "LicenseRef-NonCommercial",
        "mnpl": "LicenseRef-NonCommercial",
        "mrl": "LicenseRef-NonCommercial",
        "c-uda": "C-UDA-1.0",
        "falcon-llm-license": "LicenseRef-CustomModel-Falcon",
        "nvidia-open-model-license": "LicenseRef-CustomModel-NVIDIA",
        "grok2-community": "LicenseRef-CustomModel-Grok2",
        "deepseek": "LicenseRef-CustomModel-DeepSeek",
        "qwen": "LicenseRef-CustomModel-Qwen",
        "tongyi-qianwen": "LicenseRef-CustomModel-Qwen",
    }
)
"""Names on hub cards, in lower case, and their SPDX names; licences outside SPDX's list get a `LicenseRef-` name."""

_FAMILIES: Final = (
    (re.compile(r"llama[ -]?(\d(?:\.\d)?)?(?:[ -].*)?"), "LicenseRef-Llama"),
    (re.compile(r"(?:creativeml|bigscience|bigcode).*rail.*"), "LicenseRef-OpenRAIL"),
    (re.compile(r".*(?:non-?commercial|research).*"), "LicenseRef-NonCommercial"),
)
NOTHING_SAID: Final = frozenset({"", "other", "unknown", "none", "unlicensed", "proprietary"})
"""Values on cards that state no licence."""


def spdx_name(token: str) -> str:
    """The SPDX name for a hub's name of a licence; other text unchanged."""
    low = token.lower()
    if low in _NAMES:
        return _NAMES[low]
    for pattern, name in _FAMILIES:
        if found := pattern.fullmatch(low):
            return f"{name}-{found[1]}" if found.groups() and found[1] else name
    return token


def terms_of(identifier: str) -> frozenset[Term]:
    """The terms of a licence, by its SPDX identifier (without an exception); UNKNOWN when no rule matches."""
    return next((terms for pattern, terms in _RULES if re.fullmatch(pattern, identifier)), frozenset({Term.UNKNOWN}))

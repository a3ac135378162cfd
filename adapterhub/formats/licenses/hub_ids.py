"""The identifiers that the Hub accepts as `license` in a card, and how a licence is written there.

Source: https://huggingface.co/docs/hub/repositories-licenses.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from adapterhub.formats.licenses.rules import NOTHING_SAID, spdx_name

HUB_LICENSES: Final = tuple(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
    """.split()  # noqa: SIM905 - as long as a list, and easier to compare with the source
)


def hub_license(stated: str) -> str | None:
    """The Hub's identifier of a licence; None where it has none, and a card says `other` with a `license_name`.

    An SPDX identifier finds its lower-case twin (`Apache-2.0`), and a GNU licence the version that it names
    (`GPL-3.0-or-later`). Expressions have no identifier.
    """
    low = stated.strip().lower()
    low = low.removesuffix("-only").removesuffix("-or-later").removesuffix("+") if "gpl-" in low else low
    return low if low in HUB_LICENSES else _twins().get(low) if low not in NOTHING_SAID else None


@cache
def _twins() -> dict[str, str]:
    """The identifiers by the lower-case SPDX names that they stand for."""
    return {spdx_name(one).lower(): one for one in reversed(HUB_LICENSES) if not spdx_name(one).startswith("License")}

"""One sentence for each code of an audit, by severity; `docs/reference/findings.md` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from adapterhub.trust.verify import Severity

RULES: Final[Mapping[Severity, Mapping[str, str]]] = {
    "error": {
        "E_BASE_MISMATCH": "Made for another base: the fingerprints differ, or modules or shapes of the tensors do.",
        "E_BESIDE_CODE": "`audit`: code lies beside the adapter.",
        "E_BESIDE_PICKLE": "`audit`: a pickle, or a zip archive as `torch.save` writes, lies beside the adapter.",
        "E_MANIFEST": "`adapterhub.json` breaks its schema; one finding for each problem.",
        "E_SIGNATURE": "The signature is false (forged, of other files, of another adapter), or refused by policy.",
        "E_TRUST": "`audit`: signatures cannot be judged: the files that say whom to trust are not usable.",
        "E_YANKED": "`audit`: the server that the adapter came from has withdrawn this version.",
    },
    "unknown": {
        "U_BASE": "Not compared with a base: none was given or registered, or the adapter declares none.",
        "U_BESIDE": "`audit`: a folder that was not looked into.",
        "U_CHECK": "`audit`: a check could not be carried out.",
        "U_LICENSE": "`audit`: the licence of the adapter, of a parent or of the base is not stated or not known.",
        "U_LICENSE_CONFLICT": "`audit`: two licences each want all that is made from them under themselves.",
        "U_YANKED": "`audit`: whether it was withdrawn cannot be told: nobody was asked, or nobody answered.",
    },
    "warning": {
        "W_BASE_ALLOWED": "`audit`: somebody let the adapter run on a base with other weights.",
        "W_BASE_UNREGISTERED": "`audit`: the base that the adapter declares is not registered here.",
        "W_BESIDE_OTHER": "`audit`: a file in an installed folder that is no part of the adapter.",
        "W_GONE": "`audit`: the server that the adapter came from does not offer it any more.",
        "W_LICENSE_CONDITIONS": "`audit`: a licence with conditions of its own, as those of Llama and Gemma.",
        "W_LICENSE_CONFLICT": "`audit`: one licence forbids what another one asks.",
        "W_LICENSE_NONCOMMERCIAL": "`audit`: a licence forbids commercial use.",
        "W_LICENSE_NO_DERIVATIVES": "`audit`: a licence forbids passing on changed versions.",
        "W_LICENSE_SHARE_ALIKE": "`audit`: a licence asks that what is made from it stays under it.",
        "W_LICENSE_WIDER": "`audit`: the adapter allows what the licence of a parent or of the base does not.",
        "W_LINEAGE": "`audit`: made by a merge that names no parents.",
        "W_LOOK_ALIKE": "`audit`: two installed names that are easily taken for one another.",
        "W_PARENT_ABSENT": "`audit`: a parent of a merge is not installed here.",
        "W_PARENT_DIGEST": "`audit`: a parent of a merge is recorded without the digest of its manifest.",
        "W_SIGNATURE": "Signed by a key that is not trusted, or not for this; or unsigned where a warning was wanted.",
        "W_SIGNER": "`audit`: not signed by who signed this name before.",
        "W_UNSIGNED": "`audit`: not signed.",
    },
    "note": {
        "N_BASE_PINNED": "`audit`: the base was pinned here; the author of the adapter declared none.",
        "N_LICENSE": "`audit`: what the licences of all parts come to, as an SPDX expression.",
        "N_SIGNATURE": "Who signed it, or that nobody did.",
    },
}


def rule_of(code: str) -> tuple[Severity, str] | None:
    """Severity and sentence of a code; None for those of `verify`, which `--verify` passes on."""
    return next(((severity, codes[code]) for severity, codes in RULES.items() if code in codes), None)

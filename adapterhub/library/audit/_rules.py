"""One sentence for each code of an audit, by severity; `docs/reference/findings.md` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from adapterhub.trust.verify import Severity

RULES: Final[Mapping[Severity, Mapping[str, str]]] = {
    "error": {
        "E_BASE_MISMATCH": "The adapter was made for another base: fingerprints, modules or tensor shapes differ.",
        "E_BESIDE_CODE": "`audit`: the folder contains code beside the adapter.",
        "E_BESIDE_PICKLE": "`audit`: the folder contains a pickle, or a zip archive as `torch.save` writes it.",
        "E_MANIFEST": "`adapterhub.json` breaks its schema; one finding for each problem.",
        "E_SIGNATURE": "The signature is false (forged, of other files, of another adapter), or a policy refuses it.",
        "E_TRUST": "`audit`: signatures cannot be judged, because the files that list trusted keys are unusable.",
        "E_YANKED": "`audit`: the server that published this version has withdrawn it.",
    },
    "unknown": {
        "U_BASE": "No comparison with a base: none was given or registered, or the adapter declares none.",
        "U_BESIDE": "`audit`: a folder was not searched.",
        "U_CHECK": "`audit`: a check could not run.",
        "U_LICENSE": "`audit`: the licence of the adapter, a parent or the base is not stated or not known.",
        "U_LICENSE_CONFLICT": "`audit`: two licences each require derived works to be under that licence.",
        "U_YANKED": "`audit`: unknown whether the version was withdrawn: no server was asked, or none answered.",
    },
    "warning": {
        "A_CONTRACT_LOOSE": "`audit`: the bounds of the adapter's contract are so loose that a PASS proves nothing.",
        "A_RESULT_OTHER_BASE": "`audit`: every signed result of a trusted tester is about another base.",
        "W_BASE_ALLOWED": "`audit`: a user allowed the adapter to run on a base with other weights.",
        "W_BASE_UNREGISTERED": "`audit`: the base that the adapter declares is not registered here.",
        "W_BESIDE_OTHER": "`audit`: an installed folder contains a file that is not part of the adapter.",
        "W_COPY": "`audit`: another installed adapter has the same update under another name or licence.",
        "W_GONE": "`audit`: the server that the adapter came from no longer offers it.",
        "W_LICENSE_CONDITIONS": "`audit`: a licence sets its own conditions, as those of Llama and Gemma do.",
        "W_LICENSE_CONFLICT": "`audit`: one licence forbids what another requires.",
        "W_LICENSE_NONCOMMERCIAL": "`audit`: a licence forbids commercial use.",
        "W_LICENSE_NO_DERIVATIVES": "`audit`: a licence forbids distributing changed versions.",
        "W_LICENSE_SHARE_ALIKE": "`audit`: a licence requires derived works to keep it.",
        "W_LICENSE_WIDER": "`audit`: the adapter's licence allows what that of a parent or of the base does not.",
        "W_LINEAGE": "`audit`: a merge names no parents.",
        "W_LOOK_ALIKE": "`audit`: two installed names are easily confused.",
        "W_PARENT_ABSENT": "`audit`: a parent of a merge is not installed here.",
        "W_PARENT_DIGEST": "`audit`: a parent of a merge is recorded without the digest of its manifest.",
        "W_SIGNATURE": "The key is not trusted, or not for this adapter; or a policy warns about a missing signature.",
        "W_SIGNER": "`audit`: the signer differs from the one who signed this name before.",
        "W_STATEMENT": "`audit`: a signed statement of how the adapter was made is forged or contradicts its manifest.",
        "W_UNSIGNED": "`audit`: the adapter is not signed.",
    },
    "note": {
        "A_NO_CONTRACT": "`audit`: the adapter has no behaviour contract.",
        "N_BASE_PINNED": "`audit`: the base was pinned here; the adapter's author declared none.",
        "N_LICENSE": "`audit`: the licences of all parts together, as an SPDX expression.",
        "N_SIGNATURE": "The signer of the adapter, or that it is unsigned.",
        "N_STATEMENT": "`audit`: who states how the adapter was made, in agreement with its manifest.",
    },
}


def rule_of(code: str) -> tuple[Severity, str] | None:
    """Severity and sentence of a code; None for those of `verify`, which `--verify` passes on."""
    return next(((severity, codes[code]) for severity, codes in RULES.items() if code in codes), None)

"""Signatures: who made an adapter, said by a key that the user trusts, for this name and version and no other.

    bundle   the file `model.sig`, read and written          keys     key pairs
    judge    what one signature proves                       trust    whom the user trusts, and the policies
    gate     what may come in                                seen     the versions and signers that were seen
    making   sign a build                                    beside   `model.sig` in a folder

Reasons of `SignatureRefused`: `broken`, `forged`, `renamed`, `changed_file`, `missing_file`, `extra_file`, `link`;
`unsigned`, `unknown_key`, `out_of_scope`, `expired`, `other_name`; `signature_gone`, `other_key`, `rolled_back`.
"""

from __future__ import annotations

"""Signatures: who made an adapter, proven by a key that the user trusts, for exactly this name and version.

    appraisal    the worth of one signature             keys         key pairs
    bundle       reads and writes `model.sig`           making       signs a build
    first_use    versions and signers seen before       provenance   `model.sig` in a folder
    policy       the words of a policy                  results      results of tests, signed
    trust        trusted keys and policies

`library.admission` decides what the signatures permit.

Reasons of `SignatureRefused`: `broken`, `forged`, `renamed`, `changed_file`, `missing_file`, `extra_file`, `link`;
`unsigned`, `unknown_key`, `out_of_scope`, `expired`, `other_name`; `signature_gone`, `other_key`, `rolled_back`;
`other_build`, `future`.
"""

from __future__ import annotations

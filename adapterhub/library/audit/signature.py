"""Finds the signer of an adapter, whether the user trusts the key, and whether the policy accepts the signature."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.core.errors import Malformed, NotAllowed, SignatureRefused
from adapterhub.formats.manifest import MANIFEST_FILE, SIGNATURE_FILE
from adapterhub.formats.release import Release
from adapterhub.library.admission import Admission
from adapterhub.library.audit._subject import AuditedAdapter, Surroundings
from adapterhub.library.intake.statements import statements_of
from adapterhub.library.store.catalog import Installed
from adapterhub.trust.findings import Finding
from adapterhub.trust.signing.appraisal import Appraisal, FirstUseFile, provenance_of
from adapterhub.trust.signing.trust import TrustFile

_POLICY: str = "`adapt key policy` shows the policies in force"
_SIGN: str = "ask its author to `adapt key sign` it; if that is you, `adapt key new NAME` makes a key"
_STATED: str = "delete the file below `made/`, or ask the server that it came from"
_TRUST: str = "`adapt key trust NAME FILE` trusts a key; get its file from its owner, not from the server"


def check(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    """One finding about the signature, and another if a different key signed the name before."""
    if subject.manifest is None:
        return
    release = Release(manifest=subject.manifest, namespace=subject.namespace, origin=subject.target.label)
    try:
        decision = Admission(around.library).decide(release, provenance_of(subject.folder), _place(subject, around))
    except SignatureRefused as error:
        yield Finding("E_SIGNATURE", SIGNATURE_FILE, error.clause, hint=error.hint)
        return
    except (NotAllowed, Malformed) as error:  # the files that say whom to trust
        yield Finding("E_TRUST", SIGNATURE_FILE, f"cannot be judged: {error.message}", hint=error.hint)
        return
    policy, appraisal = decision.policy, decision.appraisal
    message = appraisal.message + (f"; the policy is `{policy}`" if policy else "; no policy is set")
    is_trusted = appraisal.standing == "trusted"
    if decision.is_refused:
        yield Finding("E_SIGNATURE", SIGNATURE_FILE, message, hint=_POLICY)
    elif is_trusted or policy == "off":
        yield Finding("N_SIGNATURE", SIGNATURE_FILE, message)
    elif appraisal.standing == "unsigned":
        yield Finding("W_UNSIGNED", SIGNATURE_FILE, message, hint=_SIGN)
    else:
        yield Finding("W_SIGNATURE", SIGNATURE_FILE, message, hint=_TRUST)
    if policy != "off" and subject.build is not None:
        yield from _seen_before(subject, around, appraisal)
    if subject.build is not None:
        yield from _made(subject.build, around)


def _made(build: Installed, around: Surroundings) -> Iterator[Finding]:
    """Report the signers of statements of how the build was made, and statements that do not count."""
    found, refusals = statements_of(around.library, build)
    for one in found:
        who = f"`{one.signer}`" if one.signer else f"the unknown key {one.key[:19]}…"
        trusted = {"trusted": ", whom you trust", "unknown_key": ""}.get(one.standing, ", whom you do not trust for it")
        message = f"{who}{trusted}, states how it was made, as its manifest says"
        yield Finding("N_STATEMENT", MANIFEST_FILE, message)
    for clause in refusals:
        message = f"a statement of how it was made does not count: {clause}"
        yield Finding("W_STATEMENT", MANIFEST_FILE, message, hint=_STATED)


def _seen_before(subject: AuditedAdapter, around: Surroundings, appraisal: Appraisal) -> Iterator[Finding]:
    """Compare the signer of an installed build with the one recorded for its name."""
    assert subject.build is not None  # only installed builds have a recorded name
    known = FirstUseFile(around.library.root).of(subject.build.full_name)
    if known is None or appraisal.fingerprint == known.signer:
        return
    trust = TrustFile(around.library.root).read()
    key = trust.key_of(appraisal.fingerprint) if appraisal.fingerprint else None
    if key is not None and key.takes_over(subject.build.full_name, [known.signer]):
        return
    signer = trust.name_of(known.signer)
    message = f"{appraisal.message}, but {signer} signed what was installed last under this name"
    yield Finding("W_SIGNER", SIGNATURE_FILE, message, hint="ask its author which of the two is theirs")


def _place(subject: AuditedAdapter, around: Surroundings) -> str:
    """Return the place that offered it: policies and keys may be limited to one."""
    if subject.build is None:
        return str(subject.folder)
    return around.library.origins.place_of(subject.build.manifest.digest, subject.build.full_name)

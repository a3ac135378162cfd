"""Who signed an adapter, whether that key is trusted, and whether the user's policy is content with it."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.core.errors import Malformed, NotAllowed, SignatureRefused
from adapterhub.formats.manifest import SIGNATURE_FILE
from adapterhub.formats.release import Release
from adapterhub.library.admission.signatures import SignatureAdmission, refuses
from adapterhub.library.audit._subject import Subject, Surroundings
from adapterhub.trust.signing.appraisal import Appraisal
from adapterhub.trust.signing.first_use import FirstUseFile
from adapterhub.trust.signing.provenance import provenance_of
from adapterhub.trust.signing.trust import TrustFile
from adapterhub.trust.verify import Finding, Severity

_POLICY: str = "`adapt key policy` shows what is asked"
_SIGN: str = "ask its author to `adapt sign` it; if that is you, `adapt key new NAME` makes a key"
_TRUST: str = "`adapt key trust NAME FILE` trusts a key; get its file from its owner, not from the place"


def check(subject: Subject, around: Surroundings) -> Iterator[Finding]:
    """One finding on the signature, and one where it is another than the one seen before under that name."""
    if subject.manifest is None:
        return
    release = Release(manifest=subject.manifest, namespace=subject.namespace, origin=subject.target.label)
    try:
        judgement, policy = SignatureAdmission(around.library.root).judge(
            release, provenance_of(subject.folder), _place(subject, around)
        )
    except SignatureRefused as error:
        yield _finding("E_SIGNATURE", "error", error.clause, hint=error.hint)
        return
    except (NotAllowed, Malformed) as error:  # the files that say whom to trust
        yield _finding("E_TRUST", "error", f"cannot be judged: {error.message}", hint=error.hint)
        return
    asked = f"; the policy is `{policy}`" if policy else "; no policy is set"
    is_trusted = judgement.standing == "trusted"
    if refuses(policy, judgement.standing):
        yield _finding("E_SIGNATURE", "error", judgement.message + asked, hint=_POLICY)
    elif is_trusted or policy == "off":
        yield _finding("N_SIGNATURE", "note", judgement.message + asked)
    elif judgement.standing == "unsigned":
        yield _finding("W_UNSIGNED", "warning", judgement.message + asked, hint=_SIGN)
    else:
        yield _finding("W_SIGNATURE", "warning", judgement.message + asked, hint=_TRUST)
    if policy != "off" and subject.build is not None:
        yield from _seen_before(subject, around, judgement)


def _seen_before(subject: Subject, around: Surroundings, judgement: Appraisal) -> Iterator[Finding]:
    """The memory of who signed a name, against what is installed under it."""
    assert subject.build is not None  # only what is installed has a name that is remembered
    seen = FirstUseFile(around.library.root).of(subject.build.full_name)
    if seen is None or judgement.fingerprint == seen.signer:
        return
    trust = TrustFile(around.library.root).read()
    key = trust.key_of(judgement.fingerprint) if judgement.fingerprint else None
    if key is not None and key.takes_over(subject.build.full_name, [seen.signer]):
        return
    message = f"{judgement.message}, and what was taken last under this name was signed by {trust.name_of(seen.signer)}"
    yield _finding("W_SIGNER", "warning", message, hint="ask its author which of the two is theirs")


def _place(subject: Subject, around: Surroundings) -> str:
    """Where it is offered, for policies and keys that hold in one place."""
    if subject.build is None:
        return str(subject.folder)
    return around.library.origins.place_of(subject.build.manifest.digest, subject.build.full_name)


def _finding(code: str, severity: Severity, message: str, *, hint: str = "") -> Finding:
    return Finding(code=code, severity=severity, where=SIGNATURE_FILE, message=message, hint=hint)

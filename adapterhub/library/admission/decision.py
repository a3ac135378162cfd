"""What a policy makes of a signature, and of what first use recorded for the name.

    standing                         require   no policy   warn      off
    signed by a trusted key          yes       yes         yes       yes
    not signed                       refused   yes         warned    yes
    unknown key                      refused   warned      warned    yes
    key used outside its scope       refused   warned      warned    yes
    signed, but not for this build   refused   warned      warned    yes
    expired key                      refused   refused     warned    yes
    contradicts the record           refused   refused     refused   yes
    false (see `appraisal.py`)       refused under every policy

The record is that of first use (`first_use.py`). An older version offered as the newest contradicts it, as do a new
key and a signature that is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from adapterhub.core.errors import SignatureRefused, shown
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.release import Release
from adapterhub.trust.signing.appraisal import Appraisal, FirstUse, FirstUseBuild, Standing, is_older
from adapterhub.trust.signing.trust import EffectivePolicy, Policy, Trust

_REFUSED: Final[dict[Policy | None, frozenset[Standing]]] = {
    "require": frozenset({"unsigned", "unknown_key", "out_of_scope", "other_name", "expired"}),
    None: frozenset({"expired"}),
}
_SILENT: Final[dict[Policy | None, frozenset[Standing]]] = {
    None: frozenset({"unsigned"}),
    "off": frozenset({"unsigned", "unknown_key", "out_of_scope", "other_name", "expired"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The worth of a build's signature, and the policy that holds for the build; None where none is set."""

    appraisal: Appraisal
    effective: EffectivePolicy | None

    @property
    def policy(self) -> Policy | None:
        """The policy without where it was set."""
        return self.effective.policy if self.effective else None

    @property
    def is_refused(self) -> bool:
        """Whether the policy refuses the signature, whatever first use recorded."""
        return self.appraisal.standing in _REFUSED.get(self.policy, frozenset())

    @property
    def warns(self) -> bool:
        """Whether the user should see a warning about a build that is let in."""
        standing = self.appraisal.standing
        return standing != "trusted" and standing not in _SILENT.get(self.policy, frozenset())

    def ensure_allowed(self, release: Release) -> None:
        """Raise if the policy refuses the signature; the message says where the policy was set.

        Raises:
            SignatureRefused: the policy forbids the build.
        """
        if self.is_refused:
            where = f", and {self.effective.where} requires a signature" if self.effective else ""
            hint = _hint(self.appraisal, release.full_name)
            raise _refused(release, self.appraisal.message + where, self.appraisal.standing, hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallRequest:
    """The part of a request that shows whether the user may mean an older build.

    `bases` are digests of weights, the one to record first: of the base that the user named, then of the base that the
    build declares; ("",) where both are unknown.
    """

    spec: AdapterSpec
    bases: tuple[str, ...] = ("",)
    ranks: RankRange = ANY_RANK

    def includes(self, recorded: FirstUseBuild) -> bool:
        """Whether a recorded build would have satisfied the request."""
        from packaging.version import Version

        if self.spec.pinned_version is not None or self.spec.digest_prefix is not None:
            return False
        is_wanted = not Version(recorded.version).is_prerelease or self.spec.asks_for_prereleases
        fits = recorded.base in self.bases and self.ranks.includes(recorded.rank or 0)
        return is_wanted and fits and self.spec.matches(recorded.version)


def ensure_consistent(
    release: Release, appraisal: Appraisal, known: FirstUse, request: InstallRequest, trust: Trust
) -> None:
    """Raise if a build contradicts what first use recorded for its name.

    Raises:
        SignatureRefused: the signature is gone, another key made it, or the version is older than a recorded one.
    """
    before = f"and until now it was signed by {trust.name_of(known.signer)}"
    if appraisal.fingerprint is None:
        hint = "ask its author; `--signatures off` takes it unsigned"
        raise _refused(release, f"{appraisal.message}, {before}", "signature_gone", hint)
    key = trust.key_of(appraisal.fingerprint)
    if key is None and appraisal.fingerprint == known.signer:
        text = f"{appraisal.message}, which you trusted before and no longer trust"
        raise _refused(release, text, "unknown_key", _hint(appraisal, release.full_name))
    if key is None or not key.takes_over(release.full_name, [known.signer]):
        command = f"adapt key trust {key.name if key else 'NAME FILE'} --accept {release.full_name}"
        hint = f"if its author announced a new key to you: `{command}`"
        raise _refused(release, f"{appraisal.message}, {before}", "other_key", hint)
    from packaging.version import Version

    newest = max((build.version for build in known.builds if request.includes(build)), key=Version, default=None)
    version = release.manifest.version
    if newest is not None and is_older(version, newest):
        text = f"{release.origin} offers {shown(version)}, but {newest} is known here"
        hint = f"if the author withdrew {newest}: `{release.full_name}=={version}` selects this version"
        raise _refused(release, text, "rolled_back", hint)


def _hint(appraisal: Appraisal, name: str) -> str:
    if appraisal.standing == "unsigned":
        return "ask its author to sign it with `adapt sign` and push it again"
    if appraisal.standing == "unknown_key":
        return (
            f"`adapt key trust NAME FILE --scope {name}` trusts a key; get its file from its owner, not from the server"
        )
    if appraisal.standing == "out_of_scope":
        return f"`adapt key trust {appraisal.signer} --scope GLOB` changes what the key may sign"
    if appraisal.standing == "expired":
        return f"ask its owner for a new key; `adapt key trust {appraisal.signer} --not-after DAY` moves the end"
    return "ask its author to sign it with `adapt sign`, which names the adapter in the signature"


def _refused(release: Release, clause: str, reason: str, hint: str) -> SignatureRefused:
    what = f"`{release.full_name}` {shown(release.manifest.version)}"
    return SignatureRefused(what, f"it {clause}" if clause.startswith("is ") else clause, reason=reason, hint=hint)

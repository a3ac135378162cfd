"""The gate: what may come in, by its signature, by the user's policy, and by what was seen before.

    standing                     require   no policy   warn      off
    signed by a trusted key      yes       yes         yes       yes
    not signed                   refused   yes         warned    yes
    unknown key                  refused   warned      warned    yes
    key out of its scope         refused   warned      warned    yes
    signed, but not for this     refused   warned      warned    yes
    key that has ended           refused   refused     warned    yes
    against what was seen        refused   refused     refused   yes
    false (see `judge.py`)       refused in any case

Against what was seen: an older version offered as the newest, another key than before, and no signature where there was
one. The version is remembered before its files are fetched, so that a crash forgets nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from adapterhub.core.errors import SignatureRefused, shown
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.release import Provenance, Release
from adapterhub.library.remotes import Remote, Remotes
from adapterhub.trust.signing.appraisal import Appraisal, Standing, examine
from adapterhub.trust.signing.first_use import FirstUseBuild, FirstUseFile, Seen, is_older
from adapterhub.trust.signing.trust import Demand, Policy, Trust, TrustFile, clock

_REFUSED: Final[dict[Policy | None, frozenset[Standing]]] = {
    "require": frozenset({"unsigned", "unknown_key", "out_of_scope", "other_name", "expired"}),
    None: frozenset({"expired"}),
}
_SILENT: Final[dict[Policy | None, frozenset[Standing]]] = {
    None: frozenset({"unsigned"}),
    "off": frozenset({"unsigned", "unknown_key", "out_of_scope", "other_name", "expired"}),
}


NOWHERE: Final = Remote(name="", url="")
"""What stands for a place that is no remote of the user's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedVersions:
    """What the user asked for, as far as it says whether an older build may be meant.

    `bases` are digests of weights: of the base that was asked for and of the one that the build declares, the one to
    remember first; ("",) where nobody knows them.
    """

    spec: AdapterSpec
    bases: tuple[str, ...] = ("",)
    ranks: RankRange = ANY_RANK

    def means(self, seen: FirstUseBuild) -> bool:
        """Whether a build that was seen before would have answered."""
        from packaging.version import Version

        if self.spec.pinned_version is not None or self.spec.digest_prefix is not None or seen.base not in self.bases:
            return False
        is_wanted = not Version(seen.version).is_prerelease or self.spec.asks_for_prereleases
        return is_wanted and self.ranks.includes(seen.rank or 0) and self.spec.matches(seen.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What came through the gate: the judgement, and whether the user should hear of it."""

    judgement: Appraisal
    warn: bool


class SignatureAdmission:
    """The gate of the library under `root`."""

    def __init__(self, root: Path) -> None:
        self._seen_file = FirstUseFile(root)
        self._root = root

    @cached_property
    def trust(self) -> Trust:
        """What the trust file said when it was needed first."""
        return TrustFile(self._root).read()

    @cached_property
    def remotes(self) -> tuple[Remote, ...]:
        """The user's remotes as they were when they were needed first."""
        return tuple(Remotes(self._root).all())

    def judge(self, release: Release, provenance: Provenance, place: str) -> tuple[Appraisal, Policy | None]:
        """What the signature is worth, and the policy that holds; nothing is refused for being unknown.

        Raises:
            SignatureRefused: it is broken, forged, over other files, or for another adapter.
        """
        demand = self.demand(release.namespace, place)
        return self.examine(release, provenance, place), demand.policy if demand else None

    def admit(
        self,
        release: Release,
        provenance: Provenance,
        place: str,
        asked: RequestedVersions,
        given: Demand | Policy | None = None,
    ) -> Admitted:
        """Let a build in that is about to be fetched from `place`, a URL or a path, and remember its version.

        `given` is the policy of this run, which comes before every other.

        Raises:
            SignatureRefused: see the table above.
        """
        demand = self.demand(release.namespace, place, given)
        judgement = self.examine(release, provenance, place)
        policy = demand.policy if demand else None
        name, seen = release.full_name, self._seen_file.of(release.full_name)
        check_standing(release, judgement, demand)
        if seen is not None and policy != "off":
            _refuse_contradiction(release, judgement, seen, asked, self.trust)
        if judgement.standing == "trusted" and (
            policy != "off" or seen is None or seen.signer == judgement.fingerprint
        ):
            assert judgement.fingerprint is not None
            build = FirstUseBuild(base=asked.bases[0], rank=release.manifest.rank, version=release.manifest.version)
            self._seen_file.remember(name, build, judgement.fingerprint)
        is_silent = judgement.standing in _SILENT.get(policy, frozenset())
        return Admitted(judgement=judgement, warn=judgement.standing != "trusted" and not is_silent)

    def demand(self, namespace: str | None, place: str, given: Demand | Policy | None = None) -> Demand | None:
        """The policy that holds for builds of a namespace from a place; `given` comes before what the user has set."""
        return Demand.of(given) or self.trust.demand(namespace, _demand_of(self._remote_at(place)))

    def may_require(self, namespace: str | None, given: Demand | Policy | None = None) -> bool:
        """Whether a signature may be required of builds of a namespace, wherever they are from."""
        return any(
            demand is not None and demand.policy == "require"
            for demand in (self.demand(namespace, remote.url, given) for remote in (*self.remotes, NOWHERE))
        )

    def examine(self, release: Release, provenance: Provenance, place: str) -> Appraisal:
        """What the signature is worth.

        Raises:
            SignatureRefused: it is broken, forged, over other files, or for another adapter.
        """
        remote = self._remote_at(place)
        places = [place] if remote is None else [place, remote.name]
        return examine(release.manifest, release.namespace, provenance, self.trust, places=places, now=clock())

    def _remote_at(self, place: str) -> Remote | None:
        return next((r for r in self.remotes if r.url == place), Remote(name="", url=place)) if "://" in place else None


def refuses(policy: Policy | None, standing: Standing) -> bool:
    """Whether a policy refuses it, whatever was seen before."""
    return standing in _REFUSED.get(policy, frozenset())


def check_standing(
    release: Release, judgement: Appraisal, demand: Demand | None, *, hint: str = "", ending: str = "Nothing was stored"
) -> None:
    """Refuse what the policy does not take, and say where that was set; `hint` replaces the usual advice.

    Raises:
        SignatureRefused: the policy forbids it.
    """
    if refuses(demand.policy if demand else None, judgement.standing):
        clause = judgement.message + (f", and {demand.where} requires a signature" if demand else "")
        hint = hint or _hint(judgement, release.full_name)
        raise _refused(release, clause, judgement.standing, hint, ending)


def _refuse_contradiction(
    release: Release, judgement: Appraisal, seen: Seen, asked: RequestedVersions, trust: Trust
) -> None:
    """Refuse what does not go with what was seen of the name before."""
    before = f"and until now it was signed by {trust.name_of(seen.signer)}"
    if judgement.fingerprint is None:
        hint = "ask its author; `--signatures off` takes it unsigned"
        raise _refused(release, f"{judgement.message}, {before}", "signature_gone", hint)
    key = trust.key_of(judgement.fingerprint)
    if key is None and judgement.fingerprint == seen.signer:
        text = f"{judgement.message}, which was trusted and is not any more"
        raise _refused(release, text, "unknown_key", _hint(judgement, release.full_name))
    if key is None or not key.takes_over(release.full_name, [seen.signer]):
        command = f"adapt key trust {key.name if key else 'NAME FILE'} --accept {release.full_name}"
        hint = f"if its author told you of the new key: `{command}`"
        raise _refused(release, f"{judgement.message}, {before}", "other_key", hint)
    newest = _newest(asked, seen.builds)
    version = release.manifest.version
    if newest is not None and is_older(version, newest):
        text = f"{release.origin} offers {shown(version)}, you have seen {newest}"
        hint = f"if the newer one was taken back: `{release.full_name}=={version}` asks for this one"
        raise _refused(release, text, "rolled_back", hint)


def _newest(asked: RequestedVersions, builds: Collection[FirstUseBuild]) -> str | None:
    newest: str | None = None
    for build in builds:
        if asked.means(build) and (newest is None or is_older(newest, build.version)):
            newest = build.version
    return newest


def _hint(judgement: Appraisal, name: str) -> str:
    if judgement.standing == "unsigned":
        return "ask its author to `adapt sign` it and push it again"
    if judgement.standing == "unknown_key":
        return (
            f"`adapt key trust NAME FILE --scope {name}` trusts a key; get its file from its owner, not from the place"
        )
    if judgement.standing == "out_of_scope":
        return f"`adapt key trust {judgement.signer} --scope GLOB` changes what the key may sign"
    if judgement.standing == "expired":
        return f"ask its owner for a new key; `adapt key trust {judgement.signer} --not-after DAY` moves the end"
    return "ask its author to sign it with `adapt sign`, which says for which adapter"


def _refused(
    release: Release, clause: str, reason: str, hint: str, ending: str = "Nothing was stored"
) -> SignatureRefused:
    what = f"`{release.full_name}` {shown(release.manifest.version)}"
    clause = f"it {clause}" if clause.startswith("is ") else clause
    return SignatureRefused(what, clause, reason=reason, hint=hint, ending=ending)


def _demand_of(remote: Remote | None) -> Demand | None:
    """The policy that the user set for a remote."""
    if remote is None or remote.signatures is None:
        return None
    return Demand(policy=remote.signatures, where=f"the policy of {remote.label} (`adapt remote set`)")

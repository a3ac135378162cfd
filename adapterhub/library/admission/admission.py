"""The one decision about builds: may an arriving build come in, may an installed build be used under its name.

A build may have come in before the user set a policy, or before a namespace was given to a server. So the same rules
hold when a build arrives (`admit`) and each time a name becomes an installed build (`ensure_usable`):

- A namespace that the user gave to a remote (`adapt remote add --namespaces`) belongs to it. A build answers under that
  namespace only if its recorded origin is that server; a build without one does not answer.
- `decide` appraises the signature from the place that offers the build or offered it, under the policy that holds
  there. For an installed build nothing is read unless a policy says `require`.

First use counts for arriving builds only. The version is recorded once the build is admitted and before its files are
fetched, so that a crash forgets nothing. Commands that only show a build, such as `verify`, call `decide` and refuse
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import NamespaceBound, SignatureRefused
from adapterhub.formats.release import Provenance, Release
from adapterhub.library.admission.decision import Decision, InstallRequest, ensure_consistent
from adapterhub.library.library import Library
from adapterhub.library.remotes import Remote, Remotes
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Source
from adapterhub.trust.signing.appraisal import FirstUseBuild, FirstUseFile, examine, provenance_of
from adapterhub.trust.signing.trust import EffectivePolicy, GivenPolicy, Trust, TrustFile, clock

_KEPT = "It stays installed and is not used"
_NO_REMOTE: Final = Remote(name="", url="")


class Admission:
    """The decision for one library. Cheap to make; the user's remotes and trust file are read once, when needed.

    Make one for each request, so that a policy holds as soon as it is set.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._first_use = FirstUseFile(library.root)
        self._required: dict[tuple[str | None, GivenPolicy], bool] = {}

    @cached_property
    def _trust(self) -> Trust:
        return TrustFile(self._library.root).read()

    @cached_property
    def _remotes(self) -> tuple[Remote, ...]:
        return tuple(Remotes(self._library.root).all())

    # ------------------------------------------------------------ whose a namespace is
    def owners(self, namespace: str | None) -> Sequence[Remote]:
        """The remotes that the user gave this namespace to; none where no remote has it."""
        return self._owners.get(namespace, ()) if namespace else ()

    @cached_property
    def _owners(self) -> dict[str, tuple[Remote, ...]]:
        found: dict[str, tuple[Remote, ...]] = {}
        for remote in self._remotes:
            for namespace in remote.namespaces:
                found[namespace] = (*found.get(namespace, ()), remote)
        return found

    def may_offer(self, place: str, namespace: str | None) -> bool:
        """Whether what `place`, a URL or a path, has under a namespace counts as a build of that namespace."""
        owners = self.owners(namespace)
        return not owners or any(owner.url == place for owner in owners)

    def ensure_place_allowed(self, place: str, namespace: str | None, *, hint: str = "") -> None:
        """Raise if a namespace belongs to a remote other than `place`.

        Raises:
            NamespaceBound: the message names both; the hint gives the command that frees the namespace.
        """
        if not self.may_offer(place, namespace):
            raise NamespaceBound(
                f"{self._belongs(namespace)}; `{place}` may not offer it. Nothing was changed",
                hint=hint or self.unbind(namespace),
            )

    def of_places(self, sources: Iterable[Source], namespace: str | None) -> list[Source]:
        """The sources that may offer builds of a namespace; the library is always among them."""
        return [s for s in sources if s is self._library or self.may_offer(s.place, namespace)]

    def ensure_owner_asked(self, sources: Iterable[Source], namespace: str | None) -> None:
        """Raise if a search found nothing because no source other than the library may offer the namespace.

        Raises:
            NamespaceBound: as `ensure_place_allowed`, for the first source.
        """
        others = [source for source in sources if source is not self._library]
        if others and not any(self.may_offer(source.place, namespace) for source in others):
            self.ensure_place_allowed(others[0].place, namespace)

    @property
    def binds_any(self) -> bool:
        """Whether the user gave any namespace to a remote."""
        return bool(self._owners)

    def is_ours(self, build: Installed) -> bool:
        """Whether a build came from the remote that its namespace belongs to, if it belongs to one."""
        return not self.owners(build.namespace) or self.may_offer(self._place_of(build), build.namespace)

    def ensure_own_origin(self, build: Installed) -> None:
        """Raise if a build did not come from the remote that its namespace belongs to.

        Raises:
            NamespaceBound: the message names both; the hint gives the command that gets the owner's build.
        """
        if self.is_ours(build):
            return
        origin = self._library.origins.under(build.manifest.digest, build.full_name)
        came = f"came from `{origin.place}`" if origin else "has no recorded origin"
        raise NamespaceBound(
            f"refused `{build.full_name}` {build.manifest.version}: {self._belongs(build.namespace)}, "
            f"and this build {came}. {_KEPT}",
            hint=f"`adapt install '{build.spec}'` keeps it if the server has the same build; "
            f"`adapt remove '{build.spec}' --yes` makes room for another",
        )

    def _place_of(self, build: Installed) -> str:
        return self._library.origins.place_of(build.manifest.digest, build.full_name)

    def _belongs(self, namespace: str | None) -> str:
        owners = self.owners(namespace)
        return f"you gave the namespace `{namespace}` to " + " and ".join(f"{o.label} ({o.url})" for o in owners)

    def unbind(self, namespace: str | None) -> str:
        """A hint with the command that takes a namespace away from its remote."""
        owner = self.owners(namespace)[0]
        rest = ",".join(name for name in owner.namespaces if name != namespace)
        option = f" --namespaces {rest}" if rest else ""
        return f"to take the namespace away from `{owner.name}`: `adapt remote add {owner.name} {owner.url}{option}`"

    # ------------------------------------------------------------ policies
    def policy_for(self, namespace: str | None, place: str, given: GivenPolicy = None) -> EffectivePolicy | None:
        """The policy for builds of a namespace from a place; `given`, that of this run, overrides what the user set."""
        return EffectivePolicy.of(given) or self._trust.policy_for(namespace, _policy_of(self._remote_at(place)))

    def may_require(self, namespace: str | None, given: GivenPolicy = None) -> bool:
        """Whether some place exists from which builds of a namespace need a signature."""
        key = namespace, given  # `sync` looks this up for thousands of builds
        if key not in self._required:
            policies = (self.policy_for(namespace, remote.url, given) for remote in (*self._remotes, _NO_REMOTE))
            self._required[key] = any(_requires(policy) for policy in policies)
        return self._required[key]

    def restricts(self, namespace: str | None, given: GivenPolicy = None) -> bool:
        """Whether a build of a namespace needs a known origin or a signature to be used."""
        return bool(self.owners(namespace) or self._trust.revoked) or self.may_require(namespace, given)

    def needs_proof(self, adapter: Digest, full_name: str, given: GivenPolicy) -> bool:
        """Whether a build of which only the objects are left has to come with its origin or signature again."""
        namespace = full_name.rpartition("/")[0] or None
        place = self._library.origins.place_of(adapter, full_name)
        return bool(self.owners(namespace)) or _requires(self.policy_for(namespace, place, given))

    # ------------------------------------------------------------ the decision
    def decide(
        self,
        release: Release,
        provenance: Provenance,
        place: str,
        given: GivenPolicy = None,
    ) -> Decision:
        """The worth of a signature under the policy for `place`, a URL or a path; the policy refuses nothing here.

        Raises:
            SignatureRefused: the signature is broken, forged, over other files, or for another adapter.
        """
        effective = self.policy_for(release.namespace, place, given)
        remote = self._remote_at(place)
        places = [place] if remote is None else [place, remote.name]
        appraisal = examine(release.manifest, release.namespace, provenance, self._trust, places=places, now=clock())
        return Decision(appraisal=appraisal, effective=effective)

    def admit(
        self,
        release: Release,
        provenance: Provenance,
        place: str,
        request: InstallRequest,
        given: GivenPolicy = None,
    ) -> Decision:
        """Decide whether a build may be fetched from `place`; writes nothing, see `remember`.

        Raises:
            SignatureRefused: see the table in `decision.py`.
        """
        decision = self.decide(release, provenance, place, given)
        known = self._first_use.of(release.full_name)
        decision.ensure_allowed(release)
        if known is not None and decision.policy != "off":
            ensure_consistent(release, decision.appraisal, known, request, self._trust)
        return decision

    def remember(self, release: Release, decision: Decision, request: InstallRequest) -> None:
        """Record the signer and version of a build that `admit` let in."""
        appraisal, known = decision.appraisal, self._first_use.of(release.full_name)
        is_new_signer = known is not None and known.signer != appraisal.fingerprint
        if appraisal.standing == "trusted" and not (decision.policy == "off" and is_new_signer):
            assert appraisal.fingerprint is not None
            build = FirstUseBuild(base=request.bases[0], rank=release.manifest.rank, version=release.manifest.version)
            self._first_use.remember(release.full_name, build, appraisal.fingerprint)

    def ensure_usable(self, build: Installed, given: GivenPolicy = None, *, place: str | None = None) -> None:
        """Raise unless an installed build may be used; `given` is the signature policy of this run.

        With `place`, judge it as if it came from there.

        Raises:
            AdapterNotFound: it is not installed any more.
            NamespaceBound: its namespace belongs to a server that it did not come from.
            SignatureRefused: a policy requires a signature, and the build has none that counts; or its key was revoked.
        """
        if place is None:
            self.ensure_own_origin(build)
        if not self.may_require(build.namespace, given) and not self._trust.revoked:
            return  # without reading the record of origin
        place = place or self._place_of(build)
        is_required = _requires(self.policy_for(build.namespace, place, given))
        if not is_required and not self._trust.revoked:
            return
        release = Release(manifest=build.manifest, namespace=build.namespace, origin=self._library.label)
        try:
            decision = self.decide(release, provenance_of(build.folder), place, given)
            if is_required:
                decision.ensure_allowed(release)
        except FileNotFoundError:  # another process removed it since it was found
            raise self._library.not_installed(build.full_name) from None
        except SignatureRefused as error:
            if not is_required and error.reason != "revoked":
                return
            hint = error.hint
            if error.reason == "unsigned":
                hint = (
                    f"if it is yours: `adapt sign '{build.spec}'`; otherwise ask its author to sign it, then "
                    f"`adapt remove '{build.spec}' --yes` and install it again"
                )
            raise SignatureRefused(error.what, error.clause, reason=error.reason, hint=hint, ending=_KEPT) from None

    def ensure_all_usable(self, builds: Iterable[tuple[Installed, GivenPolicy]]) -> None:
        """Raise unless all may be used: the error of the first refused build, with the messages of all.

        Raises:
            SignatureRefused, NamespaceBound: as `ensure_usable`.
        """
        refused: list[SignatureRefused | NamespaceBound] = []
        for build, given in builds:
            try:
                self.ensure_usable(build, given)
            except (SignatureRefused, NamespaceBound) as error:
                refused.append(error)
        if not refused:
            return
        first = refused[0]
        others = [message for message in dict.fromkeys(e.message for e in refused) if message != first.message]
        rest = "".join(f"\nalso: {message}" for message in others)
        if isinstance(first, SignatureRefused):
            what, clause, ending = first.what, first.clause, _KEPT + rest
            raise SignatureRefused(what, clause, reason=first.reason, hint=first.hint, ending=ending)
        raise NamespaceBound(first.message + rest, hint=first.hint)

    def _remote_at(self, place: str) -> Remote | None:
        if "://" not in place:
            return None
        return next((remote for remote in self._remotes if remote.url == place), Remote(name="", url=place))


def _requires(effective: EffectivePolicy | None) -> bool:
    return effective is not None and effective.policy == "require"


def _policy_of(remote: Remote | None) -> EffectivePolicy | None:
    """The policy that the user set for a remote."""
    if remote is None or remote.signatures is None:
        return None
    return EffectivePolicy(policy=remote.signatures, where=f"the policy of {remote.label} (`adapt remote set`)")

"""Which builds come in and which may be used, by origin and signature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Digest, canonical_json, strict_json
from adapterhub.core.disk.files import not_read, read_owned, write_durably
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import Malformed, NamespaceBound, NotAllowed, SignatureRefused, shown
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec, is_hub_id
from adapterhub.formats.manifest import SIGNATURE_FILE
from adapterhub.formats.release import Provenance, Release
from adapterhub.library.library import Library
from adapterhub.library.remotes import Remote, Remotes
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Source
from adapterhub.trust.findings import Finding
from adapterhub.trust.signing.appraisal import (
    Appraisal,
    FirstUse,
    FirstUseBuild,
    FirstUseFile,
    Standing,
    examine,
    is_older,
    provenance_of,
    unsigned_beside,
)
from adapterhub.trust.signing.trust import EffectivePolicy, GivenPolicy, Policy, Trust, TrustFile, clock
from adapterhub.trust.verify.report import some

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
    """The worth of a build's signature, and the policy that holds for the build; None if none is set."""

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
        """Raise if the policy refuses the signature; the message names the place where the policy was set.

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
        """Return whether a recorded build would have satisfied the request."""
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
        return "ask its author to sign it with `adapt key sign` and push it again"
    if appraisal.standing == "unknown_key":
        return (
            f"`adapt key trust NAME FILE --scope {name}` trusts a key; get its file from its owner, not from the server"
        )
    if appraisal.standing == "out_of_scope":
        return f"`adapt key trust {appraisal.signer} --scope GLOB` changes what the key may sign"
    if appraisal.standing == "expired":
        return f"ask its owner for a new key; `adapt key trust {appraisal.signer} --not-after DAY` moves the end"
    return "ask its author to sign it with `adapt key sign`, which names the adapter in the signature"


def _refused(release: Release, clause: str, reason: str, hint: str) -> SignatureRefused:
    what = f"`{release.full_name}` {shown(release.manifest.version)}"
    return SignatureRefused(what, f"it {clause}" if clause.startswith("is ") else clause, reason=reason, hint=hint)


_LIMIT_BYTES: Final = 16 << 20
_Places = Mapping[str, Mapping[str, list[str]]]


class Repositories:
    """The records of the library under `root`: by server and full name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.path = root / "repositories.json"

    def of(self, place: str, full_name: str) -> frozenset[str]:
        """Return the repositories that may supply a name on a server; none before its first use.

        Raises:
            Malformed: the file is damaged; no name may count as new then.
            NotAllowed: others own or can write the file or its folder.
        """
        return frozenset(self._read().get(place, {}).get(full_name, ()))

    def bind(self, place: str, full_name: str, repository: str) -> None:
        """Let a repository supply a name from now on."""
        if repository in self.of(place, full_name):
            return
        with Root(self._root).lock("trust", exclusive=True):
            everything = {key: dict(names) for key, names in self._read().items()}
            names = everything.setdefault(place, {})
            names[full_name] = sorted({*names.get(full_name, ()), repository})
            try:
                write_durably(self.path, canonical_json({"places": everything}) + b"\n", mode=0o600)
            except OSError as error:
                raise Root(self._root).explain(error) from error

    def _read(self) -> _Places:
        try:
            raw = read_owned(self.path, "says which repository each name comes from", limit_bytes=_LIMIT_BYTES)
            return _places(strict_json(raw, limit_bytes=_LIMIT_BYTES))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise not_read(error, self.path, NotAllowed) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Malformed(
                f"`{self.path}`: {error}", hint="mend the file; deleting it forgets which repositories names came from"
            ) from None


def _places(value: object) -> _Places:
    if not isinstance(value, dict) or not isinstance(value["places"], dict):
        raise TypeError("expected an object with `places`")
    for names in value["places"].values():
        for repositories in names.values():
            if not isinstance(repositories, list) or not all(isinstance(r, str) and is_hub_id(r) for r in repositories):
                raise ValueError("a name has a list of repositories")
    places: _Places = value["places"]
    return places


def strangers(library: Library, releases: Sequence[Release]) -> dict[tuple[Digest, str], str]:
    """Return the reason against each of `releases` from another repository than its name, by digest and repository."""
    offered: list[Release] = []
    told = {}
    for release in releases:
        if release.claimed_at:
            offered.append(release)
        if release.lost_name and release.repository not in library.accepted:
            repository = shown(release.repository)
            told[release.digest, release.repository] = (
                f"from `{repository}`, which may not release `{shown(release.full_name)}` any more; "
                f"`adapt install {repository} --accept-repository {repository}` takes it from there"
            )
    there = set(map(attrgetter("repository"), offered))
    for release in offered:
        name, repository = release.full_name, release.repository
        if repository == name or repository in library.accepted:
            continue
        bound = Repositories(library.root).of(release.claimed_at, name)
        if repository in bound or (not bound and name not in there):
            continue
        if repository.lower() == f"{name}-{library.base_label(release.facts.base)}".lower():
            continue  # the repository for this base, by the alias that it has here
        owner = min(bound, default=name)
        told[release.digest, repository] = (
            f"from `{shown(repository)}`, while `{shown(name)}` comes from `{shown(owner)}`; "
            f"`adapt install {shown(name)} --accept-repository {shown(repository)}` takes it from there, too"
        )
    return told


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
        """Return the remotes that the user gave this namespace to; none if no remote has it."""
        return self._owners.get(namespace, ()) if namespace else ()

    @cached_property
    def _owners(self) -> dict[str, tuple[Remote, ...]]:
        found: dict[str, tuple[Remote, ...]] = {}
        for remote in self._remotes:
            for namespace in remote.namespaces:
                found[namespace] = (*found.get(namespace, ()), remote)
        return found

    def may_offer(self, place: str, namespace: str | None) -> bool:
        """Return whether what `place`, a URL or a path, has under a namespace counts as a build of that namespace."""
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
        """Return the sources that may offer builds of a namespace; the library is always among them."""
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
        """Return whether a build came from the remote that its namespace belongs to, if it belongs to one."""
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
        """Return a hint with the command that takes a namespace away from its remote."""
        owner = self.owners(namespace)[0]
        rest = ",".join(name for name in owner.namespaces if name != namespace)
        option = f" --namespaces {rest}" if rest else ""
        return f"to take the namespace away from `{owner.name}`: `adapt remote add {owner.name} {owner.url}{option}`"

    # ------------------------------------------------------------ policies
    def policy_for(self, namespace: str | None, place: str, given: GivenPolicy = None) -> EffectivePolicy | None:
        """Return the policy for builds of a namespace from a place.

        `given`, that of this run, overrides what the user set.
        """
        return EffectivePolicy.of(given) or self._trust.policy_for(namespace, _policy_of(self._remote_at(place)))

    def may_require(self, namespace: str | None, given: GivenPolicy = None) -> bool:
        """Return whether some place exists from which builds of a namespace need a signature."""
        key = namespace, given  # `sync` looks this up for thousands of builds
        if key not in self._required:
            policies = (self.policy_for(namespace, remote.url, given) for remote in (*self._remotes, _NO_REMOTE))
            self._required[key] = any(_requires(policy) for policy in policies)
        return self._required[key]

    def restricts(self, namespace: str | None, given: GivenPolicy = None) -> bool:
        """Return whether a build of a namespace needs a known origin or a signature to be used."""
        return bool(self.owners(namespace) or self._trust.revoked) or self.may_require(namespace, given)

    def needs_proof(self, adapter: Digest, full_name: str, given: GivenPolicy) -> bool:
        """Return whether a build of which only the objects are left has to come with its origin or signature again."""
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
        """Return the worth of a signature under the policy for `place`, a URL or a path.

        The policy refuses nothing here.

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
                    f"if it is yours: `adapt key sign '{build.spec}'`; otherwise ask its author to sign it, then "
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
    """Return the policy that the user set for a remote."""
    if remote is None or remote.signatures is None:
        return None
    return EffectivePolicy(policy=remote.signatures, where=f"the policy of {remote.label} (`adapt key policy`)")


_NOT_SIGNED: Final = "inspect them, then delete them or copy the adapter's own files to another folder"


def signature_findings(
    admission: Admission, release: Release, read: Callable[[], Provenance], place: str
) -> list[Finding]:
    """Return findings about the signature that `read` returns, and about unsigned files beside it.

    A false signature and one that the policy refuses are errors; a good one is a note. A missing signature is a note,
    unless the policy requires one. First use does not count: it concerns only builds that arrive. Files that git or a
    download left in the folder give a warning, or an error where the policy requires signatures.
    """
    try:
        provenance = read()
        decision = admission.decide(release, provenance, place)
    except SignatureRefused as error:
        return [Finding("E_SIGNATURE", SIGNATURE_FILE, error.clause, hint=error.hint)]
    found = [_of_signature(decision)]
    beside = unsigned_beside(provenance)
    if beside and decision.policy != "off":
        warning = Finding(
            "W_NOT_SIGNED", SIGNATURE_FILE, f"does not cover {some(beside, len(beside))}", hint=_NOT_SIGNED
        )
        found.append(as_error(warning) if decision.policy == "require" else warning)
    return found


def as_error(finding: Finding) -> Finding:
    """`W_NOT_SIGNED` as the error that `--strict` and required signatures make of it; other findings unchanged."""
    if finding.code != "W_NOT_SIGNED":
        return finding
    return replace(finding, code="E_NOT_SIGNED")


def _of_signature(decision: Decision) -> Finding:
    standing, message = decision.appraisal.standing, decision.appraisal.message
    if decision.is_refused:
        return Finding("E_SIGNATURE", SIGNATURE_FILE, message, hint="`adapt key policy` shows the policies in force")
    if standing in ("trusted", "unsigned") or decision.policy == "off":
        return Finding("N_SIGNATURE", SIGNATURE_FILE, message)
    return Finding("W_SIGNATURE", SIGNATURE_FILE, message)

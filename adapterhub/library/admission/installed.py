"""Whether an installed build may be used under its name: the one decision that everything asks which uses a build.

A build may have come in before the user asked for signatures, or before a namespace was given to a server. So the
rules hold each time a name becomes a build, not only when it comes in:

- A namespace that the user gave to a remote (`adapt remote add --namespaces`) belongs to it. A build answers under that
  namespace only if its note of origin names that server. Without a note it does not answer.
- Where a policy says `require`, the signature beside the build is judged as at the gate (`signing/gate.py`), from the
  place in the note of origin. Without such a policy nothing is read.

`find_installed`, `run_install`, `sync` and the loader ask. What only looks at a build, such as `verify`, does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from adapterhub.core.digests import Digest
from adapterhub.core.errors import NamespaceBound, NotAllowed, SignatureRefused, reworded
from adapterhub.formats.release import Release
from adapterhub.library.admission.signatures import SignatureAdmission, check_standing
from adapterhub.library.library import Library
from adapterhub.library.remotes import Remote
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Source
from adapterhub.trust.signing.policy import SignaturePolicy
from adapterhub.trust.signing.provenance import provenance_of
from adapterhub.trust.signing.trust import Demand

_KEPT = "It stays installed and is not used"


class Admission:
    """The decision for one library. Cheap to make; the files that say what the user wants are read once, when needed.

    Make one for each request, so that a policy holds as soon as it is set.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._gate = SignatureAdmission(library.root)
        self._known: dict[tuple[str | None, Demand | SignaturePolicy | None], bool] = {}

    # ------------------------------------------------------------ whose a namespace is
    def owners(self, namespace: str | None) -> Sequence[Remote]:
        """The remotes that the user gave this namespace to; none where no remote has it."""
        return self._owners.get(namespace, ()) if namespace else ()

    @cached_property
    def _owners(self) -> dict[str, tuple[Remote, ...]]:
        found: dict[str, tuple[Remote, ...]] = {}
        for remote in self._gate.remotes:
            for namespace in remote.namespaces:
                found[namespace] = (*found.get(namespace, ()), remote)
        return found

    def may_offer(self, place: str, namespace: str | None) -> bool:
        """Whether what `place`, a URL or a path, has under a namespace counts as a build of that namespace."""
        owners = self.owners(namespace)
        return not owners or any(owner.url == place for owner in owners)

    def ensure_place_allowed(self, place: str, namespace: str | None, *, hint: str = "") -> None:
        """Refuse a place that would answer for a namespace of another one.

        Raises:
            NamespaceBound: with both sides, and the command that would allow it.
        """
        if not self.may_offer(place, namespace):
            raise NamespaceBound(
                f"{self._belongs(namespace)}; `{place}` cannot answer for it. Nothing was changed",
                hint=hint or self.unbind(namespace),
            )

    def of_places(self, sources: Iterable[Source], namespace: str | None) -> list[Source]:
        """Those of `sources` that may be asked for builds of a namespace; the library is always among them."""
        return [s for s in sources if s is self._library or self.may_offer(s.place, namespace)]

    def ensure_owner_asked(self, sources: Iterable[Source], namespace: str | None) -> None:
        """Refuse where nothing was found, because none of the places besides the library may be asked.

        Raises:
            NamespaceBound: as `ensure_place_allowed`, of the first.
        """
        others = [source for source in sources if source is not self._library]
        if others and not any(self.may_offer(source.place, namespace) for source in others):
            self.ensure_place_allowed(others[0].place, namespace)

    @property
    def binds_any(self) -> bool:
        """Whether the user gave any namespace to a remote."""
        return bool(self._owners)

    def is_ours(self, build: Installed) -> bool:
        """Whether a build came from where its namespace belongs."""
        return not self.owners(build.namespace) or self.may_offer(self._place_of(build), build.namespace)

    def ensure_own_origin(self, build: Installed) -> None:
        """Refuse a build that did not come from the remote that has its namespace.

        Raises:
            NamespaceBound: with both sides, and the command that gets the owner's build.
        """
        if self.is_ours(build):
            return
        origin = self._library.origins.under(build.manifest.digest, build.full_name)
        came = f"came from `{origin.place}`" if origin else "has no note of where it came from"
        raise NamespaceBound(
            f"refused `{build.full_name}` {build.manifest.version}: {self._belongs(build.namespace)}, "
            f"and this build {came}. {_KEPT}",
            hint=f"`adapt install '{build.spec}'` keeps it if that server has the same build; "
            f"`adapt remove '{build.spec}' --yes` makes room for another",
        )

    def _place_of(self, build: Installed) -> str:
        return self._library.origins.place_of(build.manifest.digest, build.full_name)

    def _belongs(self, namespace: str | None) -> str:
        owners = self.owners(namespace)
        return f"you gave the namespace `{namespace}` to " + " and ".join(f"{o.label} ({o.url})" for o in owners)

    def unbind(self, namespace: str | None) -> str:
        """The command that takes a namespace away from its remote, in a sentence."""
        owner = self.owners(namespace)[0]
        rest = ",".join(name for name in owner.namespaces if name != namespace)
        option = f" --namespaces {rest}" if rest else ""
        return f"`adapt remote add {owner.name} {owner.url}{option}` takes the namespace away from it, if you mean that"

    # ------------------------------------------------------------ the decision
    def asks_of(self, namespace: str | None, given: Demand | SignaturePolicy | None = None) -> bool:
        """Whether a build of a namespace needs a known origin or signature to be used."""
        return bool(self.owners(namespace)) or self._may_require(namespace, given)

    def _may_require(self, namespace: str | None, given: Demand | SignaturePolicy | None) -> bool:
        key = namespace, given  # a sync asks for thousands
        if key not in self._known:
            self._known[key] = self._gate.may_require(namespace, given)
        return self._known[key]

    def needs_proof(self, adapter: Digest, full_name: str, given: Demand | SignaturePolicy | None) -> bool:
        """Whether a build that only the store has left has to come with its origin or signature again."""
        namespace = full_name.rpartition("/")[0] or None
        demand = self._gate.demand(namespace, self._library.origins.place_of(adapter, full_name), given)
        return bool(self.owners(namespace)) or (demand is not None and demand.policy == "require")

    def refuse(self, build: Installed, given: Demand | SignaturePolicy | None = None) -> None:
        """Refuse an installed build that may not be used; `given` is the signature policy of this run.

        Raises:
            AdapterNotFound: it is not installed any more.
            NamespaceBound: its namespace belongs to a server that it did not come from.
            SignatureRefused: a policy requires a signature, and it has none that counts.
        """
        self.ensure_own_origin(build)
        if not self._may_require(build.namespace, given):
            return  # and the note of origin need not be read
        place = self._place_of(build)
        demand = self._gate.demand(build.namespace, place, given)
        if demand is None or demand.policy != "require":
            return
        release = Release(manifest=build.manifest, namespace=build.namespace, origin=self._library.label)
        try:
            judgement = self._gate.examine(release, provenance_of(build.folder), place)
        except FileNotFoundError:  # another process removed it since it was found
            raise self._library.not_installed(build.full_name) from None
        except SignatureRefused as error:
            raise SignatureRefused(
                error.what, error.clause, reason=error.reason, hint=error.hint, ending=_KEPT
            ) from None
        hint = ""
        if judgement.standing == "unsigned":
            hint = (
                f"`adapt sign '{build.spec}'` if it is yours; else ask its author to sign it, then "
                f"`adapt remove '{build.spec}' --yes` and install it again"
            )
        check_standing(release, judgement, demand, hint=hint, ending=_KEPT)

    def ensure_all_usable(self, builds: Iterable[tuple[Installed, Demand | SignaturePolicy | None]]) -> None:
        """Refuse several as one: the error of the first that may not be used, with the words of all.

        Raises:
            SignatureRefused, NamespaceBound: as `refuse`.
        """
        refused: list[NotAllowed] = []
        for build, given in builds:
            try:
                self.refuse(build, given)
            except (SignatureRefused, NamespaceBound) as error:
                refused.append(error)
        if refused:
            first, *others = refused
            raise reworded(first, "\n".join([first.message, *(f"also: {error.message}" for error in others)]))

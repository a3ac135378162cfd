"""A project and its lock as values.

adapters.toml   the requirements: base, remotes, adapters, merges, policy
adapters.lock   the exact builds that meet them
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from adapterhub.core.arguments import TestsPolicy
from adapterhub.core.digests import Digest, canonical_json, digest_of
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterName, AdapterSpec, BaseSpec
from adapterhub.formats.contract.standards import Standards, parse_bound
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import Manifest
from adapterhub.trust.signing.policy import SignaturePolicy
from adapterhub.weights.recipes.toml import MergeStep

SHOWN_DIGEST: Final = 19
"""`sha256:` and 12 hex digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectRemote:
    """A place that a project names itself. `address` is what its kind takes: a URL, or a path from the project."""

    name: str
    kind: str
    address: str
    namespaces: tuple[str, ...] = ()
    signatures: SignaturePolicy | None = None

    @property
    def written(self) -> dict[str, Any]:
        """The server as a list of trusted projects has it: all that decides which requests it gets."""
        from adapterhub.distribution.remote_kinds import kind_named, kind_to_write

        return {
            "name": self.name,
            "url": self.address,
            "namespaces": list(self.namespaces),
            "signatures": self.signatures,
            **({"kind": kind} if (kind := kind_to_write(kind_named(self.kind))) else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The servers that a project adds.

    `remotes` are those of the project file, in order. `needed` are the URLs that need trust: remotes that the user
    does not have with the same namespaces, and servers that only the lock file names.
    """

    remotes: tuple[ProjectRemote, ...]
    sources: tuple[str, ...]
    needed: tuple[str, ...]

    @property
    def remotes_digest(self) -> Digest:
        """Changes with everything in the project file that decides which server is contacted for what."""
        return digest_of(canonical_json([remote.written for remote in self.remotes]))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRequirement:
    """One adapter that a project requires. `key` is its name in the project, and its folder in `adapters/`.

    `group` is None if `sync` always brings it. `remote` restricts the lookup to one remote of the project. A target of
    an alias has a `weight` and the key `legal-qa@prod`, or `legal-qa@prod@1.3` for those besides the main one.
    """

    key: AdapterName
    spec: AdapterSpec
    ranks: RankRange = ANY_RANK
    group: str | None = None
    remote: str | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRequirement:
    """One merge that a project requires. The leaves of `step` name adapters or merges of the project by key.

    `version` None means `1.0.0+<12 hex of the recipe and its inputs' digests>`, so that a changed recipe or input
    never claims a version that is taken.
    """

    key: AdapterName
    step: MergeStep
    version: str | None = None
    task: str | None = None
    description: str = ""
    license: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a project allows. Empty tuples and None restrict nothing; `deny` wins over `allow`.

    Licences are SPDX ids, compared without case; an adapter without a licence fails every `allow`. Methods are those
    of a manifest (`lora`, `dora`, `rslora`). `exclude_newer` is text as written: a date or `7d`.

    `tests` is the policy for a build whose contract did not pass on the base. `tests_by` names whose results count:
    `local`, or trusted keys; without any, all of them. `tests_max_age` bounds the age of signed results, as `90d`.
    `tests_bounds` are the loosest bounds of any test, as `same=0.95`. `tests_never` is the path, from the project, of
    the rules that every adapter must meet.
    """

    allow_namespaces: tuple[str, ...] = ()
    deny_namespaces: tuple[str, ...] = ()
    allow_licenses: tuple[str, ...] = ()
    deny_licenses: tuple[str, ...] = ()
    allow_methods: tuple[str, ...] = ()
    deny_methods: tuple[str, ...] = ()
    max_rank: int | None = None
    exclude_newer: str | None = None
    tests: TestsPolicy | None = None
    tests_by: tuple[str, ...] = ()
    tests_max_age: str | None = None
    tests_bounds: tuple[str, ...] = ()
    tests_never: str | None = None

    @property
    def looks_at_tests(self) -> bool:
        """Whether contracts and results matter."""
        return self.tests not in (None, "off")

    @property
    def bounds(self) -> Mapping[str, float]:
        """The loosest bounds of any test, by name."""
        return dict(map(parse_bound, self.tests_bounds))

    @property
    def standards(self) -> Standards:
        """The policy for a build without a PASS, and for which PASS counts."""
        tests, by = self.tests or "off", self.tests_by
        return Standards(policy=tests, by=by, max_age=self.tests_max_age, bounds=self.bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """`adapters.toml` as a value. Adapters and merges keep the order of the file; keys are unique across both."""

    folder: Path
    base: BaseSpec | None = None
    remotes: tuple[ProjectRemote, ...] = ()
    adapters: tuple[AdapterRequirement, ...] = ()
    merges: tuple[MergeRequirement, ...] = ()
    policy: Policy = field(default_factory=Policy)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the optional groups, sorted."""
        return tuple(sorted({wanted.group for wanted in self.requirements if wanted.group}))

    @property
    def requirements(self) -> tuple[AdapterRequirement | MergeRequirement, ...]:
        """Adapters, then merges."""
        return tuple[AdapterRequirement | MergeRequirement, ...]([*self.adapters, *self.merges])


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedFile(Documented):
    """One file of a build."""

    path: str
    sha256: Digest
    size_bytes: int

    @classmethod
    def all_of(cls, manifest: Manifest) -> tuple[LockedFile, ...]:
        """Return the files of a build, by path."""
        files = sorted(manifest.files, key=lambda file: file.path)
        return tuple(cls(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes) for file in files)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedSource(Documented, keys="remote=name url repo commit path kind?=written_kind image?", title="Place"):
    """The place where a locked build was found; all null: only in the library that locked it. There it has no kind.

    `remote` is the name of the place in the project, "" if it has none. `address` is written as the project file
    writes it. `pin` is what its kind needs to find this one build there, such as a repository and a commit.
    """

    remote: str = ""
    kind: str = ""
    address: str = ""
    pin: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def is_library(self) -> bool:
        """Whether no place is known but the library that it was locked from."""
        return not self.kind

    @property
    def name(self) -> str | None:
        """Name of the remote."""
        return self.remote or None

    @property
    def url(self) -> str | None:
        """URL of a server."""
        return self.table.get("url")

    @property
    def path(self) -> str | None:
        """A directory, as the project file writes it."""
        return self.table.get("path")

    @property
    def repo(self) -> str | None:
        """The repository."""
        return self.pin.get("repo")

    @property
    def commit(self) -> str | None:
        """Its commit."""
        return self.pin.get("commit")

    @property
    def image(self) -> str | None:
        """Digest of the image in an OCI registry."""
        return self.pin.get("image")

    @property
    def written_kind(self) -> str | None:
        """The kind of the server, where the key of its address does not tell."""
        return self.table.get("kind")

    @property
    def table(self) -> Mapping[str, str]:
        """The source as the lock file writes it."""
        from adapterhub.distribution.remote_kinds import kind_named, kind_to_write

        table = {"remote": self.remote}
        if not self.is_library:
            kind = kind_named(self.kind)
            table |= {"kind": kind_to_write(kind) or "", kind.address_key: self.address}
            table |= {key: self.pin.get(key, "") for key in kind.pin_keys}
        return {key: text for key, text in table.items() if text}


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedBuild(Documented):
    """Fields of every entry of a lock. `base` is the weights digest that the build declares; None without one."""

    key: Annotated[AdapterName, "its name in the project"]
    version: str
    digest: Digest
    base: Annotated[Digest | None, "weights digest of its base"]
    rank: int | None
    source: LockedSource
    files: tuple[LockedFile, ...]
    group: Annotated[str | None, "its optional group"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedAdapter(LockedBuild, keys="wanted key name version digest base rank group source files"):
    """Exactly one build. `wanted` is its requirement as text: `acme/legal-qa>=1.2,<2 rank=-16`.

    `contract` is the digest of its behaviour contract, looked up only where the policy `tests` of the project wants
    one.
    """

    wanted: Annotated[str, "the requirement that it meets"]
    name: Annotated[str, "its own name, with its namespace"]
    contract: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedMerge(LockedBuild, keys="key name=key version digest base rank group source files"):
    """A merge: its recipe and its result. The leaves of `step` are exact specs with the digests of the inputs.

    `source` is where its bytes are without running it; for a merge that was never published, the library.
    """

    step: MergeStep
    task: str | None
    description: str
    license: str | None

    @property
    def name(self) -> str:
        """The name that the project gives it."""
        return self.key


Locked = LockedAdapter | LockedMerge
"""Anything that a lock names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedBase(Documented, keys="spec weights hub_id"):
    """The base of the project as the project file writes it, and the digests of its fingerprint if known."""

    spec: Annotated[str, "as the project file writes it"]
    weights: Digest | None = None
    tensors: Digest | None = None
    structure: Digest | None = None
    hub_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """`adapters.lock`: adapters and merges sorted by key. `policy` is the policy at the time of locking."""

    base: LockedBase | None
    policy: Policy = field(default_factory=Policy)
    adapters: tuple[LockedAdapter, ...] = ()
    merges: tuple[LockedMerge, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[Locked], base: LockedBase | None = None, policy: Policy | None = None) -> Lock:
        """Return the lock with these entries."""
        ordered = sorted(entries, key=lambda entry: entry.key)
        return cls(
            base=base,
            policy=policy or Policy(),
            adapters=tuple(entry for entry in ordered if isinstance(entry, LockedAdapter)),
            merges=tuple(entry for entry in ordered if isinstance(entry, LockedMerge)),
        )

    @property
    def entries(self) -> Mapping[AdapterName, Locked]:
        """Everything locked, by its name in the project."""
        entries = list[Locked]([*self.adapters, *self.merges])
        return {entry.key: entry for entry in entries}


def digests_of(lock: Lock) -> set[Digest]:
    """Return the digest of every object that a lock names: manifests and files."""
    found: set[Digest] = set()
    for entry in lock.entries.values():
        found |= {entry.digest, *(file.sha256 for file in entry.files)}
    return found

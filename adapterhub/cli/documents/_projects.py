"""Documents of projects, and of the commands that show what is different, newer, needed or large."""

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.cli.documents._library import Gone
from adapterhub.cli.documents._parts import Digest, File, Node, Path, Size, TypedDict, Use, Verdict


# ---------------------------------------------------------------- project and lock
class Init(TypedDict):
    """A new project."""

    project: Annotated[str, "its folder"]
    file: Annotated[str, "its `adapters.toml`"]
    base: Annotated[str | None, "as the file writes it"]


class ServerOfProject(TypedDict):
    """A server under `[remotes]` of a project file."""

    name: str
    url: str
    namespaces: Annotated[list[str], "namespaces it is used for; empty: all names"]
    signatures: Annotated[str | None, "the project's signature policy for it"]


class TrustedProject(TypedDict):
    """A project whose servers adapterhub may contact."""

    folder: Annotated[Path, "with links resolved"]
    digest: Annotated[Digest, "of what the project says about servers"]
    remotes: list[ServerOfProject]
    sources: Annotated[list[str], "servers that only the lock file names"]


class RevokedProject(TypedDict):
    """A project that is no longer trusted."""

    project: Path
    revoked: Annotated[bool, "whether it was trusted before"]


class Place(TypedDict):
    """Where a locked build was found; all null: only in the library that locked it."""

    remote: Annotated[str | None, "name of the remote"]
    url: Annotated[str | None, "URL of a server"]
    repo: str | None
    commit: str | None
    path: Annotated[str | None, "a directory, as the project file writes it"]


class Locked(TypedDict):
    """A locked build."""

    key: Annotated[str, "its name in the project"]
    name: Annotated[str, "its own name, with its namespace"]
    version: str
    digest: Annotated[str, "of the manifest"]
    base: Annotated[str | None, "weights digest of its base"]
    rank: int | None
    group: Annotated[str | None, "its optional group"]
    source: Place
    files: list[File]


class LockedAdapter(Locked):
    """A locked build and its requirement."""

    wanted: Annotated[str, "the requirement that it meets"]


class LockedBase(TypedDict):
    """The base of a project."""

    spec: Annotated[str, "as the project file writes it"]
    weights: Annotated[str | None, "weights digest"]
    hub_id: str | None


class LockEntries(TypedDict):
    """The entries of a lock file."""

    base: LockedBase | None
    adapters: list[LockedAdapter]
    merges: list[Locked]


class Change(TypedDict):
    """A difference from the previous lock."""

    kind: Annotated[str, "`added`, `changed` or `removed`"]
    key: Annotated[str, "the name in the project"]
    text: Annotated[str, "as text"]


class LockChanges(LockEntries):
    """The entries of a lock file and its changes."""

    changes: list[Change]
    warnings: list[str]


class Lock(LockChanges):
    """A lock file."""

    project: Path
    lock: Annotated[str, "the file"]
    written: Annotated[bool, "false: the file was up to date"]


class LockCheck(LockEntries):
    """A lock file that matches its project."""

    project: Path
    lock: Annotated[str, "the file"]
    current: Annotated[bool, "true"]


_From = TypedDict("_From", {"from": str | None})  # a word of Python, so no class can have it


class Synced(_From):
    """A folder of `adapters/`; `from` is the place it was fetched from, as text."""

    key: Annotated[str, "its name in the project and of its folder"]
    name: Annotated[str, "with its namespace"]
    version: str
    digest: Digest
    group: str | None
    path: Path
    done: Annotated[str, "`kept`, `linked`, `fetched`, `rebuilt` or `replaced`"]
    repaired: Annotated[list[str], "what did not match the lock, as text"]


class Left(TypedDict):
    """A folder in `adapters/` that does not belong to the project."""

    path: Path
    made_by_sync: Annotated[bool, "true: `--prune` removes it"]


class Sync(TypedDict):
    """The result of a sync."""

    project: Path
    locked_anew: Annotated[bool, "true: the lock file was stale or missing and was rewritten"]
    adapters: list[Synced]
    fetched_bytes: Annotated[int, "bytes received"]
    removed: Annotated[list[Path], "folders removed by --prune"]
    left: Annotated[list[Left], "folders that do not belong to the project"]


class Upgraded(LockChanges):
    """The new lock, and the result of the sync after it."""

    sync: Sync


class UpgradePlan(TypedDict):
    """What an upgrade of the project would change."""

    project: Path
    changes: Annotated[list[Change], "in the lock file"]
    warnings: list[str]
    folders: Annotated[list[Path], "folders of `adapters/` that would be created or replaced"]


_FromVersion = TypedDict("_FromVersion", {"from": str})  # as `_From`


class Newer(_FromVersion):
    """A newer release that was, or would be, installed beside version `from`."""

    name: str
    to: Annotated[str, "the newer version"]
    digest: Digest
    place: Annotated[str, "where it was found, as text"]
    path: Annotated[str | None, "its folder; null with --dry-run unless installed"]


class Uninstalled(TypedDict):
    """The removed builds, and the entries removed from the project."""

    removed: list[Gone]
    project_names: Annotated[list[str], "names removed from `adapters.toml`"]


class Requirements(TypedDict):
    """A plain list of requirements for `adapt install -r`."""

    requirements: Annotated[list[str], "`name==version#sha256:digest`"]
    output: Annotated[str | None, "with --output: the file"]


class FolderOf(TypedDict):
    """An adapter and its plain PEFT folder, for an inference server."""

    name: Annotated[str, "its name in the project, else its own name"]
    path: Path
    version: str
    digest: Digest
    rank: int | None


class Offer(TypedDict):
    """The releases that one place has of a locked or installed adapter."""

    name: Annotated[str, "its name in the project, else its own name"]
    spec: Annotated[str, "the spec that was searched for"]
    current: Annotated[str, "the locked or installed version"]
    current_digest: Digest
    allowed: Annotated[str | None, "the newest version that the requirement allows; null: none"]
    allowed_digest: Digest | None
    newest: Annotated[str | None, "the newest version that fits the base"]
    newest_digest: Digest | None
    place: Annotated[str, "as text"]
    yanked: Annotated[str | None, "why the current version was withdrawn; null: it was not"]
    problem: Annotated[str | None, "why the place did not answer"]


# ---------------------------------------------------------------- tree and why
class Tree(TypedDict):
    """Adapters and their parents."""

    project: Annotated[str | None, "the project's folder; null for the library"]
    adapters: list[Node]


class ProjectNode(TypedDict):
    """An adapter of the project and its parents."""

    key: Annotated[str, "its name in the project"]
    name: Annotated[str, "its own name, with its namespace"]
    version: str
    digest: Digest
    rank: int | None
    group: str | None
    wanted: Annotated[str | None, "the requirement that it meets; null for a merge"]
    state: Annotated[str, "`installed`, `stored` or `missing`"]
    method: Annotated[str | None, "merge method"]
    parents: Annotated[list[Any], "nodes of this kind or [Node](#node), each with its `weight`"]


class ProjectTree(TypedDict):
    """The locked adapters of a project."""

    project: Path
    adapters: list[ProjectNode]


class HeldAdapter(TypedDict):
    """An adapter in use."""

    key: Annotated[str, "its name in the project, else its own name"]
    version: str
    digest: Digest


class HoldingGroup(TypedDict):
    """A holder and the adapters it needs."""

    kind: Annotated[str, "`project`, `process` or `nobody`"]
    who: Annotated[str | None, "a folder or process"]
    adapters: list[HeldAdapter]


class Holders(TypedDict):
    """Holders and the adapters they need."""

    holders: list[HoldingGroup]


class Why(TypedDict):
    """What needs an adapter."""

    adapter: Annotated[str, "name and version"]
    digest: Digest
    uses: list[Use]


# ---------------------------------------------------------------- diff, identify, cache
class Side(TypedDict):
    """One of two adapters."""

    label: str
    digest: Digest | None
    path: Path


class FileDifference(TypedDict):
    """A file that differs; null: absent on that side."""

    path: str
    first: Digest | None
    second: Digest | None


class FieldDifference(TypedDict):
    """A field that differs; null: absent on that side."""

    field: str
    first: Any
    second: Any


class ModuleDifference(TypedDict):
    """A module of two adapters; all norms are Frobenius norms of updates."""

    name: str
    first: Annotated[float | None, "norm of the first update; null: absent"]
    second: float | None
    apart: Annotated[float, "norm of the difference"]
    relative: Annotated[float | None, "`apart` divided by `first`; null if the first is zero"]


class WeightsDifference(TypedDict):
    """The exact difference of two updates."""

    relative: Annotated[float | None, "`norm_apart` divided by `norm_first`; null if that is zero"]
    norm_first: float | None
    norm_second: float | None
    norm_apart: Annotated[float, "norm of the difference of the updates"]
    modules: Annotated[list[ModuleDifference], "largest difference first"]
    others: Annotated[list[ModuleDifference], "differing tensors that are not factors"]
    unlike: Annotated[dict[str, str], "modules that cannot be compared, with the reason"]
    caveats: Annotated[list[str], "what the numbers leave out, such as magnitudes of DoRA"]


class Difference(TypedDict):
    """The differences between two adapters."""

    first: Side
    second: Side
    identical: Annotated[bool, "whether they are the same byte for byte"]
    same_update: Annotated[bool | None, "whether they change a model in the same way; null if unknown"]
    base_verdict: Verdict
    files: list[FileDifference]
    config: list[FieldDifference]
    manifest: Annotated[list[FieldDifference] | None, "null if one has no manifest"]
    weights: Annotated[WeightsDifference | None, "null if the weights are the same bytes or cannot be compared"]


class Match(TypedDict):
    """A possible identity of a file."""

    what: Annotated[str, "`adapter`, `base` or `family`"]
    name: str
    sure: Annotated[str, "`proven`, `likely` or `possible`"]
    how: Annotated[str, "the evidence"]
    digest: Digest | None
    path: Path | None


class Identified(TypedDict):
    """The possible identities of a file or folder."""

    path: Path
    files: Annotated[dict[str, str], "digest of each file"]
    matches: Annotated[list[Match], "most certain first"]
    notes: Annotated[list[str], "remarks, as text"]


class Held(TypedDict):
    """The space that one holder uses."""

    kind: Annotated[str, "`installed`, `project`, `process` …"]
    name: str
    objects: int
    size_bytes: Size
    alone_bytes: Annotated[int, "bytes that no other holder uses"]


class Other(TypedDict):
    """A part of the library outside the store's objects."""

    name: str
    size_bytes: Size


class Space(TypedDict):
    """The space that the library uses."""

    root: Path
    objects: int
    size_bytes: Size
    holders: Annotated[list[Held], "what uses the objects"]
    unused_objects: Annotated[int, "objects that nothing uses"]
    unused_bytes: int
    other: Annotated[list[Other], "parts of the library outside the objects"]


PROJECTS = {
    "init": Init,
    "lock": Lock,
    "lock.check": LockCheck,
    "sync": Sync,
    "trust": TrustedProject,
    "trust.list": list[TrustedProject],
    "trust.revoke": RevokedProject,
    "upgrade": Upgraded,
    "upgrade.dry-run": UpgradePlan,
    "upgrade.library": list[Newer],
    "uninstall": Uninstalled,
    "outdated": list[Offer],
    "export": Requirements,
    "list.format": list[FolderOf],
}
VERBS: dict[str, Any] = {
    "tree": Tree,
    "tree.project": ProjectTree,
    "tree.holders": Holders,
    "why": list[Why],
    "diff": Difference,
    "identify": Identified,
    "cache": Space,
}

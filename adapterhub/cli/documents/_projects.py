"""Documents of projects, and of the commands that tell what is different, newer, needed and large."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from adapterhub.cli.documents._library import Gone
from adapterhub.cli.documents._parts import Digest, File, Node, Path, Size, Use, Verdict


# ---------------------------------------------------------------- project and lock
class Init(TypedDict):
    """A project that was made."""

    project: Annotated[str, "its folder"]
    file: Annotated[str, "its `adapters.toml`"]
    base: Annotated[str | None, "as the file names it"]


class ServerOfProject(TypedDict):
    """A server under `[remotes]` of a project file."""

    name: str
    url: str
    namespaces: Annotated[list[str], "what it is asked for; all names where it is empty"]
    signatures: Annotated[str | None, "what the project asks of signatures there"]


class TrustedProject(TypedDict):
    """A project whose servers may be asked."""

    folder: Annotated[Path, "links resolved"]
    digest: Annotated[Digest, "of what the project file says of servers"]
    remotes: list[ServerOfProject]
    sources: Annotated[list[str], "servers that the lock file alone names"]


class RevokedProject(TypedDict):
    """A project whose servers may not be asked any more."""

    project: Path
    revoked: Annotated[bool, "whether it was trusted"]


class Place(TypedDict):
    """Where a locked build was found; all null: in the library of whoever locked it."""

    remote: Annotated[str | None, "name of the remote"]
    url: Annotated[str | None, "of a server"]
    repo: str | None
    commit: str | None
    path: Annotated[str | None, "of a directory, as the project file has it"]


class Locked(TypedDict):
    """Exactly one build."""

    key: Annotated[str, "its name in the project"]
    name: Annotated[str, "its own, with its namespace"]
    version: str
    digest: Annotated[str, "of the manifest"]
    base: Annotated[str | None, "digest of the base's weights"]
    rank: int | None
    group: Annotated[str | None, "the optional group"]
    source: Place
    files: list[File]


class LockedAdapter(Locked):
    """Exactly one build, and what asked for it."""

    wanted: Annotated[str, "the requirement that it answers"]


class LockedBase(TypedDict):
    """The base of a project."""

    spec: Annotated[str, "as the project file names it"]
    weights: Annotated[str | None, "digest"]
    hub_id: str | None


class LockEntries(TypedDict):
    """What a lock file says."""

    base: LockedBase | None
    adapters: list[LockedAdapter]
    merges: list[Locked]


class Change(TypedDict):
    """A difference to the lock before."""

    kind: Annotated[str, "`added`, `changed` or `removed`"]
    key: Annotated[str, "the name in the project"]
    text: Annotated[str, "in words"]


class LockChanges(LockEntries):
    """What a lock file says, and what is new in it."""

    changes: list[Change]
    warnings: list[str]


class Lock(LockChanges):
    """What was locked."""

    project: Path
    lock: Annotated[str, "the file"]
    written: Annotated[bool, "false: it says so already"]


class LockCheck(LockEntries):
    """A lock file that is what the project asks for."""

    project: Path
    lock: Annotated[str, "the file"]
    current: Annotated[bool, "true"]


_From = TypedDict("_From", {"from": str | None})  # a word of Python, so no class can have it


class Synced(_From):
    """One folder of `adapters/`; `from` says where it was fetched, in words."""

    key: Annotated[str, "its name in the project, and its folder's"]
    name: Annotated[str, "with its namespace"]
    version: str
    digest: Digest
    group: str | None
    path: Path
    done: Annotated[str, "`kept`, `linked`, `fetched`, `rebuilt` or `replaced`"]
    repaired: Annotated[list[str], "what was not as locked"]


class Left(TypedDict):
    """A folder of `adapters/` that is not of the project."""

    path: Path
    made_by_sync: Annotated[bool, "`--prune` takes it away"]


class Sync(TypedDict):
    """What a sync did."""

    project: Path
    locked_anew: Annotated[bool, "the lock file was stale or missing, and was written"]
    adapters: list[Synced]
    fetched_bytes: int
    removed: list[Path]
    left: list[Left]


class Upgraded(LockChanges):
    """What was locked anew, and what the sync after it did."""

    sync: Sync


class UpgradePlan(TypedDict):
    """What an upgrade of a project would change."""

    project: Path
    changes: Annotated[list[Change], "of the lock file"]
    warnings: list[str]
    folders: Annotated[list[Path], "of `adapters/` that would be made or replaced"]


_FromVersion = TypedDict("_FromVersion", {"from": str})  # as `_From`


class Newer(_FromVersion):
    """A newer release that came, or would come, beside the one that was there; `from` is that one's version."""

    name: str
    to: Annotated[str, "the newer version"]
    digest: Digest
    place: Annotated[str, "where it was found, in words"]
    path: Annotated[str | None, "its folder; null under --dry-run unless it is installed"]


class Uninstalled(TypedDict):
    """What is installed no more, and what the project does not ask for any more."""

    removed: list[Gone]
    project_names: list[str]


class Requirements(TypedDict):
    """A plain list for `adapt install -r`."""

    requirements: Annotated[list[str], "`name==version#sha256:digest`"]
    output: Annotated[str | None, "the file, with --output"]


class FolderOf(TypedDict):
    """An adapter and its plain PEFT folder, for a server of models."""

    name: Annotated[str, "in the project, else its own"]
    path: Path
    version: str
    digest: Digest
    rank: int | None


class Offer(TypedDict):
    """What one place has of an adapter that is locked or installed."""

    name: Annotated[str, "in the project, else its own"]
    spec: Annotated[str, "what was looked for"]
    current: Annotated[str, "the version here"]
    current_digest: Digest
    allowed: Annotated[str | None, "the newest version that may be taken; null: none"]
    allowed_digest: Digest | None
    newest: Annotated[str | None, "the newest version that fits the base"]
    newest_digest: Digest | None
    place: Annotated[str, "in words"]
    yanked: Annotated[str | None, "why the one here was withdrawn; null: it was not"]
    problem: Annotated[str | None, "why the place could not be asked"]


# ---------------------------------------------------------------- tree and why
class Tree(TypedDict):
    """Adapters with what they were merged from."""

    project: Annotated[str | None, "the project's folder; null: of the library"]
    adapters: list[Node]


class ProjectNode(TypedDict):
    """An adapter of the project with what it was merged from."""

    key: Annotated[str, "its name in the project"]
    name: Annotated[str, "its own, with its namespace"]
    version: str
    digest: Digest
    rank: int | None
    group: str | None
    wanted: Annotated[str | None, "the requirement that it answers; null for a merge"]
    state: Annotated[str, "`installed`, `stored` or `missing`"]
    method: Annotated[str | None, "of the merge"]
    parents: Annotated[list[Any], "nodes as these or as [Node](#node), each with its `weight`"]


class ProjectTree(TypedDict):
    """What a project has locked."""

    project: Path
    adapters: list[ProjectNode]


class HeldAdapter(TypedDict):
    """An adapter that is held."""

    key: Annotated[str, "its name in the project, else its own"]
    version: str
    digest: Digest


class HoldingGroup(TypedDict):
    """One holder and what it holds."""

    kind: Annotated[str, "`project`, `process` or `nobody`"]
    who: Annotated[str | None, "folder or process"]
    adapters: list[HeldAdapter]


class Holders(TypedDict):
    """Who holds what."""

    holders: list[HoldingGroup]


class Why(TypedDict):
    """Who needs one adapter."""

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
    """A file that is not the same; null where one has none."""

    path: str
    first: Digest | None
    second: Digest | None


class FieldDifference(TypedDict):
    """A field that is not the same; null where one has none."""

    field: str
    first: Any
    second: Any


class ModuleDifference(TypedDict):
    """One module of two adapters; all norms are Frobenius norms of updates."""

    name: str
    first: Annotated[float | None, "norm of the first's update; null: it has none"]
    second: float | None
    apart: Annotated[float, "norm of the difference"]
    relative: Annotated[float | None, "of that to the first; null where the first is zero"]


class WeightsDifference(TypedDict):
    """The exact difference of two updates."""

    relative: float | None
    norm_first: float | None
    norm_second: float | None
    norm_apart: float
    modules: Annotated[list[ModuleDifference], "the farthest apart first"]
    others: Annotated[list[ModuleDifference], "tensors that are no factors, and differ"]
    unlike: Annotated[dict[str, str], "modules that cannot be compared, and why"]
    caveats: list[str]


class Difference(TypedDict):
    """What is different between two adapters."""

    first: Side
    second: Side
    identical: Annotated[bool, "byte for byte"]
    same_update: Annotated[bool | None, "whether they change a model alike; null where that cannot be told"]
    base_verdict: Verdict
    files: list[FileDifference]
    config: list[FieldDifference]
    manifest: Annotated[list[FieldDifference] | None, "null where one has none"]
    weights: Annotated[WeightsDifference | None, "null where the weights are the same bytes or cannot be compared"]


class Match(TypedDict):
    """What a file may be."""

    what: Annotated[str, "`adapter`, `base` or `family`"]
    name: str
    sure: Annotated[str, "`proven`, `likely` or `possible`"]
    how: Annotated[str, "what tells so"]
    digest: Digest | None
    path: Path | None


class Identified(TypedDict):
    """What a file or folder is."""

    path: Path
    files: Annotated[dict[str, str], "digests by name"]
    matches: Annotated[list[Match], "the surest first"]
    notes: list[str]


class Held(TypedDict):
    """What one holder takes."""

    kind: Annotated[str, "`installed`, `project`, `process` …"]
    name: str
    objects: int
    size_bytes: Size
    alone_bytes: Annotated[int, "that nobody else holds"]


class Other(TypedDict):
    """A part of the library that is no object."""

    name: str
    size_bytes: Size


class Space(TypedDict):
    """What takes the space of the library."""

    root: Path
    objects: int
    size_bytes: Size
    holders: list[Held]
    unused_objects: int
    unused_bytes: int
    other: list[Other]


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

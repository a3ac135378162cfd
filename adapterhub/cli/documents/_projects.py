"""Documents of projects."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated

from adapterhub.cli.documents._contracts import Tested
from adapterhub.cli.documents._parts import Digest, File, NotRequired, Path, TypedDict
from adapterhub.cli.documents._values import document_of
from adapterhub.distribution import outdated
from adapterhub.projects import locking, values

Change = document_of(locking.Change)
LockedBase = document_of(values.LockedBase)


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


class LockEntries(TypedDict):
    """The entries of a lock file."""

    base: LockedBase | None
    adapters: list[LockedAdapter]
    merges: list[Locked]


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
    tests: NotRequired[Annotated[list[Tested], "with --test: one for each build that has a contract"]]


_FromVersion = TypedDict("_FromVersion", {"from": str})  # as `_From`


class DropIn(_FromVersion):
    """How a newer build does by the contract of the locked one, which is of version `from`."""

    key: Annotated[str, "its name in the project"]
    to: Annotated[str, "the newer version"]
    digest: Digest
    kept: Annotated[bool, "false: the locked build stays"]
    tests: list[Tested]


class Upgraded(LockChanges):
    """The new lock, and the result of the sync after it."""

    sync: Sync
    tests: NotRequired[Annotated[list[DropIn], "with --test: one for each build that an upgrade would replace"]]


class UpgradePlan(TypedDict):
    """What an upgrade of the project would change."""

    project: Path
    changes: Annotated[list[Change], "in the lock file"]
    warnings: list[str]
    folders: Annotated[list[Path], "folders of `adapters/` that would be created or replaced"]


class Newer(_FromVersion):
    """A newer release that was, or would be, installed beside version `from`."""

    name: str
    to: Annotated[str, "the newer version"]
    digest: Digest
    place: Annotated[str, "where it was found, as text"]
    path: Annotated[str | None, "its folder; null with --dry-run unless installed"]
    tests: NotRequired[Annotated[list[Tested], "with --test: how it does by the contract of the installed one"]]
    kept: NotRequired[Annotated[bool, "with --test: whether it came in"]]


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
    "rollback": Upgraded,
    "rollback.dry-run": UpgradePlan,
    "outdated": list[document_of(outdated.Offer)],
    "export": Requirements,
    "list.format": list[FolderOf],
}

"""Documents of projects."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated

from adapterhub.api import installing, project
from adapterhub.cli.documents._parts import Digest, Path, TypedDict
from adapterhub.cli.documents._values import document_of
from adapterhub.distribution import outdated
from adapterhub.library.upkeep import lineage
from adapterhub.projects import locking, sync, syncing, tree, trust


class FolderOf(TypedDict):
    """An adapter and its plain PEFT folder, for an inference server."""

    name: Annotated[str, "its name in the project, else its own name"]
    path: Path
    version: str
    digest: Digest
    rank: int | None


PROJECTS = {
    "init": document_of(project.Project),
    "lock": document_of(locking.LockReport),
    "lock.check": document_of(locking.LockReport),
    "sync": document_of(sync.Synced),
    "remote-trust": document_of(trust.TrustedProject),
    "remote-trust.list": list[document_of(trust.TrustedProject)],
    "remote-trust.revoke": document_of(trust.RevokedProject),
    "upgrade": document_of(syncing.LockMoved),
    "upgrade.dry-run": document_of(syncing.LockPlan),
    "upgrade.library": list[document_of(outdated.Upgraded)],
    "rollback": document_of(syncing.LockMoved),
    "rollback.dry-run": document_of(syncing.LockPlan),
    "outdated": list[document_of(outdated.Offer)],
    "export": document_of(installing.Requirements),
    "list.format": list[FolderOf],
    "tree": document_of(lineage.Tree),
    "tree.project": document_of(tree.ProjectTree),
    "tree.holders": document_of(tree.Holders),
    "tree.invert": list[document_of(tree.Why)],
}

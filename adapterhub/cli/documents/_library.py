"""Documents of the commands for the library and its bases."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.api import checking, describing, health, listed, upkeep
from adapterhub.api.steps import routing, trying
from adapterhub.cli.documents._parts import (
    Added,
    AddedSeveral,
    Base,
    Manifest,
    NotRequired,
    Path,
    TypedDict,
)
from adapterhub.cli.documents._values import document_of
from adapterhub.distribution import install
from adapterhub.library import audit
from adapterhub.library.bases import requested
from adapterhub.library.upkeep import space

Listed = document_of(listed.Listed)


# ---------------------------------------------------------------- bases
class BaseRecord(TypedDict):
    """A base for another machine, in the form of the file that `adapt base add RECORD` takes."""

    schema: Annotated[str, "`adapterhub/base/1`"]
    alias: str
    path: Annotated[Path | None, "always null"]
    hub: str | None
    fingerprint: Annotated[dict[str, Any], "digests, and the samples of each tensor"]
    hints: dict[str, Any]
    tensors: Annotated[list[list[Any]], "name, dtype, shape, sha256 and samples of each tensor"]
    components: NotRequired[Annotated[dict[str, dict[str, Any]], "of a pipeline, the hints of each component"]]


# ---------------------------------------------------------------- adapters
class Shown(Manifest, document_of(describing.Shown)):
    """Everything about an installed build."""


class ShownRecipe(TypedDict):
    """The recipe of a merge."""

    recipe: Annotated[str, "TOML for `adapt merge --recipe`"]


class Folder(TypedDict):
    """The folder of an adapter."""

    path: Annotated[str, "its plain PEFT folder"]


class Sbom(TypedDict):
    """A bill of materials, CycloneDX 1.6; its own JSON schema describes the rest."""

    bomFormat: Annotated[str, "`CycloneDX`"]  # noqa: N815 - names of the standard
    specVersion: Annotated[str, "`1.6`"]  # noqa: N815
    serialNumber: Annotated[str, "the same for the same content"]  # noqa: N815
    version: int
    metadata: Annotated[dict[str, Any], "when and by what it was made; `component` is the subject"]
    components: Annotated[list[dict[str, Any]], "adapters, bases and data sets"]
    dependencies: Annotated[list[dict[str, Any]], "which component was made from which"]


class Completion(TypedDict):
    """The completion script of a shell."""

    shell: Annotated[str, "`bash`, `zsh` or `fish`"]
    script: str


BASES = {
    "base-add": Base,
    "base-set": Base,
    "base-list": list[document_of(listed.ListedBase)],
    "base-show": document_of(upkeep.ShownBase),
    "base-export-record": BaseRecord,
    "base-compare": document_of(upkeep.ComparedBases),
    "base-family": list[document_of(requested.Family)],
    "base-remove": document_of(upkeep.RemovedBase),
    "base-pin": document_of(upkeep.Pinned),
}
ADAPTERS = {
    "add": Added,
    "add.several": AddedSeveral,
    "install": list[document_of(install.Install)],
    "install.save": list[document_of(install.Install)],
    "install.dry-run": list[document_of(install.Install)],
    "list": list[Listed],
    "search": list[document_of(listed.FoundBuild)],
    "search.setup": document_of(upkeep.SearchModel),
    "search.try": document_of(trying.Tried),
    "route": document_of(routing.Routed),
    "route.check": document_of(routing.CheckedRoute),
    "info": Shown,
    "info.recipe": ShownRecipe,
    "path": Folder,
    "verify": list[document_of(checking.Verified)],
    "verify.engine": list[document_of(checking.Checked)],
    "audit": document_of(audit.Audit),
    "sbom": Sbom,
    "remove": document_of(upkeep.Removed),
    "cache-show": document_of(space.Space),
    "cache-clean": document_of(upkeep.Freed),
    "doctor": list[document_of(health.Line)],
    "doctor.repair": document_of(upkeep.Repaired),
    "completion": Completion,
}

"""Parts of several documents: files, findings, manifests, added adapters."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.cli.documents._typed import Digest, NotRequired, Path, Size, TypedDict, Verdict
from adapterhub.cli.documents._values import document_of
from adapterhub.formats import manifest
from adapterhub.formats.modules import groups
from adapterhub.library import library
from adapterhub.library.bases import records
from adapterhub.library.upkeep import lineage
from adapterhub.projects import tree
from adapterhub.trust.verify import report

__all__ = [
    "Added",
    "Base",
    "Digest",
    "File",
    "Finding",
    "Manifest",
    "ManifestFile",
    "ModuleGroup",
    "Node",
    "NotRequired",
    "Parent",
    "Path",
    "Size",
    "TypedDict",
    "Use",
    "Verdict",
]

Base = document_of(records.BaseRecord)
Added = document_of(library.Added)
File = document_of(manifest.FileEntry)
Finding = document_of(report.Finding)
ModuleGroup = document_of(groups.ModuleGroup)
Node = document_of(lineage.Node)
Use = document_of(tree.Use)


class ManifestFile(File):
    """A file of a manifest."""

    media_type: Annotated[str, "such as `application/vnd.safetensors`"]


class Parent(TypedDict):
    """An adapter that was merged into this one."""

    digest: NotRequired[Digest]
    spec: Annotated[str, "as given"]
    weight: float


class Manifest(TypedDict):
    """The [manifest](manifest.md) of a build without the samples of its base; unknown fields are left out."""

    schema: Annotated[str, "`adapterhub/1`"]
    name: str
    version: Annotated[str, "PEP 440"]
    base: Annotated[dict[str, Any], "[fingerprint](fingerprint.md) and `hints`"]
    method: Annotated[list[str], "PEFT type, then variants"]
    files: list[ManifestFile]
    task: NotRequired[str]
    description: NotRequired[str]
    license: NotRequired[Annotated[str, "SPDX"]]
    rank: NotRequired[Annotated[int, "the largest"]]
    alpha: NotRequired[float]
    target_modules: NotRequired[list[str]]
    dtype: NotRequired[str]
    parameters: NotRequired[int]
    parents: NotRequired[list[Parent]]
    recipe: NotRequired[Annotated[dict[str, Any], "the [recipe](recipe.md) that made it"]]
    behaviour: NotRequired[Annotated[dict[str, Any], "with `prompt`, the [prompt form](manifest.md#the-prompt-form)"]]
    metrics: NotRequired[dict[str, Any]]
    annotations: NotRequired[dict[str, Any]]
    card: NotRequired[Annotated[Any, "digest or text of the card"]]
    digest: Digest


class FailureFacts(TypedDict):
    """Facts about a refusal; each list is present if the error has it."""

    type: Annotated[str, "the [error class](exit-codes.md#errors-in-python)"]
    message: Annotated[str, "what was wrong, where, and what was expected"]
    exit_code: int
    hint: NotRequired[Annotated[str, "what to type next"]]
    refusals: NotRequired[Annotated[list[Any], "releases that do not fit, each with a reason"]]
    reasons: NotRequired[Annotated[list[Any], "modules, features or places that prevent it"]]
    findings: NotRequired[Annotated[list[Any], "findings of `verify`"]]
    problems: NotRequired[Annotated[list[Any], "one sentence per problem"]]


class Skipped(TypedDict):
    """A path that holds no adapter."""

    path: Path
    reason: str


class Refused(TypedDict):
    """A folder that was refused."""

    path: Path
    error: FailureFacts


class AddedSeveral(TypedDict):
    """What became of each folder; the exit code is 3 if one was refused."""

    added: list[Added]
    skipped: list[Skipped]
    failed: list[Refused]

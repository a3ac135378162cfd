"""Parts of several documents: files, findings, manifests, added adapters."""

from __future__ import annotations

import sys
from typing import Annotated, Any

if sys.version_info >= (3, 12):  # pydantic refuses the TypedDict of older ones
    from typing import NotRequired, TypedDict
else:
    from typing_extensions import NotRequired, TypedDict

__all__ = [
    "Added",
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
    "Refusal",
    "Size",
    "TypedDict",
    "Use",
    "Verdict",
    "WeightedAdapter",
]

Digest = Annotated[str, "`sha256:` and 64 hex digits"]
Path = Annotated[str, "a path on this machine"]
Size = Annotated[int, "bytes"]
Verdict = Annotated[
    str,
    "`SAME_WEIGHTS`, `SAME_WEIGHTS_OTHER_PRECISION`, `SAME_WEIGHTS_RESIZED_VOCABULARY`, `SAME_SHAPES`, `DIFFERENT` or"
    " `UNKNOWN`",
]


class Finding(TypedDict):
    """One result of a check; [findings](findings.md#codes) lists the codes."""

    code: Annotated[str, "such as `E_SHAPE`"]
    severity: Annotated[str, "`error`, `unknown`, `warning` or `note`"]
    where: Annotated[str, "file, tensor or setting; empty for the whole adapter"]
    message: Annotated[str, "one sentence"]
    expected: Annotated[str, "what is expected; empty if that is not one thing"]
    hint: Annotated[str, "what to do; may be empty"]


class File(TypedDict):
    """A file with its size and digest."""

    path: Annotated[str, "its name in the adapter's folder"]
    size_bytes: Size
    sha256: Digest


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


class ModuleGroup(TypedDict):
    """Modules of several layers with the same name, shape, rank and scale."""

    name: str
    modules: int
    layers: Annotated[str, "such as `0-31`; empty if the layers have no numbers"]
    rank: int
    alpha: float | None
    scale: float | None
    out: int
    width: Annotated[int, "input width"]


class Node(TypedDict):
    """An adapter and its parents."""

    name: str
    version: str | None
    digest: Digest
    rank: int | None
    state: Annotated[str, "`installed`, `stored` or `missing`"]
    method: Annotated[str | None, "merge method"]
    weight: Annotated[float | None, "weight in the merge above it"]
    parents: list[Node]


class Use(TypedDict):
    """A reason to keep an adapter."""

    kind: Annotated[str, "`project`, `alias`, `merge` or `process`"]
    who: Annotated[str, "a folder, an alias, a name and version, or a process"]
    why: Annotated[str, "as text"]
    key: Annotated[str | None, "the adapter's name in the project"]
    digest: Annotated[str | None, "digest of the merge"]
    uses: Annotated[list[Use], "reasons to keep the merge"]


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


class Added(TypedDict):
    """A build in the library."""

    name: Annotated[str, "with its namespace, if it has one"]
    version: str
    base: Annotated[str, "alias, Hub id or digest; empty if unknown"]
    digest: Annotated[str, "of the manifest"]
    created: Annotated[bool, "false: it existed already"]
    rank: int | None
    size_bytes: Size
    path: Annotated[str, "its plain PEFT folder"]
    warnings: list[Finding]


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


class WeightedAdapter(TypedDict):
    """An adapter and its weight in a sum."""

    adapter: Annotated[str, "spec or folder"]
    weight: float
    digest: Annotated[str | None, "of its manifest; null for a folder without one"]


class Refusal(TypedDict):
    """A release that does not fit, and why."""

    release: str
    reason: str

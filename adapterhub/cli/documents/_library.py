"""Documents of the commands that look after the library and its bases."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from adapterhub.cli.documents._parts import (
    Added,
    Digest,
    File,
    Finding,
    Manifest,
    ModuleGroup,
    Node,
    NotRequired,
    Path,
    Refusal,
    Size,
    Use,
    Verdict,
)


# ---------------------------------------------------------------- bases
class Fingerprint(TypedDict):
    """What a base is, whatever it is called."""

    weights: Annotated[str, "digest of names and values"]
    tensors: Annotated[str, "digest of values"]
    structure: Annotated[str, "digest of names and shapes"]
    files: NotRequired[Annotated[str, "digest of its files, where it is known by them"]]


class Base(TypedDict):
    """A base that was registered."""

    alias: str
    path: Path | None
    fingerprint: Fingerprint
    hints: Annotated[dict[str, Any], "names to show, never proof: `hub_id`, `model_type`, `parameters` …"]


class BaseTensor(TypedDict):
    """One tensor of a base."""

    name: str
    dtype: Annotated[str, "as safetensors writes it, such as `BF16`"]
    shape: list[int]
    sha256: Annotated[str, "64 hex digits"]


class ShownBase(Base):
    """A registered base with its tensors."""

    tensors: list[BaseTensor]


class ListedBase(TypedDict):
    """A registered base in a list; what is not known is null."""

    alias: str
    weights: Digest
    model_type: str | None
    dtype: str | None
    parameters: int | None
    hub_id: str | None
    path: Path | None


class BaseComparison(TypedDict):
    """How two bases relate."""

    verdict: Verdict
    allows_attach: Annotated[bool, "whether an adapter for one may run on the other"]
    differences: Annotated[list[str], "one sentence for each"]


class Pinned(TypedDict):
    """An installed build and the base that it is for from now on."""

    adapter: Annotated[str, "its exact spec"]
    base: Annotated[str, "alias"]
    weights: Digest


class Removed(TypedDict):
    """What is not registered any more."""

    removed: str


# ---------------------------------------------------------------- adapters
class Listed(TypedDict):
    """An installed build; what is not known is null."""

    digest: Annotated[str, "of the manifest"]
    namespace: str | None
    name: str
    version: str
    base: Annotated[str, "alias, else Hub id, else 12 hex digits, else `unknown`"]
    base_weights: Annotated[str | None, "digest of the base it is for, declared or pinned"]
    base_tensors: Annotated[str | None, "digest of the same without names"]
    base_hub_id: str | None
    task: str | None
    description: str | None
    method: Annotated[list[str], "PEFT type, then variants"]
    rank: Annotated[int | None, "the largest"]
    alpha: float | None
    dtype: str | None
    parameters: int
    size_bytes: Size
    target_modules: list[str]
    parents: Annotated[int, "how many adapters were merged into it"]
    path: Annotated[str, "its plain PEFT folder"]
    added_at: Annotated[float, "seconds since 1970"]


class SignatureState(TypedDict):
    """What the signature says, and what is made of it."""

    standing: str
    message: Annotated[str, "in words"]
    signer: Annotated[str | None, "name of the trusted key"]
    policy: Annotated[str | None, "what is asked of signatures here"]


class Shown(Manifest):
    """Everything about an installed build."""

    installed: Annotated[bool, "true"]
    namespace: str | None
    path: Annotated[str, "its plain PEFT folder"]
    added_at: Annotated[str, "RFC 3339"]
    origin: Annotated[str | None, "where it was installed from; null: it was made or added here"]
    size_bytes: Size
    base_asked: Annotated[str | None, "the base it was judged for: the one asked for, else the registered one"]
    base_verdict: Verdict
    base_differences: Annotated[list[str], "one sentence for each"]
    base_pinned: Annotated[bool, "by `adapt base pin`: it declares none itself"]
    signature: SignatureState
    lineage: Annotated[list[Node], "what it was merged from"]
    used_by: list[Use]
    policy_refusal: Annotated[str | None, "why the project's `[policy]` would refuse it; null: it would not"]
    groups: list[ModuleGroup]
    whole: Annotated[list[str], "tensors that replace those of the base"]


class ShownRecipe(TypedDict):
    """How it was merged."""

    recipe: Annotated[str, "TOML, for `adapt merge --recipe`"]


class Folder(TypedDict):
    """Where an adapter is."""

    path: Annotated[str, "its plain PEFT folder"]


class PlannedFile(File):
    """A file of a build, and whether it has to be fetched."""

    fetch: Annotated[bool, "false: the store has it"]


class Plan(TypedDict):
    """What an install comes to."""

    name: str
    version: str
    rank: int | None
    digest: Annotated[str, "of the manifest"]
    base_verdict: Verdict
    source: Annotated[str, "where it was found, in words"]
    present: Annotated[bool, "installed already"]
    path: Annotated[str | None, "its folder; null under --dry-run unless it is installed"]
    copy_bytes: Annotated[int, "bytes to fetch"]
    files: list[PlannedFile]
    refused: Annotated[list[Refusal], "newer releases that do not fit"]


class Installed(Plan):
    """What was installed."""

    created: NotRequired[Annotated[bool, "false: it was there already"]]
    size_bytes: NotRequired[Size]
    warnings: NotRequired[list[Finding]]


class Verified(TypedDict):
    """The report on one adapter."""

    adapter: Annotated[str, "as it was named, or name and version"]
    status: Annotated[str, "`ok`, `failed` or `unknown`"]
    findings: list[Finding]
    facts: Annotated[dict[str, Any] | None, "what the files say; null when they cannot be read"]


class LicensePart(TypedDict):
    """The licence of one part."""

    part: Annotated[str, "`adapter`, `base` or `parent`"]
    name: str
    stated: Annotated[str | None, "as written"]
    spdx: str | None


class License(TypedDict):
    """What the licences of all parts come to."""

    spdx: Annotated[str | None, "an expression; null where none is known"]
    terms: list[str]
    complete: Annotated[bool, "whether every part's licence is known"]
    parts: list[LicensePart]


class Audited(TypedDict):
    """The audit of one adapter."""

    adapter: str
    name: str | None
    version: str | None
    digest: Digest | None
    path: Path
    status: Annotated[str, "`ok`, `failed` or `unknown`"]
    license: License | None
    findings: list[Finding]
    ignored: Annotated[int, "findings left out by --ignore"]


class Audit(TypedDict):
    """The audit of everything that was looked at."""

    schema: Annotated[str, "`adapterhub/library/audit/1`"]
    exit_code: int
    counts: Annotated[dict[str, int], "by severity"]
    ignored: int
    adapters: list[Audited]


class Gone(TypedDict):
    """A build that is installed no more."""

    name: str
    version: str
    digest: Digest


class Object(TypedDict):
    """An object of the store."""

    path: Path
    size_bytes: Size


class Holder(TypedDict):
    """A running program that needs objects."""

    by: str
    what: str
    host: str
    pid: int
    file: Path


class Swept(TypedDict):
    """What nothing used."""

    dry_run: bool
    removed: Annotated[list[Gone], "with --unused: builds that nobody needed"]
    freed_bytes: int
    objects: list[Object]
    spared_bytes: Annotated[int, "unused, and too young to go"]
    spared_objects: int
    in_use: list[Holder]


class Check(TypedDict):
    """One thing that was looked at."""

    check: str
    state: Annotated[str, "`ok`, `warning`, `failed` or `skipped`"]
    fact: str
    hint: Annotated[str, "what to do; may be empty"]


class RepairStep(TypedDict):
    """One thing that was mended, or not."""

    action: str
    path: Path
    detail: str
    mended: bool


class Repaired(TypedDict):
    """What a repair did."""

    dry_run: bool
    mended: Annotated[bool, "whether nothing is damaged now"]
    steps: list[RepairStep]


class Completion(TypedDict):
    """The script of a shell."""

    shell: Annotated[str, "`bash`, `zsh` or `fish`"]
    script: str


BASES = {
    "base-add": Base,
    "base-list": list[ListedBase],
    "base-show": ShownBase,
    "base-compare": BaseComparison,
    "base-remove": Removed,
    "base-pin": Pinned,
}
ADAPTERS = {
    "add": Added,
    "install": list[Installed],
    "install.save": list[Installed],
    "install.dry-run": list[Plan],
    "list": list[Listed],
    "search": list[Listed],
    "show": Shown,
    "info": Shown,
    "show.recipe": ShownRecipe,
    "path": Folder,
    "verify": list[Verified],
    "audit": Audit,
    "remove": list[Gone],
    "gc": Swept,
    "doctor": list[Check],
    "doctor.repair": Repaired,
    "completion": Completion,
}

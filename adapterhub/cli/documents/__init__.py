"""The documents that commands print with `--json`, as types for the reference, tests, and scripts in Python.

    document: documents.Listed = json.loads(…)
    document = pydantic.TypeAdapter(list[documents.Listed]).validate_json(…)

Commands do not import them. A field that may be missing is `NotRequired`; one that may be null is `| None`. A release
may add fields. Only a new major version may rename or drop one, or change its type or meaning.
"""

from __future__ import annotations

from typing import Annotated, Any, Union

from adapterhub.api import checking, describing, health, installing, listed, project, publishing, upkeep, weights
from adapterhub.api.steps import exporting, keys, routing
from adapterhub.api.steps import publishing as steps
from adapterhub.api.steps.contracts import recording, running
from adapterhub.cli.documents._typed import Digest, NotRequired, Path, TypedDict
from adapterhub.cli.documents._values import document_of
from adapterhub.cli.start import completion, demo
from adapterhub.cli.use import mcp
from adapterhub.distribution import hub, install, outdated, withdrawal
from adapterhub.formats import administration, answers, manifest, modules
from adapterhub.formats.alias import Alias, AliasMove
from adapterhub.formats.contract import results, standards
from adapterhub.formats.derived import comparison
from adapterhub.inference import export
from adapterhub.library import audit, identify, installed
from adapterhub.library.bases import families, proof, record
from adapterhub.library.find import likeness
from adapterhub.library.upkeep import lineage, space
from adapterhub.projects import locking, sync, syncing, tree
from adapterhub.projects.trust import RevokedProject, TrustedProject
from adapterhub.trust import findings
from adapterhub.trust.explaining import Explanation
from adapterhub.trust.signing import trust
from adapterhub.weights import catalogue, fuse
from adapterhub.weights.compare import difference

# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.


Base = document_of(record.BaseRecord)
Added = document_of(installed.Added)
File = document_of(manifest.FileEntry)
Finding = document_of(findings.Finding)
ModuleGroup = document_of(modules.ModuleGroup)
Node = document_of(lineage.Node)
Proof = document_of(proof.Proof)
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
    """The [manifest](files.md#the-manifest) of a build without the samples of its base; unknown fields are left out."""

    schema: Annotated[str, "`adapterhub/1`"]
    name: str
    version: Annotated[str, "PEP 440"]
    base: Annotated[dict[str, Any], "[fingerprint](base-identity.md) and `hints`"]
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
    recipe: NotRequired[Annotated[dict[str, Any], "the [recipe](files.md#recipes) that made it"]]
    behaviour: NotRequired[Annotated[dict[str, Any], "with `prompt`, the [prompt form](files.md#the-prompt-form)"]]
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
    """The result for each folder; the exit code is 3 if one was refused."""

    added: list[Added]
    skipped: list[Skipped]
    failed: list[Refused]


# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.


Tested = document_of(results.Tested)

CONTRACTS = {
    "test": list[Tested],
    "contract-record": document_of(recording.RecordedContract),
    "contract-results": list[document_of(recording.SignedResults)],
    "contract-export": document_of(running.EmittedTask),
    "contract-policy": document_of(standards.Standards),
}


# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.


# ---------------------------------------------------------------- in another form
class Calling(TypedDict):
    """The way to prompt an adapter over HTTP; engines apply no prompt form."""

    route: Annotated[str, "`/v1/completions` or `/v1/chat/completions`"]
    how: Annotated[str, "what to send there, as text"]
    prompt_form: Annotated[dict[str, Any] | None, "the build's [prompt form](files.md#the-prompt-form)"]


class ServedAdapter(TypedDict):
    """An adapter of a server, given at its start."""

    model: Annotated[str, "its name in requests"]
    adapter: Annotated[str, "name and version"]
    digest: Digest
    rank: int | None
    calling: Calling


class ServePlan(TypedDict):
    """A server that would be started."""

    url: Annotated[str, "without `/v1`"]
    base: Annotated[str, "alias, else Hub id, else 12 hex digits"]
    model: Annotated[str, "name of the plain base in requests"]
    adapters: Annotated[list[ServedAdapter], "the adapters given, in their order"]
    command: Annotated[list[str], "the engine's command line, as words"]
    engine: Annotated[str, "`vllm` and its version, or `llama.cpp`"]
    proof: NotRequired[Annotated[Proof, "llama.cpp: why the GGUF file counts as the base"]]
    max_rank: NotRequired[Annotated[int, "vLLM: largest rank that can be requested later"]]
    slots: NotRequired[Annotated[int, "vLLM: how many adapters fit in one batch"]]
    cpu_slots: NotRequired[Annotated[int, "vLLM: how many adapters stay in memory"]]
    tests: NotRequired[Annotated[list[Tested], "with --test: how each adapter does by its contract"]]


class Served(ServePlan):
    """A running server, printed as soon as it answers requests."""

    pid: Annotated[int, "process id of the engine"]


class EngineAdapter(TypedDict):
    """An adapter of an engine that follows a file."""

    model: Annotated[str, "its `id` in the file, which requests name"]
    adapter: Annotated[str, "name and version"]
    digest: Digest
    rank: int | None


class FollowedFile(TypedDict):
    """An engine whose adapters follow a file, after the first look at it; with --dry-run, what would be loaded."""

    url: Annotated[str, "where the engine answers"]
    base: Annotated[str, "alias, else Hub id, else 12 hex digits"]
    engine: Annotated[str, "`vllm` or `sglang`, and its version"]
    metrics: NotRequired[Annotated[str, "without --dry-run: where Prometheus reads"]]
    adapters: Annotated[list[EngineAdapter], "what the engine has from the file"]
    problems: Annotated[list[str], "entries that cannot be used; with --dry-run also those that would be refused"]


class Ui(TypedDict):
    """The pages of a library, printed as soon as they are served."""

    url: Annotated[str, "with the token that lets its reader in"]


class Skill(TypedDict):
    """Instructions for agents that use `adapt`."""

    skill: Annotated[str, "the text of SKILL.md"]


ENGINES = {
    "explain": list[document_of(Explanation)],
    "export.format": document_of(export.Exported),
    "export.router": document_of(exporting.ExportedRouter),
    "serve": Served,
    "serve.dry-run": ServePlan,
    "serve.sync": FollowedFile,
    "ui": Ui,
    "mcp": list[document_of(mcp.Tool)],
    "explain.skill": Skill,
}


# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.


_LISTED = Union[tuple(document_of(one) for one in (keys.OwnKey, trust.TrustedKey, trust.RevokedKey))]  # noqa: UP007 - of a tuple
_REMOTE = document_of(keys.KnownRemote)

KEYS: dict[str, Any] = {
    "key-new": document_of(keys.NewKey),
    "key-list": list[_LISTED],
    "key-show": document_of(keys.NamedKey),
    "key-trust": document_of(trust.TrustedKey),
    "key-untrust": document_of(trust.TrustedKey),
    "key-revoke": document_of(trust.RevokedKey),
    "key-rotate": document_of(keys.Rotated),
    "key-policy": list[document_of(keys.PlacePolicy)],
    "key-sign": document_of(publishing.Signed),
}
REMOTES: dict[str, Any] = {
    "remote-add": _REMOTE,
    "remote-list": list[_REMOTE],
    "remote-remove": _REMOTE,
    "remote-login": document_of(keys.LoggedIn),
    "remote-logout": document_of(keys.LoggedOut),
}


# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.


class Sbom(TypedDict):
    """A bill of materials, CycloneDX 1.6; its own JSON schema describes the rest."""

    bomFormat: Annotated[str, "`CycloneDX`"]  # noqa: N815 - names of the standard
    specVersion: Annotated[str, "`1.6`"]  # noqa: N815
    serialNumber: Annotated[str, "the same for the same content"]  # noqa: N815
    version: int
    metadata: Annotated[dict[str, Any], "when and by what it was made; `component` is the subject"]
    components: Annotated[list[dict[str, Any]], "adapters, bases and data sets"]
    dependencies: Annotated[list[dict[str, Any]], "which component was made from which"]


PROJECTS = {
    "init": document_of(project.Project),
    "lock": document_of(locking.LockReport),
    "lock.check": document_of(locking.LockReport),
    "sync": document_of(sync.Synced),
    "remote-trust": document_of(TrustedProject),
    "remote-trust.list": list[document_of(TrustedProject)],
    "remote-trust.revoke": document_of(RevokedProject),
    "upgrade": document_of(syncing.LockMoved),
    "upgrade.dry-run": document_of(syncing.LockPlan),
    "upgrade.library": list[document_of(outdated.Upgraded)],
    "upgrade.undo": document_of(syncing.LockMoved),
    "upgrade.check": list[document_of(outdated.Offer)],
    "export": document_of(installing.Requirements),
    "export.cyclonedx": Sbom,
    "list.format": list[document_of(listed.AdapterFolder)],
    "tree": document_of(lineage.Tree),
    "tree.project": document_of(tree.ProjectTree),
    "tree.holders": document_of(tree.Holders),
    "tree.invert": list[document_of(tree.Why)],
}


# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.


# ---------------------------------------------------------------- identify, cache
VERBS: dict[str, Any] = {
    "identify": document_of(identify.Identity),
    "identify.files": document_of(identify.LoraFiles),
}


# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.


# ---------------------------------------------------------------- run
WEIGHTS = {
    "merge": document_of(weights.MergedBuild),
    "merge.folder": document_of(weights.Merged),
    "merge.tune": document_of(weights.MergedBuild),
    "merge.methods": list[document_of(catalogue.Method)],
    "resize": document_of(weights.ResizedBuild),
    "port": document_of(weights.PortedBuild),
    "port.dry-run": document_of(weights.Ported),
    "compare": document_of(comparison.Comparison),
    "compare.diff": document_of(difference.Difference),
    "compare.alike": document_of(likeness.Likeness),
    "compare.groups": document_of(likeness.LikenessGroups),
    "compare.server": document_of(hub.AlikeThere),
    "extract": document_of(weights.ExtractedBuild),
    "fuse": document_of(fuse.Fused),
}
ANSWERS = {
    "run": document_of(answers.OneAnswer),
    "run.compare": document_of(answers.ComparedAnswers),
    "run.batch": document_of(answers.BatchAnswers),
    "run.image": document_of(answers.DrawnImage),
    "demo": document_of(demo.Demo),
}


# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.


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


BASES = {
    "base-add": Base,
    "base-set": Base,
    "base-list": list[document_of(listed.ListedBase)],
    "base-show": document_of(upkeep.ShownBase),
    "base-show.record": BaseRecord,
    "base-compare": document_of(upkeep.ComparedBases),
    "base-family": list[document_of(families.Family)],
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
    "search.try": document_of(listed.Tried),
    "route": document_of(routing.Routed),
    "route.check": document_of(routing.CheckedRoute),
    "info": Shown,
    "info.recipe": ShownRecipe,
    "info.path": Folder,
    "verify": list[document_of(checking.Verified)],
    "verify.engine": list[document_of(checking.Checked)],
    "audit": document_of(audit.Audit),
    "remove": document_of(upkeep.Removed),
    "cache-show": document_of(space.Space),
    "cache-clean": document_of(upkeep.Freed),
    "doctor": list[document_of(health.Line)],
    "doctor.repair": document_of(upkeep.Repaired),
    "completion": document_of(completion.Completion),
}


# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.


# ---------------------------------------------------------------- servers
class Info(Manifest, document_of(describing.ShownThere)):
    """An adapter on a server."""


SERVERS = {
    "push": document_of(publishing.Sent),
    "push.server": document_of(publishing.Sent),
    "push.results": document_of(publishing.SentResults),
    "push.dry-run": document_of(publishing.PushPlan),
    "pull": document_of(steps.Pulled),
    "info.server": Info,
    "search.server": list[document_of(listed.FoundThere)],
    "mirror": list[document_of(steps.Mirrored)],
    "mirror.dry-run": list[document_of(steps.Mirrored)],
    "yank": document_of(withdrawal.Withdrawn),
    "yank.undo": document_of(withdrawal.Withdrawn),
    "delete": document_of(withdrawal.Withdrawn),
    **REMOTES,
}
REGISTRY: dict[str, Any] = {
    "registry-serve": list[Annotated[dict[str, str], "`url`, then once `admin_token`; one document per line"]],
    "registry-check": document_of(administration.Holdings),
    "registry-move": document_of(administration.MovedRegistry),
    "registry-token-create": document_of(administration.NewToken),
    "registry-token-list": list[document_of(administration.Token)],
    "registry-token-revoke": document_of(administration.Token),
    "registry-token-log": list[document_of(administration.LogEntry)],
    "registry-token-list.users": list[document_of(administration.User)],
    "registry-token-revoke.user": list[document_of(administration.Token)],
    "registry-accounts": list[document_of(administration.Account)],
    "registry-publishers": list[document_of(administration.Publisher)],
    "registry-members": list[document_of(administration.Member)],
    "registry-members.team": list[document_of(administration.Team)],
    "registry-members.about": document_of(administration.NamespaceAbout),
    "registry-members.invite": document_of(administration.NewInvitation),
    "registry-members.withdraw": list[document_of(administration.Invitation)],
    "registry-members.remove": list[document_of(administration.RemovedMember)],
    "registry-webhook-add": document_of(administration.NewWebhook),
    "registry-webhook-list": list[document_of(administration.Webhook)],
    "registry-webhook-remove": document_of(administration.Webhook),
    "registry-webhook-test": document_of(administration.Delivery),
    "registry-webhook-deliveries": list[document_of(administration.Delivery)],
    "registry-tests": document_of(administration.NamespaceRule),
    "registry-names": list[document_of(administration.HeldName)],
    "registry-backup": document_of(administration.BackedUp),
    "registry-restore": document_of(administration.Restored),
    "registry-upgrade": document_of(administration.SchemaUpgrade),
    "registry-gc": document_of(administration.FreedSpace),
    "registry-import": document_of(administration.Filled),
    "registry-worker": document_of(administration.MadeRecords),
    "registry-meaning": document_of(administration.MeaningModel),
}


__all__ = [
    "CHAPTERS",
    "Added",
    "Failure",
    "Finding",
    "Listed",
    "Manifest",
]


class Failure(TypedDict):
    """A refusal, the only document on stderr."""

    error: FailureFacts


CHAPTERS: dict[str, dict[str, Any]] = {
    "Refusals": {"error": Failure},
    "Bases": BASES,
    "The library": ADAPTERS,
    "Aliases": {
        **{f"alias-{verb}": document_of(Alias) for verb in ("set", "remove", "rollback")},
        "alias-list": list[document_of(Alias)],
        "alias-history": list[document_of(AliasMove)],
        "alias-keep": document_of(administration.AliasRetention),
    },
    "Projects": PROJECTS,
    "Finding out": VERBS,
    "Weights": WEIGHTS,
    "Answers": ANSWERS,
    "Contracts": CONTRACTS,
    "Engines": ENGINES,
    "Keys and signatures": KEYS,
    "Servers": SERVERS,
    "The registry": REGISTRY,
}
"""Types by name of document: the words of the command joined with `-`, then `.` and the variant."""

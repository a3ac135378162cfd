"""Everything about one adapter, installed or on a server; and bills of materials."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapterhub.api.steps.finding import choose_release, lineage_of
from adapterhub.core.errors import AdapterHubError, Malformed, NotAllowed, SignatureRefused, StoreLocked
from adapterhub.formats.documented import Documented
from adapterhub.projects.places import refusal_here
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adapterhub.core.errors import AdapterNotFound, BaseNotFound, NoCompatibleRelease
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.distribution.http.stream import Contents
    from adapterhub.formats.base.fingerprint import BaseVerdict
    from adapterhub.formats.manifest import BaseRef, Manifest
    from adapterhub.formats.modules import Modules
    from adapterhub.formats.publication import Job
    from adapterhub.formats.release import Release
    from adapterhub.library.bill import Named
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.upkeep.lineage import Node
    from adapterhub.projects.session import Session
    from adapterhub.projects.tree import Use
    from adapterhub.projects.values import Project


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseJudged:
    """How the base of an adapter relates to one that was asked for, or to the registered one."""

    asked: Annotated[str | None, "the base of the verdict: the given one, else the registered one"]
    verdict: BaseVerdict
    differences: Annotated[tuple[str, ...], "one sentence per difference"]
    weights: Annotated[str, "digest of the weights of the base of the verdict; empty if not known"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureState(Documented):
    """The signature and how it is judged."""

    standing: Annotated[str, "`trusted`, `unsigned`, `unknown_key`, `out_of_scope`, `expired` or `other_name`"]
    message: Annotated[str, "as text"]
    signer: Annotated[str | None, "name of the trusted key"] = None
    policy: Annotated[str | None, "the signature policy that applies"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown(
    Documented,
    keys="installed namespace=build.namespace path=build.folder added_at origin yanked"
    " size_bytes=build.manifest.size_bytes base_pinned signature lineage=node.parents used_by aliases policy_refusal"
    " groups=modules.groups whole=modules.whole base_asked=judged.asked base_verdict=judged.verdict"
    " base_differences=judged.differences publisher",
):
    """Everything about an installed build. The document begins with the manifest."""

    build: Installed
    origin: Annotated[str | None, "where it was installed from; null: made or added here"]
    yanked: Annotated[str | None, "why its server has yanked it; null: it has not, as far as is known"]
    signature: SignatureState
    node: Node
    used_by: Annotated[tuple[Use, ...], "reasons to keep it"]
    aliases: Annotated[tuple[str, ...], "aliases that have it as a target, such as `prod`"]
    policy_refusal: Annotated[str | None, "why the project's `[policy]` would refuse it; null: allowed"]
    modules: Modules
    judged: BaseJudged
    installed: Annotated[bool, "true"] = True
    publisher: Annotated[
        Job | None, "the job of a CI that published it, as its registry attests; null: none, or unknown"
    ] = None
    base_hub_id: str = ""
    contract: str | None = None
    """How many goldens its contract has, and what the last test said; None without one."""

    @property
    def manifest(self) -> Manifest:
        """That of the build."""
        return self.build.manifest

    @property
    def added_at(self) -> str:
        """RFC 3339."""
        return datetime.fromtimestamp(self.build.added_at, tz=timezone.utc).isoformat(timespec="seconds")

    @property
    def base_pinned(self) -> bool:
        """True: `adapt base pin` set the base, which it does not declare."""
        return self.build.base.fingerprint is not None and self.build.manifest.base.fingerprint is None

    def to_json(self) -> dict[str, Any]:
        """Return the manifest, and what the library knows of the build."""
        return _manifest_document(self.manifest) | Documented.to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header(Documented):
    """Facts from the header of the weights file."""

    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFacts(Documented, title="Config"):
    """Facts from `adapter_config.json`."""

    peft_type: str
    r: int | None
    lora_alpha: float | None
    base_model_name_or_path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownThere(
    Documented,
    keys="installed remote repository commit yanked=release.yanked size_bytes=manifest.size_bytes header config"
    " groups=modules.groups whole=modules.whole received_bytes base_asked=judged.asked base_verdict=judged.verdict"
    " base_differences=judged.differences policy_refusal publisher",
    title="Info",
):
    """An adapter on a server, of which only the first bytes were read. The document begins with the manifest."""

    release: Release
    remote: str
    repository: str
    commit: str
    header: Header
    config: ConfigFacts
    modules: Modules
    judged: BaseJudged
    policy_refusal: Annotated[str | None, "why the project's `[policy]` would refuse it; null: allowed"]
    received_bytes: Annotated[int, "bytes received for this document"]
    publisher: Annotated[Job | None, "the job of a CI that published it, as the registry attests; null: none"] = None
    installed: Annotated[bool, "false"] = False

    @property
    def manifest(self) -> Manifest:
        """That of the release."""
        return self.release.manifest

    def to_json(self) -> dict[str, Any]:
        """Return the manifest and the facts from the server."""
        named = {"name": self.release.full_name, "digest": self.release.digest}
        return _manifest_document(self.manifest) | named | Documented.to_json(self)


def _manifest_document(manifest: Manifest) -> dict[str, Any]:
    document: dict[str, Any] = manifest.to_json()
    document["base"].pop("samples", None)
    return document | {"digest": manifest.digest}


def judged_base(library: Library, declared: BaseRef, spec: AdapterSpec, base: BaseSpec | None) -> BaseJudged:
    """Compare the base that an adapter was made for with the requested one, or by default with the registered one.

    The registered one has the same weights, or the same Hub id where the adapter declares no weights.
    """
    from adapterhub.formats.base.comparison import compare
    from adapterhub.library.bases.requested import RequestedBase

    wanted = wanted_from(library, spec, base)
    if wanted is None and (record := library.bases.of(declared)) is not None:
        wanted = RequestedBase(text=record.alias, record=record, bases=library.bases)
    found = wanted.judge(declared) if wanted else compare(declared.fingerprint, None)
    return BaseJudged(
        asked=wanted.text if wanted else None,
        verdict=found.verdict,
        differences=found.differences if wanted else (),
        weights=wanted.record.fingerprint.weights if wanted and wanted.record else "",
    )


def shown_build(
    session: Session,
    library: Library,
    build: Installed,
    spec: AdapterSpec,
    base: BaseSpec | None = None,
    *,
    offline: bool = False,
    is_near: bool = False,
) -> Shown:
    """Everything about an installed build, which `spec` named.

    Looks up on its server whether the build is yanked; with `offline` or without an answer, uses the server's last
    answer. With `is_near`, its lineage ends at its parents, and its users are the next ones.
    """
    from adapterhub.distribution.withdrawal import why_withdrawn
    from adapterhub.projects.tree import Uses

    digest = build.manifest.digest
    judged = judged_base(library, build.base, spec, base)
    origin = library.origins.under(digest, build.full_name)
    publication = library.heads.publication(origin, build.manifest)
    lineage = lineage_of(session)
    try:
        uses = Uses(session.root, lineage, is_near=is_near).of(digest, full_name=build.full_name if is_near else "")
    except StoreLocked as error:
        uses = ()
        session.out.warn(error.message)
    return Shown(
        build=build,
        origin=origin.place if origin else None,
        yanked=why_withdrawn(library, build, None if offline else session.place_source),
        signature=_signature(library, build, library.origins.place_of(digest, build.full_name)),
        node=lineage.near(digest) if is_near else lineage.node(digest),
        used_by=uses,
        aliases=tuple(library.aliases.by_build(build.full_name).get((build.full_name, digest), [])),
        policy_refusal=_policy_refusal(session, library, build),
        modules=_modules(build),
        judged=judged,
        publisher=publication.job if publication else None,
        base_hub_id=library.bases.hub_id_of(build.base),
        contract=_contract(library, build, judged.weights),
    )


def _contract(library: Library, build: Installed, weights: str) -> str | None:
    if build.manifest.file("evals.jsonl") is None:
        return None
    from adapterhub.api.steps.contracts.recording import contract_line

    try:
        line = contract_line(library, build, weights)
    except AdapterHubError as error:  # a changed or broken file; `adapt verify` says more
        return error.message.splitlines()[0]
    return None if line == "no contract" else line.removeprefix("contract: ")


def _policy_refusal(session: Session, library: Library, build: Installed) -> str | None:
    """Return why the project's policy would refuse it; the library dates a build by when it was added."""
    from adapterhub.distribution.choosing import candidates_of

    (candidate,) = candidates_of(library, [library.release_of(build)], None, library.label)
    return refusal_here(session, candidate)


def _modules(build: Installed) -> Modules:
    """Return the modules as the config and the weights header describe them; empty for damaged files."""
    from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
    from adapterhub.formats.modules import Modules, modules_of
    from adapterhub.formats.peft.config import AdapterConfig
    from adapterhub.formats.safetensors.file import read_header

    try:
        config = AdapterConfig.parse((build.folder / CONFIG_FILE).read_bytes(), CONFIG_FILE)
        return modules_of(config, read_header(build.folder / WEIGHTS_FILE))
    except (Malformed, OSError):  # `verify` reports what is wrong
        return Modules(groups=(), whole=())


def _signature(library: Library, build: Installed, place: str) -> SignatureState:
    from adapterhub.formats.release import Release
    from adapterhub.library.admission import Admission
    from adapterhub.trust.signing.appraisal import provenance_of

    release = Release(manifest=build.manifest, namespace=build.namespace, origin=library.label)
    try:
        decision = Admission(library).decide(release, provenance_of(build.folder), place)
    except FileNotFoundError:  # another process removed it since it was found
        raise library.not_installed(build.full_name) from None
    except SignatureRefused as error:
        return SignatureState(standing=error.reason, message=error.clause)
    except (NotAllowed, Malformed) as error:  # the trust settings cannot be read
        return SignatureState(standing="unjudged", message=error.message)
    one = decision.appraisal
    return SignatureState(standing=one.standing, message=one.message, signer=one.signer, policy=decision.policy)


# ---------------------------------------------------------------- on a server
def shown_on_server(
    session: Session,
    spec: AdapterSpec,
    base: BaseSpec | None,
    bounds: RankRange,
    *,
    remote: str | None,
    token: str | None,
    not_here: AdapterNotFound | BaseNotFound | NoCompatibleRelease | None = None,
) -> ShownThere:
    """Ask a server about an adapter; without a server to ask, `not_here` is raised."""
    sources = session.sources_of(spec, remote, token=token)
    if not sources and not_here is not None:
        raise not_here
    from adapterhub.distribution.choosing import exact_at
    from adapterhub.formats.modules import modules_of

    library = session.library
    spec, _ = exact_at(library, spec, sources)
    release, source, resolution = choose_release(
        session, library, spec, sources, wanted=wanted_from(library, spec, base), bounds=bounds
    )
    server: Any = getattr(source, "hub", getattr(source, "registry", source))  # of a namespace of it
    logged = library.heads.check(source, release)
    contents: Contents = server.contents(release)
    config, tensors = contents.config, contents.weights.tensors
    return ShownThere(
        release=release,
        remote=server.place,
        repository=contents.repo,
        commit=contents.commit,
        header=Header(
            tensors=len(tensors),
            parameters=sum(one.elements for one in tensors),
            dtypes=tuple(sorted({one.dtype for one in tensors})),
            modules=len({one.name.rpartition(".lora_")[0] for one in tensors if ".lora_" in one.name}),
        ),
        config=ConfigFacts(
            peft_type=config.peft_type,
            r=config.r,
            lora_alpha=config.lora_alpha,
            base_model_name_or_path=config.base_model_name_or_path,
        ),
        modules=modules_of(config, contents.weights),
        judged=judged_base(library, release.manifest.base, spec, base),
        policy_refusal=refusal_here(session, resolution.chosen),
        publisher=logged.publication.job if logged and logged.publication else None,
        received_bytes=server.received_bytes,
    )


# ---------------------------------------------------------------- bill of materials
@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A bill of materials for machine learning (ML-BOM): what adapters are made of, as CycloneDX 1.6."""

    document: Mapping[str, Any]
    output: Path | None = None

    @property
    def text(self) -> str:
        """Return the content of a file of this document."""
        return json.dumps(self.document, indent=1) + "\n"

    def to_json(self) -> Mapping[str, Any]:
        """Return the document."""
        return self.document

    def written(self, place: Path) -> Bill:
        """Write the document to a file."""
        from adapterhub.core.disk.files import write_output

        write_output(place, self.text.encode())
        return replace(self, output=place)


def bill_of_adapters(session: Session, adapters: Sequence[str]) -> Bill:
    """Return the CycloneDX bill of what each of `adapters` selects, of every installed build where there are none.

    Raises:
        AdapterNotFound, NoCompatibleRelease: nothing installed answers to one of them.
    """
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.choosing import look_up

    library = session.library
    specs = map(AdapterSpec.parse, adapters)
    builds = [look_up(library, spec, wanted=wanted_from(library, spec, None))[0] for spec in specs]
    if not adapters:
        builds = sorted(library.installed(), key=lambda one: one.spec)
    return _bill(session, builds, "library")


def bill_of_lock(session: Session, project: Project) -> Bill:
    """Return the CycloneDX bill of the builds that a project locks.

    For builds that are not installed, the bill contains only the facts in the lock.

    Raises:
        NotFound: there is no lock.
    """
    from adapterhub.library.bill import Named
    from adapterhub.projects.lock.lockfile import read_lock

    by_digest = {build.manifest.digest: build for build in session.library.installed()}
    parts: list[Installed | Named] = []
    for entry in read_lock(project.folder).entries.values():
        name = entry.name
        named = Named(full_name=name, version=entry.version, digest=entry.digest, base=entry.base)
        parts.append(by_digest.get(entry.digest) or named)
    return _bill(session, sorted(parts, key=lambda one: isinstance(one, Named)), project.folder.resolve().name)


def _bill(session: Session, parts: Sequence[Installed | Named], title: str) -> Bill:
    import time

    import adapterhub
    from adapterhub.core.dates import time_text
    from adapterhub.library.bill import bill_of

    now = time_text(time.time())
    made = bill_of(session.library, parts, title=title, made_by=adapterhub.__version__, time=now)
    return Bill(document=made)

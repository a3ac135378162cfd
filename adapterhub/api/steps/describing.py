"""Everything about one adapter, installed or on a server, as a document."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from adapterhub.api.steps.finding import choose_release, lineage_of
from adapterhub.core.errors import Malformed, NotAllowed, SignatureRefused, StoreLocked
from adapterhub.projects.places import refusal_here
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.errors import AdapterNotFound, BaseNotFound, NoCompatibleRelease
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.distribution.http.plain import Contents
    from adapterhub.distribution.hub import Hub
    from adapterhub.distribution.oci import OciRegistry
    from adapterhub.formats.manifest import BaseRef
    from adapterhub.formats.modules.groups import Modules
    from adapterhub.formats.release import Release
    from adapterhub.library.bill import Named
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.upkeep.lineage import Node
    from adapterhub.projects.session import Session
    from adapterhub.projects.tree import Use
    from adapterhub.projects.values import Project


def verdict_document(library: Library, declared: BaseRef, spec: AdapterSpec, base: BaseSpec | None) -> dict[str, Any]:
    """Compare the base that an adapter was made for with the requested one, else with the registered one.

    The registered one has the same weights, or the same Hub id where the adapter declares no weights.
    """
    from adapterhub.formats.base.fingerprint import compare
    from adapterhub.library.bases.requested import RequestedBase

    wanted = wanted_from(library, spec, base)
    if wanted is None and (record := library.bases.of(declared)) is not None:
        wanted = RequestedBase(text=record.alias, record=record)
    compared = wanted.judge(declared) if wanted else compare(declared.fingerprint, None)
    return {
        "base_asked": wanted.text if wanted else None,
        "base_verdict": compared.verdict.name,
        "base_differences": list(compared.differences) if wanted else [],
    }


def installed_document(
    session: Session, library: Library, build: Installed, *, offline: bool = False
) -> tuple[dict[str, Any], Node, tuple[Use, ...]]:
    """Everything about an installed build, the merges it comes from, and who uses it.

    Its server says whether it has yanked the build; `offline` and without an answer, what it said last counts.
    """
    from adapterhub.distribution.withdrawn import why_withdrawn
    from adapterhub.projects.tree import Uses

    manifest = build.manifest
    origin = library.origins.under(manifest.digest, build.full_name)
    lineage = lineage_of(session)
    node = lineage.node(manifest.digest)
    try:
        uses = Uses(session.root, lineage).of(manifest.digest)
    except StoreLocked as error:
        uses = ()
        session.out.warn(error.message)
    document = manifest.to_json()
    document["base"].pop("samples", None)
    document |= {
        "digest": manifest.digest,
        "installed": True,
        "namespace": build.namespace,
        "path": str(build.folder),
        "added_at": datetime.fromtimestamp(build.added_at, tz=timezone.utc).isoformat(timespec="seconds"),
        "origin": origin.place if origin else None,
        "yanked": why_withdrawn(library, build, None if offline else session.place_source),
        "size_bytes": manifest.size_bytes,
        "base_pinned": build.base.fingerprint is not None and manifest.base.fingerprint is None,
        "signature": _signature(library, build, library.origins.place_of(build.manifest.digest, build.full_name)),
        "lineage": node.to_json()["parents"],
        "used_by": [use.to_json() for use in uses],
        "aliases": library.aliases.by_build().get((build.full_name, manifest.digest), []),
        "policy_refusal": _policy_refusal(session, library, build),
        **_modules(build),
    }
    return document, node, uses


def _policy_refusal(session: Session, library: Library, build: Installed) -> str | None:
    """Why the project's policy would refuse it; the library dates a build by when it was added."""
    from adapterhub.distribution.choosing import candidates_of

    (candidate,) = candidates_of(library, [library.release_of(build)], None, library.label)
    return refusal_here(session, candidate)


def _modules(build: Installed) -> dict[str, Any]:
    """The modules as the config and the weights header describe them; empty for damaged files."""
    from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
    from adapterhub.formats.modules.groups import Modules, modules_of
    from adapterhub.formats.peft.config import AdapterConfig
    from adapterhub.formats.safetensors.file import read_header

    try:
        config = AdapterConfig.parse((build.folder / CONFIG_FILE).read_bytes(), CONFIG_FILE)
        modules = modules_of(config, read_header(build.folder / WEIGHTS_FILE))
    except (Malformed, OSError):  # `verify` reports what is wrong
        modules = Modules(groups=(), whole=())
    return modules_document(modules)


def _signature(library: Library, build: Installed, place: str) -> dict[str, Any]:
    from adapterhub.formats.release import Release
    from adapterhub.library.admission.admission import Admission
    from adapterhub.trust.signing.provenance import provenance_of

    release = Release(manifest=build.manifest, namespace=build.namespace, origin=library.label)
    try:
        decision = Admission(library).decide(release, provenance_of(build.folder), place)
    except FileNotFoundError:  # another process removed it since it was found
        raise library.not_installed(build.full_name) from None
    except SignatureRefused as error:
        return {"standing": error.reason, "message": error.clause, "signer": None, "policy": None}
    except (NotAllowed, Malformed) as error:  # the trust settings cannot be read
        return {"standing": "unjudged", "message": error.message, "signer": None, "policy": None}
    appraisal = decision.appraisal
    signed = {"standing": appraisal.standing, "message": appraisal.message, "signer": appraisal.signer}
    return signed | {"policy": decision.policy}


# ---------------------------------------------------------------- on a server
def document_on_server(
    session: Session,
    spec: AdapterSpec,
    base: BaseSpec | None,
    bounds: RankRange,
    *,
    remote: str | None,
    token: str | None,
    not_here: AdapterNotFound | BaseNotFound | NoCompatibleRelease | None = None,
) -> dict[str, Any]:
    """Ask a server about an adapter; without a server to ask, `not_here` is raised."""
    sources = session.sources_of(spec, remote, token=token)
    if not sources and not_here is not None:
        raise not_here
    from adapterhub.distribution.moving import exact_at

    library = session.library
    spec, _ = exact_at(library, spec, sources)
    release, source, resolution = choose_release(
        session, library, spec, sources, wanted=wanted_from(library, spec, base), bounds=bounds
    )
    server: Any = getattr(source, "hub", getattr(source, "registry", source))  # of a namespace of it
    document = server_document(release, server.contents(release), server)
    document |= verdict_document(library, release.manifest.base, spec, base)
    document["policy_refusal"] = refusal_here(session, resolution.chosen)
    return document


def header_document(contents: Contents) -> dict[str, Any]:
    """The tensor counts of the weights header, the settings of the config, and the groups of modules."""
    from adapterhub.formats.modules.groups import modules_of

    weights, config = contents.weights, contents.config
    modules = modules_of(config, weights)
    return {
        "header": {
            "tensors": len(weights.tensors),
            "parameters": sum(spec.elements for spec in weights.tensors),
            "dtypes": sorted({spec.dtype for spec in weights.tensors}),
            "modules": len({spec.name.rpartition(".lora_")[0] for spec in weights.tensors if ".lora_" in spec.name}),
        },
        "config": {
            "peft_type": config.peft_type,
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "base_model_name_or_path": config.base_model_name_or_path,
        },
        **modules_document(modules),
    }


def server_document(release: Release, contents: Contents, server: Hub | OciRegistry) -> dict[str, Any]:
    """Everything about a build on a server, of which only the first bytes were read."""
    manifest = release.manifest
    document = manifest.to_json()
    document["base"].pop("samples", None)
    return document | {
        "name": release.full_name,
        "digest": release.digest,
        "installed": False,
        "remote": server.place,
        "repository": contents.repo,
        "commit": contents.commit,
        "yanked": release.yanked,
        "size_bytes": manifest.size_bytes,
        **header_document(contents),
        "received_bytes": server.received_bytes,
    }


def modules_document(modules: Modules) -> dict[str, Any]:
    """The groups of modules, and the tensors that replace whole weights."""
    return {"groups": [group.to_json() for group in modules.groups], "whole": list(modules.whole)}


# ---------------------------------------------------------------- bill of materials
def bill_of_adapters(session: Session, adapters: Sequence[str]) -> dict[str, Any]:
    """The CycloneDX bill of what each of `adapters` selects, of every installed build where there are none.

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


def bill_of_lock(session: Session, project: Project) -> dict[str, Any]:
    """The CycloneDX bill of what a project locks; builds that are not installed come with what the lock says of them.

    Raises:
        NotFound: there is no lock.
    """
    from adapterhub.library.bill import Named
    from adapterhub.projects.builds import full_name_of
    from adapterhub.projects.lock.lockfile import read_lock

    by_digest = {build.manifest.digest: build for build in session.library.installed()}
    parts: list[Installed | Named] = []
    for entry in read_lock(project.folder).entries.values():
        name = full_name_of(entry)
        named = Named(full_name=name, version=entry.version, digest=entry.digest, base=entry.base)
        parts.append(by_digest.get(entry.digest) or named)
    return _bill(session, sorted(parts, key=lambda one: isinstance(one, Named)), project.folder.resolve().name)


def _bill(session: Session, parts: Sequence[Installed | Named], title: str) -> dict[str, Any]:
    import time

    import adapterhub
    from adapterhub.core.dates import time_text
    from adapterhub.library.bill import bill_of

    now = time_text(time.time())
    return bill_of(session.library, parts, title=title, made_by=adapterhub.__version__, time=now)

"""Everything about an installed adapter, as `adapt info` shows it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from adapterhub.cli.inspect.info_modules import group_fields, modules_document
from adapterhub.cli.options.project_policy import policy_fields
from adapterhub.cli.output import size_text
from adapterhub.core.errors import Malformed, NotAllowed, SignatureRefused, StoreLocked, shown
from adapterhub.projects.places import refusal_here

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adapterhub.cli.options.params import Session
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.upkeep.lineage import Node
    from adapterhub.projects.uses import Use


def show_installed(
    session: Session, spec: AdapterSpec, base: BaseSpec | None, bounds: RankRange, *, recipe: bool
) -> None:
    """Show the installed build that `spec` means; with `recipe`, only how it was merged.

    Raises:
        AdapterNotFound, NoCompatibleRelease: none is installed, or none that fits.
    """
    from adapterhub.cli.options.asking import find_build

    build = find_build(session, spec, bounds, for_use=False, base=base)
    if recipe:
        _show_recipe(session, build)
        return
    library = session.library
    verdict = _verdict(library, build, spec, base)
    document, lineage, uses = _document(session, library, build)
    session.out.result(document | verdict, lambda: session.out.fields(_fields(library, build, document | verdict)))
    if not session.out.as_json:
        _say_around(session, lineage, uses)


def _show_recipe(session: Session, build: Installed) -> None:
    from adapterhub.weights.recipes.toml import recipe_of, to_toml

    text = to_toml(recipe_of(build.manifest))
    session.out.result({"recipe": text}, lambda: session.out.line(text.rstrip()))


def _verdict(library: Library, build: Installed, spec: AdapterSpec, base: BaseSpec | None) -> dict[str, Any]:
    """How the base it was made for stands to the one asked for, else to the registered one."""
    from adapterhub.formats.base.fingerprint import compare
    from adapterhub.projects.session import wanted_from

    wanted = wanted_from(library, spec, base)
    if wanted is not None:
        found = wanted.judge(build.base)
        return {
            "base_asked": wanted.text,
            "base_verdict": found.verdict.name,
            "base_differences": list(found.differences),
        }
    fingerprint = build.base.fingerprint
    record = library.bases.by_fingerprint(fingerprint) if fingerprint else None
    found = compare(fingerprint, record.fingerprint if record else None)
    named = record.alias if record else None
    return {
        "base_asked": named,
        "base_verdict": found.verdict.name,
        "base_differences": list(found.differences) if record else [],
    }


def _document(session: Session, library: Library, build: Installed) -> tuple[dict[str, Any], Node, tuple[Use, ...]]:
    from adapterhub.cli.options.asking import lineage_of
    from adapterhub.projects.uses import Uses

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
        "size_bytes": manifest.size_bytes,
        "base_pinned": build.base.fingerprint is not None and manifest.base.fingerprint is None,
        "signature": _signature(library, build, library.origins.place_of(build.manifest.digest, build.full_name)),
        "lineage": node.to_json()["parents"],
        "used_by": [use.to_json() for use in uses],
        "policy_refusal": _policy_refusal(session, library, build),
        **_modules(build),
    }
    return document, node, uses


def _policy_refusal(session: Session, library: Library, build: Installed) -> str | None:
    """As `adapt install` would be refused it: the library dates a build by when it came in."""
    from adapterhub.distribution.choosing import candidates_of
    from adapterhub.formats.release import Release

    release = Release(
        manifest=build.manifest, namespace=build.namespace, origin=library.label, published_at=build.added_at
    )
    (candidate,) = candidates_of(library, [release], None, library.label)
    return refusal_here(session, candidate)


def _modules(build: Installed) -> dict[str, Any]:
    """What the config and the header of the weights say of its modules; nothing for damaged ones."""
    from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
    from adapterhub.formats.modules.groups import Modules, modules_of
    from adapterhub.formats.peft.config import AdapterConfig
    from adapterhub.formats.safetensors.file import read_header

    try:
        config = AdapterConfig.parse((build.folder / CONFIG_FILE).read_bytes(), CONFIG_FILE)
        modules = modules_of(config, read_header(build.folder / WEIGHTS_FILE))
    except (Malformed, OSError):  # `verify` says what is wrong
        modules = Modules(groups=(), whole=())
    return modules_document(modules)


def _signature(library: Library, build: Installed, place: str) -> dict[str, Any]:
    from adapterhub.formats.release import Release
    from adapterhub.library.admission.signatures import SignatureAdmission
    from adapterhub.trust.signing.provenance import provenance_of

    release = Release(manifest=build.manifest, namespace=build.namespace, origin=library.label)
    try:
        judgement, policy = SignatureAdmission(library.root).judge(release, provenance_of(build.folder), place)
    except SignatureRefused as error:
        return {"standing": error.reason, "message": error.clause, "signer": None, "policy": None}
    except (NotAllowed, Malformed) as error:  # the files that say whom to trust
        return {"standing": "unjudged", "message": error.message, "signer": None, "policy": None}
    signed = {"standing": judgement.standing, "message": judgement.message, "signer": judgement.signer}
    return signed | {"policy": policy}


def _fields(library: Library, build: Installed, d: dict[str, Any]) -> list[tuple[str, object]]:
    manifest, fingerprint = build.manifest, build.base.fingerprint
    pinned = " (pinned)" if d["base_pinned"] else ""
    asked = f", `{d['base_asked']}`" if d["base_asked"] else ""
    pairs: list[tuple[str, object]] = [
        ("name", build.full_name),
        ("version", manifest.version),
        ("digest", manifest.digest),
        ("base", (library.base_label(build.base) or "unknown") + pinned),
        ("base weights", fingerprint.weights if fingerprint else "unknown"),
        ("base hub id", build.base.hints.hub_id),
        ("base verdict", f"{d['base_verdict']}{asked}"),
        *[("base differs", text) for text in d["base_differences"]],
        *policy_fields(d),
        ("task", manifest.task),
        ("description", manifest.description or None),
        ("license", manifest.license),
        ("method", ", ".join(manifest.method).lower()),
        ("rank", manifest.rank),
        ("alpha", f"{manifest.alpha:g}" if manifest.alpha is not None else None),
        ("target modules", ", ".join(manifest.target_modules) or None),
        *group_fields(d),
        ("parameters", f"{manifest.parameters:,} ({manifest.dtype})"),
        ("path", build.folder),
        ("added", d["added_at"]),
        ("from", d["origin"]),
        ("signature", d["signature"]["message"]),
    ]
    pairs += [("file", f"{e.path}  {size_text(e.size_bytes)}  {e.sha256}") for e in manifest.files]
    pairs += [("merged from", f"{p.weight:g} x {p.spec}  {p.digest or ''}".rstrip()) for p in manifest.parents]
    if manifest.recipe:
        options = manifest.recipe.get("options")
        said = [manifest.recipe.get("method"), manifest.recipe.get("dtype")]
        said[1:1] = [f"{k} {v}" for k, v in options.items()] if isinstance(options, dict) else []
        pairs.append(("recipe", ", ".join(str(word) for word in said if word is not None)))
    pairs += [(f"metric {name}", value) for name, value in manifest.metrics.items()]
    return pairs


def _say_around(session: Session, node: Node, uses: tuple[Use, ...]) -> None:
    """Who uses it, and the parents that are not here any more."""
    session.out.fields([("used by", f"{use.kind} {use.who}: {use.why}") for use in uses])
    gone = [one.label for one in _all(node) if one.state == "missing"]
    if gone:
        session.out.note(f"not here any more: {shown(', '.join(gone), 400)}")


def _all(node: Node) -> Iterator[Node]:
    for parent in node.parents:
        yield parent
        yield from _all(parent)

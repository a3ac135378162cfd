"""The details of an installed adapter for `adapt info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapterhub.api.steps.describing import installed_document, verdict_document
from adapterhub.cli.inspect.info_modules import group_fields, verdict_fields
from adapterhub.cli.options.project_policy import policy_fields
from adapterhub.cli.output import size_text
from adapterhub.core.errors import AdapterHubError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adapterhub.cli.options.params import Session
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.upkeep.lineage import Node
    from adapterhub.projects.tree import Use


def show_installed(
    session: Session, spec: AdapterSpec, base: BaseSpec | None, bounds: RankRange, *, recipe: bool, offline: bool
) -> None:
    """Show the installed build that `spec` names, or only its merge recipe.

    Raises:
        AdapterNotFound, NoCompatibleRelease: no build has the name, or none fits.
    """
    from adapterhub.api.searching import find_build

    build = find_build(session, spec, bounds, to="show", base=base)
    if recipe:
        _show_recipe(session, build)
        return
    library = session.library
    verdict = verdict_document(library, build.base, spec, base)
    document, lineage, uses = installed_document(session, library, build, offline=offline)
    session.out.result(document | verdict, lambda: session.out.fields(_fields(library, build, document | verdict)))
    if not session.out.as_json:
        _say_around(session, lineage, uses)


def _show_recipe(session: Session, build: Installed) -> None:
    from adapterhub.weights.recipes.toml import recipe_of, to_toml

    text = to_toml(recipe_of(build.manifest))
    session.out.result({"recipe": text}, lambda: session.out.line(text.rstrip()))


def _fields(library: Library, build: Installed, d: dict[str, Any]) -> list[tuple[str, object]]:
    manifest, fingerprint = build.manifest, build.base.fingerprint
    pinned = " (pinned)" if d["base_pinned"] else ""
    pairs: list[tuple[str, object]] = [
        ("name", build.full_name),
        ("version", manifest.version),
        ("aliases", ", ".join(d["aliases"]) or None),
        ("yanked", None if d["yanked"] is None else shown(d["yanked"] or "no reason given", 200)),
        ("digest", manifest.digest),
        ("base", (library.base_label(build.base) or "unknown") + pinned),
        ("base weights", fingerprint.weights if fingerprint else "unknown"),
        ("base hub id", library.bases.hub_id_of(build.base) or None),
        *verdict_fields(d),
        *policy_fields(d),
        ("task", manifest.task),
        ("description", manifest.description or None),
        ("license", manifest.license),
        ("prompt form", manifest.prompt.label if manifest.prompt else None),
        ("contract", _contract(library, build)),
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
        words = [manifest.recipe.get("method"), manifest.recipe.get("dtype")]
        words[1:1] = [f"{k} {v}" for k, v in options.items()] if isinstance(options, dict) else []
        pairs.append(("recipe", ", ".join(str(word) for word in words if word is not None)))
    pairs += [(f"metric {name}", value) for name, value in manifest.metrics.items()]
    return pairs


def _contract(library: Library, build: Installed) -> str | None:
    """How many goldens its contract has, and what the last test said; None without one."""
    if build.manifest.file("evals.jsonl") is None:
        return None
    from adapterhub.api.steps.contracts.stating import contract_line

    try:
        line = contract_line(library, build)
    except AdapterHubError as error:  # a changed or broken file; `adapt verify` says more
        return error.message.splitlines()[0]
    return None if line == "no contract" else line.removeprefix("contract: ")


def _say_around(session: Session, node: Node, uses: tuple[Use, ...]) -> None:
    """Print what uses the adapter, and its parents that are no longer installed."""
    session.out.fields([("used by", f"{use.kind} {use.who}: {use.why}") for use in uses])
    gone = [one.label for one in _all(node) if one.state == "missing"]
    if gone:
        session.out.note(f"no longer installed: {shown(', '.join(gone), 400)}")


def _all(node: Node) -> Iterator[Node]:
    for parent in node.parents:
        yield parent
        yield from _all(parent)

"""`adapt info`: show the details of one adapter, installed or on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.params import BASE, SPEC, Session, common, rank_option, remote_options
from adapterhub.cli.output import size_text
from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from adapterhub.api.describing import Shown, ShownThere
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.library.upkeep.lineage import Node

_Fields = list[tuple[str, object]]


@click.command()
@click.argument("spec", type=SPEC)
@click.option("--base", type=BASE, help="Use this base if the spec names none.")
@rank_option
@click.option("--path", "only", flag_value="path", help="Print only the path of its plain PEFT folder.")
@click.option(
    "--recipe", "only", flag_value="recipe", help="Show only the merge recipe, as TOML for `adapt merge --recipe`."
)
@remote_options
@common
def info(session: Session, spec: AdapterSpec, only: Any, **options: Any) -> None:
    """Show the details of one adapter: base, files, modules with rank and alpha, lineage, signature and users.

    Shows an installed adapter if there is one. Otherwise, or with --remote, reads the manifest, the config and the
    first bytes of the weights from a server and downloads nothing else. Inside a project, also shows whether the
    project's policy refuses the adapter.

    \b
    Examples:
      adapt info legal-qa@base-7b
      adapt info acme/legal-qa@base-7b --remote ours
      adapt info legal-summary --recipe > merge.toml
      python -c "from peft import …" "$(adapt info legal-qa@base-7b --path)"
    """
    found: Any = session.opened.info(spec, only=only, **options)
    if only is not None:
        session.out.result({only: str(found)}, lambda: session.out.line(str(found).rstrip()))
        return
    session.out.result(
        found.to_json, lambda: session.out.fields(_installed(found) if found.installed else _on_server(found))
    )
    if found.installed and not session.out.as_json:
        session.out.fields([("used by", f"{use.kind} {use.who}: {use.why}") for use in found.used_by])
        gone = [one.label for one in _all(found.node) if one.state == "missing"]
        if gone:
            session.out.note(f"no longer installed: {shown(', '.join(gone), 400)}")


def _installed(one: Shown) -> _Fields:
    build, manifest, fingerprint = one.build, one.manifest, one.build.base.fingerprint
    pairs: _Fields = [
        ("name", build.full_name),
        ("version", manifest.version),
        ("aliases", ", ".join(one.aliases) or None),
        ("yanked", None if one.yanked is None else shown(one.yanked or "no reason given", 200)),
        ("digest", manifest.digest),
        ("base", (build.base_name or "unknown") + (" (pinned)" if one.base_pinned else "")),
        ("base weights", fingerprint.weights if fingerprint else "unknown"),
        ("base hub id", one.base_hub_id or None),
        *_verdict(one),
        ("task", manifest.task),
        ("description", manifest.description or None),
        *_images(manifest.annotations),
        ("license", manifest.license),
        ("prompt form", manifest.prompt.label if manifest.prompt else None),
        ("contract", one.contract),
        *_method(one),
        ("parameters", f"{manifest.parameters:,} ({manifest.dtype})"),
        ("path", build.folder),
        ("added", one.added_at),
        ("from", one.origin),
        ("published by", one.publisher.by if one.publisher else None),
        ("signature", one.signature.message),
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


def _on_server(one: ShownThere) -> _Fields:
    manifest, fingerprint = one.manifest, one.manifest.base.fingerprint
    pairs: _Fields = [
        ("name", one.release.full_name),
        ("version", manifest.version),
        ("yanked", one.release.yanked),
        ("digest", manifest.digest),
        ("repository", f"{one.repository} on {one.remote}"),
        ("commit", one.commit),
        ("published by", one.publisher.by if one.publisher else None),
        ("base weights", fingerprint.weights if fingerprint else "unknown"),
        ("base hub id", manifest.base.hints.hub_id),
        *_verdict(one),
        ("task", manifest.task),
        ("description", manifest.description or None),
        *_images(manifest.annotations),
        ("license", manifest.license),
        ("prompt form", manifest.prompt.label if manifest.prompt else None),
        *_method(one),
        ("tensors", f"{one.header.tensors} ({', '.join(one.header.dtypes)})"),
        ("parameters", f"{one.header.parameters:,}"),
    ]
    pairs += [("file", f"{f.path}  {size_text(f.size_bytes)}  {f.sha256}") for f in manifest.files]
    pairs.append(("read", f"{size_text(one.received_bytes)} of {size_text(manifest.size_bytes)}"))
    return pairs


def _images(annotations: Mapping[str, Any]) -> _Fields:
    """Return the statements of a LoRA of an image program about itself."""
    from adapterhub.formats.foreign.reading import ImageAbout

    about = ImageAbout.of(annotations)
    triggers = ", ".join(shown(word, 60) for word in about.triggers)
    return [("title", about.title or None), ("family", about.family or None), ("triggers", triggers or None)]


def _verdict(one: Shown | ShownThere) -> _Fields:
    """Return the base that the adapter's base was compared with, the verdict, and each difference.

    What the policy says.
    """
    judged = one.judged
    asked = f", `{judged.asked}`" if judged.asked else ""
    differs: _Fields = [("base differs", text) for text in judged.differences]
    refusal: _Fields = (
        [("policy", f"refused by the project's policy: {one.policy_refusal}")] if one.policy_refusal else []
    )
    return [("base verdict", f"{judged.verdict.name}{asked}"), *differs, *refusal]


def _method(one: Shown | ShownThere) -> _Fields:
    """Return method, rank and alpha, and the modules in groups."""
    manifest = one.manifest
    pairs: _Fields = [
        ("method", ", ".join(manifest.method).lower()),
        ("rank", manifest.rank),
        ("alpha", f"{manifest.alpha:g}" if manifest.alpha is not None else None),
        ("target modules", ", ".join(manifest.target_modules) or None),
    ]
    pairs += [("modules", group) for group in one.modules.groups]
    return pairs + [("whole tensor", name) for name in one.modules.whole]


def _all(node: Node) -> Iterator[Node]:
    for parent in node.parents:
        yield parent
        yield from _all(parent)

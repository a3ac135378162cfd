"""`adapt info`, also called `show`: everything about one adapter, installed or on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.inspect.info_modules import group_fields, modules_document
from adapterhub.cli.options.params import BASE, SPEC, Session, common, rank_options, remote_options
from adapterhub.cli.options.project_policy import policy_fields
from adapterhub.cli.output import size_text
from adapterhub.core.errors import AdapterNotFound, NoCompatibleRelease, RemoteUnreachable
from adapterhub.projects.places import refusal_here
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.distribution.hub import Contents, Hub
    from adapterhub.distribution.resolve import Resolution
    from adapterhub.formats.release import Release


@click.command()
@click.argument("spec", type=SPEC)
@click.option("--base", type=BASE, help="The base, where the spec names none.")
@rank_options
@click.option("--recipe", is_flag=True, help="Only how it was merged, as TOML for `adapt merge --recipe`.")
@remote_options
@common
def info(
    session: Session,
    spec: AdapterSpec,
    base: BaseSpec | None,
    rank: int | None,
    min_rank: int | None,
    max_rank: int | None,
    recipe: bool,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Show everything about one adapter: base, files, modules with rank and alpha, lineage, signature, who uses it.

    What is installed is looked at here. What is not, or with --remote, is asked of a server: its manifest, its config
    and the first bytes of its weights, before anything is installed. Inside a project it says whether the policy would
    refuse the adapter. `adapt show` is the same command.

    \b
    Examples:
      adapt info legal-qa@base-7b
      adapt info acme/legal-qa@base-7b --remote ours
      adapt show legal-summary --recipe > merge.toml
    """
    from adapterhub.core.ranks import RankRange

    bounds = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    not_here: AdapterNotFound | NoCompatibleRelease | None = None
    if remote is None:
        from adapterhub.cli.inspect.info_local import show_installed

        try:
            show_installed(session, spec, base, bounds, recipe=recipe)
        except (AdapterNotFound, NoCompatibleRelease) as error:
            not_here = error
            if recipe:
                raise
        else:
            return
    if offline:
        raise RemoteUnreachable(
            f"`{spec.full_name}` is not installed, and `--offline` forbids asking a server"
            if remote is None
            else "`--offline` forbids asking a server",
            hint=not_here.hint if not_here else f"`adapt info {spec.name}` asks the library",
        )
    _show_remote(session, spec, base, bounds, remote, token, not_here)


def _show_remote(
    session: Session,
    spec: AdapterSpec,
    base: BaseSpec | None,
    bounds: RankRange,
    remote: str | None,
    token: str | None,
    not_here: AdapterNotFound | NoCompatibleRelease | None,
) -> None:
    sources = session.sources_of(spec, remote, token=token)
    if not sources and not_here is not None:
        raise not_here
    from adapterhub.cli.options.choice import choose_release
    from adapterhub.projects.session import hub_of

    library = session.library
    release, source, resolution = choose_release(
        session, library, spec, sources, wanted=wanted_from(library, spec, base), bounds=bounds
    )
    hub = hub_of(source)
    contents = hub.contents(release)
    document = _document(release, contents, resolution, hub)
    document["policy_refusal"] = refusal_here(session, resolution.chosen)
    session.out.result(document, lambda: session.out.fields(_fields(document)))


def header_document(contents: Contents) -> dict[str, Any]:
    """What the header of the weights says, the settings of the config, and the groups of modules."""
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


def _document(release: Release, contents: Contents, resolution: Resolution, hub: Hub) -> dict[str, Any]:
    manifest = release.manifest
    document = manifest.to_json()
    document["base"].pop("samples", None)
    return document | {
        "name": release.full_name,
        "digest": release.digest,
        "installed": False,
        "remote": hub.endpoint,
        "repository": contents.repo,
        "commit": contents.commit,
        "yanked": release.yanked,
        "base_verdict": resolution.chosen.verdict.name,
        "size_bytes": manifest.size_bytes,
        **header_document(contents),
        "received_bytes": hub.received_bytes,
    }


def _fields(d: dict[str, Any]) -> list[tuple[str, object]]:
    hints = d["base"].get("hints", {})
    pairs: list[tuple[str, object]] = [
        ("name", d["name"]),
        ("version", d["version"]),
        ("yanked", d["yanked"]),
        ("digest", d["digest"]),
        ("repository", f"{d['repository']} on {d['remote']}"),
        ("commit", d["commit"]),
        ("base weights", d["base"].get("weights", "unknown")),
        ("base hub id", hints.get("hub_id")),
        ("base verdict", d["base_verdict"]),
        *policy_fields(d),
        ("task", d.get("task")),
        ("description", d.get("description") or None),
        ("license", d.get("license")),
        ("method", ", ".join(d["method"]).lower()),
        ("rank", d.get("rank")),
        ("alpha", d.get("alpha")),
        ("target modules", ", ".join(d.get("target_modules", ())) or None),
        *group_fields(d),
        ("tensors", f"{d['header']['tensors']} ({', '.join(d['header']['dtypes'])})"),
        ("parameters", f"{d['header']['parameters']:,}"),
    ]
    pairs += [("file", f"{f['path']}  {size_text(f['size_bytes'])}  {f['sha256']}") for f in d["files"]]
    pairs.append(("read", f"{size_text(d['received_bytes'])} of {size_text(d['size_bytes'])}"))
    return pairs

"""`adapt info`, also called `show`: show the details of one adapter, installed or on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.inspect.info_modules import group_fields, prompt_label, verdict_fields
from adapterhub.cli.options.params import BASE, SPEC, Session, common, rank_option, remote_options
from adapterhub.cli.options.project_policy import policy_fields
from adapterhub.cli.output import size_text
from adapterhub.core.errors import AdapterNotFound, BaseNotFound, NoCompatibleRelease, RemoteUnreachable

if TYPE_CHECKING:
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import AdapterSpec, BaseSpec


@click.command()
@click.argument("spec", type=SPEC)
@click.option("--base", type=BASE, help="Use this base if the spec names none.")
@rank_option
@click.option("--recipe", is_flag=True, help="Show only the merge recipe, as TOML for `adapt merge --recipe`.")
@remote_options
@common
def info(
    session: Session,
    spec: AdapterSpec,
    base: BaseSpec | None,
    rank: RankRange | None,
    recipe: bool,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Show the details of one adapter: base, files, modules with rank and alpha, lineage, signature and users.

    Shows an installed adapter if there is one. Otherwise, or with --remote, reads the manifest, the config and the
    first bytes of the weights from a server and downloads nothing else. Inside a project, also shows whether the
    project's policy refuses the adapter.

    \b
    Examples:
      adapt info legal-qa@base-7b
      adapt info acme/legal-qa@base-7b --remote ours
      adapt info legal-summary --recipe > merge.toml
    """
    from adapterhub.core.ranks import RankRange

    bounds = RankRange.of(rank)
    not_here: AdapterNotFound | BaseNotFound | NoCompatibleRelease | None = None
    if remote is None:
        from adapterhub.cli.inspect.info_local import show_installed

        try:
            show_installed(session, spec, base, bounds, recipe=recipe, offline=offline)
        except (AdapterNotFound, BaseNotFound, NoCompatibleRelease) as error:  # a server may have an alias of that name
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
    not_here: AdapterNotFound | BaseNotFound | NoCompatibleRelease | None,
) -> None:
    from adapterhub.api.steps.describing import document_on_server

    document = document_on_server(session, spec, base, bounds, remote=remote, token=token, not_here=not_here)
    session.out.result(document, lambda: session.out.fields(_fields(document)))


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
        *verdict_fields(d),
        *policy_fields(d),
        ("task", d.get("task")),
        ("description", d.get("description") or None),
        ("license", d.get("license")),
        ("prompt form", prompt_label(d)),
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

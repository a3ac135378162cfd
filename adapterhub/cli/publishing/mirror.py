"""`adapt mirror`: copy builds from one server to another with the same digests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_remote
from adapterhub.cli.options.params import BASE, SPEC, Session, common, rank_options
from adapterhub.core.errors import UsageProblem
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.library.library import Library
    from adapterhub.library.transfer import Source


@click.command()
@click.argument("specs", nargs=-1, required=True, type=SPEC, metavar="SPEC...")
@click.option(
    "--from",
    "origin",
    required=True,
    metavar="NAME|URL",
    shell_complete=complete_remote,
    help="Copy from this server.",
)
@click.option(
    "--to", "target", required=True, metavar="NAME|URL", shell_complete=complete_remote, help="Copy to this server."
)
@click.option("--namespace", metavar="NAMESPACE", help="Publish under this namespace [default: the same].")
@click.option("--base", type=BASE, help="Use this base for specs that name none.")
@rank_options
@click.option("--private", is_flag=True, help="Make new repositories private.")
@click.option("--dry-run", is_flag=True, help="Show what would be copied; send nothing.")
@click.option("--ignore-bindings", is_flag=True, help="Copy even if the namespace belongs to another of your remotes.")
@common
def mirror(
    session: Session,
    specs: tuple[AdapterSpec, ...],
    origin: str,
    target: str,
    namespace: str | None,
    base: BaseSpec | None,
    rank: int | None,
    min_rank: int | None,
    max_rank: int | None,
    private: bool,
    dry_run: bool,
    ignore_bindings: bool,
) -> None:
    """Copy builds from one server to another, each accessed with the token of `adapt remote login`.

    Keeps the repository's name, skips files that the target already has, and adds a manifest to plain PEFT
    repositories. Copies signatures unchanged; `adapt install` checks them later. A project's policy does not apply,
    because nothing enters the project. If you gave a namespace to a remote (`adapt remote add --namespaces`), the
    command reads it only from that remote and --namespace writes it only there, unless you pass --ignore-bindings.

    \b
    Example:
      adapt mirror acme/legal-qa@base-7b acme/summarize@base-7b --from hub --to ours
    """
    from adapterhub.cli.options.choice import choose_release
    from adapterhub.core.specs import parse_namespace
    from adapterhub.distribution.choosing import RankBounds
    from adapterhub.library.transfer import copy

    there, here = session.remote(origin), session.remote(target)
    if there.url == here.url:
        raise UsageProblem(f"`--from` and `--to` are both {there.url}")
    if namespace is not None:
        parse_namespace(namespace)
    library = session.library
    if not ignore_bindings:
        _check_bindings(library, specs, namespace, there.url, here.url)
    source_hub, target_hub = session.hub(there), session.hub(here)
    bounds = RankBounds(rank=rank, min_rank=min_rank, max_rank=max_rank)
    documents: list[dict[str, Any]] = []
    for spec in specs:
        sources: list[Source] = [source_hub] if spec.namespace else [source_hub.within(n) for n in there.namespaces]
        wanted = wanted_from(library, spec, base)
        release, source, _ = choose_release(
            session, library, spec, sources, wanted=wanted, bounds=bounds, ignore_bindings=ignore_bindings
        )
        repo, commit = source_hub.repository_of(release)
        to = f"{namespace}/{repo.partition('/')[2]}" if namespace else repo
        document = {
            "name": release.full_name,
            "version": release.manifest.version,
            "digest": release.digest,
            "from": f"{there.url}/{repo}",
            "commit": commit,
            "to": f"{here.url}/{to}",
            "size_bytes": release.manifest.size_bytes,
        }
        if not dry_run:
            with session.out.progress(f"mirror {release.full_name}", release.manifest.size_bytes) as progress:
                signature = source.provenance(release).signature
                copied = copy(release, source, target_hub.to(to, private=private), progress, signature=signature)
            document |= {"created": copied.sent_files > 0, "sent_bytes": copied.sent_bytes}
        documents.append(document)
    session.out.result(documents, lambda: _say(session, documents, dry_run=dry_run))


def _check_bindings(
    library: Library, specs: Sequence[AdapterSpec], namespace: str | None, there: str, here: str
) -> None:
    """Raise before any query if a namespace would be read or written at another server than the user gave it to.

    Raises:
        NamespaceBound: the message names both servers.
    """
    from adapterhub.library.admission.installed import Admission

    admission = Admission(library)
    hint = "`--ignore-bindings` copies it anyway"
    for spec in specs:
        admission.ensure_place_allowed(there, spec.namespace, hint=hint)
    admission.ensure_place_allowed(here, namespace, hint=hint)


def _say(session: Session, documents: list[dict[str, Any]], *, dry_run: bool) -> None:
    for d in documents:
        done = "would copy" if dry_run else "copied" if d["created"] else "already there:"
        session.out.line(f"{done} {d['name']} {d['version']} to {d['to']}  {d['digest']}")

"""`adapt mirror`: copy builds from one server to another with the same digests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_remote
from adapterhub.cli.options.params import BASE, Session, SpecType, common, rank_options

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.distribution.mirroring import RepositoryPattern

_MOST_LINES = 10
"""Of builds that are there already; more are counted."""


class RepositoriesType(SpecType):
    """An adapter spec, or a pattern such as `acme/*`; completes the names of installed adapters."""

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> Any:
        """Parse the text."""
        from adapterhub.distribution.mirroring import parse_repositories

        return parse_repositories(value) if isinstance(value, str) else value


@click.command()
@click.argument("specs", nargs=-1, required=True, type=RepositoriesType(), metavar="SPEC|PATTERN...")
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
@click.option("--tests", is_flag=True, help="Copy the signed results of tests, too.")
@click.option("--dry-run", is_flag=True, help="Show what would be copied; send nothing.")
@click.option("--ignore-bindings", is_flag=True, help="Copy even if the namespace belongs to another of your remotes.")
@common
def mirror(
    session: Session,
    specs: tuple[AdapterSpec | RepositoryPattern, ...],
    origin: str,
    target: str,
    namespace: str | None,
    base: BaseSpec | None,
    rank: int | None,
    min_rank: int | None,
    max_rank: int | None,
    private: bool,
    tests: bool,
    dry_run: bool,
    ignore_bindings: bool,
) -> None:
    """Copy builds from one server to another, each accessed with the token of `adapt remote login`.

    A pattern such as 'acme/*' copies every released version of the repositories that it matches, except yanked ones.
    A copy whose original was yanked since is yanked, too. Aliases stay behind.
    One request to each server for every thousand versions shows what is missing.

    Keeps the repository's name, skips files that the target already has, and adds a manifest to plain PEFT
    repositories. Copies signatures unchanged, and the signed results of tests with --tests; `adapt install` checks
    them later. A project's policy does not apply,
    because nothing enters the project. If you gave a namespace to a remote (`adapt remote add --namespaces`), the
    command reads it only from that remote and --namespace writes it only there, unless you pass --ignore-bindings.

    \b
    Examples:
      adapt mirror acme/legal-qa@base-7b acme/summarize@base-7b --from hub --to ours
      adapt mirror 'acme/*' --from ours --to theirs --tests
    """
    from adapterhub.api.steps.publishing import mirror_releases
    from adapterhub.core.ranks import RankRange

    documents: list[dict[str, Any]] = []
    for one in mirror_releases(
        session,
        specs,
        origin=origin,
        target=target,
        namespace=namespace,
        base=base,
        bounds=RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank),
        private=private,
        tests=tests,
        dry_run=dry_run,
        ignore_bindings=ignore_bindings,
        bars=session.out,
    ):
        document: dict[str, Any] = {
            "name": one.name,
            "version": one.version,
            "digest": one.digest,
            "from": one.origin,
            "commit": one.commit,
            "to": one.to,
            "size_bytes": one.size_bytes,
        }
        if one.copied is not None:
            document |= {"created": one.copied.sent_files > 0, "sent_bytes": one.copied.sent_bytes}
        documents.append(document)
    session.out.result(documents, lambda: _say(session, documents, dry_run=dry_run))


def _say(session: Session, documents: list[dict[str, Any]], *, dry_run: bool) -> None:
    there = [d for d in documents if d.get("created") is False]
    for d in documents:
        if d not in there or len(there) <= _MOST_LINES:
            done = "already there:" if d in there else "would copy" if dry_run else "copied"
            session.out.line(f"{done} {d['name']} {d['version']} to {d['to']}  {d['digest'] or ''}".rstrip())
    if len(there) > _MOST_LINES:
        session.out.line(f"already there: {len(there)} builds")
    if not documents:
        session.out.line("nothing to copy")

"""`adapt mirror`: copy builds from one server to another with the same digests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_remote
from adapterhub.cli.options.params import BASE, Session, SpecType, common, rank_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.api.steps.publishing import Mirrored
    from adapterhub.core.specs import AdapterSpec
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
@rank_option
@click.option("--private", is_flag=True, help="Make new repositories private.")
@click.option("--tests", is_flag=True, help="Also copy the signed results of tests.")
@click.option("--witness", is_flag=True, help="Co-sign the source's log, if it extends what was seen before.")
@click.option("--dry-run", is_flag=True, help="Show what would be copied; send nothing.")
@click.option("--ignore-bindings", is_flag=True, help="Copy even if the namespace belongs to another of your remotes.")
@common
def mirror(session: Session, specs: tuple[AdapterSpec | RepositoryPattern, ...], **options: Any) -> None:
    """Copy builds from one server to another, each accessed with the token of `adapt remote login`.

    A pattern such as 'acme/*' copies every released version of the repositories that it matches, except yanked ones.
    A copy is yanked once its original is. Aliases stay behind.
    The command needs one request per thousand versions to each server to find the missing ones.

    Keeps the repository's name, skips files that the target already has, and adds a manifest to plain PEFT
    repositories. Copies signatures unchanged, and the signed results of tests with --tests; `adapt install` checks
    them later. With --witness, a key of this library co-signs the log of the source, whose server must list that key
    (`adapt registry serve --witness`); the command prints it. A project's policy does not apply,
    because nothing enters the project. If you gave a namespace to a remote (`adapt remote add --namespaces`), the
    command reads it only from that remote and --namespace writes it only there, unless you pass --ignore-bindings.

    \b
    Examples:
      adapt mirror acme/legal-qa@base-7b acme/summarize@base-7b --from hub --to ours
      adapt mirror 'acme/*' --from ours --to theirs --tests
    """
    mirrored = session.opened.mirror(*specs, **options)
    session.out.result([one.to_json() for one in mirrored], lambda: _say(session, mirrored))


def _say(session: Session, mirrored: Sequence[Mirrored]) -> None:
    there = [one for one in mirrored if one.created is False]
    for one in mirrored:
        if one not in there or len(there) <= _MOST_LINES:
            done = "would copy" if one.copied is None else "copied" if one.created else "already there:"
            session.out.line(f"{done} {one.name} {one.version} to {one.to}  {one.digest or ''}".rstrip())
    if len(there) > _MOST_LINES:
        session.out.line(f"already there: {len(there)} builds")
    if not mirrored:
        session.out.line("nothing to copy")

"""`adapt help completion`: print the completion script of a shell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import click

from adapterhub.cli.options.params import Session, common
from adapterhub.formats.documented import Documented


@dataclass(frozen=True, slots=True)
class Completion(Documented):
    """The completion script of a shell."""

    shell: Annotated[str, "`bash`, `zsh` or `fish`"]
    script: str


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common
def completion(session: Session, shell: str) -> None:
    """Print the completion script for SHELL.

    It completes commands, options, adapters, bases, versions, remotes and groups. Names come from the library and from
    the project around the working directory, never from a server.

    \b
    Examples:
      eval "$(adapt help completion bash)"
      adapt help completion zsh > ~/.zfunc/_adapt
      adapt help completion fish > ~/.config/fish/completions/adapt.fish
    """
    from adapterhub.cli import cli
    from adapterhub.cli.completion.shells import script

    text = script(cli, shell)
    session.out.result(Completion(shell, text), lambda: session.out.line(text.rstrip()))

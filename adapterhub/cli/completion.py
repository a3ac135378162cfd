"""`adapt completion`: the script that a shell reads once."""

from __future__ import annotations

import click

from adapterhub.cli.params import Session, common


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common
def completion(session: Session, shell: str) -> None:
    """Print the completion script for a SHELL. Commands, options, adapter names and base aliases are completed.

    \b
    Examples:
      eval "$(adapt completion bash)"
      adapt completion fish > ~/.config/fish/completions/adapt.fish
    """
    from click.shell_completion import get_completion_class

    from adapterhub.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None  # click.Choice admits only shells that click knows
    script = kind(cli, {}, "adapt", "_ADAPT_COMPLETE").source()
    session.out.result({"shell": shell, "script": script}, lambda: session.out.line(script))

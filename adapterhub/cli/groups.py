"""A group of commands that answers `help`, and suggests a command for a mistyped one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

HELP: Final = "help"


class BareOption(click.Option):
    """An option whose value follows only after `=`: `--test` is `--test=keep`, and never takes the next word."""

    def __init__(self, *args: Any, bare: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bare = bare

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its value without a space."""
        record = super().get_help_record(ctx)
        return record and (record[0].replace(" [=", "[="), record[1])


def _with_bare_values(command: click.Command, args: Sequence[str]) -> Iterator[str]:
    """Yield the words after a command, with the value of each option that stands bare."""
    bare = {name: one.bare for one in command.params if isinstance(one, BareOption) for name in one.opts}
    is_option = True
    for word in args:
        is_option = is_option and word != "--"
        yield f"{word}={bare[word]}" if is_option and word in bare else word


class Group(click.Group):
    """A group in which `help add` is `add --help`; an unknown command raises an error that suggests one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read `help merge` as `merge --help`, and complete the words after `help` as commands."""
        if args[:1] == [HELP]:
            words = [word for word in args[1:] if not word.startswith("-")]
            args = words if ctx.resilient_parsing else [*words, "--help"]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `args` name."""
        name, known = args[0] if args else "", self.list_commands(ctx)
        if name and not name.startswith("-") and name not in known and self.get_command(ctx, name) is None:
            from adapterhub.cli.suggestions import advice

            group = f"{ctx.info_name} " if ctx.parent else ""
            raise click.UsageError(f"no command `{group}{name}`; {advice(name, [*known, HELP], group)}", ctx)
        found, command, rest = super().resolve_command(ctx, args)
        return found, command, rest if command is None or ctx.resilient_parsing else [*_with_bare_values(command, rest)]

"""A group of commands that answers `help`, and says which command a mistyped one means."""

from __future__ import annotations

from typing import Final

import click

HELP: Final = "help"


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
        """The command that `args` name."""
        name, known = args[0] if args else "", self.list_commands(ctx)
        if name and not name.startswith("-") and name not in known:
            from adapterhub.cli.suggestions import advice

            group = f"{ctx.info_name} " if ctx.parent else ""
            raise click.UsageError(f"no command `{group}{name}`; {advice(name, [*known, HELP], group)}", ctx)
        return super().resolve_command(ctx, args)

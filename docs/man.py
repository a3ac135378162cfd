"""Write the manual pages, `adapt.1` and one for each command, from the commands' help: `python -m docs.man FOLDER`."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import click
from click_man.core import write_man_pages

from adapterhub.cli import ALIASES, cli


def loaded(group: click.Group) -> click.Group:
    """Return a copy of a group that imports its commands now, as the generator expects it; aliases are left out."""
    context = click.Context(group)
    commands = {name: group.get_command(context, name) for name in group.list_commands(context) if name not in ALIASES}
    held = {name: loaded(one) if isinstance(one, click.Group) else one for name, one in commands.items() if one}
    return click.Group(name=group.name, commands=held, params=group.params, help=_without_marks(group.help))


def _without_marks(text: str | None) -> str:
    return (text or "").replace("\b\n", "")


def main() -> int:
    """Write them all; the exit code."""
    _, *folders = sys.argv
    if len(folders) != 1:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    folder = Path(folders[0])
    folder.mkdir(parents=True, exist_ok=True)
    write_man_pages("adapt", loaded(cli), version=version("adapterhub"), target_dir=str(folder))
    for page in folder.glob("*.1"):
        page.write_text(_without_marks(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

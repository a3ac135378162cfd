"""`adapt tree`: show adapters with the parents of each merge, or who needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.params import SPEC, Session, common, project_option

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec


@click.command()
@click.argument("specs", nargs=-1, type=SPEC, metavar="[SPEC...]")
@click.option("--invert", is_flag=True, help="Show what needs SPEC: projects, aliases, merges and processes.")
@click.option("--holders", is_flag=True, help="Show what each project and process holds, and what nothing holds.")
@click.option("--library", "is_library", is_flag=True, help="Show the library even inside a project.")
@project_option
@common
def tree(session: Session, specs: tuple[AdapterSpec, ...], is_library: bool, **options: Any) -> None:
    """Show the adapters of the project, or of the library, as a tree with the parents of each merge.

    The library's tree starts at adapters that no other installed adapter was made from. Give SPEC to start there
    instead; in a project, a bare name is the project's name for an adapter.

    --invert shows who needs an adapter: projects that lock it, merges made from it, processes that use it. For a merge,
    it also shows who needs the merge.

    \b
    Examples:
      adapt tree
      adapt tree legal-summary
      adapt tree --invert legal-qa
      adapt tree --holders
    """
    project = None if is_library else session.project_here
    found = project.tree(*specs, **options) if project else session.opened.tree(*specs, **options)
    session.out.result(found.to_json(), lambda: session.out.line(str(found)) if str(found) else None)
    for one in getattr(found, "builds", ()):
        if not one.uses:
            session.out.hint(f"nothing needs {one.adapter}; `adapt remove {specs[0]} --yes` removes it")
    if not str(found):
        session.out.hint(
            "no adapter is installed; `adapt add FOLDER --name NAME` and `adapt install NAME@BASE` add adapters"
        )

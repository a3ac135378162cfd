"""`adapt list`: a query to the library, answered from its index."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import BASE, SPEC, Session, common, project_option, rank_option
from adapterhub.cli.output import json_text
from adapterhub.core.arguments import Count, Sort

if TYPE_CHECKING:
    from adapterhub.api.listed import AdapterFolder
    from adapterhub.core.display import Listing

_NOT_PLAIN: Final = re.compile(r"[=,\s'\"\\$`]")
_NOT_A_NAME: Final = re.compile(r"[^A-Za-z0-9_]")


@click.command("list")
@click.argument("names", nargs=-1, metavar="[NAME|PATTERN...]", shell_complete=SPEC.shell_complete)
@click.option("--base", type=BASE, help="List only adapters for this base.")
@click.option("--task", default="", metavar="TASK", help="List only adapters with exactly this task.")
@rank_option
@click.option(
    "--sort",
    type=kind_of(Sort),
    default="name",
    show_default=True,
    help="Sort by this: the highest rank, the largest and the newest come first.",
)
@click.option("--reverse", is_flag=True, help="Reverse the order.")
@click.option("--limit", type=kind_of(Count), metavar="N", help="List at most N, the first in that order.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["vllm", "peft", "json"]),
    help="Print names and folders as vLLM's --lora-modules, as calls of PEFT, or as JSON.",
)
@project_option
@common
def list_(session: Session, names: tuple[str, ...], form: str | None, **options: Any) -> None:
    """List installed adapters: all, or those whose name contains NAME or matches PATTERN.

    Inside a project, --format without filters lists the project's adapters.

    \b
    Examples:
      adapt list --base base-7b --sort size
      adapt list 'legal-*' --rank -16
      vllm serve ./base-7b --enable-lora --lora-modules $(adapt list --format vllm)
    """
    found = session.index.list(*names, **options)
    if form is None:
        show(session, found)
        return
    folders = found.folders()
    documents = [one.to_json() for one in folders]
    lines = [json_text(documents, indent=1)] if form == "json" else [_line(one, form) for one in folders]
    session.out.result(documents, lambda: session.out.lines(lines))


def show(session: Session, found: Listing[Any], *, of: str | None = None) -> None:
    """Print builds as a table or as JSON; `of` is the server that has them."""
    session.out.result(found.documents, lambda: session.out.table(found.columns, found.cells, right=("rank", "size")))
    if not found and not session.out.as_json:
        adds = "no adapter matches; `adapt add FOLDER --name NAME` and `adapt install NAME@BASE` add adapters"
        session.out.hint(f"no adapter on {of} matches; try fewer conditions" if of else adds)


def _line(one: AdapterFolder, form: str) -> str:
    """Return an argument of vLLM's `--lora-modules`, which is JSON where a character would end the path.

    Or a call of PEFT.
    """
    import json

    if form == "peft":  # its adapter names become module names, in which a dot would mean a submodule
        return f"model.load_adapter({json.dumps(one.path)}, adapter_name={json.dumps(_NOT_A_NAME.sub('_', one.name))})"
    if _NOT_PLAIN.search(one.name + one.path):
        return json_text({"name": one.name, "path": one.path}, compact=True)
    return f"{one.name}={one.path}"

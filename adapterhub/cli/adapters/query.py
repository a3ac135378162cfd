"""`adapt list` and `path`: queries to the library, answered from the index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.finding import aliases_by_build, ask, find_build
from adapterhub.api.steps.searching import (
    COLUMNS,
    base_name,
    cells_of,
    found_document,
    near_text,
    search_installed,
    why_text,
)
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import BASE, SPEC, Session, common, project_option, rank_option
from adapterhub.core.arguments import Sort
from adapterhub.core.ranks import ANY_RANK, RankRange

if TYPE_CHECKING:
    from adapterhub.api.steps.searching import Hits
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.library.store.rows import BuildRow


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
@click.option(
    "--format",
    "form",
    type=click.Choice(["vllm", "peft", "json"]),
    help="Print names and folders as vLLM's --lora-modules, as calls of PEFT, or as JSON.",
)
@project_option
@common
def list_(
    session: Session,
    names: tuple[str, ...],
    base: BaseSpec | None,
    task: str,
    rank: RankRange | None,
    sort: str,
    reverse: bool,
    form: str | None,
) -> None:
    """List installed adapters: all, or those whose name contains NAME or matches PATTERN.

    Inside a project, --format without filters lists the project's adapters.

    \b
    Examples:
      adapt list --base base-7b --sort size
      adapt list 'legal-*' --rank -16
      vllm serve ./base-7b --enable-lora --lora-modules $(adapt list --format vllm)
    """
    ranks = RankRange.of(rank)
    filters: dict[str, Any] = {"names": names, "task": task, "ranks": ranks}
    has_filters = bool(base or names or task or ranks != ANY_RANK)
    filters |= {"sort": sort, "reverse": reverse}
    if form is None:
        show(session, search_installed(session, base, **filters))
        return
    from adapterhub.cli.adapters.list_formats import library_adapters, lines_of, project_adapters

    folder = None if has_filters else session.project_folder
    adapters = (
        library_adapters(session, search_installed(session, base, **filters))
        if folder is None
        else project_adapters(session, folder)
    )

    def text() -> None:
        for line in lines_of(adapters, form):
            session.out.line(line)

    session.out.result(adapters, text)


def show(session: Session, rows: list[BuildRow], hits: Hits | None = None) -> None:
    """Print builds as a table or as JSON, with the reasons of a search."""
    aliases = ask(session, lambda index: index.aliases())
    named = aliases_by_build(session)
    moving = [named.get((row.full_name, row.digest), []) for row in rows]

    def table() -> None:
        columns: tuple[str, ...] = COLUMNS
        cells: list[tuple[object, ...]] = [cells_of(row, aliases) for row in rows]
        if any(moving):
            columns = (*columns, "aliases")
            cells = [(*those, ",".join(names)) for those, names in zip(cells, moving, strict=True)]
        if hits is not None and any(hit.matched for hit in hits.found):
            columns = (*columns, *(["near"] if hits.by == "meaning" else []), "why")
            whys = ((*near_text(hit.score, hits.by), why_text(hit.matched)) for hit in hits.found)
            cells = [(*those, *why) for those, why in zip(cells, whys, strict=True)]
        session.out.table(columns, cells, right=("rank", "size"))

    def documents() -> list[dict[str, Any]]:
        pairs = zip(rows, moving, strict=True)
        listed = [_row_document(row, aliases, session.root) | {"aliases": names} for row, names in pairs]
        if hits is None:
            return listed
        found = (found_document(hit.score, hit.matched, hits.by) for hit in hits.found)
        return [one | more for one, more in zip(listed, found, strict=True)]

    session.out.result(documents, table)
    if not rows and not session.out.as_json:
        session.out.hint(
            "no adapter matches; `adapt add FOLDER --name NAME` and `adapt install NAME@BASE` add adapters"
        )


def _row_document(row: BuildRow, aliases: dict[str, str], root: Path) -> dict[str, Any]:
    from adapterhub.formats.peft.methods import attaches

    document = {name: None if value == "" else value for name, value in row._asdict().items()}
    for name in ("folder", "prompts", "told", "license", "has_tests"):
        del document[name]
    document["path"] = os.fspath(root / row.folder)
    document["base"] = base_name(row, aliases)
    method = row.method.split(",")
    document |= {"method": method, "attaches": attaches(method)}
    document["target_modules"] = row.target_modules.split(",") if row.target_modules else []
    return document


@click.command()
@click.argument("spec", type=SPEC)
@rank_option
@common
def path(session: Session, spec: AdapterSpec, rank: RankRange | None) -> None:
    """Print the path of an adapter's plain PEFT folder, for any tool that reads PEFT.

    \b
    Example:
      python -c "from peft import …" "$(adapt path legal-qa@base-7b)"
    """
    bounds = RankRange.of(rank)
    build = find_build(session, spec, bounds, to="use")  # another program will use it
    session.out.result({"path": str(build.folder)}, lambda: session.out.line(str(build.folder)))

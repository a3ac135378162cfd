"""`adapt list`, `search` and `path`: queries to the library, answered from the index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.finding import ask, find_build
from adapterhub.api.steps.searching import COLUMNS, SORTS, base_name, cells_of, search_installed
from adapterhub.cli.adapters.search_try import TryOptions, search_and_try, try_options
from adapterhub.cli.completion.completing import complete_remote, complete_spec
from adapterhub.cli.options.params import BASE, SPEC, Session, common, project_option, rank_options
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.library.store.aliases import Aliases

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.library.store.index import BuildRow


@click.command("list")
@click.argument("names", nargs=-1, metavar="[NAME|PATTERN...]", shell_complete=complete_spec)
@click.option("--base", type=BASE, help="List only adapters for this base.")
@click.option("--task", default="", metavar="TASK", help="List only adapters with exactly this task.")
@rank_options
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
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
    rank: int | None,
    min_rank: int | None,
    max_rank: int | None,
    sort: str,
    reverse: bool,
    form: str | None,
) -> None:
    """List installed adapters: all, or those whose name contains NAME or matches PATTERN.

    Inside a project, --format without filters lists the project's adapters.

    \b
    Examples:
      adapt list --base base-7b --sort size
      adapt list 'legal-*' --max-rank 16
      vllm serve ./base-7b --enable-lora --lora-modules $(adapt list --format vllm)
    """
    ranks = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    filters: dict[str, Any] = {"names": names, "task": task, "ranks": ranks}
    has_filters = bool(base or names or task or ranks != ANY_RANK)
    filters |= {"sort": sort, "reverse": reverse}
    if form is None:
        _answer(session, base=base, **filters)
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


@click.command()
@click.argument("text", nargs=-1)
@click.option("--base", type=BASE, help="Find adapters for this base: alias, Hub id, digest prefix or path.")
@click.option("--task", default="", metavar="TASK", help="Find adapters with exactly this task.")
@rank_options
@click.option("--method", default="", metavar="METHOD", help="Find this PEFT type or variant, such as `rslora`.")
@click.option(
    "--remote", metavar="NAME|URL", shell_complete=complete_remote, help="Search this server instead of the library."
)
@click.option("--token", metavar="TOKEN", help="Access token for --remote [default: that of `adapt remote login`].")
@click.option("--limit", type=click.IntRange(min=1), default=100, metavar="N", help="With --remote: show at most N.")
@try_options
@common
def search(
    session: Session,
    text: tuple[str, ...],
    base: BaseSpec | None,
    task: str,
    rank: int | None,
    min_rank: int | None,
    max_rank: int | None,
    method: str,
    remote: str | None,
    token: str | None,
    limit: int,
    examples: Path | None,
    top: int | None,
    yes: bool,
) -> None:
    """Search installed adapters, or a server's with --remote, for TEXT in name, task or description.

    With --try, the best of them answer your examples on the base, and the measured loss orders them; nothing is merged,
    and nothing of a server is installed.

    \b
    Examples:
      adapt search contract --base base-7b --max-rank 16
      adapt search contract --base base-7b --try examples.jsonl
      adapt search --remote ours --base base-7b --task legal-qa
    """
    ranks = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    trial = TryOptions(examples=examples, top=top, yes=yes)
    trial.ensure_sense(base)
    if examples is not None and base is not None:
        query = {"text": " ".join(text), "task": task, "ranks": ranks, "method": method}
        search_and_try(session, trial, base, remote, token, query)
        return
    if remote is not None:
        from adapterhub.cli.adapters.remote_search import search_remote

        hub = session.named_hub(remote, token=token, offline=False)
        from adapterhub.distribution.hub import Search

        query = Search(text=" ".join(text), task=task, ranks=ranks, method=method, limit=limit)
        search_remote(session, hub, base, query)
        return
    _answer(
        session,
        text=" ".join(text),
        base=base,
        task=task,
        ranks=ranks,
        method=method,
    )


def _answer(session: Session, *, base: BaseSpec | None, text: str = "", **filters: Any) -> None:
    rows = search_installed(session, base, text=text, **filters)
    aliases = ask(session, lambda index: index.aliases())
    named = Aliases(session.root).by_build()
    moving = [named.get((row.full_name, row.digest), []) for row in rows]

    def table() -> None:
        cells = [cells_of(row, aliases) for row in rows]
        if any(moving):
            cells = [(*those, ",".join(names)) for those, names in zip(cells, moving, strict=True)]
        session.out.table((*COLUMNS, *(["aliases"] if any(moving) else [])), cells, right=("rank", "size"))

    def documents() -> list[dict[str, Any]]:
        pairs = zip(rows, moving, strict=True)
        return [_row_document(row, aliases, session.root) | {"aliases": names} for row, names in pairs]

    session.out.result(documents, table)
    if not rows and not session.out.as_json:
        session.out.hint(
            "no adapter matches; `adapt add FOLDER --name NAME` and `adapt install NAME@BASE` add adapters"
        )


def _row_document(row: BuildRow, aliases: dict[str, str], root: Path) -> dict[str, Any]:
    from adapterhub.formats.peft.methods import attaches

    document = {name: None if value == "" else value for name, value in row._asdict().items()}
    del document["folder"]
    document["path"] = os.fspath(root / row.folder)
    document["base"] = base_name(row, aliases)
    method = row.method.split(",")
    document |= {"method": method, "attaches": attaches(method)}
    document["target_modules"] = row.target_modules.split(",") if row.target_modules else []
    return document


@click.command()
@click.argument("spec", type=SPEC)
@rank_options
@common
def path(session: Session, spec: AdapterSpec, rank: int | None, min_rank: int | None, max_rank: int | None) -> None:
    """Print the path of an adapter's plain PEFT folder, for any tool that reads PEFT.

    \b
    Example:
      python -c "from peft import …" "$(adapt path legal-qa@base-7b)"
    """
    bounds = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    build = find_build(session, spec, bounds, for_use=True)  # another program will use it
    session.out.result({"path": str(build.folder)}, lambda: session.out.line(str(build.folder)))

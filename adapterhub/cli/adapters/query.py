"""`adapt list`, `search` and `path`: queries to the library, answered from the index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.finding import ask, find_build
from adapterhub.api.steps.searching import COLUMNS, base_name, search_installed
from adapterhub.cli.completion.completing import complete_remote
from adapterhub.cli.options.params import BASE, SPEC, Session, common, project_option, rank_options
from adapterhub.cli.output import size_text
from adapterhub.core.ranks import RankRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.library.store.index import BuildRow


@click.command("list")
@click.option("--base", type=BASE, help="List only adapters for this base.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["vllm", "peft", "json"]),
    help="Print names and folders as vLLM's --lora-modules, as calls of PEFT, or as JSON.",
)
@project_option
@common
def list_(session: Session, base: BaseSpec | None, form: str | None) -> None:
    """List installed adapters; inside a project, --format lists the project's adapters.

    \b
    Examples:
      adapt list --base base-7b
      vllm serve ./base-7b --enable-lora --lora-modules $(adapt list --format vllm)
    """
    if form is None:
        _answer(session, base=base)
        return
    from adapterhub.cli.adapters.list_formats import library_adapters, lines_of, project_adapters

    folder = session.project_folder if base is None else None
    adapters = (
        library_adapters(session, search_installed(session, base))
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
) -> None:
    """Search installed adapters, or a server's with --remote, for TEXT in name, task or description.

    \b
    Examples:
      adapt search contract --base base-7b --max-rank 16
      adapt search --remote ours --base base-7b --task legal-qa
    """
    ranks = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
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
    session.out.result(
        lambda: [_row_document(row, aliases, session.root) for row in rows],
        lambda: session.out.table(COLUMNS, _cells(rows, aliases), right=("rank", "size")),
    )
    if not rows and not session.out.as_json:
        session.out.hint(
            "no adapter matches; `adapt add FOLDER --name NAME` and `adapt install NAME@BASE` add adapters"
        )


def _cells(rows: Sequence[BuildRow], aliases: dict[str, str]) -> list[tuple[object, ...]]:
    return [
        (r.full_name, r.version, base_name(r, aliases), r.task, r.rank, _method(r), size_text(r.size_bytes))
        for r in rows
    ]


def _method(row: BuildRow) -> str:
    return row.method.lower() if _attaches(row) else f"{row.method.lower()} (cannot be attached)"


def _attaches(row: BuildRow) -> bool:
    from adapterhub.formats.peft.methods import attaches

    return attaches(row.method.split(","))


def _row_document(row: BuildRow, aliases: dict[str, str], root: Path) -> dict[str, Any]:
    document = {name: None if value == "" else value for name, value in row._asdict().items()}
    del document["folder"]
    document["path"] = os.fspath(root / row.folder)
    document["base"] = base_name(row, aliases)
    document["method"] = row.method.split(",")
    document["attaches"] = _attaches(row)
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
    from adapterhub.core.ranks import RankRange

    bounds = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    build = find_build(session, spec, bounds, for_use=True)  # another program will use it
    session.out.result({"path": str(build.folder)}, lambda: session.out.line(str(build.folder)))

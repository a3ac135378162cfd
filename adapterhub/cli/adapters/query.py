"""`adapt list`, `search` and `path`: queries to the library, answered from the index."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.finding import aliases_by_build, ask, find_build
from adapterhub.api.steps.searching import (
    COLUMNS,
    SHOWN_BEST,
    SORTS,
    base_name,
    cells_of,
    check_ways,
    find_installed,
    found_document,
    is_ranked,
    near_text,
    search_installed,
    searchable,
    why_text,
)
from adapterhub.cli.adapters.search_try import TryOptions, filter_options, search_and_try, try_options
from adapterhub.cli.completion.completing import complete_remote, complete_spec
from adapterhub.cli.options.params import BASE, SPEC, Session, common, project_option, rank_options
from adapterhub.core.errors import UsageProblem
from adapterhub.core.ranks import ANY_RANK, RankRange

if TYPE_CHECKING:
    from adapterhub.api.steps.searching import By, Hits
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.library.store.rows import BuildRow


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
        _show(session, search_installed(session, base, **filters))
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
@filter_options
@click.option(
    "--remote", metavar="NAME|URL", shell_complete=complete_remote, help="Search this server instead of the library."
)
@click.option("--token", metavar="TOKEN", help="Access token for --remote [default: that of `adapt remote login`].")
@click.option("--all-words", is_flag=True, help="Find only adapters where each word of TEXT begins a word.")
@click.option("--words", "by_words", is_flag=True, help="Search by words, even where search by meaning is set up.")
@click.option("--meaning", "by_meaning", is_flag=True, help="Search by meaning, even for one word.")
@click.option("--far", is_flag=True, help="By meaning: also show adapters that have little to do with TEXT.")
@click.option("--setup", is_flag=True, help="Get the model for search by meaning into the library, once (84 MB).")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Show at most N [default: the best 10; 100 of a server]."
)
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
    license: str,  # noqa: A002 - the option's name
    signed: bool,
    tested: bool,
    remote: str | None,
    token: str | None,
    all_words: bool,
    by_words: bool,
    by_meaning: bool,
    far: bool,
    setup: bool,
    limit: int | None,
    examples: Path | None,
    top: int | None,
    yes: bool,
) -> None:
    """Search installed adapters, or a server's with --remote, for what TEXT asks for.

    Of several words any may match, in any inflection; the best match comes first, with the reason: the name, the
    task, the description or an example prompt. One word alone matches the beginning of a word. Without TEXT, the
    options choose. Once --setup has fetched a small language model, several words are compared by what they mean.

    With --try, the best of them answer your examples on the base, and the measured loss orders them; nothing is merged,
    and nothing of a server is installed.

    \b
    Examples:
      adapt search "is this film review good or bad"
      adapt search --setup
      adapt search contract --base base-7b --max-rank 16
      adapt search --license apache-2.0 --signed --tested
      adapt search contract --base base-7b --try examples.jsonl
      adapt search --remote ours --base base-7b --task legal-qa
    """
    if setup:
        _set_up(session, bool(text or remote or by_words or by_meaning or far or all_words or examples))
        return
    if by_words and by_meaning:
        raise UsageProblem("`--words` and `--meaning` exclude each other; without both, `adapt` chooses")
    words = " ".join(text)
    by: By = "words" if by_words else "meaning" if by_meaning else "auto"
    check_ways(words, by=by, all_words=all_words, far=far)
    ranks = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    filters: dict[str, Any] = {"text": words, "task": task, "ranks": ranks, "method": method, "all_words": all_words}
    filters |= {"license": license, "signed": signed, "tested": tested}
    trial = TryOptions(examples=examples, top=top, yes=yes)
    trial.ensure_sense(base, limit)
    if remote is not None and far:
        raise UsageProblem("`--far` is for the library; a server decides what it shows")
    if examples is not None and base is not None:
        search_and_try(session, trial, base, remote, token, filters | {"by": by}, far=far)
        return
    if remote is not None:
        from adapterhub.cli.adapters.remote_search import search_remote

        server = searchable(session, remote, token)
        from adapterhub.distribution.hub import PAGE, Search

        search_remote(session, server, base, Search(**filters, limit=limit or PAGE, by=by))
        return
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one question is too little work for the threads of numpy
    with session.out.steps("compare", unit="adapters") as steps:
        hits = find_installed(session, base, limit=limit, by=by, far=far, steps=steps, **filters)
    _show(session, [hit.row for hit in hits.found], hits)
    if limit is None and len(hits.found) == SHOWN_BEST and is_ranked(words, all_words=all_words):
        session.out.hint(f"these are the best {SHOWN_BEST}; `--limit N` shows more")


def _set_up(session: Session, has_more: bool) -> None:
    from adapterhub.api.steps.find.model import set_up_search
    from adapterhub.formats.meaning.model import MODEL

    if has_more:
        raise UsageProblem("`--setup` stands alone", hint="`adapt search --setup`, then search")
    place = set_up_search(session, bar=sys.stderr if session.out.shows_bars else None)
    facts = {"model": MODEL, "path": os.fspath(place)}
    session.out.result(facts, lambda: session.out.line(f"search by meaning is set up: {place}"))


def _show(session: Session, rows: list[BuildRow], hits: Hits | None = None) -> None:
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

"""`adapt search`: a question to the library, answered from the index, or to a server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.searching import SHOWN_BEST, check_ways, find_installed, is_ranked, searchable
from adapterhub.cli.adapters.query import show
from adapterhub.cli.adapters.search_try import TryOptions, filter_options, search_and_try, try_options
from adapterhub.cli.completion.completing import complete_remote
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import BASE, Session, common, rank_option
from adapterhub.core.arguments import Count
from adapterhub.core.errors import UsageProblem
from adapterhub.core.ranks import RankRange

if TYPE_CHECKING:
    from adapterhub.core.arguments import By
    from adapterhub.core.specs import BaseSpec


@click.command()
@click.argument("text", nargs=-1)
@click.option("--base", type=BASE, help="Find adapters for this base: alias, Hub id, digest prefix or path.")
@click.option("--task", default="", metavar="TASK", help="Find adapters with exactly this task.")
@rank_option
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
    "--limit", type=kind_of(Count), metavar="N", help="Show at most N [default: the best 10; 100 of a server]."
)
@try_options
@common
def search(
    session: Session,
    text: tuple[str, ...],
    base: BaseSpec | None,
    task: str,
    rank: RankRange | None,
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
      adapt search contract --base base-7b --rank -16
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
    ranks = RankRange.of(rank)
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
    show(session, [hit.row for hit in hits.found], hits)
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

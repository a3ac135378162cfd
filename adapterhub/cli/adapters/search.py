"""`adapt search`: a question to the library, answered from the index, or to a server; `--try` tries the best."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.cli.adapters.query import show
from adapterhub.cli.completion.completing import complete_license, complete_remote
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import BASE, Session, common, rank_option
from adapterhub.core.arguments import Count, Top
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapterhub.api.listed import Tried

_COLUMNS: Final = ("", "name", "version", "loss", "of the gap", "form", "examples", "cpu s")
_NUMBERS: Final = ("loss", "of the gap", "examples", "cpu s")


@click.command()
@click.argument("text", nargs=-1)
@click.option("--base", type=BASE, help="Find adapters for this base: name, Hub id, digest prefix or path.")
@click.option("--task", default="", metavar="TASK", help="Find adapters with exactly this task.")
@rank_option
@click.option("--method", default="", metavar="METHOD", help="Find this PEFT type or variant, such as `rslora`.")
@click.option(
    "--license",
    default="",
    metavar="LICENCE",
    shell_complete=complete_license,
    help="Find adapters under exactly this licence, such as `apache-2.0`.",
)
@click.option("--signed", is_flag=True, help="Find adapters with a signature, by any key.")
@click.option("--tested", is_flag=True, help="Find adapters that bring recorded tests, passed or not.")
@click.option(
    "--remote", metavar="NAME|URL", shell_complete=complete_remote, help="Search this server instead of the library."
)
@click.option("--all-words", is_flag=True, help="Find only adapters where each word of TEXT begins a word.")
@click.option("--words", "by_words", is_flag=True, help="Search by words, even where search by meaning is set up.")
@click.option("--meaning", "by_meaning", is_flag=True, help="Search by meaning, even for one word.")
@click.option("--far", is_flag=True, help="By meaning: also show adapters that have little to do with TEXT.")
@click.option("--setup", is_flag=True, help="First get the model for search by meaning, once (84 MB).")
@click.option(
    "--limit", type=kind_of(Count), metavar="N", help="Show at most N [default: the best 10; 100 of a server]."
)
@click.option(
    "--try",
    "examples",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Try the best on --base: order them by their loss on FILE, JSON Lines of prompt and answer.",
)
@click.option("--top", type=kind_of(Top), metavar="N", help="With --try: try N of them [default: 8].")
@click.option("--yes", "-y", is_flag=True, help="With --try: fetch more than 200 MB without a prompt.")
@common
def search(
    session: Session,
    text: tuple[str, ...],
    by_words: bool,
    by_meaning: bool,
    yes: bool,
    **options: Any,
) -> None:
    """Search installed adapters, or a server's with --remote, for what TEXT asks for.

    Of several words any may match, in any inflection; the best match comes first, with the reason: the name, the
    task, the description or an example prompt. A single word matches the beginning of a word. Without TEXT, the
    options choose. Once --setup has fetched a small language model, several words are compared by what they mean.

    With --try, the best of them answer your examples on the base, and the measured loss orders them; nothing is merged,
    and nothing of a server is installed.

    \b
    Examples:
      adapt search "is this film review good or bad"
      adapt search --setup "who pays when the tenant breaks something"
      adapt search contract --base base-7b --rank -16
      adapt search --license apache-2.0 --signed --tested
      adapt search contract --base base-7b --try examples.jsonl
      adapt search --remote ours --base base-7b --task legal-qa
    """
    if by_words and by_meaning:
        raise UsageProblem("`--words` and `--meaning` exclude each other; without both, `adapt` chooses")
    if yes and options["examples"] is None:
        raise UsageProblem("`--yes` is for `--try`", hint="add `--try FILE`, or drop `--yes`")
    options["by"] = "words" if by_words else "meaning" if by_meaning else "auto"
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one question is too little work for the threads of numpy
    agree = None if not yes and not sys.stdin.isatty() else _agreeing(yes=yes)
    if options["examples"] is None and not options["setup"]:  # which the index answers, without the library
        show(session, session.index.search(*text, **options), of=options["remote"])
        return
    found: Any = session.opened.search(*text, agree=agree, **options)
    if options["examples"] is None:
        show(session, found, of=options["remote"])
    else:
        session.out.result(found.to_json(), lambda: _say(session, found))


def _agreeing(*, yes: bool) -> Callable[[int, int], None]:
    def agree(builds: int, size_bytes: int) -> None:
        from adapterhub.api.searching import ASK_ABOVE_BYTES
        from adapterhub.core.display import size_text

        if size_bytes > ASK_ABOVE_BYTES and not yes:
            click.confirm(f"Fetch {builds} builds, {size_text(size_bytes)}, to try them?", abort=True, err=True)

    return agree


def _say(session: Session, tried: Tried) -> None:
    out = session.out
    rows: list[tuple[object, ...]] = []
    base = ("", "the base alone", "", f"{tried.base_loss or 0:.4f}", "0 %", "", tried.examples, "")
    is_said = False
    for one in tried.results:
        trial = one.tried
        if not is_said and (trial.loss >= trial.base_loss or trial.examples < tried.examples):
            rows.append(base)
            is_said = True
        share = "" if trial.share is None else f"{trial.share:.0%}".replace("%", " %")
        cost = "kept" if trial.is_cached else f"{trial.cpu_s:.2f}"
        mark = "=" if trial.leads else ""
        rows.append((mark, one.name, one.version, f"{trial.loss:.4f}", share, trial.form, trial.examples, cost))
    if tried.results:
        out.table(_COLUMNS, rows if is_said else [*rows, base], right=_NUMBERS)
    for lost in tried.left_out:
        out.note(f"not tried: `{lost.name}`: {lost.reason}")
    leaders = sum(one.tried.leads for one in tried.results)
    if tried.best is not None:
        rest = f"; {leaders} are equally good" if leaders > 1 else ""
        out.note(f"`{tried.best}` answers best{rest}: `{tried.results[0].spec}`")
    elif tried.results:
        out.note(f"none beats the base alone on {tried.examples} examples")
    else:
        out.hint("no adapter matches; try other words, or fewer conditions")

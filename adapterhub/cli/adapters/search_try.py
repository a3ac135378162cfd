"""`adapt search --try`: try what a search found on a base, and order it by the measured loss."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from adapterhub.cli.completion.completing import complete_license
from adapterhub.cli.options.kinds import kind_of
from adapterhub.core.arguments import Top
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.api.steps.find.tried import Tried
    from adapterhub.cli.options.params import Session
    from adapterhub.core.specs import BaseSpec

F = TypeVar("F", bound=Callable[..., Any])
_COLUMNS: Final = ("", "name", "version", "loss", "of the gap", "form", "examples", "cpu s")
_NUMBERS: Final = ("loss", "of the gap", "examples", "cpu s")


@dataclass(frozen=True, slots=True, kw_only=True)
class TryOptions:
    """What `--try`, `--top` and `--yes` ask for; `examples` is None without `--try`."""

    examples: Path | None
    top: int | None
    yes: bool

    def ensure_sense(self, base: BaseSpec | None, limit: int | None) -> None:
        """Refuse what does not go together.

        Raises:
            UsageProblem: `--try` is without a base, or another option is without `--try`.
        """
        if self.examples is None and (self.top is not None or self.yes):
            raise UsageProblem(f"`{'--top' if self.top is not None else '--yes'}` is for `--try`")
        if self.examples is not None and limit is not None:
            raise UsageProblem("`--limit` shows so many; with `--try`, `--top` tries so many")
        if self.examples is not None and base is None:
            raise UsageProblem("`--try` needs a base to try on", hint="add `--base NAME`; `adapt base list` shows them")


def filter_options(command: F) -> F:
    """Add `--license`, `--signed` and `--tested`."""
    for option in (
        click.option("--tested", is_flag=True, help="Find adapters that bring recorded tests, passed or not."),
        click.option("--signed", is_flag=True, help="Find adapters with a signature, by any key."),
        click.option(
            "--license",
            default="",
            metavar="LICENCE",
            shell_complete=complete_license,
            help="Find adapters under exactly this licence, such as `apache-2.0`.",
        ),
    ):
        command = option(command)
    return command


def try_options(command: F) -> F:
    """Add `--try`, `--top` and `--yes`, which reach the command as `examples`, `top` and `yes`."""
    path = click.Path(dir_okay=False, path_type=Path)
    for option in (
        click.option("--yes", "-y", is_flag=True, help="With --try: fetch more than 200 MB without a prompt."),
        click.option("--top", type=kind_of(Top), metavar="N", help="With --try: try N of them [default: 8]."),
        click.option(
            "--try",
            "examples",
            type=path,
            metavar="FILE",
            help="Try the best on --base: order them by their loss on FILE, JSON Lines of prompt and answer.",
        ),
    ):
        command = option(command)
    return command


def search_and_try(
    session: Session,
    options: TryOptions,
    base: BaseSpec,
    remote: str | None,
    token: str | None,
    query: Mapping[str, Any],
    *,
    far: bool,
) -> None:
    """Search with the filters of `query`, try the first, and print them by their loss."""
    from adapterhub.api.steps.find.candidates import search_candidates
    from adapterhub.api.steps.find.trying import DEFAULT_TOP, try_candidates

    assert options.examples is not None
    most = options.top or DEFAULT_TOP
    found, lost = search_candidates(session, base, most, query, far=far, remote=remote, token=token)
    tried = try_candidates(
        session,
        query["text"],
        base,
        found,
        options.examples,
        left_out=lost,
        agree=None if options.yes is False and not sys.stdin.isatty() else _agreeing(yes=options.yes),
        bars=session.out,
    )
    session.out.result(tried.to_json(), lambda: _say(session, tried))


def _agreeing(*, yes: bool) -> Callable[[int, int], None]:
    def agree(builds: int, size_bytes: int) -> None:
        from adapterhub.api.steps.find.trying import ASK_ABOVE_BYTES
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

"""The options of `adapt merge` that set the method, the rank and the method's own parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.api.steps.merge_choice import AUTO, AUTO_ENERGY, CHOICE_FLAGS
from adapterhub.cli.options.cutting import energy_option, max_error_option
from adapterhub.cli.options.kinds import kind_of
from adapterhub.core.arguments import MergeSeed, Precision, Rank, Share
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem

    from adapterhub.cli.options.params import Session
    from adapterhub.weights.catalogue import Option

F = TypeVar("F", bound="Callable[..., Any]")


class MethodType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A merge method; its file is parsed, not imported."""

    name = "method"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the name."""
        from adapterhub.weights.catalogue import describe

        try:
            return describe(value).name
        except UsageProblem as problem:
            self.fail(f"{problem.message}\n{problem.hint}", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names of methods, with a summary for shells that show one."""
        from click.shell_completion import CompletionItem

        from adapterhub.weights.catalogue import describe, names

        return [CompletionItem(name, help=describe(name).summary) for name in names() if name.startswith(incomplete)]


class RankType(click.ParamType):  # type: ignore[type-arg]  # as above
    """A rank, or `auto`."""

    name = "rank"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """A whole number of at least 1, or `auto`."""
        if value == AUTO:
            return AUTO
        rank: int = kind_of(Rank).convert(value, param, ctx)
        return rank

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The word `auto`."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(AUTO)] if AUTO.startswith(incomplete) else []


def choice_options(command: F) -> F:
    """Add `--method`, `--rank`, `--energy`, `--max-error`, `--density`, `--seed`, `-O` and `--dtype`."""
    for option in (
        click.option(
            "--dtype",
            type=kind_of(Precision),
            help="Precision of the result [default: float32, which keeps the sum exact].",
        ),
        click.option(
            "-O",
            "--option",
            "more",
            multiple=True,
            metavar="NAME=VALUE",
            shell_complete=_option_names,
            help="Set another option of the method; may be repeated.",
        ),
        click.option(
            "--seed",
            type=kind_of(MergeSeed),
            metavar="N",
            help="Seed for methods that drop numbers at random [default: 0].",
        ),
        click.option(
            "--density",
            type=kind_of(Share),
            metavar="D",
            help="Share of the numbers that a pruning method keeps [default: 0.5].",
        ),
        max_error_option,
        energy_option,
        click.option(
            "--rank", type=RankType(), metavar="N|auto", help=f"Rank of the result; `auto` is --energy {AUTO_ENERGY}."
        ),
        click.option(
            "--method",
            type=MethodType(),
            metavar="METHOD",
            help="`cat` is exact, `svd` is closest at a given rank; --methods lists all "
            "[default: cat; svd with --rank, --energy or --max-error].",
        ),
    ):
        command = option(command)
    return command


def named_option(text: str) -> tuple[str, str]:
    """The name and the value of `-O NAME=VALUE`."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name:
        raise UsageProblem(f"-O `{text}`: expected NAME=VALUE, such as `majority=frequency`")
    if name in CHOICE_FLAGS and name != "density":
        raise UsageProblem(f"-O `{text}`: write `{CHOICE_FLAGS[name]} {value}`")
    return name, value


def _option_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from adapterhub.weights.catalogue import describe, names

    method = ctx.params.get("method")
    options = {o.name for m in ([method] if method else names()) for o in describe(m).options}
    return [CompletionItem(f"{name}=") for name in sorted(options - {"seed"}) if name.startswith(incomplete)]


def _option_text(option: Option) -> str:
    """`density=0.5`, `majority=total|frequency` or `keep=int`: the default, the choices (it leads), or the type."""
    if option.choices:
        return f"{option.name}=" + "|".join(sorted(option.choices, key=lambda choice: choice != option.default))
    default = option.kind.removesuffix(" | None") if option.default is None else str(option.default).lower()
    return f"{option.name}={default}"


def list_methods(session: Session) -> None:
    """Every method with its options."""
    from adapterhub.weights.catalogue import describe, names

    methods = [describe(name) for name in names()]
    rows = [(m.name, m.summary, ", ".join(_option_text(o) for o in m.options)) for m in methods]
    session.out.result(
        [method.to_json() for method in methods], lambda: session.out.table(("method", "result", "options"), rows)
    )
    if not session.out.as_json:
        session.out.note("every method also takes --rank, --energy or --max-error; `adapt merge --help` has examples")

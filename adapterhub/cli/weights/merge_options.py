"""The options of `adapt merge` that choose how: method, rank, and what each method takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from adapterhub.cli.options.cutting import energy_option, max_error_option
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from click.shell_completion import CompletionItem

    from adapterhub.cli.options.params import Session
    from adapterhub.weights.catalogue import Option

F = TypeVar("F", bound="Callable[..., Any]")

AUTO: Final = "auto"
AUTO_ENERGY: Final = 0.99
"""What `--rank auto` keeps of the squared norm: an error of 10 % in each module."""


class MethodType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A merge method; their files are read, none is imported."""

    name = "method"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the name."""
        from adapterhub.weights.catalogue import describe

        try:
            return describe(value).name
        except UsageProblem as problem:
            self.fail(f"{problem.message}\n{problem.hint}", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's signature
        """Names, with what each does where the shell shows it."""
        from click.shell_completion import CompletionItem

        from adapterhub.weights.catalogue import describe, names

        return [CompletionItem(name, help=describe(name).summary) for name in names() if name.startswith(incomplete)]


class RankType(click.ParamType):  # type: ignore[type-arg]  # as above
    """A rank, or `auto`."""

    name = "rank"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:  # noqa: ANN401 - click's signature
        """A whole number of at least 1, or `auto`."""
        if value == AUTO:
            return AUTO
        return click.IntRange(min=1).convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's signature
        """The one word there is."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(AUTO)] if AUTO.startswith(incomplete) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How to merge: a method, its options with the choice of the rank among them, a dtype and a seed."""

    method: str
    options: dict[str, object]
    dtype: str | None
    seed: int | None


def choice_options(command: F) -> F:
    """`--method`, `--rank`, `--energy`, `--max-error`, `--density`, `--seed`, `-O`, `--dtype`."""
    for option in (
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            help="Precision of the result [default: float32, which keeps the sum exact].",
        ),
        click.option(
            "-O",
            "--option",
            "more",
            multiple=True,
            metavar="NAME=VALUE",
            shell_complete=_option_names,
            help="Another option of the method; may be repeated.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, (1 << 53) - 1),
            metavar="N",
            help="Seed of a method that drops numbers at random [default: 0].",
        ),
        click.option(
            "--density",
            type=click.FloatRange(0, 1, min_open=True),
            metavar="D",
            help="Share of the numbers that a method which prunes keeps [default: 0.5].",
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
            help="`cat` is exact, `svd` closest at a rank; --methods lists all "
            "[default: cat; svd with --rank, --energy or --max-error].",
        ),
    ):
        command = option(command)
    return command


CHOICE_FLAGS: Final = {
    "method": "--method",
    "rank": "--rank",
    "energy": "--energy",
    "max_error": "--max-error",
    "density": "--density",
    "seed": "--seed",
    "more": "-O",
    "dtype": "--dtype",
}
"""What `choice_options` adds, by the names under which click passes them."""


def choice_from(
    *,
    method: str | None,
    rank: int | str | None,
    energy: float | None,
    max_error: float | None,
    density: float | None,
    seed: int | None,
    more: Sequence[str],
    dtype: str | None,
    is_tuned: bool = False,
) -> Choice:
    """What these options ask for together; a search of weights (`is_tuned`) has a use for the seed whatever the method.

    Raises:
        UsageProblem: two that exclude each other, or one that the method does not have.
    """
    from adapterhub.formats.documents import near_name
    from adapterhub.weights.catalogue import describe
    from adapterhub.weights.recipes.toml.values import converted, default_method, options_of

    given: dict[str, object] = _cut(rank, energy, max_error)
    about = describe(method or default_method(given))
    known = options_of(about)
    own = [("density", density)] if density is not None else []
    for name, value in [*own, *map(_named, more)]:
        if name in given:
            raise UsageProblem(f"`{name}` is given twice")
        if name not in known:
            raise _no_such_option(name, about.name, near_name(name, known))
        given[name] = converted(known[name], value)
    if seed is not None and not about.is_random and not is_tuned:
        raise UsageProblem(f"`{about.name}` draws nothing, so --seed means nothing to it")
    return Choice(method=about.name, options=given, dtype=dtype, seed=seed if about.is_random else None)


def _cut(rank: int | str | None, energy: float | None, max_error: float | None) -> dict[str, object]:
    """What chooses the rank; at most one of the three."""
    if rank == AUTO:
        rank = None
        energy = AUTO_ENERGY if energy is None and max_error is None else energy
    cuts: dict[str, object] = {"rank": rank, "energy": energy, "max_error": max_error}
    given = {name: value for name, value in cuts.items() if value is not None}
    if len(given) > 1:
        flags = " and ".join(CHOICE_FLAGS[name] for name in given)
        raise UsageProblem(f"{flags} choose the rank, each in its way; give one of them")
    return given


def _named(text: str) -> tuple[str, str]:
    """The name and the value of `-O NAME=VALUE`."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name:
        raise UsageProblem(f"-O `{text}`: expected NAME=VALUE, such as `majority=frequency`")
    if name in CHOICE_FLAGS and name != "density":
        raise UsageProblem(f"-O `{text}`: write `{CHOICE_FLAGS[name]} {value}`")
    return name, value


def _no_such_option(name: str, method: str, near: str) -> UsageProblem:
    from adapterhub.core.errors import shown
    from adapterhub.weights.catalogue import describe, names

    having = [other for other in names() if any(option.name == name for option in describe(other).options)]
    text = f"`{method}` has no option `{shown(name)}`{near}"
    hint = f"{', '.join(f'`{m}`' for m in having)} have it" if having and not near else ""
    return UsageProblem(text, hint=hint or "`adapt merge --methods` lists every method with its options")


def _option_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
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
    document = [
        {
            "name": m.name,
            "summary": m.summary,
            "options": [
                {"name": o.name, "kind": o.kind, "choices": list(o.choices), "default": o.default} for o in m.options
            ],
            "is_random": m.is_random,
            "chooses_rank": m.chooses_rank,
        }
        for m in methods
    ]
    rows = [(m.name, m.summary, ", ".join(_option_text(o) for o in m.options)) for m in methods]
    session.out.result(document, lambda: session.out.table(("method", "result", "options"), rows))
    if not session.out.as_json:
        session.out.note("each takes --rank, --energy or --max-error as well; `--help` shows how options are given")

"""`adapt compare`: compare adapters module by module and predict how well they merge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.combining import compared, ingredient, weights_from
from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import BASE, Session, common, needing
from adapterhub.cli.output import count_text, size_text
from adapterhub.core.arguments import Precision
from adapterhub.core.errors import UsageProblem, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adapterhub.cli.output import Output
    from adapterhub.core.specs import BaseSpec
    from adapterhub.weights.compare.similarity import Comparison, Energies, Forecast, ModuleComparison, Pair, Share
    from adapterhub.weights.recipes.combination import Ingredient

_FEW = 5
"""Reasons and kinds of modules listed in the text; `--json` lists all."""


@click.command()
@click.argument("adapters", nargs=-1, required=True, metavar="SPEC|FOLDER...", shell_complete=complete_spec_or_folder)
@click.option("--weights", metavar="W,W,...", help="Weights of the predicted merge [default: equal shares, sum 1].")
@click.option("--base", type=BASE, help="Use this base for specs that name none.")
@click.option(
    "--dtype",
    type=kind_of(Precision),
    default="float32",
    show_default=True,
    help="Precision of the predicted files.",
)
@click.option("--modules", is_flag=True, help="Show every module instead of one line for all layers.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    callback=needing("plot"),
    help="Draw a layers x modules heatmap to a .png, .svg or .pdf.",
)
@common
def compare(
    session: Session,
    adapters: tuple[str, ...],
    weights: str | None,
    base: BaseSpec | None,
    dtype: str,
    modules: bool,
    plot: Path | None,
) -> None:
    """Compare adapters by norm, cosine, spectrum, shared directions and opposite signs, and predict their merge.

    All figures but the signs are exact and come from small matrices. Signs are counted on a fixed sample of up to
    256 x 256 entries per module, with a standard error. `overlap out` and `overlap in` are the share of directions that
    both adapters write to and read from (0: none, 1: all), next to the share expected by chance.

    \b
    Examples:
      adapt compare legal-qa summarize
      adapt compare legal-qa ./out/legal-qa-2 --modules
      adapt compare a b c --weights 1,1,-0.5 --plot similarity.png
    """
    if len(adapters) == 1:
        raise UsageProblem("give at least two adapters to compare", hint="see the examples of `adapt compare --help`")
    numbers = weights_from(weights, adapters)
    library = session.project_library
    ingredients = [ingredient(library, a, w, base) for a, w in zip(adapters, numbers, strict=True)]
    show_comparison(session, ingredients, plot=plot, modules=modules, dtype=dtype)


def show_comparison(
    session: Session,
    ingredients: Sequence[Ingredient],
    *,
    plot: Path | None = None,
    modules: bool = False,
    dtype: str = "float32",
) -> None:
    """Print the comparison of `ingredients` as tables or JSON, and draw it if `plot` names a file; merges nothing.

    `modules` shows each module instead of one line for all layers; `dtype` is the precision of the predicted files.

    Raises:
        UsageProblem, NotAllowed: the picture cannot be written.
        MergeRefused, Malformed: the adapters cannot be compared.
    """
    if plot is not None:
        from adapterhub.weights.compare.heatmap import check_picture

        check_picture(plot)
    found = compared(session, ingredients, dtype, bars=session.out)
    for reason in found.obstacles[:_FEW]:
        session.out.warn(f"these adapters cannot be merged: {reason}")
    if len(found.obstacles) > _FEW:
        session.out.warn(f"and {len(found.obstacles) - _FEW} more reasons")
    for module, each in list(found.unlike.items())[:_FEW]:
        session.out.warn(f"`{shown(module)}` is skipped, because it differs: {each}")
    if len(found.unlike) > _FEW:
        session.out.warn(f"and {len(found.unlike) - _FEW} more modules are skipped")
    if plot is not None:
        from adapterhub.weights.compare.heatmap import write_picture

        write_picture(found, plot)

    def document() -> dict[str, Any]:
        document = found.to_json()
        for adapter, one in zip(document["adapters"], ingredients, strict=True):
            adapter["digest"] = one.digest
        return document | ({"plot": str(plot)} if plot is not None else {})

    session.out.result(document, lambda: _say(session.out, found, modules=modules))
    if plot is not None:
        session.out.note(f"wrote {plot}")


def _say(out: Output, found: Comparison, *, modules: bool) -> None:
    _say_adapters(out, found)
    if found.pairs:
        out.line()
        out.table(("pair", *_PAIR_COLUMNS), [(_at(pair), *_pair_cells(pair)) for pair in found.pairs], right=_RIGHT)
    if any(module.pairs for module in found.modules):
        out.line()
        (_say_modules if modules else _say_kinds)(out, found)
    _say_partial(out, found, each=modules)
    if found.forecast is not None:
        out.line()
        _say_forecast(out, found, found.forecast)


_PAIR_COLUMNS = ("cosine", "overlap out", "chance", "overlap in", "chance", "opposite signs", "cancels")
_RIGHT = (
    *_PAIR_COLUMNS,
    *("modules", "rank", "effective", "90 %", "99 %", "parameters", "norm"),
    *("norm 1", "norm 2", "error", "size"),
)


def _say_adapters(out: Output, found: Comparison) -> None:
    """Print one line per adapter; effective rank and energy ranks are means over its modules."""

    def mean(position: int, figure: Callable[[Energies], float]) -> str:
        figures = [figure(u) for m in found.modules if (u := m.updates[position]) is not None]
        return f"{math.fsum(figures) / len(figures):.1f}" if figures else "-"

    rows = [
        (
            i + 1,
            one.label,
            one.modules,
            one.rank,
            mean(i, lambda e: e.effective_rank),
            mean(i, lambda e: e.rank_of_energy(0.9)),
            mean(i, lambda e: e.rank_of_energy(0.99)),
            count_text(one.parameters),
            f"{one.norm:.4g}",
        )
        for i, one in enumerate(found.adapters)
    ]
    out.table(("", "adapter", "modules", "rank", "effective", "90 %", "99 %", "parameters", "norm"), rows, right=_RIGHT)


_FIGURES: dict[str, Callable[[ModuleComparison, Pair], float | None]] = {
    "norm 1": lambda module, pair: _norm(module, pair.first),
    "norm 2": lambda module, pair: _norm(module, pair.second),
    "cosine": lambda _, pair: pair.cosine,
    "overlap out": lambda _, pair: pair.overlap_left,
    "overlap in": lambda _, pair: pair.overlap_right,
    "opposite signs": lambda _, pair: pair.opposite.estimate.share,
    "cancels": lambda _, pair: pair.cancelled.estimate.share,
}


def _say_modules(out: Output, found: Comparison) -> None:
    rows = [
        (module.module, _at(pair), *(_number(figure(module, pair)) for figure in _FIGURES.values()))
        for module in found.modules
        for pair in module.pairs
    ]
    out.table(("module", "pair", *_FIGURES), rows, right=_RIGHT)


def _say_kinds(out: Output, found: Comparison) -> None:
    """Print the mean, least and greatest figure of each kind of module, over its layers and all pairs."""
    from adapterhub.formats.modules.places import place_of, short_names

    kinds: dict[str, list[ModuleComparison]] = {}
    for module in found.modules:
        if module.pairs:
            kinds.setdefault(place_of(module.module).kind, []).append(module)
    figures = dict(_FIGURES)
    if len(found.adapters) > 2:  # noqa: PLR2004 - the norms of a pair are no longer those of two adapters
        del figures["norm 1"], figures["norm 2"]
    names = short_names(kinds)
    rows = []
    for kind, modules in kinds.items():
        columns = [
            [value for module in modules for pair in module.pairs if (value := figure(module, pair)) is not None]
            for figure in figures.values()
        ]
        for word, fold in (("mean", lambda v: math.fsum(v) / len(v)), ("min", min), ("max", max)):
            cells = [_number(fold(values) if values else None) for values in columns]
            rows.append((names[kind], len(modules), word, *cells))
            if len(modules) == 1 and len(modules[0].pairs) == 1:
                break
    out.table(("module", "modules", "value", *figures), rows, right=_RIGHT)


def _say_partial(out: Output, found: Comparison, *, each: bool) -> None:
    """Print the modules that only some adapters have."""
    from adapterhub.formats.modules.places import place_of, short_names

    names = short_names(place_of(module.module).kind for module in found.modules)
    having: dict[tuple[int, ...], list[str]] = {}
    for module, positions in found.partial.items():
        having.setdefault(positions, []).append(module)
    for positions, modules in having.items():
        kinds = list(dict.fromkeys(names[place_of(module).kind] for module in modules))
        named = modules if each else kinds[:_FEW] + (["…"] if len(kinds) > _FEW else [])
        where = " and ".join(str(position + 1) for position in positions)
        out.line(f"only in {where}: {len(modules)} module{'s' * (len(modules) != 1)} ({', '.join(map(shown, named))})")


def _say_forecast(out: Output, found: Comparison, forecast: Forecast) -> None:
    formula = " + ".join(f"{a.weight:g} x {i}" for i, a in enumerate(found.adapters, 1) if a.weight)
    norms = " and ".join(f"{abs(a.weight) * a.norm:.4g}" for a in found.adapters if a.weight)
    out.line(f"merged as {formula}: norm {forecast.norm:.4g} from {norms}; {_estimate(forecast.cancelled)} cancels")
    rows = []
    for choice in forecast.choices:
        least, most = min(choice.ranks), max(choice.ranks)
        ranks = str(least) if least == most else f"{least}-{most}"
        rows.append((choice.options, ranks, f"{choice.relative_error:.2g}", size_text(choice.size_bytes)))
    out.table((f"adapt merge, {forecast.dtype}", "rank", "error", "size"), rows, right=_RIGHT)


def _pair_cells(pair: Pair) -> tuple[str, ...]:
    exact = (pair.cosine, pair.overlap_left, pair.chance_left, pair.overlap_right, pair.chance_right)
    return (*map(_number, exact), _estimate(pair.opposite), _estimate(pair.cancelled))


def _at(pair: Pair) -> str:
    return f"{pair.first + 1}, {pair.second + 1}"


def _norm(module: ModuleComparison, position: int) -> float:
    update = module.updates[position]
    return 0.0 if update is None else update.norm


def _number(value: float | None) -> str:
    """Four decimals below 10, else four significant digits."""
    if value is None:
        return "-"
    return f"{round(value, 4) + 0.0:.4f}" if abs(value) < 10 else f"{value:.4g}"  # noqa: PLR2004 - digits


def _estimate(share: Share) -> str:
    """`0.4998 ± 0.0002`; no error when every entry was counted."""
    value, error = share.estimate
    return f"{value:.4f} ± {error:.1g}" if error else f"{value:.4f}"

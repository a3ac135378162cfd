"""`adapt compare`: compare adapters by module, predict their merge, show how two differ, or find similar ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.making import base_option, weights_option
from adapterhub.cli.options.params import Session, common, needing, remote_option
from adapterhub.cli.output import count_text, json_text, size_text
from adapterhub.core.arguments import Cosine, Precision
from adapterhub.core.errors import UsageProblem, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from adapterhub.cli.output import Output
    from adapterhub.distribution.hub import AlikeThere
    from adapterhub.formats.derived.algebra import Energies, Share
    from adapterhub.formats.derived.comparison import ComparedPair, Comparison, Forecast, ModuleComparison
    from adapterhub.library.find.likeness import Likeness, LikenessGroups, Similar
    from adapterhub.weights.compare.difference import Difference, Field, Weights

_SHOWN = 0.5
_FEW = 5
"""Reasons, modules and kinds of modules listed in the text; `--json` lists all."""


@click.command()
@click.argument("adapters", nargs=-1, metavar="[SPEC|FOLDER...]", shell_complete=complete_spec_or_folder)
@weights_option
@base_option
@click.option(
    "--dtype",
    type=kind_of(Precision),
    default="float32",
    show_default=True,
    help="Precision of the predicted files.",
)
@click.option("--modules", is_flag=True, help="Show every module, not one line for all layers.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    callback=needing("plot"),
    help="Draw a layers x modules heatmap to a .png, .svg or .pdf.",
)
@click.option("--diff", is_flag=True, help="Show exactly how two differ: files, config, manifest and updates.")
@click.option(
    "--above",
    type=kind_of(Cosine),
    metavar="COSINE",
    help=f"Of one: list cosines from here on [default: {_SHOWN}; 0.99 for groups, 0.9 with --remote].",
)
@remote_option
@common
def compare(session: Session, adapters: tuple[str, ...], modules: bool, **options: Any) -> None:
    """Compare adapters by norm, cosine, spectrum, shared directions and opposite signs, and predict their merge.

    All figures but the signs are exact and come from small matrices. Signs are counted on a fixed sample of up to
    256 x 256 entries per module, with a standard error. `overlap out` and `overlap in` are the share of directions that
    both adapters write to and read from (0: none, 1: all), next to the share expected by chance.

    The relative difference of --diff is the Frobenius norm of the difference of both updates, divided by the norm of
    the first. Updates that are equal but factored or ordered differently count as the same.

    An adapter that is not installed is read from the server of `adapt install`; with --remote, every SPEC is read from
    that server. The library does not change.

    For one adapter, finds installed adapters with a similar update, under any name, precision, scale or rank.
    `same update`: a cosine of 0.9995 or more. `negated`: its opposite. `near`: 0.9 or more, as another seed of one
    recipe, an earlier checkpoint or a noisy copy has. `related`: 0.5 or more. Each cosine is exact, from the files.
    A near update does not prove copying. Its parents are installed adapters of which the update is a weighted sum,
    whether its manifest names them or not; each carries at least 5 % of its norm. Without an adapter, everything that
    is installed is grouped. With --remote, a registry lists adapters similar to one of its releases, by estimated
    cosines.

    \b
    Examples:
      adapt compare ./out/legal-qa --above 0.9
      adapt compare legal-qa summarize
      adapt compare legal-qa ./out/legal-qa-2 --modules
      adapt compare a b c --weights 1,1,-0.5 --plot similarity.png
      adapt compare legal-qa==1.0 legal-qa==1.1 --diff
      adapt compare acme/legal-qa==1.0 acme/legal-qa==1.1 --diff --remote ours
    """
    if modules and len(adapters) < 2:
        raise UsageProblem("`--modules` is for two adapters or more", hint="name a second adapter, or drop `--modules`")
    found: Any = session.opened.compare(*adapters, **options)
    if options["diff"]:
        _report_difference(session, found, modules=modules)
    elif len(adapters) > 1:
        _report(session, found, modules=modules)
    else:
        _report_alike(session, found, adapters, options)


def _report_alike(session: Session, found: Any, adapters: Sequence[str], options: Mapping[str, Any]) -> None:
    def say() -> None:
        if options["remote"] is not None:
            _say_there(session, found)
        elif adapters:
            _say_alike(session, found, options["above"])
        else:
            _say_groups(session, found)

    session.out.result(found.to_json(), say)


def _report(session: Session, found: Comparison, *, modules: bool) -> None:
    for reason in found.obstacles[:_FEW]:
        session.out.warn(f"these adapters cannot be merged: {reason}")
    if len(found.obstacles) > _FEW:
        session.out.warn(f"and {len(found.obstacles) - _FEW} more reasons")
    for module, each in list(found.unlike.items())[:_FEW]:
        session.out.warn(f"`{shown(module)}` is skipped, because it differs: {each}")
    if len(found.unlike) > _FEW:
        session.out.warn(f"and {len(found.unlike) - _FEW} more modules are skipped")
    session.out.result(found.to_json(), lambda: _say(session.out, found, modules=modules))
    if found.plot is not None:
        session.out.note(f"wrote {found.plot}")


def _report_difference(session: Session, found: Difference, *, modules: bool) -> None:
    session.out.result(found.to_json(), lambda: _say_difference(session.out, found, modules=modules))
    for caveat in found.weights.caveats if found.weights else ():
        session.out.warn(caveat)


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


_FIGURES: dict[str, Callable[[ModuleComparison, ComparedPair], float | None]] = {
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
    from adapterhub.formats.modules import place_of, short_names

    kinds: dict[str, list[ModuleComparison]] = {}
    for module in found.modules:
        if module.pairs:
            kinds.setdefault(place_of(module.module).kind, []).append(module)
    figures = dict(_FIGURES)
    if len(found.adapters) > 2:
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
    from adapterhub.formats.modules import place_of, short_names

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


def _pair_cells(pair: ComparedPair) -> tuple[str, ...]:
    exact = (pair.cosine, pair.overlap_left, pair.chance_left, pair.overlap_right, pair.chance_right)
    return (*map(_number, exact), _estimate(pair.opposite), _estimate(pair.cancelled))


def _at(pair: ComparedPair) -> str:
    return f"{pair.first + 1}, {pair.second + 1}"


def _norm(module: ModuleComparison, position: int) -> float:
    update = module.updates[position]
    return 0.0 if update is None else update.norm


def _number(value: float | None) -> str:
    """Format with four decimals below 10, otherwise with four significant digits."""
    if value is None:
        return "-"
    return f"{round(value, 4) + 0.0:.4f}" if abs(value) < 10 else f"{value:.4g}"


def _estimate(share: Share) -> str:
    """`0.4998 ± 0.0002`; no error when every entry was counted."""
    value, error = share.estimate
    return f"{value:.4f} ± {error:.1g}" if error else f"{value:.4f}"


# ---------------------------------------------------------------- --diff
def _say_difference(out: Output, difference: Difference, *, modules: bool) -> None:
    out.line(_summary(difference))
    rows: list[tuple[object, ...]] = [
        ("file", pair.path, pair.first or "absent", pair.second or "absent")
        for pair in difference.files
        if pair.first != pair.second
    ]
    rows += [_row("config", field) for field in difference.config]
    rows += [_row("manifest", field) for field in difference.manifest or ()]
    if difference.base.name not in ("SAME_WEIGHTS", "UNKNOWN"):
        rows.append(("base", difference.base.name, "", ""))
    if rows:
        out.line()
        out.table(("what", "name", "first", "second"), rows)
    if difference.weights is not None and not difference.weights.is_same:
        out.line()
        _say_weights(out, difference.weights, modules=modules)


def _summary(difference: Difference) -> str:
    weights = difference.weights
    if difference.is_identical:
        return "identical: every file has the same bytes"
    if weights is None:
        return "same update: weights and config are the same, other files differ"
    if weights.is_same:
        return "same update, stored differently: no module differs by more than rounding"
    compared, unlike = len(weights.modules) + len(weights.others), len(weights.unlike)
    if not compared:
        return "cannot compare the updates: no tensor has the same shape in both"
    relative = weights.whole.relative
    size = f"{relative:.4g} of the first's norm" if relative is not None else f"norm {weights.whole.apart:.4g}"
    return (
        f"the updates differ by {size} "
        f"(norms {weights.whole.first:.4g} and {weights.whole.second:.4g}, difference {weights.whole.apart:.4g})"
        + (f", without {unlike} modules of other shapes" if unlike else "")
    )


def _say_weights(out: Output, weights: Weights, *, modules: bool) -> None:
    changed = [one for one in (*weights.modules, *weights.others) if one.apart]
    shown_ones = changed if modules else changed[:_FEW]
    rows = [
        (one.name, _digits(one.first), _digits(one.second), _digits(one.apart), _digits(one.relative))
        for one in shown_ones
    ]
    columns = ("module", "norm 1", "norm 2", "difference", "relative")
    if rows:
        out.table(columns, rows, right=columns[1:])
    if len(changed) > len(shown_ones):
        out.line(f"and {len(changed) - len(shown_ones)} more that differ")
    same = len(weights.modules) + len(weights.others) - len(changed)
    if same:
        out.line(f"{same} are the same")
    for name, why in list(weights.unlike.items())[: None if modules else _FEW]:
        out.line(f"{shown(name)}: {shown(why, 200)}")


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _row(what: str, field: Field) -> tuple[object, ...]:
    return what, field.name, _text(field.first), _text(field.second)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json_text(value)


# ---------------------------------------------------------------- one adapter, or none
def _say_alike(session: Session, found: Likeness, above: float | None) -> None:
    if found.similar:
        session.out.table(
            ("kind", "adapter", "cosine", "what is different"), [_alike_row(one) for one in found.similar]
        )
    else:
        least = _SHOWN if above is None else above
        session.out.line(f"nothing like it among {found.compared} installed adapters (cosine {least:g} or more)")
    if found.parents:
        parts = " ".join(
            f"{'-' if one.weight < 0 else '+'} {abs(one.weight):.3g} {one.build.full_name} {one.build.version}"
            for one in found.parents
        )
        left = found.unexplained or 0.0
        session.out.line(
            f"{'a sum of' if found.is_plain_sum else 'mostly'} {parts.removeprefix('+ ')}, unexplained {left:.1%}"
        )
        undeclared = [f"{one.build.full_name} {one.build.version}" for one in found.parents if not one.declared]
        if undeclared:
            session.out.line(f"not declared as parents: {', '.join(undeclared)}")
        if found.turned:
            session.out.hint("a part has a higher rank: it may rather be made from this adapter")
    for name, reason in found.without.items():
        session.out.detail(f"not compared: {shown(name)}: {shown(reason)}")


def _say_there(session: Session, found: AlikeThere) -> None:
    if found.state == "waiting":
        session.out.line("the server has not read these weights yet; ask again in a minute")
    elif not found.similar:
        session.out.line("nothing like it on this server" if found.state == "made" else "it has no update to compare")
    else:
        rows = [
            (
                one.repo,
                one.version or one.commit[:12],
                f"about {one.cosine:.2f}",
                "" if one.same_base else "another base",
            )
            for one in found.similar
        ]
        session.out.table(("adapter", "version", "cosine", "what is different"), rows)


def _alike_row(one: Similar) -> tuple[object, ...]:
    cosine = f"{one.cosine:.4f}" if one.exact else f"about {one.cosine:.2f}"
    partly = () if one.modules_shared == one.modules else (f"{one.modules_shared} of {one.modules} modules",)
    name = f"{one.build.full_name} {one.build.version}"
    return one.kind, name, cosine, ", ".join((*one.scale_words, *one.notes, *partly))


def _say_groups(session: Session, found: LikenessGroups) -> None:
    if not found.groups:
        session.out.line(f"no two installed adapters have a cosine of {found.above:g} or more")
    for at, group in enumerate(found.groups):
        if at:
            session.out.line()
        session.out.table(
            ("kind", "adapter", "cosine", "what is different"), [_alike_row(one) for one in group.members]
        )

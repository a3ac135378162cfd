"""Draws a comparison: layers down, kinds of modules across, one panel for each figure.

Needs matplotlib from the extra `adapterhub[plot]`, imported only when a picture is drawn, and no display.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.disk.files import new_file, output_place
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.core.extras import require
from adapterhub.formats.modules import place_of, short_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from adapterhub.formats.derived.comparison import Comparison, ModuleComparison

FORMATS: Final = (".png", ".svg", ".pdf")
PANELS_OF_PAIRS: Final = 10
"""More pairs than this are summed up as their mean, least and greatest cosine."""

_ELSEWHERE = "-"
_LABELLED = 60
_LEAST_LIMIT = 0.05
"""The least end of a scale; unrelated adapters are far below and would look similar on a scale of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One figure of every module: `values[row][column]`, None without a value; a signed scale is centred on zero."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    is_signed: bool
    limit: float


def check_picture(path: Path) -> None:
    """Raise unless a picture can be written to `path`; call it before any work.

    Raises:
        UsageProblem: unknown format, or no such folder.
        MissingExtra: matplotlib is not installed.
    """
    output_place(path)
    if path.suffix.lower() not in FORMATS:
        raise UsageProblem(
            f"`{shown(str(path), 200)}` is not a picture file; expected a name that ends in {', '.join(FORMATS)}"
        )
    if not path.absolute().parent.is_dir():
        raise UsageProblem(f"no folder `{shown(str(path.absolute().parent), 200)}`", hint="create the folder first")
    require("plot", "a picture")


def write_picture(comparison: Comparison, path: Path) -> None:
    """Draw `comparison` into a file, which appears complete or not at all and replaces an existing one.

    Raises:
        UsageProblem, MissingExtra: as `check_picture`.
        DiskFull, NotAllowed: the file cannot be written; see `new_file`.
    """
    check_picture(path)
    figure = draw(panels_of(comparison), _title(comparison))
    with new_file(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the font draws unknown characters as boxes
        figure.savefig(partial, format=path.suffix[1:].lower())


def panels_of(comparison: Comparison) -> tuple[Panel, ...]:
    """Return the panels: for two adapters cosine, overlaps and norms.

    For more, the cosine of each pair; for one, its norm.
    """
    modules = comparison.modules
    count = len(comparison.adapters)

    def norm(position: int) -> Callable[[ModuleComparison], float | None]:
        def value(module: ModuleComparison) -> float | None:
            update = module.updates[position]
            return None if update is None else update.norm

        return value

    def cosines(module: ModuleComparison) -> list[float]:
        return [pair.cosine for pair in module.pairs if pair.cosine is not None]

    def cosine(at: tuple[int, int]) -> Callable[[ModuleComparison], float | None]:
        return lambda module: next((p.cosine for p in module.pairs if (p.first, p.second) == at), None)

    overlaps: dict[str, Callable[[ModuleComparison], float | None]] = {
        "overlap out": lambda module: next((pair.overlap_left for pair in module.pairs), None),
        "overlap in": lambda module: next((pair.overlap_right for pair in module.pairs), None),
    }
    norms = {f"norm of {i + 1}": norm(i) for i in range(count)}
    if count == 1:
        return _panels(modules, norms, is_signed=False)
    if len(comparison.pairs) == 1:
        return (
            *_panels(modules, {"cosine": cosine((0, 1))}, is_signed=True, least=_LEAST_LIMIT),
            *_panels(modules, overlaps, is_signed=False, least=_LEAST_LIMIT),
            *_panels(modules, norms, is_signed=False),
        )
    if len(comparison.pairs) <= PANELS_OF_PAIRS:
        pairs = [(pair.first, pair.second) for pair in comparison.pairs]
        return _panels(
            modules,
            {f"cosine of {i + 1} and {j + 1}": cosine((i, j)) for i, j in pairs},
            is_signed=True,
            least=_LEAST_LIMIT,
        )

    def folded(fold: Callable[[list[float]], float]) -> Callable[[ModuleComparison], float | None]:
        return lambda module: fold(values) if (values := cosines(module)) else None

    folds = {
        "mean cosine of all pairs": folded(lambda values: math.fsum(values) / len(values)),
        "least cosine": folded(min),
        "greatest cosine": folded(max),
    }
    return _panels(modules, folds, is_signed=True, least=_LEAST_LIMIT)


def _panels(
    modules: Sequence[ModuleComparison],
    values: dict[str, Callable[[ModuleComparison], float | None]],
    *,
    is_signed: bool,
    least: float = 0.0,
) -> tuple[Panel, ...]:
    """One panel for each function, on one scale that reaches at least `least`."""
    places = {module.module: place_of(module.module) for module in modules}
    kinds = list(dict.fromkeys(place.kind for place in places.values()))
    names = short_names(kinds)
    layers = sorted({p.layer for p in places.values()}, key=lambda n: math.inf if n is None else n)
    grids = []
    for value in values.values():
        cells: dict[tuple[int | None, str], list[float]] = {}
        for module in modules:
            number, place = value(module), places[module.module]
            if number is not None:
                cells.setdefault((place.layer, place.kind), []).append(number)
        grids.append(tuple(tuple(_mean(cells.get((layer, kind), ())) for kind in kinds) for layer in layers))
    magnitudes = [abs(cell) for grid in grids for row in grid for cell in row if cell is not None]
    return tuple(
        Panel(
            title=title,
            rows=tuple(_ELSEWHERE if layer is None else str(layer) for layer in layers),
            columns=tuple(names[kind] for kind in kinds),
            values=grid,
            is_signed=is_signed,
            limit=max([least, *magnitudes]) or 1.0,
        )
        for title, grid in zip(values, grids, strict=True)
    )


def _mean(values: Iterable[float]) -> float | None:
    """Return the mean of a cell, which several modules of one kind in a layer (experts) share."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None


def draw(panels: Sequence[Panel], title: str) -> Figure:
    """Return a figure of the panels in rows."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    across = min(len(panels), 5)
    down = -(-len(panels) // across)
    rows, columns = len(panels[0].rows), len(panels[0].columns)
    width, height = 1.4 + min(0.34 * columns, 12.0), 1.6 + min(0.2 * max(rows, 4), 10.0)
    with mpl.rc_context({"text.parse_math": False, "font.size": 8}):
        figure = Figure(figsize=(max(across * width, 4.5), down * height + 0.5), dpi=150, layout="constrained")
        figure.suptitle(title)
        for at, (axes, panel) in enumerate(
            zip(figure.subplots(down, across, squeeze=False).flat, panels, strict=False)
        ):
            cells = [[math.nan if cell is None else cell for cell in row] for row in panel.values]
            colours = mpl.colormaps["RdBu_r" if panel.is_signed else "viridis"].with_extremes(bad="0.85")
            low = -panel.limit if panel.is_signed else 0.0
            image = axes.imshow(cells, aspect="auto", interpolation="nearest", cmap=colours, vmin=low, vmax=panel.limit)
            axes.set_title(panel.title)
            step = -(-columns // _LABELLED)
            axes.set_xticks(range(0, columns, step), [shown(n, 40) for n in panel.columns[::step]], rotation=90)
            step = -(-rows // _LABELLED)
            axes.set_yticks(range(0, rows, step), panel.rows[::step])
            if at % across == 0:
                axes.set_ylabel("layer")
            figure.colorbar(image, ax=axes, shrink=0.8)
        for axes in figure.axes[len(panels) : down * across]:
            axes.set_axis_off()
    return figure


def _title(comparison: Comparison) -> str:
    return "\n".join(f"{i}: {shown(adapter.label)}" for i, adapter in enumerate(comparison.adapters, 1))

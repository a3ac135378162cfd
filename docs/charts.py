"""Draws the charts of the pages: `python -m docs.charts [FILE …]`, from the root of the repository, in a moment.

The figures stand in `docs/explanation/charts.json`. A panel has lines, on axes that grow by powers of ten, or bars. The
colours follow the reader's light or dark theme. A FILE holds what benchmarks printed, such as `tests.bench.compare
--printed FILE` writes, or `python -m tests.bench.bench_bank | tee -a FILE`. Its numbers take the place of those of the
series: each regular expression of `found_by` finds one or more of them, in the order of the series. What is not in the
files keeps its number. So does a series without `found_by`: an earlier version measured it, or it is computed.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

FIGURES: Final = Path(__file__).resolve().parent / "explanation" / "charts.json"

WIDTH, HEIGHT, TITLE = 460, 320, 40
"""Of a panel, and the height of its title, in pixels."""
LEFT, RIGHT, BOTTOM = 56, 24, 44
BAR, GAP, NAMES, VALUES = 13, 9, 170, 56
"""The height of a bar, the gap between groups, and the room for the names and for the values."""

STYLE: Final = """
text{font:12px system-ui,sans-serif;fill:#1f2328}.t{font-size:14px;font-weight:600}.m{fill:#59636e}.e{text-anchor:end}
.c{text-anchor:middle}.g{stroke:#d1d9e0;fill:none}.l{fill:none;stroke-width:2}rect.p{fill:#fff}
.s0{stroke:#0969da}.s1{stroke:#bc4c00}.s2{stroke:#1a7f37}.f0{fill:#0969da}.f1{fill:#bc4c00}.f2{fill:#1a7f37}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.m{fill:#9198a1}.g{stroke:#3d444d}rect.p{fill:#0d1117}
.s0{stroke:#4493f8}.s1{stroke:#f0883e}.s2{stroke:#3fb950}.f0{fill:#4493f8}.f1{fill:#f0883e}.f2{fill:#3fb950}}
""".replace("\n", "")

Panel = dict[str, Any]
Series = Sequence[dict[str, Any]]


def text(x: float, y: float, words: str, style: str = "") -> str:
    """Return a piece of text; `style` holds the classes."""
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{style}">{escape(words)}</text>'


def legend(series: Series, x: float, y: float) -> Iterator[str]:
    """Yield the names of the series with their colours, below each other."""
    for number, one in enumerate(series):
        yield f'<rect x="{x:.0f}" y="{y + 16 * number - 9:.0f}" width="10" height="10" class="f{number}"/>'
        yield text(x + 16, y + 16 * number, one["name"])


def powers(values: Sequence[float]) -> range:
    """Return the exponents of the powers of ten around the values."""
    return range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)


def lines(panel: Panel) -> tuple[int, list[str]]:
    """Return the height of a panel of lines, and what it shows."""
    series: Series = panel["series"]
    points = [point for one in series for point in one["points"]]
    columns, rows = (powers([point[axis] for point in points]) for axis in (0, 1))
    top = TITLE + 16 * len(series)

    def x(value: float) -> float:
        share = (math.log10(value) - columns[0]) / max(1, columns[-1] - columns[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (math.log10(value) - rows[0]) / max(1, rows[-1] - rows[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - top)

    shown = []
    for power in columns:
        shown.append(f'<path class="g" d="M{x(10**power):.0f} {top}V{HEIGHT - BOTTOM}"/>')
        shown.append(text(x(10**power), HEIGHT - BOTTOM + 16, f"{10**power:,}", "m c"))
    for power in rows:
        label = f"{10**power:,}" if power >= 0 else f"{10**power:g}"
        shown.append(f'<path class="g" d="M{LEFT} {y(10**power):.0f}H{WIDTH - RIGHT}"/>')
        shown.append(text(LEFT - 6, y(10**power) + 4, label, "m e"))
    shown.append(text((LEFT + WIDTH) / 2, HEIGHT - 8, panel["x"], "m c"))
    for number, one in enumerate(series):
        path = "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value in one["points"])
        shown.append(f'<path class="l s{number}" d="M{path}"/>')
        shown += [
            f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="3" class="f{number}"/>' for at, value in one["points"]
        ]
    return HEIGHT, [*legend(series, LEFT, TITLE), *shown]


def bars(panel: Panel) -> tuple[int, list[str]]:
    """Return the height of a panel of bars from the left, a group for each name, and what it shows."""
    series: Series = panel["series"]
    most = max(value for one in series for value in one["values"])
    start = TITLE + (16 * len(series) if len(series) > 1 else 0)
    step = BAR * len(series) + GAP
    shown = list(legend(series, NAMES, TITLE)) if len(series) > 1 else []
    for place, name in enumerate(panel["names"]):
        top = start + step * place
        shown.append(text(NAMES - 8, top + (step - GAP) / 2 + 4, name, "e"))
        for number, one in enumerate(series):
            value, y = one["values"][place], top + BAR * number
            length = max(1.0, value / most * (WIDTH - NAMES - VALUES))
            shown.append(f'<rect x="{NAMES}" y="{y}" width="{length:.1f}" height="{BAR - 1}" class="f{number}"/>')
            shown.append(text(NAMES + length + 5, y + BAR - 1, f"{value:,}", "m"))
    return start + step * len(panel["names"]) + 4, shown


def svg(panels: Sequence[Panel]) -> str:
    """Return the panels side by side, as a file of SVG."""
    drawn = [(lines if "x" in panel else bars)(panel) for panel in panels]
    height = max(of_panel for of_panel, _ in drawn)
    parts = [f'<rect class="p" width="{WIDTH * len(panels)}" height="{height}"/>']
    for number, (panel, (_, shown)) in enumerate(zip(panels, drawn, strict=True)):
        inside = "\n".join([text(8, 18, panel["title"], "t"), *shown])
        parts.append(f'<g transform="translate({WIDTH * number} 0)">\n{inside}\n</g>')
    size = f'viewBox="0 0 {WIDTH * len(panels)} {height}" width="{WIDTH * len(panels)}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def renew(series: dict[str, Any], printed: str) -> int:
    """Put the numbers that were printed, the last ones, in place of those of the series; how many there were."""
    found: list[str] = []
    for pattern in (re.compile(text, re.MULTILINE) for text in series.get("found_by", ())):
        last = deque(pattern.finditer(printed), maxlen=1)
        found += last[0].groups() if last else [""] * pattern.groups
    renewed = 0
    for place, text_of in enumerate(found):
        if text_of.strip("-"):  # a bench prints a dash for what it left out
            digits = text_of.replace(",", "")
            number = float(digits) if "." in digits else int(digits)
            if "points" in series:
                series["points"][place][1] = number
            else:
                series["values"][place] = number
            renewed += 1
    return renewed


def written(value: Any, depth: int = 0) -> str:
    """JSON with one line for each list of numbers or texts."""
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {written(one, depth + 1)}" for key, one in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        parts = [written(one, depth + 1) for one in value]
    else:
        return json.dumps(value, ensure_ascii=False)
    start, end = "{}" if isinstance(value, dict) else "[]"
    inside = ",\n".join(" " * (depth + 1) + part for part in parts)
    return f"{start}\n{inside}\n{' ' * depth}{end}"


def all_figures() -> dict[str, list[Panel]]:
    """Return the panels of each chart."""
    found: dict[str, list[Panel]] = json.loads(FIGURES.read_text(encoding="utf-8"))
    return found


def charts() -> dict[Path, str]:
    """Every chart, by the file that it belongs in."""
    return {FIGURES.with_name(f"{name}.svg"): svg(panels) for name, panels in all_figures().items()}


def main(files: Sequence[str]) -> None:
    """Renew the figures by what the files hold, and draw."""
    if files:
        printed = "\n".join(Path(file).read_text(encoding="utf-8") for file in files)
        figures = all_figures()
        for panel in (panel for panels in figures.values() for panel in panels):
            for series in panel["series"]:
                count = len(series.get("points", series.get("values")))
                print(f"{panel['title']}, {series['name']}: {renew(series, printed)} of {count} renewed")  # noqa: T201
        FIGURES.write_text(written(figures) + "\n", encoding="utf-8")
    for path, drawn in charts().items():
        path.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

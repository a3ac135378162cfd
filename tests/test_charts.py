"""The charts of the pages show the committed figures."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from docs.charts import FIGURES, all_figures, charts, renew, svg, written


def test_charts_are_those_of_their_figures_and_shown_by_a_page() -> None:
    page = FIGURES.with_name("performance.md").read_text(encoding="utf-8")
    drawn = charts()

    assert {path: path.read_text(encoding="utf-8") for path in drawn} == drawn, "run `python -m docs.charts`"
    assert set(FIGURES.parent.glob("*.svg")) == set(drawn)
    assert all(f"]({path.name})" in page for path in drawn)


def test_a_chart_is_plain_svg_for_light_and_dark() -> None:
    lines = {"title": "a < b", "x": "k", "series": [{"name": "one", "points": [[1, 0.5], [100, 20]]}]}
    bars = {"title": "c", "names": ["x", "y"], "series": [{"name": "two", "values": [1, 2.5]}]}

    root = ET.fromstring(svg([lines, bars]))  # noqa: S314 - our own text

    assert {element.tag.rpartition("}")[2] for element in root.iter()} == {
        "svg", "style", "g", "rect", "text", "path", "circle",
    }  # fmt: skip
    words = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"a < b", "one", "x", "2.5", "100"} <= words
    assert "prefers-color-scheme:dark" in svg([lines])


def test_the_numbers_of_a_series_come_from_what_benchmarks_print() -> None:
    series = {
        "points": [[1, 5.0], [10, 6.0], [100, 7.0]],
        "found_by": [r"^ours +([\d.,]+|-) +([\d.,]+|-)", r"^big ([\d,]+)"],
    }

    assert renew(series, "ours 1.5 2\nother 9 9\nours 2.5 - 3\nbig 1,200 ms") == 2
    assert series["points"] == [[1, 2.5], [10, 6.0], [100, 1200.0]]
    assert renew({"values": [1.0]}, "ours 1.5 2") == 0


def test_each_series_has_a_number_for_each_that_benchmarks_print_and_the_file_is_written_as_it_is() -> None:
    figures = all_figures()

    assert written(figures) + "\n" == FIGURES.read_text(encoding="utf-8")
    for series in (one for panels in figures.values() for panel in panels for one in panel["series"]):
        count = sum(re.compile(pattern).groups for pattern in series.get("found_by", ()))
        assert count in {0, len(series.get("points", series.get("values")))}, series["name"]

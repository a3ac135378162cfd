"""The charts of the pages show the committed figures."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from docs.charts import FIGURES, charts, svg


def test_charts_are_those_of_their_figures_and_shown_by_a_page() -> None:
    page = FIGURES.with_name("measurements.md").read_text(encoding="utf-8")
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

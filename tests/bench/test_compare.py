"""The regression guard reads what commands print, and names what got worse."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.bench import compare
from tests.bench.compare import Figure, kept_figures, line, measured

PRINTS = "python -c \"print('ours 2.0 s, theirs 1.6 s, ratio 1.25')\""


def figure(ratio: float, better: str = "lower", found_by: str = r"ratio ([0-9.]+)") -> Figure:
    return Figure(name="ours, of theirs", ratio=ratio, better=better, command=PRINTS, found_by=found_by)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (figure(1.0), "WORSE by 25%"),
        (figure(1.2), "1.25"),
        (figure(2.0), "better by 38%"),
        (figure(2.0, "higher"), "WORSE by 60%"),
        (figure(1.0, found_by="no such line"), "which ends with: ours 2.0 s"),
    ],
)
def test_figure_is_read_from_the_output_and_judged_by_its_better_side(kept: Figure, said: str) -> None:
    [done] = measured([kept])
    [(_, now)] = done.figures

    assert said in line(kept, now)
    assert ("WORSE" in line(kept, now)) == ("WORSE" in said)


def test_every_kept_figure_has_a_pattern_with_one_group_and_a_name_of_its_own() -> None:
    import re

    figures = kept_figures()

    assert all(re.compile(one.found_by).groups == 1 and one.ratio > 0 for one in figures)
    assert len({one.name for one in figures}) == len(figures)


def test_what_ran_is_kept_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, printed = tmp_path / "ratios.json", tmp_path / "printed"
    other = replace(figure(3.0), name="other", command="python -c 'raise SystemExit'")
    file.write_text(json.dumps([asdict(figure(1.0)), asdict(other)]))
    monkeypatch.setattr(compare, "KEPT", file)
    monkeypatch.setattr(sys, "argv", ["compare", "--keep", "--printed", str(printed), "--only", "ours", "SystemExit"])

    compare.main()

    assert {one["name"]: one["ratio"] for one in json.loads(file.read_text())} == {
        "ours, of theirs": 1.25,
        "other": 3.0,
    }
    assert printed.read_text().startswith(f"$ {PRINTS}\nours 2.0 s")
    assert "not printed by" in capsys.readouterr().out

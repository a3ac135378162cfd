"""The regression guard reads what commands print, and names what got worse."""

from __future__ import annotations

import pytest

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
    [(_, now)] = measured([kept])

    assert said in line(kept, now)
    assert ("WORSE" in line(kept, now)) == ("WORSE" in said)


def test_every_kept_figure_has_a_pattern_with_one_group_and_a_name_of_its_own() -> None:
    import re

    figures = kept_figures()

    assert all(re.compile(one.found_by).groups == 1 and one.ratio > 0 for one in figures)
    assert len({one.name for one in figures}) == len(figures)

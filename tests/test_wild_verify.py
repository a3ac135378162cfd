"""Every adapter folder of the shared collection from public repositories: taken, or refused with a code and a reason.

With ADAPTERHUB_WILD_TABLE set to a file name, the table of (folder, verdict, codes, reason) is written there.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from adapterhub.verify import Finding, Report, verify_folder
from tests.shared_data import shared

EXPECTED = {
    ("refused", "E_CONTAINER"): 218,  # 213 configs without weights, 5 Git LFS pointers
    ("refused", "E_PICKLE"): 7,  # adapter_model.bin of 2023
    ("refused", "E_UNSUPPORTED"): 4,  # no config: MLX, kohya and diffusers, hand-written
    ("refused", "E_CONTAINER E_UNSUPPORTED"): 2,  # MLX configs without weights
    ("refused", "E_PICKLE E_UNSUPPORTED"): 1,  # AdapterHub's `adapters`
    ("refused", "E_PAIR"): 1,  # `classifier` both target and saved module: PEFT cannot load it either
    ("accepted", ""): 9,
    ("accepted", "W_FULL_WEIGHT"): 3,
    ("accepted", "U_METHOD"): 1,
    ("accepted", "W_RANK"): 1,  # tiny-gpt2 of width 2
    ("accepted", "W_NOOP"): 1,
    ("accepted", "W_TASK_TYPE"): 1,
}


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    wild = shared("wild")
    with (wild / "manifest.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    found = {row["folder"]: verify_folder(wild / row["folder"]) for row in rows}
    target = os.environ.get("ADAPTERHUB_WILD_TABLE")
    if target:
        with Path(target).open("w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["folder", "verdict", "codes", "reason"])
            for folder, report in found.items():
                table.writerow([folder, *verdict(report), "; ".join(str(f) for f in telling(report))])
    return found


def telling(report: Report) -> tuple[Finding, ...]:
    """The errors, or else what is open or warned of; that no base was given to compare goes without saying here."""
    rest = (f for f in (*report.unknowns, *report.warnings) if (f.code, f.where) != ("U_BASE", ""))
    return report.errors or tuple(rest)


def verdict(report: Report) -> tuple[str, str]:
    return "refused" if report.errors else "accepted", " ".join(sorted({f.code for f in telling(report)}))


def test_counts_of_verdicts(reports: dict[str, Report]) -> None:
    assert Counter(verdict(report) for report in reports.values()) == EXPECTED


def test_every_refusal_says_what_to_do(reports: dict[str, Report]) -> None:
    silent = [folder for folder, report in reports.items() if report.errors and not any(f.hint for f in report.errors)]

    assert silent == ["Kuntya__Udacity/c4b1f41/trainer_peft"]  # nothing helps but training it again


def test_facts_agree_with_what_was_measured(reports: dict[str, Report]) -> None:
    with (shared("wild") / "manifest.csv").open(encoding="utf-8") as stream:
        rows = {row["folder"]: row for row in csv.DictReader(stream)}
    taken = {folder: report for folder, report in reports.items() if not report.errors and report.facts}

    for folder, report in taken.items():
        row, facts = rows[folder], report.facts
        assert facts is not None
        assert str(facts.rank) == row["r"]
        assert f'"{facts.dtype}"' in row["dtypes"]
        if row["ranks_in_weights"]:
            assert row["ranks_in_weights"] == "{" + ", ".join(f'"{r}": {n}' for r, n in facts.ranks) + "}"
    assert len(taken) == 16


def test_what_peft_attaches_is_accepted(reports: dict[str, Report]) -> None:
    """Where weights are no pickle and PEFT 0.21.2 matched every key, we see no error."""
    with (shared("wild") / "manifest.csv").open(encoding="utf-8") as stream:
        attached = [r["folder"] for r in csv.DictReader(stream) if r["attach_to_base_shape"] == "all keys matched"]

    refused = {folder: verdict(reports[folder])[1] for folder in attached if reports[folder].errors}

    assert set(refused.values()) == {"E_PICKLE"}

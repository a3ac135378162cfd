"""Every adapter folder from public repositories, those kept here and the whole collection: taken, or refused with a reason.

With ADAPTERHUB_WILD_TABLE set to a file name, the table of (folder, verdict, codes, reason) is written there.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapterhub.trust.verify import Finding, Report, verify_folder
from tests.support.shared_data import shared
from tests.support.wild import KEPT, rows

EXPECTED_KEPT = {
    ("refused", "E_CONTAINER"): 194,  # configs without weights
    ("refused", "E_CONTAINER E_UNSUPPORTED"): 3,  # of an unreleased method (FINEGATES), without weights
    ("refused", "E_UNSUPPORTED"): 1,  # no config: hand-written
    ("accepted", ""): 2,
    ("accepted", "U_METHOD W_METHOD"): 1,
    ("accepted", "U_METHOD W_AUTO_MAPPING W_BASE_MISSING"): 2,  # toys of 2023: AdaLoRA and IA3
    ("accepted", "W_AUTO_MAPPING W_BASE_MISSING"): 2,
    ("accepted", "W_AUTO_MAPPING W_BASE_MISSING W_FULL_WEIGHT"): 1,
}
EXPECTED_SHARED = {
    ("refused", "E_CONTAINER"): 215,  # 210 configs without weights, 5 Git LFS pointers
    ("refused", "E_PICKLE"): 7,  # adapter_model.bin of 2023
    ("refused", "E_UNSUPPORTED"): 4,  # no config: MLX, kohya and diffusers, hand-written
    ("refused", "E_CONTAINER E_UNSUPPORTED"): 5,  # 2 of MLX and 3 of FINEGATES, without weights
    ("refused", "E_PICKLE E_UNSUPPORTED"): 1,  # AdapterHub's `adapters`
    ("refused", "E_PAIR"): 1,  # `classifier` both target and saved module: PEFT cannot load it either
    ("accepted", ""): 9,
    ("accepted", "W_FULL_WEIGHT"): 3,
    ("accepted", "U_METHOD W_METHOD"): 1,
    ("accepted", "W_RANK"): 1,  # tiny-gpt2 of width 2
    ("accepted", "W_NOOP"): 1,
    ("accepted", "W_TASK_TYPE"): 1,
}


@dataclass(frozen=True)
class Looked:
    """A collection, what is known of its folders, and what we say of them."""

    rows: dict[str, dict[str, str]]
    reports: dict[str, Report]
    expected: dict[tuple[str, str], int]


def look(collection: Path, expected: dict[tuple[str, str], int]) -> Looked:
    known = {row["folder"]: row for row in rows(collection)}
    reports = {folder: verify_folder(collection / folder) for folder in known}
    target = os.environ.get("ADAPTERHUB_WILD_TABLE")
    if target:
        with Path(target).open("w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["folder", "verdict", "codes", "reason"])
            for folder, report in reports.items():
                table.writerow([folder, *verdict(report), "; ".join(str(f) for f in telling(report))])
    return Looked(known, reports, expected)


@pytest.fixture(scope="module")
def looked() -> Looked:
    return look(KEPT, EXPECTED_KEPT)


def telling(report: Report) -> tuple[Finding, ...]:
    """The errors, or else what is open or warned of; that no base was given to compare goes without saying here."""
    rest = (f for f in (*report.unknowns, *report.warnings) if (f.code, f.where) != ("U_BASE", ""))
    return report.errors or tuple(rest)


def verdict(report: Report) -> tuple[str, str]:
    return "refused" if report.errors else "accepted", " ".join(sorted({f.code for f in telling(report)}))


def test_counts_of_verdicts(looked: Looked) -> None:
    assert Counter(verdict(report) for report in looked.reports.values()) == looked.expected


def test_every_refusal_says_what_to_do(looked: Looked) -> None:
    silent = {f for f, report in looked.reports.items() if report.errors and not any(e.hint for e in report.errors)}

    assert silent <= {"Kuntya__Udacity/c4b1f41/trainer_peft"}  # nothing helps but training it again


def test_facts_agree_with_what_was_measured(looked: Looked) -> None:
    taken = {folder: report for folder, report in looked.reports.items() if not report.errors and report.facts}

    for folder, report in taken.items():
        row, facts = looked.rows[folder], report.facts
        assert facts is not None
        assert row["r"] in (str(facts.rank), "")
        assert f'"{facts.dtype}"' in row["dtypes"]
        if facts.ranks:  # pairs: AdaLoRA's and IA3's are none
            assert row["ranks_in_weights"] == "{" + ", ".join(f'"{r}": {n}' for r, n in facts.ranks) + "}"
    assert len(taken) == sum(number for (said, _), number in looked.expected.items() if said == "accepted")


def test_what_peft_attaches_is_accepted(looked: Looked) -> None:
    """Where weights are no pickle and PEFT 0.21.2 matched every key, we see no error."""
    attached = [folder for folder, row in looked.rows.items() if row["attach_to_base_shape"] == "all keys matched"]

    refused = {folder: verdict(looked.reports[folder])[1] for folder in attached if looked.reports[folder].errors}

    assert attached
    assert set(refused.values()) <= {"E_PICKLE"}


def test_all_of_this_holds_for_the_whole_collection() -> None:
    looked = look(shared("wild"), EXPECTED_SHARED)

    for holds in (
        test_counts_of_verdicts,
        test_every_refusal_says_what_to_do,
        test_facts_agree_with_what_was_measured,
        test_what_peft_attaches_is_accepted,
    ):
        holds(looked)


def test_what_is_kept_is_what_the_manifest_says_and_holds_no_code() -> None:
    known = {row["folder"]: row for row in rows(KEPT)}
    digests = {}
    for folder, row in known.items():
        if row["config_sha256"]:
            digests[f"{folder}/adapter_config.json"] = row["config_sha256"]
        if row["weights_file"]:
            digests[f"{folder}/{row['weights_file']}"] = row["weights_sha256"]
    files = {p.relative_to(KEPT).as_posix(): p for p in KEPT.rglob("*") if p.is_file()}

    others = {name for name in files if name not in digests and not name.endswith("/output.safetensors")}
    assert others == {"README.md", "manifest.csv"}
    assert {name: hashlib.sha256(files[name].read_bytes()).hexdigest() for name in digests} == digests
    assert {row["licence"].split(" ")[0] for row in known.values()} == {"Apache-2.0", "MIT"}

"""Contracts of a trained adapter on its real base: what changes it, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.trained_contract import pirate_library


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
def test_a_trained_adapter_keeps_its_contract_at_half_its_rank_and_not_at_a_quarter(tmp_path: Path) -> None:
    adapt = pirate_library(tmp_path)
    half = adapt.json("resize", "pirate", "--rank", "2", "-o", "half", "--test")
    quarter = adapt.fails(3, "resize", "pirate", "--rank", "1", "-o", "quarter", "--test")

    assert [(one["name"], one["verdict"]) for one in half["tests"]] == [("pirate", "PASS")]
    assert "the result has changed. Nothing was written" in quarter
    assert {one.full_name for one in adapt.library.installed()} == {"pirate", "half"}

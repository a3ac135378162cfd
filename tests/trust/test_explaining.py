"""`adapt help codes`: every code that can be printed has an explanation, and a refusal names the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub import explain
from adapterhub.cli.completion.completing import complete_code
from adapterhub.core.errors import NotFound
from adapterhub.library.intake.staging import refused
from adapterhub.trust.explaining import explanations
from adapterhub.trust.verify import Finding
from tests.support.command_line import Adapt


def test_a_code_in_any_case_an_exit_code_and_an_error_class_are_explained() -> None:
    assert explain("e_pickle") is explain("E_PICKLE")
    assert explain("SignatureRefused") is explain(14) is explain("14")
    assert "SignatureRefused" in explain(14).raised


def test_every_error_and_unknown_says_what_to_do() -> None:
    assert [one.code for one in explanations().values() if one.kind in {"error", "unknown"} and not one.remedy] == []


def test_an_unknown_code_names_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean `E_SHAPE`"):
        explain("E_SHAP")
    with pytest.raises(NotFound, match="no finding, exit code or error is called `99`"):
        explain(99)


def test_the_command_prints_several_or_all(tmp_path: Path) -> None:
    adapt = Adapt(tmp_path)
    said = adapt.ok("explain", "E_RANK", "11")

    assert said.index("E_RANK (error)") < said.index("11 (exit code)")
    assert "To do: " in said
    assert [one["code"] for one in json.loads(adapt.ok("explain", "--json"))] == list(explanations())


def test_a_refusal_without_a_hint_of_its_own_names_the_explanation() -> None:
    found = Finding("E_ALPHA", "x.safetensors", "alpha is 0")

    assert refused("x", [found]).hint == "`adapt help E_ALPHA` says what to do"


def test_codes_are_completed() -> None:
    assert [item.value for item in complete_code(None, None, "E_BESIDE")] == ["E_BESIDE_CODE", "E_BESIDE_PICKLE"]

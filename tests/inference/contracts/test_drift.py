"""Drift: a damage that leaves the answers is seen, in units of what the adapter does, and noise is not taken for one."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import find_installed
from adapterhub.formats.contract.contract import Golden, packed_odds
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.contract.results import Attested
from adapterhub.formats.manifest import CONTRACT_FILE, WEIGHTS_FILE
from adapterhub.inference.contracts.drift import Rounded, asked_alone, drift, rounded_by
from tests.support.command_line import Adapt
from tests.support.contracts import SOME, recorded_library

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """No test changes the build `a`."""
    return recorded_library(tmp_path_factory.mktemp("drift"))


def result_of(adapt: Adapt, exit_code: int, *arguments: object) -> dict[str, Any]:
    done = adapt("test", *arguments, "--json")
    assert done.exit_code == exit_code, done.stdout + done.stderr
    (result,) = json.loads(done.stdout)
    return dict(result)


def folder_of(adapt: Adapt) -> Path:
    return find_installed(adapt.library, AdapterSpec.parse("a"))[0].folder


def changed(adapt: Adapt, folder: Path, change: Callable[[Tensor], Tensor]) -> Path:
    """A copy of `a` with its contract and other `lora_B`."""
    shutil.copytree(folder_of(adapt), folder)
    (folder / "adapterhub.json").unlink()
    tensors = {k: change(t) if "lora_B" in k else t for k, t in load_file(folder / WEIGHTS_FILE).items()}
    (folder / WEIGHTS_FILE).unlink()  # a link into the store
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


def test_an_adapter_as_recorded_has_no_drift_and_its_numbers_are_stated(adapt: Adapt, tmp_path: Path) -> None:
    found = result_of(adapt, 0, "a", "--statement", tmp_path / "s.json")
    said = Attested.parse((tmp_path / "s.json").read_bytes())

    assert (found["verdict"], found["has_drifted"]) == ("PASS", False)
    assert 0 <= found["drift_low"] <= found["drift"] <= found["drift_high"] < 0.002
    assert 0 <= found["noise"] < 0.002
    assert (said.drift, said.noise) == (found["drift"], found["noise"])
    assert "PASS on base-7b, drift 0.00" in adapt.ok("info", "a")


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_mild_damage_passes_by_its_answers_and_is_told_by_its_drift(
    adapt: Adapt, tmp_path: Path, factor: float
) -> None:
    folder = changed(adapt, tmp_path / "mild", lambda tensor: tensor * factor)
    mild = ("--base", "base-7b", "--bound", "same=0.9")
    found = adapt("test", folder, *mild)
    strict = result_of(adapt, 3, folder, *mild, "--bound", "drift=0.004")

    assert found.exit_code == 0, found.stdout
    assert "the adapter has changed, though its answers have not: its drift is 0." in found.stderr
    assert (strict["verdict"], strict["has_drifted"], strict["broken"][-1][:13]) == ("CHANGED", True, "the drift is ")
    assert 0.005 < strict["drift"] < 0.3
    assert strict["drift_low"] < strict["drift"] < strict["drift_high"]
    assert max(case["drift"] for case in strict["cases"]) > strict["drift"]


def test_one_without_effect_has_drifted_by_all_of_it(adapt: Adapt, tmp_path: Path) -> None:
    found = result_of(adapt, 3, changed(adapt, tmp_path / "none", lambda tensor: tensor * 0), "--base", "base-7b")

    assert found["drift"] == pytest.approx(1, abs=1e-3)


def test_a_bound_within_noise_and_rounding_cannot_be_told(adapt: Adapt) -> None:
    found = result_of(adapt, 17, "a", "--bound", "drift=0.00001")

    assert (found["reason"], found["has_drifted"]) == ("noise", False)
    rough = result_of(adapt, 0, "a", "--dtype", "bfloat16", "--bound", "drift=0.2")
    assert found["noise"] < rough["noise"] < 0.1
    assert found["drift"] < rough["drift"] < 0.1


def test_a_contract_from_before_has_no_drift_and_a_bound_on_it_is_not_met(adapt: Adapt, tmp_path: Path) -> None:
    contract = contract_in(folder_of(adapt))
    assert contract is not None
    old = replace(
        contract,
        sensitivity=1.0,
        rounding=None,
        goldens=tuple(replace(one, odds=None, base_odds=None) for one in contract.goldens),
    )
    (tmp_path / "old.jsonl").write_bytes(old.to_bytes())
    found = result_of(adapt, 0, "a", "--tests", tmp_path / "old.jsonl")
    bound = result_of(adapt, 17, "a", "--tests", tmp_path / "old.jsonl", "--bound", "drift=0.05")

    assert old.to_bytes().count(b"adapterhub/tests/1") == 1
    assert (found["verdict"], found["drift"], found["noise"], found["has_drifted"]) == ("PASS", None, None, None)
    assert (bound["verdict"], bound["reason"]) == ("UNKNOWN", "no-odds")
    assert (folder_of(adapt) / CONTRACT_FILE).read_bytes().count(b'"odds"') == len(contract.goldens)


def test_drift_is_the_change_over_the_effect() -> None:
    def golden(name: str, odds: list[float], base: list[float]) -> Golden:
        return Golden(id=name, asked="q", tokens=(1,) * len(odds), prompt_tokens=1, prompt_sha256=SOME,
                      odds=packed_odds(odds), base_odds=packed_odds(base))  # fmt: skip

    goldens = [golden("a", [4, 4], [0, 0]), golden("b", [3], [-5])]
    found = drift(goldens, {"a": [4, 5], "b": [1]}, {"b": [-4]})

    assert found is not None
    assert found.value == pytest.approx(math.sqrt(5 / 96))
    assert found.noise == pytest.approx(1 / math.sqrt(32))
    assert found.of == {"a": pytest.approx(math.sqrt(0.5 / 32)), "b": pytest.approx(math.sqrt(4 / 32))}
    assert found.central == found.value  # of three tokens, the largest change is more than a tenth
    assert found.is_more_than_noise() is False
    assert drift(goldens, {"a": [4, 5], "b": [1]}, {"b": [-4]}, 2.0).noise == pytest.approx(2 * found.noise)  # type: ignore[union-attr,operator]
    assert rounded_by(goldens, {"a": [4, 5], "b": [1]}, {"b": [-4.5]}) == Rounded(sensitivity=2.6, central=0.23)
    assert rounded_by(goldens, {"a": [4, 4.5], "b": [3]}, {"b": [-4]}) == Rounded(sensitivity=0.29, central=0.051)
    assert rounded_by(goldens, {"a": [4, 4], "b": [3]}, {"b": [-4.5]}) == Rounded(sensitivity=0.1)  # the least
    assert rounded_by(goldens, {"a": [4, 5], "b": [1]}, {"b": [-5]}) == Rounded()  # the base does not move
    assert drift(goldens[:1], {"a": [4, 5]}, {}).interval is None  # type: ignore[union-attr]
    assert drift(goldens, {"a": [4, 5], "b": []}, {}) is None
    assert drift([golden("c", [1], [1])], {"c": [1]}, {}) is None
    assert [one.id for one in asked_alone(goldens, {"a": 1, "b": 99})] == ["a", "b"]
    assert [one.id for one in asked_alone(goldens, {"a": 50, "b": 50})] == ["a"]


def test_a_central_drift_above_the_recorded_rounding_is_told() -> None:
    tokens = 20
    golden = Golden(id="a", asked="q", tokens=(1,) * tokens, prompt_tokens=1, prompt_sha256=SOME,
                    odds=packed_odds([8.0] * tokens), base_odds=packed_odds([0.0] * tokens))  # fmt: skip
    moved = [8.1] * (tokens - 1) + [9.0]
    found = drift([golden], {"a": moved}, {"a": [0.1] * tokens})

    assert found is not None
    assert found.central == pytest.approx(0.1 / 8)  # without the tenth that moved most
    assert found.value == pytest.approx(math.sqrt((19 * 0.01 + 1) / tokens) / 8)
    assert found.noise == pytest.approx(0.1 / 8)
    assert found.is_more_than_noise() is True
    few = drift([golden], {"a": [8.1] * tokens}, {"a": [0.1] * tokens})
    assert few is not None
    assert [few.is_more_than_noise(at) for at in (None, 0.0101, 0.0099)] == [False, False, True]
    much = drift([golden], {"a": [8.1] * tokens}, {"a": [0.31] * tokens})  # the base moves more than at the recording
    assert much is not None
    assert much.is_more_than_noise(0.0099) is False


def test_a_recording_leaves_the_base_as_it_was_and_notes_what_rounding_does(adapt: Adapt) -> None:
    contract = contract_in(folder_of(adapt))
    assert contract is not None
    assert contract.rounding is not None
    assert 0.0001 < contract.rounding < 0.1
    rough = result_of(adapt, 0, "a", "--dtype", "bfloat16")
    assert rough["has_drifted"] is False

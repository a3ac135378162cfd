"""Contracts as gates of a stream: what a version has to answer before the alias moves to it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adapterhub import Contract, Library
from adapterhub.core.errors import UsageProblem
from adapterhub.formats.contract.reader import read_contract
from adapterhub.library.following import Published, objection
from tests.support.contracts import recorded_library


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    recorded_library(folder)
    return folder


@pytest.fixture
def home(recorded: Path, tmp_path: Path) -> Library:
    shutil.copytree(recorded / "home", tmp_path / "home")
    return Library(tmp_path / "home")


def contract_of(library: Library) -> Path:
    return library["a"].folder / "evals.jsonl"


@pytest.mark.parametrize("kind", ["value", "file"])
def test_a_contract_lets_through_what_answers_as_recorded(home, recorded, kind) -> None:
    path = contract_of(home)
    gate: Contract | Path = read_contract(path) if kind == "value" else path
    state = load_file(recorded / "a" / "adapter_model.safetensors")
    stream = home.live("agent@base-7b", gate=gate, config=(recorded / "a" / "adapter_config.json").read_bytes())

    assert stream.publish(state, step=1).is_current
    forgot = stream.publish({name: value * 0.01 for name, value in state.items()}, step=2)

    assert forgot.refused is not None
    assert forgot.refused.startswith("CHANGED: ")
    assert home.alias("agent@live").text() == "0.0.1"
    assert stream.events()[-1].why == forgot.refused


def test_the_own_contract_of_a_folder(home, recorded, tmp_path) -> None:
    shutil.copytree(recorded / "a", tmp_path / "out")
    stream = home.live("agent@base-7b", gate="own")

    without = stream.publish(tmp_path / "out", step=1)
    shutil.copy(contract_of(home), tmp_path / "out")
    with_one = stream.publish(tmp_path / "out", step=2)

    assert without.refused is not None
    assert without.refused.startswith("NONE")
    assert with_one.is_current


# ---------------------------------------------------------------- what a gate answers
@pytest.mark.parametrize("answer", [None, True, np.True_, torch.tensor(True)])
def test_these_answers_let_a_version_through(home, answer) -> None:
    assert objection(lambda _: answer, Published(build=home["a"], alias="live")) is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (False, "the gate refused it"),
        (np.False_, "the gate refused it"),
        (torch.tensor(False), "the gate refused it"),
        ("worse by 3 %", "worse by 3 %"),
        ("", "the gate returned '', expected True"),
        (0, "the gate returned 0, expected True"),
        (1, "the gate returned 1, expected True"),
        (torch.tensor(0.5), "the gate returned 0.5, expected True"),
        ([], r"the gate returned \[\], expected True"),
        (torch.ones(2), "the gate could not tell: RuntimeError"),
    ],
)
def test_any_other_answer_refuses_it_and_says_why(home, answer, why) -> None:
    found = objection(lambda _: answer, Published(build=home["a"], alias="live"))
    assert found is not None
    assert re.match(why, found)


@pytest.mark.parametrize(
    ("error", "why"), [(UsageProblem("no examples"), "no examples"), (KeyError("loss"), r"KeyError\('loss'\)")]
)
def test_a_gate_that_raises_refuses_the_version(home, error, why) -> None:
    def gate(_: object) -> None:
        raise error

    found = objection(gate, Published(build=home["a"], alias="live"))
    assert found is not None
    assert re.match(f"the gate could not tell: {why}", found)

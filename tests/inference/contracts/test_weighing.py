"""Weights of a merge by drift: what the search finds, with how few trials, and what it leaves as it was."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from adapterhub.core.errors import CouldNotTell, UsageProblem
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import find_installed
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reader import contract_in
from adapterhub.inference.contracts.answers import examples_of
from adapterhub.inference.contracts.weighing import _surface, can_tune, tune_by_drift
from adapterhub.inference.loader.text import load_base
from adapterhub.inference.tuning import tune
from tests.support.command_line import Adapt
from tests.support.contracts import recorded_library

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """`a` and `b`, each with a contract."""
    adapt = recorded_library(tmp_path_factory.mktemp("weighing"))
    adapt.ok("contract", "record", "b", "--examples", "examples.jsonl", "--max-new-tokens", "5")
    return adapt


def contracts_of(adapt: Adapt, *names: str) -> dict[str, Contract]:
    found = {}
    for name in names:
        contract = contract_in(find_installed(adapt.library, AdapterSpec.parse(name))[0].folder)
        assert contract is not None
        found[name] = contract
    return found


def test_the_surface_goes_through_all_points_and_is_a_plane_where_they_are() -> None:
    draw = np.random.default_rng(1)
    tried, elsewhere, slopes = draw.normal(size=(7, 3)), draw.normal(size=(5, 3)), draw.normal(size=(3, 4))
    odds = draw.normal(size=(7, 4))

    assert _surface(tried, odds, tried) == pytest.approx(odds, abs=1e-9)
    assert _surface(tried, tried @ slopes + 2, elsewhere) == pytest.approx(elsewhere @ slopes + 2, abs=1e-9)


def test_the_weights_come_from_few_trials_and_drift_less_than_those_of_the_loss(adapt: Adapt) -> None:
    model, tokenizer = load_base(adapt.folder / "base")
    contracts, trials = contracts_of(adapt, "a", "b"), []
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = tune_by_drift(
        model, tokenizer, ["a", "b"], contracts, library=adapt.library.root, base="base-7b",
        progress=lambda done, _budget: trials.append(done),
    )  # fmt: skip
    examples = [one for name, each in contracts.items() for one in examples_of(name, each, model, tokenizer)]
    by_loss = tune(model, tokenizer, ["a", "b"], examples, library=adapt.library.root, base="base-7b")

    assert found.drift_before is not None
    assert found.drift_after is not None
    assert found.is_better is (found.drift_after < found.drift_before)
    assert found.evaluations == trials[-1] < by_loss.evaluations / 2
    assert all(abs(weight) <= 1.5 for weight in found.weights)
    assert model.state_dict().keys() == before.keys()
    assert all(bool((tensor == before[key]).all()) for key, tensor in model.state_dict().items())
    assert tune_by_drift(
        model, tokenizer, ["a", "b"], contracts, library=adapt.library.root, base="base-7b"
    ) == found  # it draws the same  # fmt: skip


def test_the_only_contract_gets_its_adapter_back(adapt: Adapt) -> None:
    done = adapt("merge", "a", "b", "--tune", "contracts", "-o", "own")
    model, tokenizer = load_base(adapt.folder / "base")
    only = contracts_of(adapt, "a")
    found = tune_by_drift(model, tokenizer, ["a", "b"], only, library=adapt.library.root, base="base-7b", l1=0.0)

    assert found.weights == pytest.approx((1.0, 0.0), abs=0.02)
    assert found.drift_after == pytest.approx(0.0, abs=0.02)
    rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    assert rows[0] == ["model", "loss", "drift"]
    assert [row[0] for row in rows[1:] if row[2]] == ["equal shares", "tuned weights"]
    assert "prompts of the contracts and measured the drifts on the same" in done.stderr
    metrics = json.loads(adapt.ok("show", "own", "--json"))["metrics"]
    assert metrics["tune_drift_after"] <= metrics["tune_drift_before"]


def test_contracts_without_log_odds_are_tuned_on_by_loss(adapt: Adapt) -> None:
    contracts = contracts_of(adapt, "a", "b")
    old = replace(contracts["b"], goldens=tuple(replace(one, odds=None) for one in contracts["b"].goldens))

    assert can_tune(contracts)
    assert not can_tune(contracts | {"b": old})


def test_what_cannot_be_searched_with_is_refused(adapt: Adapt) -> None:
    model, tokenizer = load_base(adapt.folder / "base")
    contracts = contracts_of(adapt, "a", "b")
    same = replace(contracts["a"], goldens=tuple(replace(one, base_odds=one.odds) for one in contracts["a"].goldens))
    for wrong, problem in (({"budget": 3}, "budget 3, expected at least 4"), ({"l1": -1.0}, "l1 -1.0")):
        with pytest.raises(UsageProblem, match=problem):
            tune_by_drift(model, tokenizer, ["a", "b"], contracts, **wrong)  # type: ignore[arg-type]  # one of both
    with pytest.raises(CouldNotTell, match="changes nothing"):
        tune_by_drift(model, tokenizer, ["a", "b"], {"a": same})
    model.train()
    with pytest.raises(UsageProblem, match="training mode"):
        tune_by_drift(model, tokenizer, ["a", "b"], contracts)

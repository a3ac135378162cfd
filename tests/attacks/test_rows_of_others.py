"""Batches whose rows lie elsewhere than their sizes suggest: no row may get the adapter of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from adapterhub.core.errors import AdapterHubError, UnsupportedAdapter
from adapterhub.inference.bank import AdapterBank
from adapterhub.library.library import Library
from tests.support.tiny_models import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

WIDTH = 8
Arranged = tuple[Tensor, Callable[[Tensor], Tensor]]
"""What a layer gets, and how its output comes back to [rows, tokens, width]."""


def plain(x: Tensor, _ids: Tensor) -> Arranged:
    return x, lambda y: y


def flat(x: Tensor, _ids: Tensor) -> Arranged:
    return x.flatten(0, 1), lambda y: y.view(x.shape)


def time_first(x: Tensor, _ids: Tensor) -> Arranged:
    return x.transpose(0, 1), lambda y: y.transpose(0, 1)


def flat_by_time(x: Tensor, _ids: Tensor) -> Arranged:
    back = x.transpose(0, 1)
    return back.flatten(0, 1), lambda y: y.view(back.shape).transpose(0, 1)


def last_row_first(x: Tensor, _ids: Tensor) -> Arranged:
    return x.flip(0), lambda y: y.flip(0)


def longest_row_first(x: Tensor, ids: Tensor) -> Arranged:
    order = (ids > 0).sum(1).argsort(descending=True)
    return x[order], lambda y: y[order.argsort()]


def without_padding(x: Tensor, ids: Tensor) -> Arranged:
    kept = ids > 0
    return x[kept], lambda y: torch.zeros_like(x).masked_scatter(kept[..., None], y)


def to_an_expert(x: Tensor, ids: Tensor) -> Arranged:
    kept = ids % 2 == 1
    return x[kept], lambda y: torch.zeros_like(x).masked_scatter(kept[..., None], y)


class Arranging(nn.Module):
    """A model whose layer gets the tokens of a batch in some arrangement."""

    def __init__(self, how: Callable[[Tensor, Tensor], Arranged]) -> None:
        super().__init__()
        self.how = how
        self.words = nn.Embedding(32, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        given, back = self.how(self.words(ids), ids)
        return back(self.layer(given))


def model(how: Callable[[Tensor, Tensor], Arranged]) -> nn.Module:
    torch.manual_seed(0)
    return Arranging(how).eval()


BATCHES = (
    torch.tensor([[1, 3], [5, 7]]),  # nothing tells rows from tokens; every token goes to the expert
    torch.tensor([[1, 2, 3, 0], [5, 6, 0, 0]]),
    torch.tensor([[1, 3, 0, 0], [5, 7, 9, 11]]),
    torch.tensor([[1, 3, 5], [7, 9, 11], [13, 15, 17]]),
    torch.tensor([[4], [7]]),
    torch.arange(1, 31).view(3, 10),
)


def off(bank: AdapterBank, names: list[str], ids: Tensor) -> float:
    """How far the rows are from what they are where the whole batch has their adapter."""
    choices = [names[0], None, names[1]][: len(ids)]
    with torch.no_grad():
        with bank.rows(choices):
            mixed = bank.model(ids)
        far = 0.0
        for row, choice in enumerate(choices):
            with bank.use(choice):
                far = max(far, float((bank.model(ids)[row] - mixed[row]).abs().max()))
    return far


@pytest.fixture
def bank(request: pytest.FixtureRequest, tmp_path: Path, library: Library) -> AdapterBank:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["layer"])
    made = AdapterBank(model(request.param), library=library, allow_base_mismatch=True)
    for name in ("a", "b"):
        made.load(save_adapter(tmp_path / name, lambda: model(request.param), config, seed=ord(name)))
    return made


@pytest.mark.parametrize("bank", [plain, flat, time_first], indirect=True)
def test_rows_whose_place_is_seen_get_their_own_adapters(bank: AdapterBank) -> None:
    assert max(off(bank, ["a", "b"], ids) for ids in BATCHES) < 1e-5


@pytest.mark.parametrize(
    "bank", [flat_by_time, last_row_first, longest_row_first, without_padding, to_an_expert], indirect=True
)
def test_rows_whose_place_is_unknown_are_refused_and_never_mixed(bank: AdapterBank) -> None:
    refused = []
    for ids in BATCHES * 2:  # what an earlier batch told is no reason to mix the rows of a later one
        try:
            assert off(bank, ["a", "b"], ids) < 1e-5
        except UnsupportedAdapter as refusal:
            refused.append(str(refusal))

    assert refused
    assert all("`layer`" in told for told in refused)


@pytest.mark.parametrize("bank", [plain], indirect=True)
def test_a_layer_that_is_called_without_the_model_has_no_rows(bank: AdapterBank) -> None:
    with bank.rows(["a", "b"]), pytest.raises(AdapterHubError, match="outside of the model"):
        bank.model.layer(torch.ones(2, 3, WIDTH))

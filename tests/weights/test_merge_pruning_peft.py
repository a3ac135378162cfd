"""The factor methods that prune, against PEFT's `add_weighted_adapter` on the same adapters and the same masks."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.prune import random_keep
from tests.support.adapter_folders import relative

MAGNITUDE = ["magnitude_prune", "ties"]
RANDOM = ["dare_linear", "dare_ties"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of density 1
        yield


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 16), nn.Linear(16, 40)


class Pair:
    """Adapters "a", "b", … on one base in PEFT, random, and the same as our updates, by module."""

    def __init__(self, count: int, *, use_rslora: bool = False, seed: int = 0) -> None:
        names = "abcd"[:count]
        config = {
            n: LoraConfig(r=4, lora_alpha=3 + i, use_rslora=use_rslora, target_modules=["first", "second"])
            for i, n in enumerate(names)
        }
        self.model = get_peft_model(Base(), config["a"], adapter_name="a")
        for name in names[1:]:
            self.model.add_adapter(name, config[name])
        self.layers = {n: m for n, m in self.model.named_modules() if isinstance(m, LoraLayer)}
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            for name in names:
                for factor in (layer.lora_A[name].weight, layer.lora_B[name].weight):
                    factor.data = torch.randn(factor.shape, generator=generator)
        self.names = list(names)

    def deltas(self, module: str) -> list[LowRank]:
        layer = self.layers[module]
        return [
            LowRank(a=layer.lora_A[n].weight.data, b=layer.lora_B[n].weight.data, scale=layer.scaling[n])
            for n in self.names
        ]

    def merged(self, method: str, weights: Sequence[float], **options: object) -> dict[str, tuple[Tensor, Tensor]]:
        """PEFT's factors, by module."""
        self.model.add_weighted_adapter(self.names, list(weights), "merged", combination_type=method, **options)
        return {
            n: (layer.lora_A["merged"].weight.data, layer.lora_B["merged"].weight.data)
            for n, layer in self.layers.items()
        }

    def generators(self, module: str) -> list[torch.Generator]:
        place = list(self.layers).index(module)
        return [torch.Generator().manual_seed(100 * place + i) for i in range(len(self.names))]

    def masks(self, density: float) -> Iterator[Tensor]:
        """Ours, in the order in which PEFT draws its own: the A of all adapters, then the B."""
        for module in self.layers:
            drawn = [
                (random_keep(torch.ones_like(d.a), density, g), random_keep(torch.ones_like(d.b), density, g))
                for d, g in zip(self.deltas(module), self.generators(module), strict=True)
            ]
            yield from (a for a, _ in drawn)
            yield from (b for _, b in drawn)


def assert_equal(pair: Pair, theirs: dict[str, tuple[Tensor, Tensor]], ours: dict[str, LowRank]) -> None:
    assert len(ours) == len(pair.layers) == 2
    for module, (a, b) in theirs.items():
        assert ours[module].scale == 1
        assert a.any()
        # A float32 rounding of each product and of each sum is theirs.
        assert relative(ours[module].a, a.double()) < 3e-7
        assert relative(ours[module].b, b.double()) < 3e-7
        assert torch.equal(ours[module].a == 0, a == 0)


WEIGHTS = [(0.7, 0.3), (0.7, -0.3), (-1.0, -2.0), (1.0, 1.0, 1.0), (0.5, -0.2, 1.5, 0.1)]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.1, 0.37, 0.5, 1.0])
@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("method", [*MAGNITUDE, *RANDOM])
def test_pruning_methods_make_pefts_factors(
    method: str, majority: str, density: float, weights: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(len(weights), use_rslora=majority == "total")
    options: dict[str, object] = {"majority": majority} if "ties" in method else {}
    masks = pair.masks(density)
    monkeypatch.setattr(torch, "bernoulli", lambda chances: next(masks).to(chances.dtype))

    theirs = pair.merged(method, weights, density=density, majority_sign_method=majority)

    merge = importlib.import_module(f"adapterhub.weights.merge.methods.{method}").merge
    ours = {}
    for module in pair.layers:
        drawn = {"generators": pair.generators(module)} if method in RANDOM else {}
        ours[module] = merge(pair.deltas(module), weights, density=density, **options, **drawn)
    assert_equal(pair, theirs, ours)
    if method in RANDOM and density < 1:
        assert next(masks, None) is None  # PEFT used every one of them


@settings(max_examples=25)
@given(
    method=st.sampled_from(MAGNITUDE),
    seed=st.integers(0, 2**32),
    density=st.floats(0.02, 1),
    weights=st.lists(st.floats(-3, 3).filter(lambda w: abs(w) > 1e-3), min_size=2, max_size=4),
)
def test_any_density_and_weights_make_pefts_factors(
    method: str, seed: int, density: float, weights: list[float]
) -> None:
    pair = Pair(len(weights), seed=seed)

    theirs = pair.merged(method, weights, density=density)

    merge = importlib.import_module(f"adapterhub.weights.merge.methods.{method}").merge
    assert_equal(pair, theirs, {m: merge(pair.deltas(m), weights, density=density) for m in pair.layers})

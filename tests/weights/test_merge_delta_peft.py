"""The `*_svd` methods against PEFT's `add_weighted_adapter` on the same adapters, the same masks and the same rank."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.prune import random_keep
from tests.support.adapter_folders import dense, relative

RANDOM = ["dare_linear_svd", "dare_ties_svd"]
METHODS = ["magnitude_prune_svd", "ties_svd", *RANDOM]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT comments on density 1 and on layers it has no test for
        yield


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.linear = nn.Embedding(31, 16), nn.Linear(24, 40)
        self.conv, self.point = nn.Conv2d(4, 20, (3, 2)), nn.Conv2d(18, 17, 1)


class Adapters:
    """Random adapters on one base in PEFT, and the same as our updates, by module."""

    def __init__(self, count: int) -> None:
        self.names = list("abcd"[:count])
        modules = ["words", "linear", "conv", "point"]
        configs = {n: LoraConfig(r=3 + i, lora_alpha=5, target_modules=modules) for i, n in enumerate(self.names)}
        self.model = get_peft_model(Base(), configs["a"], adapter_name="a")
        for name in self.names[1:]:
            self.model.add_adapter(name, configs[name])
        self.layers = {n: m for n, m in self.model.named_modules() if isinstance(m, LoraLayer)}
        generator = torch.Generator().manual_seed(0)
        for layer in self.layers.values():
            for name in self.names:
                for factor in self.factors(layer, name):
                    factor.data = torch.randn(factor.shape, generator=generator)

    def factors(self, layer: LoraLayer, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        if name in layer.lora_A:
            return layer.lora_A[name].weight, layer.lora_B[name].weight
        return layer.lora_embedding_A[name], layer.lora_embedding_B[name]

    def deltas(self, module: str) -> list[LowRank]:
        layer = self.layers[module]
        pairs = [self.factors(layer, n) for n in self.names]
        return [
            LowRank(a=a.data.flatten(1), b=b.data.flatten(1), scale=layer.scaling[n])
            for n, (a, b) in zip(self.names, pairs, strict=True)
        ]

    def generators(self, module: str) -> list[torch.Generator]:
        place = list(self.layers).index(module)
        return [torch.Generator().manual_seed(100 * place + i) for i in range(len(self.names))]

    def masks(self, density: float) -> Iterator[Tensor]:
        """Ours, in the order and shape in which PEFT draws its own."""
        for module, layer in self.layers.items():
            for delta, generator in zip(self.deltas(module), self.generators(module), strict=True):
                mask = random_keep(torch.ones(delta.shape), density, generator)
                yield mask.T if "words" in module else mask.reshape(layer.get_base_layer().weight.shape)

    def merged(self, method: str, weights: Sequence[float], **options: object) -> dict[str, Tensor]:
        """PEFT's merged updates as [out, in] matrices, by module."""
        self.model.add_weighted_adapter(self.names, list(weights), "merged", combination_type=method, **options)
        pairs = {n: self.factors(layer, "merged") for n, layer in self.layers.items()}
        return {n: b.data.double().flatten(1) @ a.data.double().flatten(1) for n, (a, b) in pairs.items()}


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.7, -0.3), (-1.0, -2.0), (0.5, -0.2, 1.5)])
@pytest.mark.parametrize("density", [0.2, 0.55, 1.0])
@pytest.mark.parametrize(
    ("method", "majority"),
    [(m, s) for m in METHODS for s in ("total", "frequency") if s == "total" or "ties" in m],
)
def test_methods_make_pefts_update_at_the_same_rank(
    method: str, majority: str, density: float, weights: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = Adapters(len(weights))
    masks = adapters.masks(density)
    monkeypatch.setattr(torch, "bernoulli", lambda chances: next(masks).to(chances.dtype))
    options: dict[str, object] = {"majority": majority} if "ties" in method else {}

    theirs = adapters.merged(method, weights, svd_rank=6, density=density, majority_sign_method=majority)

    assert len(theirs) == 4
    merge = importlib.import_module(f"adapterhub.weights.merge.methods.{method}").merge
    for module, expected in theirs.items():
        drawn = {"generators": adapters.generators(module)} if method in RANDOM else {}
        ours = merge(adapters.deltas(module), weights, density=density, rank=6, **options, **drawn)
        # They form, prune and decompose in float32.
        assert relative(dense([ours]), expected) < 2e-5

"""The methods of PEFT's `add_weighted_adapter` against it, on the same adapters, the same masks and the same rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.prune import random_keep
from tests.support.adapter_folders import dense, relative
from tests.weights.merging import apply

pytestmark = pytest.mark.filterwarnings("ignore")

PRUNING = ["magnitude_prune", "ties", "dare_linear", "dare_ties"]
WEIGHTS = [(0.7, 0.3), (0.7, -0.3), (-1.0, -2.0), (0.5, -0.2, 1.5)]


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.linear, self.wide = nn.Embedding(31, 16), nn.Linear(24, 40), nn.Linear(40, 16)
        self.conv, self.point = nn.Conv2d(4, 20, (3, 2)), nn.Conv2d(18, 17, 1)


class Adapters:
    """Random adapters "a", "b", … on one base in PEFT, and the same as our updates, by module."""

    def __init__(self, modules: Sequence[str], ranks: Sequence[int], *, use_rslora: bool = False) -> None:
        self.names = list("abcd"[: len(ranks)])
        configs = [
            LoraConfig(r=rank, lora_alpha=3 + i, use_rslora=use_rslora, target_modules=list(modules))
            for i, rank in enumerate(ranks)
        ]
        self.model = get_peft_model(Base(), configs[0], adapter_name="a")
        for name, config in zip(self.names[1:], configs[1:], strict=True):
            self.model.add_adapter(name, config)
        self.layers = {n: m for n, m in self.model.named_modules() if isinstance(m, LoraLayer)}
        generator = torch.Generator().manual_seed(0)
        for layer in self.layers.values():
            for factor in (factor for name in self.names for factor in self.factors(layer, name)):
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

    def drawn(self, method: str, module: str) -> dict[str, object]:
        """The option of a method that draws masks."""
        place = list(self.layers).index(module)
        seeds = [100 * place + i for i in range(len(self.names))]
        return {"generators": [torch.Generator().manual_seed(s) for s in seeds]} if "dare" in method else {}

    def masks(self, method: str, density: float) -> Iterator[Tensor]:
        """Ours, in the order and shape in which PEFT draws its own."""
        for module, layer in self.layers.items():
            pairs = list(zip(self.deltas(module), self.drawn(method, module).get("generators", ()), strict=False))
            if method.endswith("_svd"):
                for delta, generator in pairs:
                    mask = random_keep(torch.ones(delta.shape), density, generator)
                    yield mask.T if "words" in module else mask.reshape(layer.get_base_layer().weight.shape)
            else:  # the A of all adapters, then the B
                kept = [[random_keep(torch.ones_like(one), density, g) for one in (d.a, d.b)] for d, g in pairs]
                yield from (mask for factor in zip(*kept, strict=True) for mask in factor)

    def merged(self, method: str, weights: Sequence[float], **options: object) -> dict[str, tuple[Tensor, Tensor]]:
        """PEFT's factors, by module."""
        self.model.add_weighted_adapter(self.names, list(weights), "merged", combination_type=method, **options)
        pairs = {n: self.factors(layer, "merged") for n, layer in self.layers.items()}
        return {n: (a.data.double().flatten(1), b.data.double().flatten(1)) for n, (a, b) in pairs.items()}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.1, 0.37, 1.0])
@pytest.mark.parametrize(
    ("method", "majority"),
    [
        (method + space, majority)
        for method in PRUNING
        for space in ("", "_svd")
        for majority in ("total", "frequency")
        if majority == "total" or "ties" in method
    ],
)
def test_a_method_makes_what_peft_makes(
    method: str, majority: str, density: float, weights: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = method.endswith("_svd")
    modules = ["words", "linear", "conv", "point"] if cuts else ["linear", "wide"]
    ranks = [3 + i * cuts for i in range(len(weights))]
    adapters = Adapters(modules, ranks, use_rslora=majority == "total")
    masks = adapters.masks(method, density)
    monkeypatch.setattr(torch, "bernoulli", lambda chances: next(masks).to(chances.dtype))
    rank = {"rank": 6} if cuts else {}
    options: dict[str, object] = {"majority": majority} if "ties" in method else {}

    theirs = adapters.merged(method, weights, density=density, majority_sign_method=majority, svd_rank=rank.get("rank"))

    assert len(theirs) == len(modules)
    for module, (a, b) in theirs.items():
        drawn = adapters.drawn(method, module)
        ours = apply(method, adapters.deltas(module), weights, density=density, **rank, **options, **drawn)
        if cuts:  # they form, prune and decompose in float32
            assert relative(dense([ours]), b @ a) < 2e-5
            continue
        assert ours.scale == 1
        assert a.any()
        for mine, yours in ((ours.a, a), (ours.b, b)):  # a float32 rounding of each product and of each sum is theirs
            assert relative(mine, yours) < 3e-7
            assert torch.equal(mine == 0, yours == 0)
    if "dare" in method and density < 1:
        assert next(masks, None) is None  # PEFT used every one of them

"""Each combination type of PEFT's `add_weighted_adapter`, on one linear layer, beside the method of that name here.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_merge_methods [--sizes 1024,2048,4096] [--types svd,ties_svd,…]

Two random adapters of rank 16 on one square weight, 0.7 and 0.3, density 0.5, the results of the `*_svd` types cut to
rank 16. Measured is CPU time: PEFT's whole call on a model of that one layer, once; our function, the best of three.
`difference` is ‖ours - theirs‖ / ‖theirs‖ of what the modules add to the weight. For the types that cut a matrix of
full rank it may be large although both are nearly optimal, since the directions at the edge of the cut are nearly as
good as each other; `error` is how much further from the matrix ours is than theirs, which is exact. DARE's masks are
the same on both sides: PEFT draws them through `torch.bernoulli`, which is replaced for the call.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from adapterhub.weights.lowrank.algebra import LowRank, RankCut, difference_norms, frobenius_norm
from adapterhub.weights.merge.spaces.prune import random_keep
from tests.bench.harness import given, timed

TYPES = (
    "cat", "linear", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip
RANK, WEIGHTS, DENSITY = 16, (0.7, 0.3), 0.5
NAMES = ("first", "second")

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One type at one size."""

    theirs_s: float
    ours_s: float
    difference: float
    error: float | None

    def line(self, size: int, name: str) -> str:
        error = "" if self.error is None else f"{self.error:+.2%}"
        times = f"{self.theirs_s:9.3f}{self.ours_s:9.4f}{self.theirs_s / self.ours_s:9,.0f}x"
        return f"{size:5}  {name:20}{times}{self.difference:12.1e}{error:>9}"


def build(size: int) -> tuple[Any, Any]:
    """PEFT's model with both adapters, and its one layer."""
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(size, size, bias=False)), config, adapter_name=NAMES[0])
    model.add_adapter(NAMES[1], config)
    return model, model.base_model.model[0]


def masks(deltas: list[LowRank], *, dense: bool) -> Iterator[Tensor]:
    """The masks that our methods draw, in the order in which PEFT asks for them."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(deltas))]
    if dense:
        for delta, generator in zip(deltas, generators, strict=True):
            yield random_keep(torch.ones(delta.shape), DENSITY, generator)
        return
    drawn = [
        (random_keep(torch.ones_like(d.a), DENSITY, g), random_keep(torch.ones_like(d.b), DENSITY, g))
        for d, g in zip(deltas, generators, strict=True)
    ]
    yield from (a for a, _ in drawn)  # PEFT: the A of all adapters, then the B
    yield from (b for _, b in drawn)


def measure(name: str, size: int) -> Row:
    model, layer = build(size)
    deltas = [
        LowRank(a=layer.lora_A[n].weight.data, b=layer.lora_B[n].weight.data, scale=layer.scaling[n]) for n in NAMES
    ]
    cuts = name.endswith("svd")
    options: dict[str, Any] = {} if name in ("cat", "linear", "svd") else {"density": DENSITY}
    mine = options | ({"rank": RANK} if cuts else {})
    merge = importlib.import_module(f"adapterhub.weights.merge.methods.{name}").merge
    merge(deltas, WEIGHTS, **mine)  # LAPACK is set up on first use
    runs = [timed(lambda: merge(deltas, WEIGHTS, **mine)) for _ in range(3)]
    ours_s, ours = min(runs, key=lambda run: run[0])

    drawn = masks(deltas, dense=cuts)
    theirs_options = options | ({"svd_rank": RANK} if cuts else {})
    with mock.patch.object(torch, "bernoulli", lambda chances: next(drawn).to(chances.dtype)):
        theirs_s, _ = timed(
            lambda: model.add_weighted_adapter(
                list(NAMES), list(WEIGHTS), "sum", combination_type=name, **theirs_options
            )
        )
    theirs = LowRank(
        a=layer.lora_A["sum"].weight.data, b=layer.lora_B["sum"].weight.data, scale=float(layer.scaling["sum"])
    )
    apart, norm = difference_norms([theirs], [1.0], ours)
    error = None
    if isinstance(ours, RankCut) and name != "svd":
        best = math.sqrt(max(ours.whole**2 - frobenius_norm(theirs) ** 2, 0.0))
        error = ours.lost / best - 1
    return Row(theirs_s=theirs_s, ours_s=ours_s, difference=apart / norm, error=error)


def main() -> None:
    arguments = given(__doc__, sizes="1024,2048,4096", types=",".join(TYPES))
    warnings.simplefilter("ignore")  # PEFT's own, of densities and of new adapters
    print(f"{'size':>5}  {'type':20}{'PEFT s':>9}{'ours s':>9}{'ratio':>10}{'difference':>12}{'error':>9}")
    for size in map(int, arguments.sizes.split(",")):
        for name in arguments.types.split(","):
            print(measure(name, size).line(size, name), flush=True)


if __name__ == "__main__":
    main()

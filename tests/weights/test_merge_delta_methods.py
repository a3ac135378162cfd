"""The methods that work on the updates themselves, against slow float64 references written out here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from adapterhub.core.errors import MergeRefused, UsageProblem
from adapterhub.weights.lowrank.algebra import LowRank, RankCut
from adapterhub.weights.merge.spaces.delta import DOUBLE_BELOW
from adapterhub.weights.merge.spaces.prune import magnitude_keep, random_keep
from tests.support.adapter_folders import dense, random_delta, relative
from tests.weights import merging

METHODS = ["breadcrumbs", "dare_linear_svd", "dare_ties_svd", "della", "magnitude_prune_svd", "ties_svd"]
RANDOM = ["dare_linear_svd", "dare_ties_svd", "della"]
OUT, WIDTH = 14, 11
LARGE = 420, 5000
"""Beyond what is handled in float64 and decomposed in full."""

ALL = {"rank": min(OUT, WIDTH)}
"""Enough that nothing is cut off."""

Prune = Callable[[Tensor, int], Tensor]


def apply(method: str, deltas: Sequence[LowRank], weights: Sequence[float], **options: object) -> RankCut:
    """`seeds` are those of the masks, by default the places."""
    seeds = options.pop("seeds", range(len(deltas)))
    if method in RANDOM:
        options["generators"] = [torch.Generator().manual_seed(s) for s in seeds]
    return merging.apply(method, deltas, weights, **options)  # type: ignore[no-any-return]


def three(out: int = OUT, width: int = WIDTH) -> list[LowRank]:
    return [
        random_delta(i, out=out, width=width, rank=r, scale=s) for i, (r, s) in enumerate([(3, 2.0), (2, -0.7), (4, 1)])
    ]


# ---------------------------------------------------------------- references


def sizes_ranked(values: Tensor) -> Tensor:
    """Place of every number by size, 0 the smallest."""
    return values.abs().flatten().argsort().argsort().reshape(values.shape)


def trimmed(density: float) -> Prune:
    return lambda x, _: x * (sizes_ranked(x) >= x.numel() - max(1, int(density * x.numel())))


def drawn(shape: Sequence[int], seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def dropped(density: float) -> Prune:
    return lambda x, seed: x * (drawn(x.shape, seed) < density) / density


def without_outliers(density: float, gamma: float) -> Prune:
    def prune(x: Tensor, _seed: int) -> Tensor:
        kept, top = int(density * x.numel()), int(gamma * x.numel())
        bottom = max(0, x.numel() - kept - top)
        ranks = sizes_ranked(x)
        return x * ((ranks >= bottom) & (ranks < bottom + kept))

    return prune


def mag_pruned(density: float, epsilon: float, rescale: str) -> Prune:
    def prune(x: Tensor, seed: int) -> Tensor:
        ranks = x.abs().argsort(1).argsort(1).double()
        chance = density - epsilon + 2 * epsilon * ranks / (x.shape[1] - 1)
        kept = x * (drawn(x.shape, seed) < chance)
        if rescale == "probability":
            return kept / chance
        return kept * (x.abs().sum() / kept.abs().sum()) if rescale == "norm" else kept

    return prune


def weighted_sum(pruned: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([w * p for p, w in zip(pruned, weights, strict=True)]).sum(0)


def elected(values: Tensor, majority: str) -> Tensor:
    total = values.sum(0) if majority == "total" else values.sign().sum(0)
    return torch.where(total >= 0, 1.0, -1.0)


def peft_election(majority: str) -> Callable[..., Tensor]:
    def fuse(pruned: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        values = torch.stack(list(pruned))
        agrees = values.sign() == elected(values, majority)
        factors = torch.tensor(weights, dtype=torch.float64)[:, None, None]
        return (values * factors * agrees).sum(0) / agrees.sum(0).clamp(min=1)

    return fuse


def mergekit_election(majority: str, *, normalize: bool = False) -> Callable[..., Tensor]:
    def fuse(pruned: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        factors = torch.tensor(weights, dtype=torch.float64)[:, None, None]
        values = torch.stack(list(pruned)) * factors
        agrees = torch.ones_like(values) if majority == "none" else values.sign() == elected(values, majority)
        divisor = (factors * agrees).sum(0)
        return (values * agrees).sum(0) / (torch.where(divisor == 0, 1, divisor) if normalize else 1)

    return fuse


CASES: dict[str, tuple[str, dict[str, object], Prune, Callable[..., Tensor]]] = {
    "ties_svd": ("ties_svd", {}, trimmed(0.5), peft_election("total")),
    "ties_svd by count": ("ties_svd", {"majority": "frequency", "density": 0.3}, trimmed(0.3), peft_election("frequency")),
    "ties_svd, nothing trimmed": ("ties_svd", {"density": 1.0}, trimmed(1), peft_election("total")),
    "magnitude_prune_svd": ("magnitude_prune_svd", {"density": 0.2}, trimmed(0.2), weighted_sum),
    "dare_linear_svd": ("dare_linear_svd", {}, dropped(0.5), weighted_sum),
    "dare_ties_svd": ("dare_ties_svd", {"density": 0.7}, dropped(0.7), peft_election("total")),
    "dare_ties_svd by count": ("dare_ties_svd", {"majority": "frequency"}, dropped(0.5), peft_election("frequency")),
    "breadcrumbs": ("breadcrumbs", {"gamma": 0.1}, without_outliers(0.5, 0.1), weighted_sum),
    "breadcrumbs, no room": ("breadcrumbs", {"gamma": 0.1, "density": 0.95}, without_outliers(0.95, 0.1), weighted_sum),
    "breadcrumbs, elected": (
        "breadcrumbs", {"gamma": 0.05, "majority": "total"}, without_outliers(0.5, 0.05), mergekit_election("total"),
    ),
    "della": ("della", {}, mag_pruned(0.5, 0.15, "probability"), mergekit_election("total")),
    "della by count": (
        "della", {"majority": "frequency", "epsilon": 0.3, "rescale": "none"},
        mag_pruned(0.5, 0.3, "none"), mergekit_election("frequency"),
    ),
    "della as mergekit's defaults": (
        "della", {"rescale": "norm", "normalize": True},
        mag_pruned(0.5, 0.15, "norm"), mergekit_election("total", normalize=True),
    ),
    "della without election": ("della", {"majority": "none"}, mag_pruned(0.5, 0.15, "probability"), weighted_sum),
    "della without election, normalized": (
        "della", {"majority": "none", "normalize": True, "epsilon": 0.0},
        mag_pruned(0.5, 0.0, "probability"), mergekit_election("none", normalize=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("weights", [(0.7, 0.3, 0.5), (0.7, -0.3, 1.5), (1e-6, 1.0, 1e6)])
@pytest.mark.parametrize("case", CASES)
def test_methods_agree_with_the_dense_reference(case: str, weights: tuple[float, ...]) -> None:
    method, options, prune, fuse = CASES[case]
    deltas = three()
    pruned = [prune(dense([d]), seed) for seed, d in enumerate(deltas)]

    result = apply(method, deltas, weights, **ALL, **options)

    # Rounding of float64, and directions so small beside weight 1e6 that no float32 file would carry them.
    assert relative(dense([result]), fuse(pruned, weights)) < (1e-12 if max(weights) < 2 else 2.0**-23)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ties_svd", "dare_ties_svd", "breadcrumbs, elected", "della as mergekit's defaults"])
def test_large_modules_agree_in_float32_and_are_cut_within_one_percent(case: str) -> None:
    method, options, prune, fuse = CASES[case]
    assert math.prod(LARGE) > DOUBLE_BELOW
    deltas, weights = three(*LARGE), (0.7, -0.3, 0.5)
    whole = fuse([prune(dense([d]), seed) for seed, d in enumerate(deltas)], weights)
    best = float(torch.linalg.svdvals(whole)[9:].norm())

    result = apply(method, deltas, weights, **options)

    assert result.rank == 3 + 2 + 4
    error = float((dense([result]) - whole).norm())
    assert best <= error <= 1.01 * best
    assert result.lost == pytest.approx(error, rel=1e-3)
    assert result.whole == pytest.approx(float(whole.norm()), rel=1e-4)


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("method", METHODS)
def test_what_takes_no_part_changes_nothing_not_even_the_masks(method: str) -> None:
    deltas = three()
    lacking = LowRank(a=torch.zeros(0, WIDTH), b=torch.zeros(OUT, 0))

    result = apply(method, [deltas[0], deltas[1], lacking, deltas[2]], [0.7, 0.0, 1.0, 0.3], seeds=[5, 6, 7, 8])

    alone = apply(method, [deltas[0], deltas[2]], [0.7, 0.3], seeds=[5, 8])
    assert torch.equal(dense([result]), dense([alone]))


@pytest.mark.parametrize("method", METHODS)
def test_default_rank_is_the_sum_of_those_that_take_part(method: str) -> None:
    deltas = three(40, 30)

    assert apply(method, deltas, [0.7, 0.3, 0.5]).rank == 9
    assert apply(method, deltas, [0.7, 0.0, 0.5]).rank == 7
    assert apply(method, three(5, 30), [0.7, 0.3, 0.5]).rank == 5


@pytest.mark.parametrize("method", METHODS)
def test_an_error_asked_for_is_met_and_stated(method: str) -> None:
    deltas = three(40, 30)
    whole = dense([apply(method, deltas, [0.7, 0.3, 0.5], rank=30)])

    result = apply(method, deltas, [0.7, 0.3, 0.5], max_error=0.2)

    assert relative(dense([result]), whole) <= 0.2
    assert result.lost / result.whole == pytest.approx(relative(dense([result]), whole), rel=1e-6)
    assert relative(dense([apply(method, deltas, [0.7, 0.3, 0.5], rank=result.rank - 1)]), whole) > 0.2


@pytest.mark.parametrize("method", METHODS)
def test_one_adapter_that_nothing_is_taken_from_comes_back(method: str) -> None:
    for shape in ((OUT, WIDTH), LARGE):
        delta = three(*shape)[1]

        result = apply(method, [delta], [0.7], density=1.0)

        assert relative(dense([result]), 0.7 * dense([delta])) < 1e-14
        assert (result.rank, result.scale) == (2, 1.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize(("out", "width"), [(OUT, WIDTH), pytest.param(*LARGE, marks=pytest.mark.slow)])
def test_huge_and_tiny_factors_give_the_same_up_to_their_size(method: str, size: float, out: int, width: int) -> None:
    size = 2.0 ** round(math.log2(size))  # so that nothing is rounded differently
    deltas = three(out, width)
    large = [LowRank(a=d.a * size, b=d.b * size, scale=d.scale) for d in deltas]

    plain = apply(method, deltas, [0.7, 0.3, 0.5], rank=3)
    result = apply(method, large, [0.7, 0.3, 0.5], rank=3)

    assert result.is_finite()
    assert torch.allclose(result.b / size, plain.b, rtol=1e-9, atol=0)
    assert torch.allclose(result.a / size, plain.a, rtol=1e-9, atol=0)
    assert result.whole == pytest.approx(plain.whole * size**2)


def test_factors_beyond_float64_are_refused() -> None:
    delta = LowRank(a=torch.full((1, 3), 1e200, dtype=torch.float64), b=torch.full((4, 1), 1e200, dtype=torch.float64))

    with pytest.raises(MergeRefused, match="too large"):
        apply("ties_svd", [delta, delta], [1.0, 1.0])


def test_weights_that_cancel_are_not_divided_by() -> None:
    # All agree, and 0.3 - 0.1 - 0.2 is 5e-17 and not 0 in floating point.
    delta = random_delta(0, out=OUT, width=WIDTH, rank=2)
    flipped = LowRank(a=-delta.a, b=delta.b, scale=delta.scale)

    result = apply("della", [delta, flipped, flipped], [0.3, -0.1, -0.2], density=1.0, normalize=True)

    assert relative(dense([result]), 0.6 * dense([delta])) < 1e-12


def test_what_cancels_is_a_zero_update_of_rank_1() -> None:
    delta = three()[0]

    for result in (
        apply("magnitude_prune_svd", [delta, delta], [1.0, -1.0]),
        apply("breadcrumbs", [delta, delta], [1.0, -1.0]),
        apply("ties_svd", [delta, delta], [0.0, 0.0]),
        apply("ties_svd", [LowRank(a=delta.a, b=delta.b * 0)] * 2, [1.0, 1.0]),
    ):
        assert (result.rank, result.shape, result.lost, result.whole) == (1, (OUT, WIDTH), 0.0, 0.0)
        assert not dense([result]).any()


@pytest.mark.parametrize("out", [3, pytest.param(1500, marks=pytest.mark.slow)])
def test_trimming_keeps_what_the_methods_on_factors_would_keep_even_where_sizes_tie(out: int) -> None:
    # 1, 2 and 4 times ±1: every size occurs many times, so the places of those that are kept tell.
    signs = torch.randint(0, 2, (2, 1400), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    delta = LowRank(a=signs, b=torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 0.0]]).repeat(out // 3, 1))

    result = apply("magnitude_prune_svd", [delta], [1.0], density=0.23, max_error=1e-6)

    assert relative(dense([result]), magnitude_keep(dense([delta]), 0.23)) < 2e-6


def test_masks_are_those_of_random_keep() -> None:
    delta = random_delta(0, out=LARGE[0], width=LARGE[1], rank=2)
    mask = random_keep(torch.ones(LARGE), 0.2, torch.Generator().manual_seed(9)).double()

    result = apply("dare_linear_svd", [delta], [1.0], density=0.2, rank=2, seeds=[9])

    whole = dense([delta]) * mask / 0.2
    assert result.lost == pytest.approx(float((dense([result]) - whole).norm()), rel=1e-3)
    assert result.whole == pytest.approx(float(whole.norm()), rel=1e-5)


@pytest.mark.parametrize("method", RANDOM)
@pytest.mark.slow
def test_the_mean_over_many_masks_is_the_update(method: str) -> None:
    delta = random_delta(0, out=OUT, width=WIDTH, rank=4)
    count = 400

    mean = sum(dense([apply(method, [delta], [1.0], **ALL, seeds=[seed])]) for seed in range(count)) / count

    # One mask is off by 1 at density 1/2, or less where large numbers are kept sooner.
    assert relative(mean, dense([delta])) < 1.3 / math.sqrt(count)


def test_della_keeps_large_numbers_sooner() -> None:
    delta = random_delta(0, out=60, width=50, rank=4)
    update = dense([delta])

    kept = dense([apply("della", [delta], [1.0], rank=50, epsilon=0.4, rescale="none")]).abs() > 1e-9

    ranks = update.abs().argsort(1).argsort(1)
    shares = [float(kept[(ranks >= low) & (ranks < low + 10)].double().mean()) for low in (0, 10, 20, 30, 40)]
    assert shares == sorted(shares)
    assert shares == pytest.approx([0.17, 0.34, 0.5, 0.66, 0.83], abs=0.06)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        *((method, {"density": density}, "density") for method in METHODS for density in (0.0, -0.5, 1.5, math.nan)),
        *((method, {"rank": 3, "max_error": 0.1}, "exclude each other") for method in METHODS),
        *((method, {"rank": 0}, "rank 0") for method in METHODS),
        ("ties_svd", {"majority": "loudest"}, "majority `loudest`"),
        ("dare_ties_svd", {"majority": "none"}, "majority `none`"),
        ("breadcrumbs", {"gamma": -0.1}, "gamma -0.1"),
        ("breadcrumbs", {"gamma": math.nan}, "gamma nan"),
        ("della", {"density": 0.1}, "epsilon 0.15"),
        ("della", {"density": 0.9}, "epsilon 0.15"),
        ("della", {"epsilon": -0.1}, "epsilon -0.1"),
        ("della", {"rescale": "l3"}, "rescale `l3`"),
    ],
)
def test_options_out_of_range_are_refused(method: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageProblem, match=said):
        apply(method, three(), [0.7, 0.3, 0.5], **options)


# ---------------------------------------------------------------- mergekit itself


MERGEKIT: list[tuple[str, str, dict[str, object], dict[str, object]]] = [
    ("breadcrumbs", "breadcrumbs", {"gamma": 0.1}, {"gamma": 0.1}),
    ("breadcrumbs", "breadcrumbs", {"gamma": 0.1, "density": 0.95}, {"gamma": 0.1, "density": 0.95}),
    ("breadcrumbs", "breadcrumbs_ties", {"gamma": 0.1, "majority": "total"}, {"gamma": 0.1}),
    ("della", "della", {"rescale": "norm", "normalize": True}, {}),
    ("della", "della", {"rescale": "none"}, {"rescale": False, "normalize": False}),
    ("della", "della_linear", {"rescale": "norm", "majority": "none", "epsilon": 0.2}, {"epsilon": 0.2}),
]
"""A method of ours and its options, and what mergekit calls the same."""


def test_mergekit_makes_the_same_of_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "needs mergekit (`pip install mergekit`), which brings too much for one test"
    base = pytest.importorskip("mergekit.merge_methods.base", reason=reason)
    registry = pytest.importorskip("mergekit.merge_methods.registry", reason=reason)
    deltas = three()
    group = base.TensorGroup.from_tensors(
        [torch.zeros(OUT, WIDTH, dtype=torch.float64), *(dense([d]) for d in deltas)], ids=range(4), base_index=0
    )
    differences = {}
    for (method, theirs, options, parameters), weights in product(MERGEKIT, [(0.7, 0.3, 0.5), (0.7, -0.3, 1.5)]):
        generators = iter([torch.Generator().manual_seed(i) for i in range(3)])
        monkeypatch.setattr(
            torch, "bernoulli", lambda p, g=generators: (torch.rand(p.shape, generator=next(g)) < p).to(p.dtype)
        )
        given = {"normalize": theirs == "della", "rescale": "della" in theirs, "lambda": 1.0, "int8_mask": False}
        given |= {"density": 0.5, "epsilon": 0.15} | parameters
        own = {key: {i + 1: given[key] for i in range(3)} for key in ("density", "epsilon", "gamma") if key in given}

        expected = registry.get(theirs).merge_group(group, **(given | own | {"weight": dict(enumerate(weights, 1))}))
        result = apply(method, deltas, weights, **ALL, **options)

        differences[theirs, str(options), weights] = relative(dense([result]), expected)

    # mergekit prunes in float32
    assert {what: difference for what, difference in differences.items() if difference >= 1e-6} == {}


def test_memory_that_was_used_for_another_module_changes_no_digit() -> None:
    first, other = three(420, 900), three(500, 1100)  # each larger than what small memory takes

    fresh = apply("ties_svd", first, [0.5, 0.3, 0.2], rank=4)
    apply("ties_svd", other, [0.5, 0.3, 0.2], rank=4)
    again = apply("ties_svd", first, [0.5, 0.3, 0.2], rank=4)

    assert torch.equal(fresh.a, again.a)
    assert torch.equal(fresh.b, again.b)
    assert (fresh.lost, fresh.whole) == (again.lost, again.whole)

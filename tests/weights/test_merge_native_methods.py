"""KnOTS, Core Space, TSV-M and isotropic merging against their formulas on dense float64 matrices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapterhub.core.errors import UsageProblem
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.spaces.prune import random_keep
from tests.support.adapter_folders import dense, random_delta, relative
from tests.weights.merging import apply

pytestmark = pytest.mark.slow

VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("knots", {}),
    ("knots", {"majority": "frequency"}),
    ("knots", {"inside": "dare_ties"}),
    *(("core", {"inside": inside}) for inside in ("task_arithmetic", "ties", "dare_ties", "tsv", "isotropic")),
    ("core", {"inside": "tsv", "flatten": True}),
    ("tsv_m", {}),
    ("tsv_m", {"keep": 1.0}),
    ("isotropic", {}),
    ("isotropic", {"variant": "iso_cts", "common": 0.5}),
]
EXACT = 2.0**-24
"""Both sides are float64; ours leaves out directions below this part of the whole."""

variants = pytest.mark.parametrize(("method", "options"), VARIANTS, ids=lambda v: str(v).replace("'", ""))
sizes = st.integers(1, 24)
ranks = st.lists(st.integers(1, 6), min_size=1, max_size=4)
weight = st.floats(-2, 2).filter(lambda w: abs(w) > 1e-2)
weights_of_four = st.lists(weight, min_size=4, max_size=4)
densities = st.sampled_from([0.2, 0.5, 1.0])


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def drawn(ranks: Sequence[int], out: int, width: int) -> list[LowRank]:
    return [random_delta(i, out=out, width=width, rank=r, scale=0.5 + i) for i, r in enumerate(ranks)]


def updates(deltas: Sequence[LowRank], weights: Sequence[float]) -> list[Tensor]:
    return [dense([d], [w]) for d, w in zip(deltas, weights, strict=True)]


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Without the directions that a float32 file could not carry."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt()
    keep = int((tails > max(1e-13, 2.0**-24 * float(tails[0]))).sum())
    return left[:, :keep], values[:keep], right[:keep]


def ties(blocks: Sequence[Tensor], density: float, masks: Sequence[Tensor] | None = None) -> Tensor:
    """Trim, elect by the sum, average what agrees; with masks, DARE instead of the trimming."""
    kept = []
    for i, block in enumerate(blocks):
        if masks is not None:
            kept.append(block * masks[i] / density)
        else:
            count = max(1, int(density * block.numel()))
            mask = torch.zeros(block.numel(), dtype=torch.float64)
            mask[block.flatten().abs().topk(count).indices] = 1
            kept.append(block * mask.reshape(block.shape))
    stacked = torch.stack(kept)
    agrees = stacked.sign() == torch.where(stacked.sum(0) >= 0, 1, -1)
    return (stacked * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def masks_of(shape: Sequence[int], seeds: Sequence[int], density: float) -> list[Tensor]:
    return [random_keep(torch.ones(*shape, dtype=torch.float64), density, g) for g in generators(seeds)]


def polar(vectors: Tensor) -> Tensor:
    """The closest orthonormal vectors; what is dependent, to what a half-precision file tells, stays dependent."""
    left, values, right = torch.linalg.svd(vectors, full_matrices=False)
    keep = values > 2.0**-14
    return left[:, keep] @ right[keep]


def whitened(pieces: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    left, values, right = (torch.cat([p[i] for p in pieces], dim=d) for i, d in ((0, 1), (1, 0), (2, 0)))
    return polar(left) * values @ polar(right)


def flat(matrix: Tensor) -> Tensor:
    left, values, right = svd(matrix)
    return left @ right * values.mean()


def bases(deltas: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    """Left singular vectors of all B side by side, right ones of all A on top of each other."""
    left, b_values, _ = torch.linalg.svd(torch.cat([d.b.double() for d in deltas], dim=1), full_matrices=False)
    _, a_values, right = torch.linalg.svd(torch.cat([d.a.double() for d in deltas]), full_matrices=False)
    return left[:, b_values > 1e-13 * b_values[0]], right[a_values > 1e-13 * a_values[0]]


@settings(max_examples=40)
@given(ranks=ranks, out=sizes, width=sizes, weights=weights_of_four, density=densities)
def test_knots_is_ties_on_the_blocks_of_the_dense_svd(
    ranks: list[int], out: int, width: int, weights: list[float], density: float
) -> None:
    deltas, weights = drawn(ranks, out, width), weights[: len(ranks)]
    matrices = updates(deltas, weights)
    left, _, _ = svd(torch.cat(matrices, dim=1))
    seeds = range(len(ranks))
    masks = masks_of((left.shape[1], width), seeds, density)

    for inside, drop in (("ties", None), ("dare_ties", masks)):
        result = apply("knots", deltas, weights, inside=inside, density=density, generators=generators(seeds))

        expected = left @ ties([left.T @ m for m in matrices], density, drop)
        assert relative(dense([result]), expected) < EXACT or not expected.any()


def test_knots_elects_by_heads_when_asked_to() -> None:
    deltas, weights = drawn([3, 2, 4], 12, 15), [1.0, 0.8, -0.6]
    matrices = updates(deltas, weights)
    left, _, _ = svd(torch.cat(matrices, dim=1))
    blocks = torch.stack([left.T @ m for m in matrices])
    agrees = blocks.sign() == blocks.sign().sum(0).sign()  # no draw between three

    result = apply("knots", deltas, weights, majority="frequency", density=1.0)

    assert relative(dense([result]), left @ ((blocks * agrees).sum(0) / agrees.sum(0))) < EXACT


@settings(max_examples=40)
@given(ranks=ranks, out=sizes, width=sizes, weights=weights_of_four, density=densities)
def test_core_is_the_method_on_the_updates_between_the_dense_bases(
    ranks: list[int], out: int, width: int, weights: list[float], density: float
) -> None:
    deltas, weights = drawn(ranks, out, width), weights[: len(ranks)]
    left, right = bases(deltas)
    cores = [left.T @ m @ right.T for m in updates(deltas, weights)]
    seeds = range(len(ranks))
    masks = masks_of(cores[0].shape, seeds, density)
    whole = torch.stack(cores).sum(0)
    expected = {
        "task_arithmetic": whole,
        "ties": ties(cores, density),
        "dare_ties": ties(cores, density, masks),
        "tsv": whitened([svd(c) for c in cores]),
        "isotropic": flat(whole) if len(cores) > 1 else whole,
    }

    for inside, core in expected.items():
        result = apply("core", deltas, weights, inside=inside, density=density, generators=generators(seeds))

        assert relative(dense([result]), left @ core @ right) < EXACT or not core.any()


def test_core_can_flatten_what_another_method_gave() -> None:
    deltas, weights = drawn([3, 2, 4], 12, 15), [1.0, 0.8, -0.6]
    left, right = bases(deltas)
    core = whitened([svd(left.T @ m @ right.T) for m in updates(deltas, weights)])

    result = apply("core", deltas, weights, inside="tsv", flatten=True)

    assert relative(dense([result]), left @ flat(core) @ right) < EXACT


@settings(max_examples=40)
@given(ranks=ranks, out=sizes, width=sizes, weights=weights_of_four, keep=st.sampled_from([None, 0.3, 1.0]))
def test_tsv_m_whitens_the_singular_vectors_of_the_dense_updates(
    ranks: list[int], out: int, width: int, weights: list[float], keep: float | None
) -> None:
    deltas, weights = drawn(ranks, out, width), weights[: len(ranks)]
    pieces = []
    for left, values, right in map(svd, updates(deltas, weights)):
        count = max(1, len(values) // len(ranks) if keep is None else int(keep * len(values)))
        pieces.append((left[:, :count], values[:count], right[:count]))

    result = apply("tsv_m", deltas, weights, keep=keep)

    assert relative(dense([result]), whitened(pieces)) < EXACT
    assert result.rank <= sum(len(values) for _, values, _ in pieces)


@settings(max_examples=40)
@given(ranks=ranks, out=sizes, width=sizes, weights=weights_of_four)
def test_iso_c_gives_the_dense_sum_one_singular_value(
    ranks: list[int], out: int, width: int, weights: list[float]
) -> None:
    deltas, weights = drawn(ranks, out, width), weights[: len(ranks)]
    exact = dense(deltas, weights)

    result = apply("isotropic", deltas, weights)

    assert relative(dense([result]), flat(exact) if len(ranks) > 1 else exact) < EXACT


@settings(max_examples=40)
@given(ranks=ranks, out=sizes, width=sizes, weights=weights_of_four, common=st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_iso_cts_fills_up_with_what_each_dense_update_has_of_its_own(
    ranks: list[int], out: int, width: int, weights: list[float], common: float
) -> None:
    deltas, weights = drawn(ranks, out, width), weights[: len(ranks)]
    matrices, members = updates(deltas, weights), len(ranks)
    left, values, right = svd(dense(deltas, weights))
    each = min(round((len(values) - int(len(values) * common)) / members), len(values) // members)
    shared = len(values) - each * members
    pieces = [(left[:, :shared], values[:shared], right[:shared])]
    for matrix in matrices:
        own = torch.linalg.svd(matrix - left[:, :shared] @ left[:, :shared].T @ matrix, full_matrices=False)
        count = min(each, int((own[1] > 1e-10).sum()))
        pieces.append((own[0][:, :count], own[1][:count], own[2][:count]))
    mean = torch.cat([p[1] for p in pieces]).mean()
    expected = whitened([(p[0], torch.ones_like(p[1]), p[2]) for p in pieces]) * mean

    result = apply("isotropic", deltas, weights, variant="iso_cts", common=common)

    assert relative(dense([result]), expected if members > 1 else matrices[0]) < EXACT


def test_methods_that_see_directions_only_are_the_same_inside_core_and_alone() -> None:
    deltas, weights = drawn([3, 2, 4], 12, 15), [1.0, 0.8, -0.6]

    def apart(inside: str, method: str, **options: object) -> float:
        one = apply("core", deltas, weights, inside=inside)
        return relative(dense([one]), dense([apply(method, deltas, weights, **options)]))

    assert apart("task_arithmetic", "cat") < EXACT
    assert apart("tsv", "tsv_m", keep=1.0) < EXACT
    assert apart("isotropic", "isotropic") < EXACT


@variants
def test_one_adapter_alone_comes_back_with_its_weight(method: str, options: dict[str, object]) -> None:
    deltas = drawn([4, 3, 4], 12, 10)
    lossless = {"density": 1.0} if method in ("knots", "core") else {}

    for weight, i in itertools.product([1.0, -0.7, 1e-6, 1e6], range(3)):
        result = apply(method, deltas, [weight * (i == j) for j in range(3)], **options, **lossless)

        assert relative(dense([result]), weight * dense([deltas[i]])) < 1e-12


@variants
def test_not_a_bit_depends_on_the_order(method: str, options: dict[str, object]) -> None:
    # Orthogonal adapters of equal strength: every singular value of the stacks and of the sum occurs three times, so
    # LAPACK's choice of singular vectors, and with it what is pruned, is as free as it can be.
    identity = torch.eye(12)
    free = [LowRank(a=identity[2 * i : 2 * i + 2], b=identity[:, 2 * i : 2 * i + 2].clone()) for i in range(3)]
    weights, seeds = [1.0, 1.0, 1.0], [5, 6, 7]

    for deltas in (free, drawn([4, 3, 4], 12, 10), drawn([2, 2, 2], 3, 2)):
        results = []
        for order in itertools.permutations(range(3)):
            extra = {"generators": generators([seeds[i] for i in order])} if method in ("knots", "core") else {}
            results.append(apply(method, [deltas[i] for i in order], [weights[i] for i in order], **options, **extra))

        assert all(torch.equal(r.a, results[0].a) and torch.equal(r.b, results[0].b) for r in results)


@variants
def test_a_factor_common_to_all_weights_comes_out(method: str, options: dict[str, object]) -> None:
    deltas = drawn([4, 3, 4], 12, 10)

    once = apply(method, deltas, [0.7, -0.3, 0.5], **options)
    thrice = apply(method, deltas, [2.1, -0.9, 1.5], **options)

    assert relative(dense([thrice]), 3 * dense([once])) < EXACT


@pytest.mark.parametrize(
    ("method", "options"), [v for v in VARIANTS if v[0] != "core" or v[1]["inside"] in ("task_arithmetic", "tsv")]
)
def test_how_an_update_is_split_into_factors_does_not_matter(method: str, options: dict[str, object]) -> None:
    deltas = drawn([4, 3, 4], 12, 10)
    mixed = []
    for i, d in enumerate(deltas):
        turn = torch.randn(d.rank, d.rank, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        mixed.append(
            LowRank(a=turn @ d.a.double() * 4, b=torch.linalg.solve(turn.T, d.b.double().T).T, scale=d.scale / 4)
        )

    results = [dense([apply(method, some, [0.7, -0.3, 0.5], **options)]) for some in (deltas, mixed)]

    assert relative(results[1], results[0]) < EXACT


@pytest.mark.parametrize(
    ("method", "options"),
    [("knots", {"density": 1.0}), ("core", {"inside": "ties", "density": 1.0}), ("tsv_m", {"keep": 1.0}), ("core", {})],
)
def test_an_adapter_merged_with_itself_is_itself(method: str, options: dict[str, object]) -> None:
    delta = random_delta(1, out=12, width=10, rank=4)
    stored = LowRank(a=delta.a.flip(0), b=(delta.b * 2).flip(1), scale=delta.scale / 2)

    result = apply(method, [delta, stored], [1.0, 1.0], **options)

    assert relative(dense([result]), dense([delta])) < EXACT
    assert result.rank == 4


@pytest.mark.parametrize("method", ["knots", "core"])
def test_rounding_has_no_vote(method: str) -> None:
    # Two adapters that share nothing: where one writes, the other is zero, and must not count as agreeing.
    deltas = []
    for i in range(2):
        delta = random_delta(i, out=6, width=5, rank=3)
        b, a = torch.zeros(12, 3), torch.zeros(3, 10)
        b[6 * i : 6 * i + 6], a[:, 5 * i : 5 * i + 5] = delta.b, delta.a
        turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(i))).Q
        deltas.append(LowRank(a=turn @ a, b=b @ turn.T))

    result = apply(method, deltas, [1.0, 0.5], inside="ties", density=1.0)

    assert relative(dense([result]), dense(deltas, [1.0, 0.5])) < EXACT


@variants
def test_odd_weights_and_shapes_give_numbers(method: str, options: dict[str, object]) -> None:
    shapes = [(1, 1, 1), (1, 5, 1), (5, 1, 3), (2, 3, 4), (3, 2, 8), (300, 200, 4)]
    weights = [(1.0, 1.0), (1.0, -1.0), (-0.5, 0.0), (1e-6, 1e6), (0.0, 0.0)]
    for (out, width, rank), pair in itertools.product(shapes, weights):
        for deltas in (drawn([rank, rank], out, width), [random_delta(0, out=out, width=width, rank=rank)] * 2):
            result = apply(method, deltas, pair, **options)

            assert (result.shape, result.is_finite()) == ((out, width), True), pair
            assert 1 <= result.rank <= max(1, min(out, width, 2 * rank))


@pytest.mark.parametrize(("method", "options"), [v for v in VARIANTS if v[0] not in ("knots", "core")])
def test_what_cancels_is_nothing(method: str, options: dict[str, object]) -> None:
    delta = random_delta(1, out=30, width=20, rank=4)
    shuffled = LowRank(a=delta.a.flip(0), b=delta.b.flip(1), scale=delta.scale)

    if method == "isotropic":
        assert not dense([apply(method, [delta, shuffled], [1.0, -1.0], **options)]).any()
    zero = LowRank(a=torch.ones(2, 20), b=torch.zeros(30, 2))
    assert not dense([apply(method, [zero, zero], [0.7, 0.3], **options)]).any()


def test_a_shared_a_makes_a_smaller_core() -> None:
    first, second = drawn([4, 4], 12, 10)
    second = LowRank(a=first.a, b=second.b, scale=second.scale)

    result = apply("core", [first, second], [0.7, 0.3], inside="task_arithmetic")

    assert result.rank == 4
    assert relative(dense([result]), dense([first, second], [0.7, 0.3])) < EXACT


@pytest.mark.parametrize("inside", ["task_arithmetic", "ties"])
def test_nearly_dependent_factors_lose_nothing(inside: str) -> None:
    # The stack of A has singular values down to 1e-9 of the largest: its basis is only good to seven digits, the sum
    # to all of them.
    parent = random_delta(1, out=40, width=30, rank=4)
    noise = torch.randn(4, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    child = LowRank(a=parent.a.double() + 1e-9 * noise, b=random_delta(3, out=40, width=30, rank=4).b)
    deltas = [parent, child, random_delta(4, out=40, width=30, rank=2)]
    weights = [1.0, 0.5, 0.3] if inside == "task_arithmetic" else [1.0, 0.0, 0.0]

    result = apply("core", deltas, weights, inside=inside, density=1.0)

    assert relative(dense([result]), dense(deltas, weights)) < EXACT


@variants
def test_memory_is_that_of_the_factors(method: str, options: dict[str, object]) -> None:
    # The matrix would hold 10^10 numbers; forming it would not end well.
    deltas = [random_delta(i, out=100_000, width=100_000, rank=2) for i in range(2)]

    assert apply(method, deltas, [1.0, 1.0], **options).shape == (100_000, 100_000)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("knots", {"density": 0.0}),
        ("knots", {"density": float("nan")}),
        ("knots", {"inside": "tsv"}),
        ("knots", {"majority": "loudest"}),
        ("core", {"density": 1.5}),
        ("core", {"inside": "slerp"}),
        ("core", {"inside": "ties", "majority": "loudest"}),
        ("tsv_m", {"keep": 0.0}),
        ("tsv_m", {"keep": float("nan")}),
        ("isotropic", {"variant": "iso"}),
        ("isotropic", {"common": -0.1}),
        ("isotropic", {"common": float("nan")}),
    ],
)
def test_options_out_of_range_are_refused(method: str, options: dict[str, object]) -> None:
    with pytest.raises(UsageProblem):
        apply(method, drawn([2, 2], 6, 5), [1.0, 1.0], **options)

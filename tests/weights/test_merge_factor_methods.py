"""The methods that work on factors, against slow float64 references written out here, and the laws they keep."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapterhub.core.errors import MergeRefused, UsageProblem
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge.methods import karcher, slerp
from adapterhub.weights.merge.spaces.prune import DisjointMean, SignVote, check_density, magnitude_keep, random_keep
from tests.support.adapter_folders import dense, random_delta, relative
from tests.weights.merging import apply

PRUNING = ["magnitude_prune", "ties", "dare_linear", "dare_ties"]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---------------------------------------------------------------- what is kept

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def largest(values: Tensor, count: int) -> Tensor:
    """By a full sort; of equal sizes the first in memory stay."""
    order = sorted(range(values.numel()), key=lambda i: (-abs(float(values.view(-1)[i])), i))
    kept = torch.zeros_like(values)
    for i in order[:count]:
        kept.view(-1)[i] = values.view(-1)[i]
    return kept


@settings(max_examples=150)
@given(
    values=st.lists(
        st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-20]), st.floats(-6e4, 6e4, width=16)),
        min_size=1,
        max_size=40,
    ),
    density=st.floats(0.001, 1),
    dtype=st.sampled_from(DTYPES),
)
def test_exactly_the_largest_numbers_are_kept(values: list[float], density: float, dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=dtype)

    kept = magnitude_keep(tensor, density)

    assert kept.dtype == dtype
    assert torch.equal(kept, largest(tensor, max(1, int(density * len(values)))))
    assert torch.equal(tensor, torch.tensor(values, dtype=dtype))  # not touched


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [1e-6, 0.1, 0.5, 0.999])
def test_a_matrix_of_several_pieces_keeps_its_share(dtype: torch.dtype, density: float) -> None:
    values = numbers(1100, 1001, dtype=dtype)  # ties by the thousand in the 16-bit dtypes
    values[:, 0] *= 1e-30 if dtype in {torch.float32, torch.float64} else 1e-4

    kept = magnitude_keep(values.T, density)

    assert kept.shape == (1001, 1100)
    assert int((kept != 0).sum()) == max(1, int(density * values.numel()))
    assert torch.equal(kept[kept != 0], values.T[kept != 0])
    assert float(kept[kept != 0].abs().min()) >= float(values.T[kept == 0].abs().max())


def test_the_smallest_and_the_largest_floats_are_told_apart() -> None:
    tiny = torch.tensor([0.0, 5e-45, -3e-45, 1e-45, 3e38, -2e38])

    assert magnitude_keep(tiny, 0.5).tolist() == [0.0, tiny[1], 0.0, 0.0, tiny[4], tiny[5]]
    assert magnitude_keep(tiny, 0.7).tolist() == [0.0, tiny[1], tiny[2], 0.0, tiny[4], tiny[5]]


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_a_density_out_of_range_is_refused(density: float) -> None:
    with pytest.raises(UsageProblem, match="density"):
        check_density(density)
    for method in PRUNING:
        with pytest.raises(UsageProblem, match="density"):
            apply(method, [random_delta(0, out=4, width=3, rank=2)], [1.0], density=density)


def test_random_numbers_are_kept_with_the_chance_asked_for() -> None:
    values = numbers(1000, 1200)

    kept = random_keep(values, 0.3, torch.Generator().manual_seed(1))

    share = float((kept != 0).double().mean())
    assert share == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / values.numel()))
    assert torch.equal(kept[kept != 0], values[kept != 0])
    assert 0.25 < float((kept[:, 0] != 0).double().mean()) < 0.35


def test_the_mask_does_not_depend_on_the_dtype_and_never_changes() -> None:
    masks = [
        random_keep(torch.ones(3, 5, dtype=dtype), 0.5, torch.Generator().manual_seed(7)).tolist() for dtype in DTYPES
    ]

    assert all(mask == masks[0] for mask in masks)
    assert masks[0] == [[0, 1, 0, 0, 1], [1, 1, 0, 1, 0], [0, 0, 1, 1, 1]]  # so recipes give the same digest anywhere


@settings(max_examples=60)
@given(
    count=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    majority=st.sampled_from(["total", "frequency"]),
    weights=st.lists(st.floats(-2, 2), min_size=5, max_size=5),
)
def test_votes_and_means_entry_by_entry(count: int, seed: int, majority: str, weights: list[float]) -> None:
    tensors = [magnitude_keep(numbers(6, 7, seed=seed + i, dtype=torch.float64), 0.6) for i in range(count)]

    vote = SignVote(majority)  # type: ignore[arg-type]
    for tensor in tensors:
        vote.add(tensor)
    mean = DisjointMean(vote.signs())
    for tensor, weight in zip(tensors, weights, strict=False):
        mean.add(tensor, weight)

    expected = torch.zeros(6, 7, dtype=torch.float64)
    for row in range(6):
        for column in range(7):
            entries = [float(t[row, column]) for t in tensors]
            votes = sum(entries) if majority == "total" else sum((v > 0) - (v < 0) for v in entries)
            agreeing = [w * v for v, w in zip(entries, weights, strict=False) if (v > 0 if votes >= 0 else v < 0)]
            expected[row, column] = sum(agreeing) / max(len(agreeing), 1)
    assert torch.allclose(mean.mean(), expected, rtol=1e-12, atol=1e-15)


# ---------------------------------------------------------------- factor by factor


def pruned_by_hand(method: str, factors: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    kept = torch.stack([largest(f.double(), max(1, int(density * f.numel()))) for f in factors])
    shares = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    if method == "magnitude_prune":
        return (kept * shares).sum(0)
    agrees = kept.sign() == torch.where(kept.sum(0) >= 0, 1, -1)
    return (kept * shares * agrees).sum(0) / agrees.sum(0).clamp(min=1)


@settings(max_examples=40)
@given(
    method=st.sampled_from(["magnitude_prune", "ties"]),
    seed=st.integers(0, 2**32),
    weights=st.lists(st.floats(-2, 2).filter(bool), min_size=1, max_size=4),
    scale=st.sampled_from([2.0, 1e-3, 16 / math.sqrt(8)]),
    density=st.floats(0.05, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_factors_are_pruned_and_merged_each_by_itself(
    method: str, seed: int, weights: list[float], scale: float, density: float, dtype: torch.dtype
) -> None:
    deltas = [random_delta(seed + i, out=7, width=5, rank=3, scale=scale, dtype=dtype) for i in range(len(weights))]

    merged = apply(method, deltas, weights, density=density)

    roots = [math.sqrt(abs(w * scale)) for w in weights]
    signed = [math.copysign(r, w) for r, w in zip(roots, weights, strict=True)]
    a = pruned_by_hand(method, [d.a for d in deltas], signed, density)
    b = pruned_by_hand(method, [d.b for d in deltas], roots, density)
    assert torch.allclose(merged.a, a, rtol=1e-12, atol=1e-15)
    assert torch.allclose(merged.b, b, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
def test_dropped_numbers_are_made_up_for_on_average() -> None:
    deltas = [random_delta(i, out=12, width=10, rank=4) for i in range(2)]
    total = torch.zeros(12, 10, dtype=torch.float64)

    draws = 4000
    for seed in range(draws):
        generators = [torch.Generator().manual_seed(2 * seed + i) for i in range(2)]
        total += dense([apply("dare_linear", deltas, [0.7, 0.3], density=0.5, generators=generators)])

    # The spread of one draw is about that of the update itself, so the mean of 4000 is within a few hundredths.
    assert relative(total / draws, dense([apply("linear", deltas, [0.7, 0.3])])) < 0.06


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_masks_follow_the_generator_and_differ_between_the_factors(method: str) -> None:
    delta = LowRank(a=torch.ones(4, 8), b=torch.ones(8, 4))

    def drawn(*seeds: int) -> LowRank:
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return apply(method, [delta] * len(seeds), [1.0 / len(seeds)] * len(seeds), density=0.5, generators=generators)

    assert torch.equal(drawn(3).a, drawn(3).a)
    assert not torch.equal(drawn(3).a, drawn(4).a)
    assert not torch.equal(drawn(3).a.flatten(), drawn(3).b.flatten())
    assert torch.equal(drawn(3, 4).a, drawn(4, 3).a)
    assert set(drawn(3).a.flatten().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_an_adapter_of_weight_0_has_no_vote(method: str) -> None:
    small, large = (LowRank(a=s * torch.ones(2, 3), b=torch.ones(4, 2)) for s in (1.0, -5.0))

    result = apply(method, [small, large], [1.0, 0.0], density=1.0)

    assert torch.equal(dense([result]), dense([small]))


@pytest.mark.parametrize("method", ["linear", *PRUNING])
def test_an_adapter_less_itself_leaves_nothing_not_even_rounding(method: str) -> None:
    delta = random_delta(0, out=12, width=10, rank=4, scale=1 / 3)
    options = {} if method == "linear" else {"density": 1.0}

    assert not dense([apply(method, [delta, delta], [0.7, -0.7], **options)]).any()


@pytest.mark.parametrize("method", ["linear", *PRUNING])
def test_other_ranks_and_missing_modules_are_refused_by_name(method: str) -> None:
    deltas = [random_delta(i, out=6, width=5, rank=r) for i, r in enumerate((2, 3))]
    lacking = LowRank(a=torch.zeros(0, 5), b=torch.zeros(6, 0))

    with pytest.raises(MergeRefused, match="ranks 2, 3"):
        apply(method, deltas, [0.5, 0.5])
    with pytest.raises(MergeRefused, match="not in every adapter"):
        apply(method, [deltas[0], lacking], [0.5, 0.5])
    assert apply(method, deltas, [0.5, 0.0]).rank == 2


# ---------------------------------------------------------------- slerp


def slerp_by_hand(first: Tensor, second: Tensor, t: float) -> Tensor:
    """mergekit's rule on full matrices."""
    cosine = float((first * second).sum() / (first.norm() * second.norm()))
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


def with_angle(delta: LowRank, towards: LowRank, angle: float) -> LowRank:
    """An update at that angle to `delta`, of its length, in the plane of the two; of the summed rank."""
    one, other = dense([delta]), dense([towards])
    across = other - (other * one).sum() / one.norm() ** 2 * one
    turned = math.cos(angle) * one + math.sin(angle) * across * (one.norm() / across.norm())
    u, s, v = torch.linalg.svd(turned, full_matrices=False)
    return LowRank(a=s[:, None] * v, b=u)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    ranks=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    t=st.floats(0.001, 0.999),
    total=st.floats(0.01, 100),
    signs=st.tuples(st.sampled_from([1, -1]), st.sampled_from([1, -1])),
)
def test_slerp_is_that_of_full_matrices(
    seed: int, shape: tuple[int, int], ranks: tuple[int, int], t: float, total: float, signs: tuple[int, int]
) -> None:
    deltas = [random_delta(seed + i, out=shape[0], width=shape[1], rank=r, scale=0.3 + i) for i, r in enumerate(ranks)]

    result = slerp.merge(deltas, [signs[0] * total * (1 - t), signs[1] * total * t])

    first, second = (sign * dense([d]) for sign, d in zip(signs, deltas, strict=True))
    expected = total * slerp_by_hand(first, second, t)
    assume(float(expected.norm()) > 1e-3 * float(first.norm()))  # opposites on a line may cancel
    assert relative(dense([result]), expected) < 1e-9
    assert result.rank <= min(sum(ranks), *shape)


@pytest.mark.parametrize("angle", [0.04, 1.0, math.pi / 2, 3.0])
@pytest.mark.parametrize("t", [0.1, 0.5])
def test_slerp_between_updates_of_one_length_keeps_it_and_divides_the_angle(angle: float, t: float) -> None:
    first = random_delta(0, out=9, width=8, rank=3)
    second = with_angle(first, random_delta(1, out=9, width=8, rank=2), angle)

    result = dense([slerp.merge([first, second], [1 - t, t])])

    one = dense([first])
    assert float(result.norm()) == pytest.approx(float(one.norm()), rel=1e-9)
    assert math.acos(float((result * one).sum() / (result.norm() * one.norm()))) == pytest.approx(t * angle, rel=1e-6)


@pytest.mark.parametrize("method", ["slerp", "karcher"])
@pytest.mark.parametrize("factor", [2.5, -2.5])
def test_updates_on_one_line_are_added_linearly(method: str, factor: float) -> None:
    delta = random_delta(0, out=9, width=8, rank=3)
    other = LowRank(a=delta.a, b=delta.b, scale=factor * delta.scale)

    result = apply(method, [delta, other], [0.7, 0.3])

    assert relative(dense([result]), (0.7 + 0.3 * factor) * dense([delta])) < 1e-12
    assert result.rank == 3


@pytest.mark.parametrize("method", ["slerp", "karcher"])
def test_an_update_less_itself_is_nothing(method: str) -> None:
    delta = random_delta(0, out=9, width=8, rank=3, scale=1 / 3)

    result = apply(method, [delta, delta], [0.5, -0.5])

    assert (result.rank, bool(dense([result]).any())) == (1, False)


@pytest.mark.parametrize("method", ["slerp", "karcher"])
@pytest.mark.parametrize("weight", [0.3, -2.0])
def test_beside_a_zero_update_the_other_comes_out_times_its_weight(method: str, weight: float) -> None:
    delta = random_delta(0, out=9, width=8, rank=3)
    zero = LowRank(a=torch.ones(2, 8), b=torch.zeros(9, 2))
    cancelling = LowRank(a=delta.a.repeat(2, 1), b=torch.cat([delta.b, -delta.b], dim=1))

    for other in (zero, cancelling):
        assert relative(dense([apply(method, [other, delta], [0.7, weight])]), weight * dense([delta])) < 1e-12


def test_slerp_of_three_is_refused_by_name() -> None:
    deltas = [random_delta(i, out=9, width=8, rank=3) for i in range(3)]

    with pytest.raises(MergeRefused, match="3 adapters, `slerp`") as refused:
        slerp.merge(deltas, [0.5, 0.3, 0.2])

    assert "karcher" in refused.value.hint
    assert slerp.refusal([4, 0, 8]) is None
    assert slerp.merge(deltas, [0.5, 0.0, 0.2]).rank == 6


# ---------------------------------------------------------------- karcher


def karcher_by_hand(updates: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """On full matrices: steps along the weighted mean of the logarithms, from the weighted mean of the directions."""
    shares = [w / sum(weights) for w in weights]
    directions = [u / u.norm() for u in updates]
    mean = sum(s * d for s, d in zip(shares, directions, strict=True))
    mean = mean / mean.norm()
    for _ in range(2000):
        step = torch.zeros_like(mean)
        for share, direction in zip(shares, directions, strict=True):
            across = direction - (direction * mean).sum() * mean
            if float(across.norm()) > 0:
                angle = math.atan2(float(across.norm()), float((direction * mean).sum()))
                step += share * angle * across / across.norm()
        size = float(step.norm())
        if size < 1e-13:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
    return sum(w * u.norm() for w, u in zip(weights, updates, strict=True)) * mean


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    ranks=st.lists(st.integers(1, 4), min_size=2, max_size=6),
    weights=st.lists(st.floats(0.05, 3), min_size=6, max_size=6),
    signs=st.lists(st.sampled_from([1, -1]), min_size=6, max_size=6),
)
def test_karcher_is_that_of_full_matrices(seed: int, ranks: list[int], weights: list[float], signs: list[int]) -> None:
    deltas = [random_delta(seed + i, out=30, width=25, rank=r, scale=0.5 + i) for i, r in enumerate(ranks)]
    weights, signs = weights[: len(ranks)], signs[: len(ranks)]

    result = karcher.merge(deltas, [w * s for w, s in zip(weights, signs, strict=True)])

    expected = karcher_by_hand([s * dense([d]) for s, d in zip(signs, deltas, strict=True)], weights)
    assert relative(dense([result]), expected) < 1e-9


def test_karcher_of_two_of_one_length_is_their_slerp() -> None:
    first = random_delta(0, out=9, width=8, rank=3)
    second = with_angle(first, random_delta(1, out=9, width=8, rank=2), 2.2)

    for weights in ([0.5, 0.5], [1.4, 0.6], [0.7, -0.3]):
        one, other = karcher.merge([first, second], weights), slerp.merge([first, second], weights)
        assert relative(dense([one]), dense([other])) < 1e-9


def test_karcher_has_the_mean_length_and_no_direction_nearby_is_better() -> None:
    deltas = [random_delta(i, out=9, width=8, rank=1 + i, scale=1.0 + i) for i in range(4)]
    weights = [0.4, 0.3, 0.2, 0.1]
    updates = [dense([d]) for d in deltas]

    result = dense([karcher.merge(deltas, weights)])

    def cost(direction: Tensor) -> float:
        cosines = [float((direction * u).sum() / (direction.norm() * u.norm())) for u in updates]
        return sum(w * math.acos(c) ** 2 for w, c in zip(weights, cosines, strict=True))

    assert float(result.norm()) == pytest.approx(
        sum(w * float(u.norm()) for w, u in zip(weights, updates, strict=True))
    )
    for seed in range(50):
        assert cost(result) < cost(result + 1e-2 * result.norm() * numbers(9, 8, seed=seed, dtype=torch.float64) / 8)


def test_karcher_of_directions_that_cancel_is_refused() -> None:
    first = random_delta(0, out=9, width=8, rank=3)
    third = 2 * math.pi / 3
    around = [with_angle(first, random_delta(1, out=9, width=8, rank=2), i * third) for i in range(3)]

    with pytest.raises(MergeRefused, match="cancel"):
        karcher.merge(around, [1.0, 1.0, 1.0])


def test_karcher_next_to_an_opposite_direction_is_refused() -> None:
    first = random_delta(0, out=9, width=8, rank=3)
    other = with_angle(first, random_delta(1, out=9, width=8, rank=2), 1e-3)
    opposite = LowRank(a=first.a, b=first.b, scale=-first.scale)
    aside = with_angle(first, random_delta(1, out=9, width=8, rank=2), 0.05)

    with pytest.raises(MergeRefused, match="opposite"):
        karcher.merge([first, other, aside, opposite], [1.0, 1.0, 1.0, 0.1])

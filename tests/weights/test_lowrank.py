"""The algebra of low-rank updates against dense float64 matrices."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.core.errors import UsageProblem
from adapterhub.weights.lowrank.algebra import (
    LowRank,
    Summands,
    cut,
    difference_norms,
    frobenius_norm,
    nothing,
    row_products,
    singular_values,
    spectrum,
    stack,
)
from tests.support.adapter_folders import dense, random_delta, relative

sizes = st.integers(1, 24)
ranks = st.lists(st.integers(1, 9), min_size=1, max_size=4)
weight = st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3)


def drawn(ranks: list[int], out: int, width: int, dtype: torch.dtype = torch.float32) -> list[LowRank]:
    return [random_delta(i, out=out, width=width, rank=r, scale=0.5 + i, dtype=dtype) for i, r in enumerate(ranks)]


@settings(max_examples=60)
@given(ranks=ranks, out=sizes, width=sizes, weights=st.lists(weight, min_size=4, max_size=4))
def test_stack_and_full_recompression_give_the_dense_sum(
    ranks: list[int], out: int, width: int, weights: list[float]
) -> None:
    deltas, weights = drawn(ranks, out, width), weights[: len(ranks)]
    exact = dense(deltas, weights)

    stacked = stack(deltas, weights)
    recompressed = cut(stacked, rank=stacked.rank)

    # float64 throughout; the sum may be up to 1e4 times smaller than its terms
    assert relative(dense([stacked]), exact) < 1e-10
    assert relative(dense([recompressed]), exact) < 1e-7  # directions below 2**-24 of the whole are dropped
    assert recompressed.rank <= min(out, width, stacked.rank)


@settings(max_examples=60)
@given(ranks=ranks, out=sizes, width=sizes, rank=st.integers(1, 12))
def test_recompression_is_the_optimal_truncation(ranks: list[int], out: int, width: int, rank: int) -> None:
    deltas, weights = drawn(ranks, out, width), [0.7, -0.3, 1.1, 0.2][: len(ranks)]
    exact = dense(deltas, weights)
    left, values, right = torch.linalg.svd(exact, full_matrices=False)
    best = left[:, :rank] * values[:rank] @ right[:rank]

    result = cut(stack(deltas, weights), rank=rank)

    gap = float((dense([result]) - exact).norm() - (best - exact).norm()) / float(exact.norm())
    assert abs(gap) < 1e-7
    assert result.rank == min(rank, spectrum(stack(deltas, weights)).numerical_rank)


@settings(max_examples=60)
@given(ranks=ranks, out=sizes, width=sizes)
def test_singular_values_and_norm_are_those_of_the_dense_matrix(ranks: list[int], out: int, width: int) -> None:
    total = stack(drawn(ranks, out, width), [1.0] * len(ranks))
    exact = torch.linalg.svdvals(dense([total]))

    values = singular_values(total)

    assert torch.allclose(values, exact[: len(values)], rtol=1e-10, atol=1e-12 * float(exact[0]))
    assert frobenius_norm(total) == pytest.approx(float(exact.norm()), rel=1e-12)


@settings(max_examples=80)
@given(
    ranks=ranks, out=sizes, width=sizes, rank=st.integers(1, 9), dtype=st.sampled_from([torch.float32, torch.bfloat16])
)
def test_difference_norms_are_those_of_the_dense_matrices(
    ranks: list[int], out: int, width: int, rank: int, dtype: torch.dtype
) -> None:
    deltas, weights = drawn(ranks, out, width), [0.7, -0.3, 1.1, 0.2][: len(ranks)]
    result = cut(stack(deltas, weights), rank=rank).folded(dtype)
    exact = dense(deltas, weights)

    error, norm = difference_norms(deltas, weights, result)

    assert norm == pytest.approx(float(exact.norm()), rel=1e-9)
    assert error == pytest.approx(float((dense([result]) - exact).norm()), rel=1e-5, abs=1e-12 * norm)


LONG = [(32, 5000), (16, 4096), (12, 1999), (48, 777), (3, 5000), (64, 3000), (20, 64)]
"""Rows and their length: in pieces with and without a rest, and whole."""


@pytest.mark.parametrize(("count", "length"), LONG)
def test_products_of_long_rows_are_those_of_matrices(count: int, length: int) -> None:
    rows, others = torch.randn(count, length).double(), torch.randn(16, length).double()

    torch.testing.assert_close(row_products(rows), rows @ rows.T, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(row_products(rows, others), rows @ others.T, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(row_products(rows.T.contiguous().T, others), rows @ others.T, rtol=1e-12, atol=1e-10)


DIGITS = """
import hashlib, torch
from adapterhub.weights.lowrank.algebra import row_products
drawn = torch.Generator().manual_seed(0)
rows = [torch.randn(count, 11008, generator=drawn, dtype=torch.float64) for count in (12, 16, 32, 48)]
products = [row_products(one) for one in rows] + [row_products(rows[-1], one) for one in rows]
digits = hashlib.sha256(b"".join(one.numpy().tobytes() for one in products)).hexdigest()
"""


def test_the_threads_of_numpy_change_no_digit() -> None:
    here: dict[str, str] = {}
    exec(DIGITS, here)  # noqa: S102 - the code above
    environ = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "3"}
    code = f"{DIGITS}print(digits)"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == here["digits"]


def test_one_number_that_is_not_finite_is_seen_in_products() -> None:
    deltas = drawn([16, 16], 500, 3000)
    large = LowRank(a=torch.full((2, 4), 1e200, dtype=torch.float64), b=torch.ones(4, 2).double())

    assert Summands(deltas).is_finite
    assert Summands([large]).is_finite  # though its squares are not
    deltas[1].b[17, 3] = float("inf")
    assert not Summands(deltas).is_finite


def test_rounding_of_a_concatenation_is_measured_to_all_digits() -> None:
    deltas, weights = drawn([8, 8], 40, 50), [0.7, 0.3]
    result = stack(deltas, weights).folded(torch.float32)

    error, norm = difference_norms(deltas, weights, result)

    assert 1e-9 < error / norm < 6e-8
    assert error == pytest.approx(float((dense([result]) - dense(deltas, weights)).norm()), rel=1e-6)


@pytest.mark.parametrize("weights", [(1.0, -1.0), (0.3, -0.3)])
def test_an_update_less_itself_is_nothing(weights: tuple[float, float]) -> None:
    delta = random_delta(1, out=300, width=200, rank=16)
    shuffled = LowRank(a=delta.a.flip(0), b=delta.b.flip(1), scale=delta.scale)

    assert spectrum(stack([delta, shuffled], weights)).numerical_rank == 0
    assert difference_norms([delta, shuffled], weights, nothing(300, 200, rank=1)) == (0.0, 0.0)
    assert not cut(stack([delta, shuffled], weights), rank=8).b.any()


def test_weights_that_cancel_up_to_rounding_are_nothing() -> None:
    delta = random_delta(1, out=30, width=20, rank=4)
    assert 0.1 + 0.2 - 0.3 != 0

    assert spectrum(stack([delta] * 3, [0.1, 0.2, -0.3])).numerical_rank == 0


def test_the_small_difference_of_near_relatives_keeps_its_digits() -> None:
    parent = random_delta(1, out=300, width=200, rank=16)
    noise = 1e-6 * torch.randn(16, 200, generator=torch.Generator().manual_seed(2))
    child = LowRank(a=parent.a + noise, b=parent.b, scale=parent.scale)
    exact = dense([child, parent], [1, -1])

    result = cut(stack([child, parent], [1, -1]), rank=16)

    assert relative(dense([result]), exact) < 1e-9
    error, norm = difference_norms([child, parent], [1, -1], result.folded(torch.float32))
    assert norm == pytest.approx(float(exact.norm()), rel=1e-6)
    assert 1e-9 < error / norm < 1e-7


def test_a_repeated_update_does_not_add_directions() -> None:
    delta = random_delta(1, out=30, width=20, rank=4)

    assert spectrum(stack([delta, delta], [0.7, 0.3])).numerical_rank == 4


def test_directions_that_float32_cannot_carry_do_not_count() -> None:
    delta = random_delta(1, out=30, width=20, rank=3)
    scales = torch.tensor([1.0, 1e-3, 1e-9])

    assert spectrum(LowRank(a=delta.a * scales[:, None], b=delta.b)).numerical_rank == 2


def test_the_rank_for_an_error_is_the_smallest_that_holds_it() -> None:
    diagonal = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    found = spectrum(LowRank(a=diagonal, b=torch.eye(4, dtype=torch.float64)))
    whole = (16 + 4 + 1 + 0.25) ** 0.5

    assert [found.rank_within(e) for e in (0, 0.5 / whole + 1e-9, 0.3, 0.55)] == [4, 3, 2, 1]


def test_bfloat16_factors_are_added_up_without_rounding() -> None:
    deltas = drawn([4, 4], 20, 30, torch.bfloat16)

    assert relative(dense([stack(deltas, [0.7, 0.3])]), dense(deltas, [0.7, 0.3])) < 1e-15


def test_folding_rounds_each_number_once_and_leaves_a_alone() -> None:
    delta = random_delta(1, out=30, width=20, rank=3, scale=-0.7)

    folded = delta.folded(torch.float32)

    assert folded.scale == 1
    assert torch.equal(folded.a, delta.a)
    assert torch.equal(folded.b, (delta.b.double() * -0.7).float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["a", "b"])
def test_one_bad_number_is_seen(bad: float, side: str) -> None:
    delta = random_delta(1, out=30, width=20, rank=3, dtype=torch.bfloat16)
    assert delta.is_finite()

    getattr(delta, side)[2, 1] = bad

    assert not delta.is_finite()


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="no low-rank pair"):
        LowRank(a=torch.zeros(3, 4), b=torch.zeros(5, 2))
    with pytest.raises(ValueError, match="shapes"):
        stack([nothing(3, 4, 1), nothing(4, 3, 1)], [1, 1])
    with pytest.raises(UsageProblem, match="rank 0"):
        cut(nothing(3, 4, 1), rank=0)


def test_memory_is_that_of_the_factors() -> None:
    # The matrix would hold 10^10 numbers; forming it would not end well.
    delta = random_delta(1, out=100_000, width=100_000, rank=2)

    assert cut(stack([delta, delta], [1, 1]), rank=2).shape == (100_000, 100_000)

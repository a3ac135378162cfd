"""The randomized decomposition against the exact one: never more than 1 % off, and measured truly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapterhub.core.errors import UsageProblem
from adapterhub.weights.lowrank.randomized import closest

pytestmark = pytest.mark.slow

ROUNDING = 2.0**-22
"""What float32 numbers leave open, relative to the matrix (1.02 times 2**-23 was seen): below it there is no truncation error to speak of."""

OUT, WIDTH = 500, 420
STEPS = torch.arange(1, WIDTH + 1, dtype=torch.float64)

SPECTRA: Mapping[str, Tensor] = {
    "power law, slow": STEPS**-0.25,
    "power law": STEPS**-1.0,
    "power law, fast": STEPS**-3.0,
    "geometric": 0.97**STEPS,
    "geometric, fast": 0.5**STEPS,
    "low rank and a floor": torch.where(STEPS <= 12, 20.0, 1.0).double() * (1 + 0.01 * torch.sin(STEPS)),
    "low rank and a low floor": torch.where(STEPS <= 12, 1.0, 1e-4).double(),
    "cluster around the rank": torch.where(STEPS < 20, 10.0, torch.where(STEPS < 60, 1.0, 0.1)).double(),
    "tight cluster beyond the rank": torch.where(STEPS < 33, 1.0, torch.where(STEPS < 70, 0.999, 0.3)).double(),
    "slow decline": 1 - 0.001 * STEPS * (STEPS < 200) - 0.9 * (STEPS >= 200),
    "linear": (WIDTH + 1 - STEPS) / WIDTH,
    "all equal": torch.ones(WIDTH, dtype=torch.float64),
    "far apart": torch.where(STEPS < 5, 1.0, torch.where(STEPS < 34, 1e-3, 1e-6)).double(),
    "exact low rank": torch.where(STEPS <= 20, 1.0 / STEPS, 0.0),
}


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_values(values: Tensor, out: int = OUT) -> Tensor:
    left = torch.linalg.qr(gaussian(out, len(values), seed=1)).Q
    right = torch.linalg.qr(gaussian(len(values), len(values), seed=2)).Q
    return (left * values) @ right.T


def pruned(out: int, width: int, density: float) -> Tensor:
    """What magnitude pruning makes of a rank-16 update: low rank, and a floor of noise over all directions."""
    dense = gaussian(out, 16, seed=3) @ gaussian(16, width, seed=4)
    return dense * (dense.abs() >= dense.abs().flatten().kthvalue(int((1 - density) * dense.numel())).values)


MATRICES: Mapping[str, Callable[[], Tensor]] = {
    **{name: lambda values=values: with_values(values) for name, values in SPECTRA.items()},
    "wide": lambda: with_values(STEPS**-0.5).mT.clone(memory_format=torch.contiguous_format),
    "not contiguous": lambda: with_values(STEPS**-0.5).T,
    "Gaussian": lambda: gaussian(700, 600, seed=5),
    "Gaussian, in float64": lambda: gaussian(600, 300, seed=5),
    "pruned by half": lambda: pruned(700, 600, 0.5),
    "pruned to a tenth": lambda: pruned(400, 700, 0.1),
    "power law, in float64": lambda: with_values(STEPS**-1.0),
}


@pytest.mark.parametrize("name", MATRICES)
def test_error_is_measured_and_within_one_percent_of_the_smallest(name: str) -> None:
    matrix = MATRICES[name]()
    matrix = matrix if "float64" in name else matrix.float()
    values = torch.linalg.svdvals(matrix.double())
    whole = float(values.norm())

    for rank in (1, 8, 16, 33, 42):
        found = closest(matrix, rank=rank, max_error=None)

        error = float((matrix.double() - found.b @ found.a).norm())
        assert error <= max(1.01 * float(values[rank:].norm()), ROUNDING * whole), rank
        assert found.lost == pytest.approx(error, rel=1e-3)
        assert found.whole == pytest.approx(whole, rel=1e-5)
        assert found.rank <= rank
        assert found.a.dtype == found.b.dtype == torch.float64


@pytest.mark.parametrize("name", ["pruned by half", "linear"])
def test_one_percent_holds_whatever_the_guess(name: str) -> None:
    matrix, rank = MATRICES[name]().float(), 16
    _, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)

    for guessed in (right[:rank], right[rank : 2 * rank], right[-rank:], 0 * right[:rank]):
        found = closest(matrix, rank=rank, max_error=None, guess=guessed.T.float())

        assert found.lost <= 1.01 * float(values[rank:].norm())


@settings(max_examples=40)
@given(
    count=st.sampled_from([200, 350]),
    rank=st.integers(1, 30),
    seed=st.integers(0, 1000),
    power=st.floats(0.02, 3),
    steps=st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 1)), max_size=4),
    floor=st.floats(0, 1),
)
def test_one_percent_holds_whatever_the_spectrum(
    count: int, rank: int, seed: int, power: float, steps: list[tuple[float, float]], floor: float
) -> None:
    # A Gaussian start does not know directions, so a diagonal matrix is as hard as any with these singular values.
    values = torch.arange(1, count + 1, dtype=torch.float64) ** -power
    for place, factor in steps:
        values[int(place * count) :] *= factor
    values = (values + floor * values[-1]).float().double()

    found = closest(torch.diag(values.float()), rank=rank, max_error=None, seed=seed)

    smallest = float(values.sort(descending=True).values[rank:].norm())
    assert found.lost <= max(1.01 * smallest, ROUNDING * found.whole)


def test_a_rank_is_not_filled_with_directions_that_are_rounding() -> None:
    matrix = with_values(SPECTRA["exact low rank"]).float()

    found = closest(matrix, rank=40, max_error=None)

    assert found.rank == 20
    assert found.lost <= ROUNDING * found.whole


@pytest.mark.parametrize("shape", [(1030, 1060), (1060, 1030)])
def test_large_ranks_are_found_by_a_full_decomposition(shape: tuple[int, int]) -> None:
    matrix = pruned(*shape, 0.3).float()
    values = torch.linalg.svdvals(matrix)

    found = closest(matrix, rank=400, max_error=None)

    assert found.rank == 400
    assert found.lost == pytest.approx(float(values[400:].norm()), rel=1e-4)
    assert found.lost == pytest.approx(float((matrix.double() - found.b @ found.a).norm()), rel=1e-3)


@pytest.mark.parametrize("max_error", [0.5, 0.1, 0.01, 1e-4, 0.0])
@pytest.mark.parametrize("name", ["power law", "geometric", "exact low rank", "low rank and a floor", "Gaussian"])
def test_an_error_asked_for_is_met_with_the_smallest_rank(name: str, max_error: float) -> None:
    matrix = MATRICES[name]().float()
    values = torch.linalg.svdvals(matrix.double())
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt()
    # A float32 matrix of low rank has a float32 rounding error in all directions: no rank meets an error of 0.
    solid = int((tails > ROUNDING * float(tails[0])).sum())
    smallest = min(int((tails > max_error * float(tails[0])).sum()), solid)

    found = closest(matrix, rank=None, max_error=max_error)

    assert smallest <= found.rank <= smallest + math.ceil(0.01 * smallest)
    assert found.lost <= max(max_error * found.whole, ROUNDING * found.whole)


def test_without_rank_and_error_nothing_is_lost() -> None:
    matrix = gaussian(30, 20)

    found = closest(matrix, rank=None, max_error=None)

    assert found.rank == 20
    assert found.lost < 1e-13 * found.whole


@pytest.mark.parametrize(
    "matrix",
    [
        torch.ones(1, 1), torch.ones(1, 9), torch.ones(9, 1), torch.ones(400, 300), torch.eye(300),
        torch.zeros(300, 300).index_put((torch.tensor(7), torch.tensor(11)), torch.tensor(3.0)),
        torch.zeros(300, 300).index_fill(0, torch.tensor([4, 5]), 2.0),
        torch.full((200, 300), -1e-3),
    ],
    ids=["1 x 1", "row", "column", "ones", "identity", "one number", "two rows", "constant"],
)  # fmt: skip
@pytest.mark.parametrize("rank", [1, 3])
def test_plain_matrices_give_numbers(matrix: Tensor, rank: int) -> None:
    values = torch.linalg.svdvals(matrix.double())

    found = closest(matrix, rank=rank, max_error=None)

    assert found.is_finite()
    assert found.lost == pytest.approx(float(values[rank:].norm()), rel=1e-6, abs=1e-6 * found.whole)


@pytest.mark.parametrize("shape", [(4, 6), (300, 200)])
def test_zeros_are_cut_to_nothing(shape: tuple[int, int]) -> None:
    for asked in ({"rank": 4, "max_error": None}, {"rank": None, "max_error": 0.1}):
        found = closest(torch.zeros(shape), **asked)  # type: ignore[arg-type]

        assert (found.rank, found.shape, found.lost, found.whole) == (1, shape, 0.0, 0.0)
        assert not found.a.any()
        assert not found.b.any()


@pytest.mark.parametrize("size", [1e30, 1e-30, 1e-40])
@pytest.mark.parametrize("shape", [(12, 10), (300, 200)])
def test_huge_and_tiny_numbers_neither_overflow_nor_vanish(shape: tuple[int, int], size: float) -> None:
    matrix = (gaussian(*shape) * size).float()
    values = torch.linalg.svdvals(matrix.double())

    found = closest(matrix, rank=4, max_error=None)

    assert found.is_finite()
    assert found.rank == 4
    assert found.whole == pytest.approx(float(values.norm()), rel=1e-5)
    assert found.lost == pytest.approx(float(values[4:].norm()), rel=0.01)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    matrix = pruned(300, 400, 0.5).float()

    first, again, other = (closest(matrix, rank=8, max_error=None, seed=seed) for seed in (3, 3, 4))

    assert torch.equal(first.a, again.a)
    assert torch.equal(first.b, again.b)
    assert not torch.equal(first.a, other.a)


def test_the_matrix_is_left_alone_and_the_factors_share_its_size() -> None:
    matrix = pruned(300, 400, 0.5).float()
    before = matrix.clone()

    found = closest(matrix, rank=8, max_error=None)

    assert torch.equal(matrix, before)
    assert torch.allclose(found.a.norm(dim=1), found.b.norm(dim=0), rtol=1e-3)


@pytest.mark.parametrize(
    "asked",
    [{"rank": 0, "max_error": None}, {"rank": 3, "max_error": 0.1}, {"rank": None, "max_error": 1.0}],
)
def test_what_cannot_be_asked_for_is_refused(asked: dict[str, float | None]) -> None:
    with pytest.raises(UsageProblem):
        closest(torch.ones(3, 3), **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "matrix", [torch.tensor([[1.0, math.nan]]), torch.tensor([[math.inf]]), torch.ones(3), torch.ones(2, 2).half()]
)
def test_what_is_no_matrix_of_numbers_is_refused(matrix: Tensor) -> None:
    with pytest.raises(ValueError, match=r"NaN|expected a float32"):
        closest(matrix, rank=1, max_error=None)

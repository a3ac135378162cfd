"""What GPTQ, AWQ and AutoRound do to a matrix, in a few lines of numpy, and the files that they write."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


class Grid(NamedTuple):
    """Codes [out, in], and zeros and scales [out, groups]; column i is in group `groups[i]`."""

    codes: NDArray[np.int64]
    zeros: NDArray[np.int64]
    scales: Numbers
    groups: NDArray[np.int64]
    bits: int

    @property
    def values(self) -> Numbers:
        return (self.codes - self.zeros[:, self.groups]) * self.scales[:, self.groups]


def grid_of(columns: Numbers, bits: int, *, is_symmetric: bool) -> tuple[NDArray[np.int64], Numbers]:
    """Zero and scale of each row, as AutoGPTQ chooses them for a group; scales are float16."""
    low, high = np.minimum(columns.min(1), 0), np.maximum(columns.max(1), 0)
    if is_symmetric:
        high = np.maximum(-low, high)
        low = -high
    scale = np.maximum((high - low) / ((1 << bits) - 1), 1e-6).astype(np.float16).astype(np.float64)
    middle = np.full(len(scale), 1 << (bits - 1))
    return (middle if is_symmetric else np.clip(np.round(-low / scale), 1, (1 << bits) - 1).astype(np.int64)), scale


def rounded(column: Numbers, zero: NDArray[np.int64], scale: Numbers, bits: int) -> NDArray[np.int64]:
    return np.clip(np.round(column / scale) + zero, 0, (1 << bits) - 1).astype(np.int64)


def plain(weight: Numbers, *, bits: int = 4, group: int = 64, is_symmetric: bool = True) -> Grid:
    """Round to nearest, group by group."""
    return gptq(weight, None, bits=bits, group=group, is_symmetric=is_symmetric)


def gptq(
    weight: Numbers,
    inputs: Numbers | None,
    *,
    bits: int = 4,
    group: int = 64,
    is_symmetric: bool = True,
    is_ordered: bool = False,
) -> Grid:
    """GPTQ: what a column loses by rounding is made up for by later ones, through the inverse of `inputs.T @ inputs`.

    `is_ordered`: columns with large inputs come first (`desc_act`). Without inputs, plain rounding.
    """
    height, width = weight.shape
    hessian = np.eye(width) if inputs is None else inputs.T @ inputs
    hessian = hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(width)
    order = np.argsort(-np.diag(hessian), kind="stable") if is_ordered else np.arange(width)
    left = weight[:, order].copy()
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    codes = np.zeros(weight.shape, np.int64)
    zeros, scales = np.zeros((height, width // group), np.int64), np.zeros((height, width // group))
    for at in range(width):
        g = at // group
        if at % group == 0:
            zeros[:, g], scales[:, g] = grid_of(left[:, at : at + group], bits, is_symmetric=is_symmetric)
        codes[:, at] = rounded(left[:, at], zeros[:, g], scales[:, g], bits)
        error = (left[:, at] - (codes[:, at] - zeros[:, g]) * scales[:, g]) / upper[at, at]
        left[:, at:] -= np.outer(error, upper[at, at:])
    back = np.argsort(order)
    return Grid(codes[:, back], zeros, scales, (np.arange(width) // group)[back], bits)


def tuned(weight: Numbers, seed: int, *, bits: int = 4, group: int = 64) -> Grid:
    """AutoRound: each number is rounded up or down, after a shift of at most half a step; scales shrink a little."""
    found = plain(weight, bits=bits, group=group)
    scales = (found.scales * 0.98).astype(np.float16).astype(np.float64)
    shift = np.random.default_rng(seed).uniform(-0.5, 0.5, weight.shape) ** 3 * 4
    codes = np.round(weight / scales[:, found.groups] + shift) + found.zeros[:, found.groups]
    return found._replace(codes=np.clip(codes, 0, (1 << bits) - 1).astype(np.int64), scales=scales)


# ---------------------------------------------------------------- files
def stream(codes: NDArray[np.int64], bits: int) -> torch.Tensor:
    """Codes of each row one after another in words of 32 bits, the lowest bits first."""
    planes = (codes[:, :, None] >> np.arange(bits)) & 1
    flat = planes.reshape(len(codes), -1)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32))).astype(np.uint8)
    return torch.from_numpy(np.packbits(flat, axis=1, bitorder="little").view(np.int32).copy())


def as_gptq(grid: Grid, *, less: int = 1, has_index: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a file for the weight `x.weight`; `less`: what the first version takes off its zeros."""
    tensors = {
        "x.qweight": stream(grid.codes, grid.bits).T.contiguous(),
        "x.qzeros": stream((grid.zeros.T - less) & ((1 << grid.bits) - 1), grid.bits),
        "x.scales": torch.from_numpy(grid.scales.T.copy()).half(),
    }
    return tensors | ({"x.g_idx": torch.from_numpy(grid.groups).int()} if has_index else {})


def as_awq(grid: Grid) -> dict[str, torch.Tensor]:
    """The tensors of AutoAWQ's `gemm`."""

    def words(numbers: NDArray[np.int64]) -> torch.Tensor:
        return stream(numbers.reshape(len(numbers), -1, 8)[:, :, AWQ_ORDER].reshape(len(numbers), -1), 4)

    scales = torch.from_numpy(grid.scales.T.copy()).half()
    return {"x.qweight": words(grid.codes.T), "x.qzeros": words(grid.zeros.T), "x.scales": scales}


def as_gemv(grid: Grid) -> dict[str, torch.Tensor]:
    """The tensors of AutoAWQ's `gemv`, whose scales are padded to whole words of zeros."""
    room: Any = ((0, 0), (0, -grid.zeros.shape[1] % 8))
    scales = torch.from_numpy(np.pad(grid.scales, room)).half()
    return {"x.qweight": stream(grid.codes, 4), "x.qzeros": stream(np.pad(grid.zeros, room), 4), "x.scales": scales}


def trained(seed: int, height: int, width: int) -> Numbers:
    """A matrix with rows and columns of unlike sizes; float32 holds its numbers exactly."""
    random = np.random.default_rng(seed)
    numbers = random.normal(size=(height, width)) * np.exp(0.3 * random.normal(size=(height, 1)))
    return numbers.astype(np.float32).astype(np.float64)


def inputs_for(seed: int, width: int, rows: int = 512) -> Numbers:
    """Inputs of a layer: a few directions carry most of them, and a few columns are large."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(rows, 16)) @ random.normal(size=(16, width)) + random.normal(size=(rows, width))
    return mixed * np.exp(0.6 * random.normal(size=width))


# ---------------------------------------------------------------- matrices as models have them, and unlike them
KINDS = ("normal", "heavy tails", "uniform", "rows of unlike sizes", "few values", "zeros in places")


def original(kind: str, dtype: torch.dtype = torch.bfloat16, shape: tuple[int, ...] = (256, 384)) -> torch.Tensor:
    """A matrix of one of `KINDS`."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(shape, generator=generator) * 0.02
    if kind == "heavy tails":
        found = found * torch.randn(shape, generator=generator).abs() ** 3
    elif kind == "uniform":
        found = torch.rand(shape, generator=generator) - 0.3
    elif kind == "rows of unlike sizes":
        found = found * torch.randn(shape[:-1], generator=generator).exp()[..., None] * 30
    elif kind == "few values":
        found = torch.randint(-4, 5, shape, generator=generator) / 8
    elif kind == "zeros in places":
        found[..., : shape[-1] // 3] = 0
        found[..., 0, :] = 0
    return found.to(dtype)


def changed(source: torch.Tensor, share: float = 0.01) -> torch.Tensor:
    """The matrix after a change of rank 4 whose norm is a share of its own; a larger one if it has few values.

    Those may be the codes' own, half a step from all borders.
    """
    share = share if source.unique().numel() > 20 else 0.5
    generator = torch.Generator().manual_seed(1)
    rows, columns = source.shape[-2:]
    delta = torch.randn(rows, 4, generator=generator) @ torch.randn(4, columns, generator=generator)
    return source.float() + delta * (share * source.float().norm() / delta.expand(source.shape).norm())


every_kind = pytest.mark.parametrize("kind", KINDS)

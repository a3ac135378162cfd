"""The one table of dtypes, held against torch's own numbers."""

import pytest
import torch

from adapterhub.formats.safetensors.header import CHOICES, DTYPES, FACTOR_DTYPES
from adapterhub.weights.dtypes import CHOSEN_DTYPES, FORMAT_DTYPES, TENSOR_DTYPES, TORCH_DTYPES


@pytest.mark.parametrize("name", TENSOR_DTYPES)
def test_torch_has_the_same_sizes_and_limits(name):
    dtype, ours = TENSOR_DTYPES[name], DTYPES[name]

    assert ours.bits == 8 * dtype.itemsize
    assert ours.is_integer == (not dtype.is_floating_point)
    assert str(dtype) == f"torch.{ours.torch}"
    if ours.layout:
        facts = torch.finfo(dtype)
        assert (ours.layout.maximum, ours.layout.rounding * 2) == (facts.max, facts.eps)


def test_the_tables_of_torch_are_made_of_the_one():
    assert {dtype: name for name, dtype in TENSOR_DTYPES.items()} == FORMAT_DTYPES
    assert tuple(TORCH_DTYPES) == FACTOR_DTYPES
    assert {name: FORMAT_DTYPES[dtype] for name, dtype in CHOSEN_DTYPES.items()} == CHOICES

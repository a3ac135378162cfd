"""The operations that the plugin gives vLLM on CPUs (`tests/inference/engines` has the real vLLM)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapterhub.vllm_plugin.cpu_rows import (
    LAYER_METHODS,
    OPERATIONS,
    needs_mending,
    replace_operations,
    skip_base_batches,
)


@pytest.mark.parametrize(
    ("version", "needed"), [("0.32.0", True), ("0.33.0", False), ("0.9.2+cpu", True), (None, False), ("?", False)]
)
def test_only_versions_with_the_fault_are_mended(*, version: str | None, needed: bool) -> None:
    assert needs_mending(version) is needed


ROWS = [-1, 2, 2, 0, -1, -1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("four_dimensions", [True, False])
@pytest.mark.parametrize("prefix", ["bgmv", "sgmv"])
@pytest.mark.parametrize(
    ("name", "arguments", "columns"),
    [
        ("shrink", (2.0,), slice(0, 5)),
        ("expand", (True,), slice(0, 5)),
        ("expand", (False,), slice(0, 5)),
        ("expand_slice", (3, 5, True), slice(3, 8)),
        ("expand_slice", (3, 5, False), slice(3, 8)),
    ],
)
def test_each_row_gets_the_update_of_its_own_slot_and_rows_without_an_adapter_get_none(
    dtype: torch.dtype, name: str, prefix: str, arguments: tuple[Any, ...], columns: slice, *, four_dimensions: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, weights, output = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in [(7, 6), (3, 5, 6), (7, 9)]
    )
    scale, keep = (arguments[0], False) if name == "shrink" else (1.0, arguments[-1])
    expected = output.double()
    for at, slot in enumerate(ROWS):
        update = scale * weights[slot].double() @ inputs[at].double() if slot >= 0 else torch.zeros(5)
        expected[at, columns] = update + (expected[at, columns] if keep else 0)
    slots = torch.tensor(ROWS)
    told: tuple[Any, ...] = (slots,)
    if prefix == "sgmv":
        runs, lengths = slots.unique_consecutive(return_counts=True)
        told = (lengths.cumsum(0) - lengths, lengths, runs, len(runs), 2, len(ROWS))
    before = inputs.clone()

    OPERATIONS[f"{prefix}_{name}"](
        inputs, weights.unsqueeze(1) if four_dimensions else weights, output, *told, *arguments
    )

    # one rounding of the result: 2^-24 and 2^-9, and sums of six products before
    assert torch.allclose(output.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    assert torch.equal(inputs, before)


def test_an_adapter_wider_than_its_layer_is_cut() -> None:
    output = torch.ones(2, 3)

    OPERATIONS["bgmv_expand"](torch.ones(2, 4), torch.ones(1, 1, 5, 4), output, torch.tensor([0, -1]), add_inputs=True)

    assert output.tolist() == [[5.0] * 3, [1.0] * 3]


def test_operations_are_replaced_in_the_module_that_uses_them() -> None:
    module = SimpleNamespace(**dict.fromkeys(OPERATIONS))

    replace_operations(module)

    assert vars(module) == dict(OPERATIONS)
    assert sorted(OPERATIONS) == [
        f"{prefix}_{name}" for prefix in ("bgmv", "sgmv") for name in ("expand", "expand_slice", "shrink")
    ]


@pytest.mark.parametrize("method", LAYER_METHODS)
@pytest.mark.parametrize(
    ("is_prefill", "no_lora", "applied"), [(True, True, []), (True, False, [7]), (False, True, [7])]
)
def test_layers_do_nothing_for_a_batch_without_an_adapter(
    method: str, *, is_prefill: bool, no_lora: bool, applied: list[int]
) -> None:
    seen: list[int] = []
    methods = {name: lambda _self, *, rank: seen.append(rank) for name in LAYER_METHODS}
    wrapper = type("Wrapper", (), {**methods, "is_prefill": is_prefill, "no_lora": no_lora})

    skip_base_batches(wrapper)
    getattr(wrapper(), method)(rank=7)

    assert seen == applied

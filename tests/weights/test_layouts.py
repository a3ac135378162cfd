"""How updates lie in a file: parts are taken apart and put together again, each kind as PEFT reads it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.formats.peft.config import owner
from adapterhub.formats.peft.pairs import FactorLayout, plain_name
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.lowrank.factors import is_finite, join
from tests.support.adapter_folders import random_delta

layouts = st.one_of(
    st.builds(FactorLayout, kind=st.just("linear"), out=st.integers(1, 5), a_shape=st.tuples(st.integers(1, 5))),
    st.builds(FactorLayout, kind=st.just("embedding"), out=st.integers(1, 5), a_shape=st.tuples(st.integers(1, 5))),
    st.builds(
        FactorLayout, kind=st.just("experts"), out=st.integers(1, 5), a_shape=st.tuples(st.integers(1, 5)),
        parts=st.integers(1, 4),
    ),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(1, 3), min_size=2, max_size=4)).map(
        lambda drawn: FactorLayout(kind="conv", out=drawn[0] * drawn[1], a_shape=tuple(drawn[2]), parts=drawn[1])
    ),
)  # fmt: skip


@settings(max_examples=100)
@given(layout=layouts, ranks=st.lists(st.integers(0, 4), min_size=4, max_size=4), spare=st.integers(0, 2))
def test_what_is_joined_is_split_into_the_same_updates(layout: FactorLayout, ranks: list[int], spare: int) -> None:
    ranks = ranks[: layout.parts]
    rank = max(1, *ranks) + spare
    parts = [random_delta(i, out=layout.part_out, width=layout.width, rank=r, scale=1.0) for i, r in enumerate(ranks)]

    a, b = join(layout, parts, rank)

    assert (tuple(a.shape), tuple(b.shape)) == layout.shapes(rank)
    for before, pair in zip(parts, layout.split(a, b), strict=True):
        after = LowRank(a=pair[0], b=pair[1])
        assert after.rank == rank
        assert torch.equal(after.a[: before.rank], before.a)
        assert torch.equal(after.b[:, : before.rank], before.b)
        assert not after.a[before.rank :].any()
        assert not after.b[:, before.rank :].any()


def test_experts_lie_as_peft_has_them() -> None:
    layout = FactorLayout(kind="experts", out=2, a_shape=(3,), parts=2)
    a = torch.arange(12.0).reshape(4, 3)  # expert 0 at ranks 0 and 1, then expert 1
    b = torch.arange(8.0).reshape(2, 4)  # rank 0 of both experts, then rank 1

    first, second = (LowRank(a=a, b=b, scale=0.5) for a, b in layout.split(a, b))

    assert torch.equal(first.a, a[:2])
    assert torch.equal(first.b, b[:, [0, 2]])
    assert torch.equal(second.a, a[2:])
    assert torch.equal(second.b, b[:, [1, 3]])
    assert {part.scale for part in (first, second)} == {0.5}


@pytest.mark.parametrize(
    ("layout", "in_config", "text"),
    [
        (FactorLayout(kind="linear", out=4, a_shape=(3,)), 2, "linear 4 x 3"),
        (FactorLayout(kind="experts", out=4, a_shape=(3,), parts=8), 2, "experts 4 x 3, 8 parts"),
        (FactorLayout(kind="conv", out=4, a_shape=(3, 2, 2), parts=2), 4, "conv 4 x 3 x 2 x 2, 2 parts"),
    ],
)
def test_a_layout_tells_its_rank_in_a_config_and_itself(layout: FactorLayout, in_config: int, text: str) -> None:
    assert layout.config_rank(2) == in_config
    assert str(layout) == text


@pytest.mark.parametrize(
    ("name", "told", "plain"),
    [
        ("model.q_proj", "model.q_proj", "model.q_proj"),
        ("experts.base_layer.base_layer", "experts", "experts"),
        ("attn.base_layer.out_proj", "attn", "attn.out_proj"),
        ("attn.base_layer.out_proj.base_layer.bias", "attn", "attn.out_proj.bias"),
    ],
)
def test_names_inside_of_pefts_wrapping_are_traced_back(name: str, told: str, plain: str) -> None:
    assert owner(name) == told
    assert plain_name(name) == plain


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_numbers_that_are_not_finite_are_seen_in_every_dtype(dtype: torch.dtype) -> None:
    sound, bad = torch.ones(3, 2), torch.tensor([[1.0, 2.0], [float("nan"), 3.0]])

    assert is_finite(sound.to(dtype))
    assert not is_finite(bad.to(dtype))
    assert is_finite(torch.zeros(0, dtype=dtype))
    assert is_finite(torch.tensor([1, 2]))


def test_the_parts_of_a_module_of_one_part_are_its_factors() -> None:
    a, b = torch.randn(2, 3, 2), torch.randn(4, 2, 1)

    ((of_a, of_b),) = FactorLayout(kind="conv", out=4, a_shape=(3, 2)).split(a, b)

    assert (of_a.data_ptr(), of_b.data_ptr()) == (a.data_ptr(), b.data_ptr())

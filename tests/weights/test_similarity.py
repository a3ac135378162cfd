"""Comparing adapters: every figure against dense float64 matrices, the sampled ones against all entries."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapterhub.core.errors import MergeRefused, UsageProblem
from adapterhub.formats.derived.algebra import ArrayUpdate, Energies
from adapterhub.formats.derived.comparison import ComparedPair, Comparison, ModuleComparison, compare_module
from adapterhub.formats.peft.methods import VARIANTS
from adapterhub.formats.peft.pairs import FactorLayout
from adapterhub.weights.compare.similarity import compare_adapters
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.lowrank.factors import AdapterFactors, WeightedAdapter
from adapterhub.weights.merge import MergeInput, merge
from tests.support.adapter_folders import PREFIX, dense, random_delta, updates_in, write_folder

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
LINEAR = {Q: (24, 16), V: (12, 16)}
MIXED = {**LINEAR, "model.embed_tokens": (40, 16), "vision.conv": (10, 6, 3, 3)}


def compared(*folders: Path, weights: Sequence[float] | None = None, **options: Any) -> Comparison:
    with ExitStack() as stack:
        sides = [
            WeightedAdapter(label=folder.name, factors=stack.enter_context(AdapterFactors(folder)), weight=weight)
            for folder, weight in zip(folders, weights or [1.0] * len(folders), strict=True)
        ]
        return compare_adapters(sides, **options)


def array(delta: LowRank) -> ArrayUpdate:
    return ArrayUpdate(a=delta.a.double().numpy(), b=delta.b.double().numpy(), scale=delta.scale)


def numerical_rank_of(matrix: Tensor) -> int:
    values = torch.linalg.svdvals(matrix)
    return int((values > 2.0**-24 * values.norm()).sum())


def overlap(first: Tensor, second: Tensor) -> float:
    """φ of the LoRA paper from full singular vectors, the left ones."""
    spaces = [torch.linalg.svd(m, full_matrices=False).U[:, : numerical_rank_of(m)] for m in (first, second)]
    return float((spaces[0].T @ spaces[1]).square().sum()) / min(space.shape[1] for space in spaces)


def opposite(first: Tensor, second: Tensor) -> float:
    both = (first != 0) & (second != 0)
    return float((both & (first.sign() != second.sign())).sum()) / max(1, int(both.sum()))


def cancelled(parts: Sequence[Tensor]) -> float:
    whole = torch.stack([part.abs() for part in parts]).sum()
    return float(1 - torch.stack(list(parts)).sum(0).abs().sum() / whole)


def assert_pair(pair: ComparedPair, first: Tensor, second: Tensor) -> None:
    """All updates here have well separated spectra, so float64 leaves ten digits; signs are counted."""
    assert pair.cosine == pytest.approx(float((first * second).sum() / first.norm() / second.norm()), abs=1e-12)
    assert pair.overlap_left == pytest.approx(overlap(first, second), abs=1e-9)
    assert pair.overlap_right == pytest.approx(overlap(first.T, second.T), abs=1e-9)
    assert pair.opposite.estimate == pytest.approx((opposite(first, second), 0.0), abs=1e-12)
    assert pair.cancelled.estimate == pytest.approx((cancelled([first, second]), 0.0), abs=1e-10)


@pytest.mark.parametrize(
    ("first", "second", "shapes"),
    [
        ({}, {}, LINEAR),
        ({"ranks": 3}, {"ranks": 7}, LINEAR),
        ({"use_rslora": True}, {"ranks": 8}, LINEAR),
        ({"ranks": {Q: 2, V: 5}}, {"ranks": {Q: 6, V: 1}, "alpha_pattern": {"q_proj": 3}}, LINEAR),
        ({"dtype": torch.bfloat16}, {"dtype": torch.float16, "ranks": 2}, LINEAR),
        ({}, {"ranks": 3}, MIXED),
        ({"ranks": 16}, {"ranks": 16}, {Q: (4, 6), V: (6, 4)}),
    ],
    ids=["plain", "mixed ranks", "rslora", "patterns", "half", "embedding and conv", "rank above the module"],
)
def test_every_figure_is_that_of_the_dense_updates(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    folders = [write_folder(tmp_path / n, shapes, seed=s, **o) for n, s, o in (("a", 1, first), ("b", 2, second))]
    updates = [updates_in(folder) for folder in folders]

    found = compared(*folders, weights=[0.7, -0.3])

    assert [m.module for m in found.modules] == sorted(shapes)
    for one in found.modules:
        mine = [each[one.module] for each in updates]
        assert_pair(one.pairs[0], *mine)
        total = 0.7 * mine[0] - 0.3 * mine[1]
        for energies, matrix in zip((*one.updates, Energies.together(one.total)), (*mine, total), strict=True):
            assert energies is not None
            exact = torch.linalg.svdvals(matrix)
            assert energies.values == pytest.approx(exact[: energies.numerical_rank].tolist(), rel=1e-9)
            assert energies.norm == pytest.approx(float(matrix.norm()), rel=1e-12)
    whole = [torch.cat([each[m].flatten() for m in sorted(shapes)]) for each in updates]
    assert [a.norm for a in found.adapters] == pytest.approx([float(w.norm()) for w in whole], rel=1e-12)
    assert found.pairs[0].cosine == pytest.approx(float(whole[0] @ whole[1] / whole[0].norm() / whole[1].norm()))
    assert found.pairs[0].opposite.estimate.share == pytest.approx(opposite(*whole))
    assert found.pairs[0].cancelled.estimate.share == pytest.approx(cancelled(whole))
    assert found.forecast is not None
    assert found.forecast.norm == pytest.approx(float((0.7 * whole[0] - 0.3 * whole[1]).norm()), rel=1e-12)
    assert found.forecast.cancelled.estimate.share == pytest.approx(cancelled([0.7 * whole[0], -0.3 * whole[1]]))


def of_module(*deltas: LowRank | None, weights: Sequence[float] | None = None, sampled: int = 256) -> ModuleComparison:
    out, width = next(d.shape for d in deltas if d is not None)
    layout = FactorLayout(kind="linear", out=out, a_shape=(width,))
    updates = [None if delta is None else [array(delta)] for delta in deltas]
    return compare_module("layers.0.q", layout, updates, weights or [1.0] * len(deltas), sampled)


sizes = st.integers(1, 20)
ranks = st.lists(st.integers(1, 9), min_size=2, max_size=4)
a_weight = st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3)


@settings(max_examples=60)
@given(
    ranks=ranks,
    out=sizes,
    width=sizes,
    weights=st.lists(a_weight, min_size=4, max_size=4),
    scale=st.just(0.0) | a_weight,
)
def test_any_number_of_adapters_of_any_rank(
    ranks: list[int], out: int, width: int, weights: list[float], scale: float
) -> None:
    deltas = [random_delta(i, out=out, width=width, rank=r, scale=scale + i) for i, r in enumerate(ranks)]
    matrices = [dense([delta]) for delta in deltas]
    weights = weights[: len(ranks)]

    found = of_module(*deltas, weights=weights)

    assert [(p.first, p.second) for p in found.pairs] == list(itertools.combinations(range(len(ranks)), 2))
    for pair in found.pairs:
        first, second = matrices[pair.first], matrices[pair.second]
        size = float(first.norm() * second.norm())
        if size == 0:
            assert pair.cosine is None
            continue
        assert pair.cosine == pytest.approx(float((first * second).sum()) / size, abs=1e-12)
        assert pair.overlap_left is not None
        assert 0 <= pair.overlap_left <= 1
        assert pair.cancelled.estimate.share == pytest.approx(cancelled([first, second]), abs=1e-9)
    terms = math.hypot(*(float(w * m.norm()) for w, m in zip(weights, matrices, strict=True)))
    assert found.total[0].norm == pytest.approx(float(dense(deltas, weights).norm()), abs=1e-9 * terms)


@settings(max_examples=40)
@given(out=sizes, width=sizes, rank=st.integers(1, 8), factor=st.floats(0.1, 10))
def test_an_adapter_is_like_itself_at_any_scale_and_opposite_to_its_negative(
    out: int, width: int, rank: int, factor: float
) -> None:
    one = random_delta(3, out=out, width=width, rank=rank)
    same = LowRank(a=one.a * 2, b=one.b / 2, scale=one.scale * factor)
    contrary = LowRank(a=one.a, b=-one.b, scale=one.scale)

    likeness, contrast = of_module(one, same), of_module(one, contrary)

    [pair] = likeness.pairs
    assert (pair.cosine, pair.overlap_left, pair.overlap_right) == pytest.approx((1.0, 1.0, 1.0), abs=1e-9)
    assert (*pair.opposite.estimate, *pair.cancelled.estimate) == pytest.approx((0.0, 0.0, 0.0, 0.0), abs=1e-12)
    [pair] = contrast.pairs
    assert (pair.cosine, pair.overlap_left) == pytest.approx((-1.0, 1.0), abs=1e-9)
    assert (pair.opposite.estimate.share, pair.cancelled.estimate.share) == pytest.approx((1.0, 1.0))
    assert contrast.total == (Energies(values=()),)


def test_the_order_of_a_pair_changes_nothing() -> None:
    first, second = (random_delta(i, out=30, width=20, rank=r) for i, r in ((1, 3), (2, 5)))

    one, other = of_module(first, second).pairs[0], of_module(second, first).pairs[0]

    assert (other.cosine, other.overlap_left, other.overlap_right) == pytest.approx(
        (one.cosine, one.overlap_left, one.overlap_right), abs=1e-12
    )
    assert other.opposite.estimate == pytest.approx(one.opposite.estimate)


def test_random_spaces_overlap_as_chance_says() -> None:
    deltas = [random_delta(i, out=60, width=40, rank=4) for i in range(40)]

    pairs = of_module(*deltas).pairs

    # 780 pairs of 40 independent spaces; their mean is good to a few percent
    assert pairs[0].chance_left == pytest.approx(4 / 60)
    assert sum(p.overlap_left or 0 for p in pairs) / len(pairs) == pytest.approx(4 / 60, rel=0.05)
    assert sum(p.overlap_right or 0 for p in pairs) / len(pairs) == pytest.approx(4 / 40, rel=0.05)


def test_a_zero_update_has_no_direction_and_no_figure_is_nan(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / "a", LINEAR, seed=1), tmp_path / "untrained"]
    zeros = {f"{PREFIX}{m}.lora_{side}.weight": torch.zeros(shape) for m, (out, width) in LINEAR.items()
             for side, shape in (("A", (4, width)), ("B", (out, 4)))}  # fmt: skip
    write_folder(folders[1], {}, extra=zeros, target_modules=["q_proj", "v_proj"])

    found = compared(*folders)

    assert found.pairs[0].cosine is found.pairs[0].overlap_left is found.modules[0].pairs[0].chance_right is None
    assert found.modules[0].updates[1] == Energies(values=())
    assert found.pairs[0].cancelled.estimate.share == found.pairs[0].opposite.estimate.share == 0
    json.dumps(found.to_json(), allow_nan=False)
    both = compared(folders[1], folders[1])
    json.dumps(both.to_json(), allow_nan=False)
    assert both.forecast is not None
    assert {choice.ranks for choice in both.forecast.choices} == {(1, 1)}


def test_modules_that_only_some_have_are_listed_and_count_in_norms(tmp_path: Path) -> None:
    shapes = {f"model.layers.{i}.mlp.up": (8, 8) for i in range(4)}
    names = list(shapes)
    parts = [names[:1], names[1:3], names[2:]]
    folders = [
        write_folder(tmp_path / f"{i}", {name: shapes[name] for name in some}, seed=i) for i, some in enumerate(parts)
    ]
    updates = [updates_in(folder) for folder in folders]

    found = compared(*folders)

    assert found.partial == {names[0]: (0,), names[1]: (1,), names[2]: (1, 2), names[3]: (2,)}
    assert [pair.cosine for pair in found.pairs[:2]] == [0.0, 0.0]
    assert found.pairs[0].overlap_left is None
    shared = float((updates[1][names[2]] * updates[2][names[2]]).sum())
    norms = [math.hypot(*(float(u.norm()) for u in one.values())) for one in updates]
    assert found.pairs[2].cosine == pytest.approx(shared / norms[1] / norms[2])
    assert found.forecast is not None
    assert len(found.forecast.choices[0].ranks) == 4


def test_one_adapter_alone_has_its_spectrum_and_a_forecast(tmp_path: Path) -> None:
    found = compared(write_folder(tmp_path / "a", LINEAR, ranks=6), weights=[-2.0])

    assert found.pairs == ()
    assert found.forecast is not None
    assert found.forecast.norm == pytest.approx(2 * found.adapters[0].norm)


def test_weights_count_for_the_forecast_only(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / n, LINEAR, seed=i) for i, n in enumerate("ab")]

    plain, weighted, none = (compared(*folders, weights=w) for w in ([1.0, 1.0], [3.0, 0.0], [0.0, 0.0]))

    assert plain.pairs == weighted.pairs == none.pairs
    assert weighted.forecast is not None
    assert weighted.forecast.norm == pytest.approx(3 * weighted.adapters[0].norm)
    assert none.forecast is None


def experts_folder(folder: Path, seed: int, *, experts: int = 3, rank: int = 2) -> Path:
    generator = torch.Generator().manual_seed(seed)
    pair = {
        f"{PREFIX}mlp.experts.lora_A.weight": torch.randn(experts * rank, 10, generator=generator),
        f"{PREFIX}mlp.experts.lora_B.weight": torch.randn(14, rank * experts, generator=generator),
    }
    return write_folder(
        folder,
        {},
        extra=pair,
        r=rank,
        lora_alpha=rank,
        target_modules=[],
        target_parameters=["mlp.experts.down"],
        peft_version="0.21.2",
    )


def test_experts_are_one_update_side_by_side(tmp_path: Path) -> None:
    folders = [experts_folder(tmp_path / f"{i}", i) for i in range(2)]
    blocks = []
    for folder in folders:
        with AdapterFactors(folder) as factors:
            blocks.append(torch.block_diag(*(dense([part]) for part in factors.parts("mlp.experts"))))

    found = compared(*folders)

    [one] = found.modules
    first, second = one.updates
    assert first is not None
    assert second is not None
    assert first.values == pytest.approx(torch.linalg.svdvals(blocks[0])[:6].tolist())
    assert one.pairs[0].cosine == pytest.approx(float((blocks[0] * blocks[1]).sum()) / first.norm / second.norm)
    assert one.pairs[0].overlap_left == pytest.approx(overlap(*blocks))
    assert one.pairs[0].opposite.estimate == pytest.approx((opposite(*blocks), 0.0))
    assert found.forecast is not None
    assert found.forecast.choices[0].ranks == (4,)


def test_pairs_on_other_parameters_are_not_taken_for_the_same(tmp_path: Path) -> None:
    shapes = {Q: (8, 8)}
    folders = []
    for i, parameter in enumerate(("mlp.experts.up", "mlp.experts.down")):
        pair = {
            f"{PREFIX}mlp.experts.lora_A.weight": torch.ones(6, 10),
            f"{PREFIX}mlp.experts.lora_B.weight": torch.ones(14, 6),
        }
        folders.append(
            write_folder(
                tmp_path / f"{i}", shapes, ranks=2, extra=pair, target_parameters=[parameter], peft_version="0.21.2"
            )
        )

    found = compared(*folders)

    assert [m.module for m in found.modules] == [Q]
    assert "mlp.experts.up in `0`" in found.unlike["mlp.experts"]
    assert found.obstacles
    assert found.forecast is None


def test_the_sample_is_the_same_each_time_and_within_its_error() -> None:
    first, second = (random_delta(i, out=1500, width=1100, rank=4) for i in (1, 2))
    matrices = [dense([first]), dense([second])]

    one, again, exact = (of_module(first, second, sampled=n) for n in (64, 64, 1500))

    assert one == again
    assert exact.pairs[0].opposite.estimate == pytest.approx((opposite(*matrices), 0.0))
    for name, truth in (("opposite", opposite(*matrices)), ("cancelled", cancelled(matrices))):
        share, error = getattr(one.pairs[0], name).estimate
        assert 0 < error < 0.05
        assert abs(share - truth) < 4 * error


def test_the_standard_error_is_the_spread_over_samples() -> None:
    # cosine 0.7: then the shares differ between rows and columns, where independent entries would say far too little
    first, noise = (random_delta(i, out=400, width=300, rank=2) for i in (1, 2))
    layout = FactorLayout(kind="linear", out=400, a_shape=(300,))
    second = LowRank(a=torch.cat([first.a, noise.a]), b=torch.cat([first.b, noise.b], dim=1), scale=2.0)

    drawn = [
        compare_module(f"module {i}", layout, [[array(first)], [array(second)]], [1, 1], 32).pairs[0]
        for i in range(120)
    ]

    for name in ("opposite", "cancelled"):
        estimates = [getattr(pair, name).estimate for pair in drawn]
        spread = torch.tensor([e.share for e in estimates]).std().item()
        said = math.sqrt(sum(e.standard_error**2 for e in estimates) / len(estimates))
        assert 0.8 < said / spread < 1.6, name  # it errs to the safe side; 120 draws tell the spread to 7 %


def test_shares_over_modules_are_those_of_all_entries(tmp_path: Path) -> None:
    shapes = {f"layers.{i}.q": (200 + 60 * i, 300 - 40 * i) for i in range(5)}
    folders = [write_folder(tmp_path / n, shapes, seed=i, ranks=3) for i, n in enumerate("ab")]
    whole = [torch.cat([u.flatten() for u in updates_in(folder).values()]) for folder in folders]

    found = compared(*folders, sampled=100)

    share, error = found.pairs[0].cancelled.estimate
    assert abs(share - cancelled(whole)) < 4 * error
    assert error < min(m.pairs[0].cancelled.estimate.standard_error for m in found.modules)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, -0.7)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_forecast_is_what_a_merge_measures(tmp_path: Path, weights: tuple[float, float], dtype: str) -> None:
    shapes = {f"model.layers.{i}.self_attn.{n}": (64, 48) for i in range(3) for n in ("q_proj", "v_proj")}
    folders = [
        write_folder(tmp_path / "a", shapes, seed=1, ranks=8, lora_bias=True, extra=biases(shapes)),
        write_folder(tmp_path / "b", shapes | {"model.layers.9.mlp.up": (20, 30)}, seed=2, ranks=6),
    ]
    inputs = [MergeInput(folder=f, label=f.name, weight=w) for f, w in zip(folders, weights, strict=True)]

    forecast = compared(*folders, weights=weights, dtype=dtype).forecast

    assert forecast is not None
    assert len(forecast.choices) >= 6
    for i, choice in enumerate(forecast.choices):
        words = choice.options.split()
        options: dict[str, Any] = {"method": words[1]}
        if len(words) > 2:
            options[words[2].removeprefix("--")] = int(words[3]) if words[2] == "--rank" else float(words[3])
        done = merge(inputs, tmp_path / f"out{i}", dtype=dtype, **options)
        assert sum(count * rank for rank, count in done.ranks.items()) == sum(choice.ranks)
        # biases are one column of an update each in what a merge measures, and rounded to the dtype is what it wrote
        tolerance = 1e-5 if dtype == "float32" else 4e-3
        assert done.relative_error == pytest.approx(choice.relative_error, abs=tolerance)
        size = (done.out_folder / "adapter_model.safetensors").stat().st_size
        assert 0 <= size - choice.size_bytes < 500  # spaces that the writer kept for larger numbers in its header


def biases(shapes: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    return {f"{PREFIX}{module}.lora_B.bias": torch.zeros(out) for module, (out, _) in shapes.items()}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"init_lora_weights": "mystery"}, "mystery"),
        ({"use_qalora": True}, "QALoRA"),
        ({"kasa_config": {"a": 1}}, "KaSA"),
    ],
)
def test_an_update_that_is_not_its_factors_is_refused_in_the_words_of_a_merge(
    tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    folders = [write_folder(tmp_path / "a", LINEAR), write_folder(tmp_path / "odd", LINEAR, **config)]

    with pytest.raises(MergeRefused, match=f"`odd`.*{said}"):
        compared(*folders, weights=[1.0, 0.0])


def test_every_variant_was_thought_of() -> None:
    # One that is new in the refusals of merging either changes what an update is, or can be compared all the same.
    comparable = {"arrow_config", "megatron_config", "ensure_weight_tying"}

    refused = {key for key, variant in VARIANTS.items() if variant.merging == "never"}
    assert refused == {key for key, variant in VARIANTS.items() if variant.changes_update} | comparable


@pytest.mark.parametrize(
    ("config", "extra"),
    [
        ({"alora_invocation_tokens": [1, 2]}, {}),
        ({"ensure_weight_tying": True}, {}),
        ({"modules_to_save": ["score"]}, {f"{PREFIX}score.weight": torch.ones(2, 16)}),
    ],
    ids=["alora", "tied", "saved"],
)
def test_what_stands_in_the_way_of_merging_only_is_told_and_compared(
    tmp_path: Path, config: dict[str, Any], extra: dict[str, Tensor]
) -> None:
    plain = write_folder(tmp_path / "plain", LINEAR, seed=1)
    other = {name: tensor + 1 for name, tensor in extra.items()}
    first = write_folder(tmp_path / "a", LINEAR, seed=1, extra=extra, **config)
    second = write_folder(tmp_path / "b", LINEAR, seed=2, extra=other, **(config if other else {}))

    found = compared(first, second)

    assert found.obstacles
    assert found.forecast is None
    assert found.pairs == compared(plain, second).pairs


def test_modules_of_other_shapes_are_left_out_and_named(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", LINEAR)
    second = write_folder(tmp_path / "b", LINEAR | {V: (12, 18)})

    found = compared(first, second)

    assert [m.module for m in found.modules] == [Q]
    assert found.unlike == {V: "linear 12 x 16 in `a`, linear 12 x 18 in `b`"}
    assert found.obstacles
    with pytest.raises(MergeRefused, match="cannot be compared"):
        compared(first, write_folder(tmp_path / "c", {Q: (1, 2), V: (3, 4)}))


@pytest.mark.parametrize(
    ("value", "said"), [(math.nan, "NaN or infinite"), (-math.inf, "NaN or infinite"), (1e200, "too large")]
)
def test_numbers_that_cannot_be_measured_are_refused_for_every_module(tmp_path: Path, value: float, said: str) -> None:
    good = write_folder(tmp_path / "a", LINEAR)
    bad = {f"{PREFIX}{m}.lora_{side}.weight": torch.full(shape, value, dtype=torch.float64) for m, (out, width) in LINEAR.items()
           for side, shape in (("A", (4, width)), ("B", (out, 4)))}  # fmt: skip
    folder = write_folder(tmp_path / "bad", {}, extra=bad, target_modules=["q_proj", "v_proj"])

    with pytest.raises(MergeRefused) as caught:
        compared(good, folder)

    assert [said in reason and "`bad`" in reason for reason in caught.value.reasons] == [True, True]
    assert {Q, V} == {reason.split("`")[1] for reason in caught.value.reasons}


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", LINEAR)

    for options, said in (({"weights": [math.nan]}, "finite"), ({"dtype": "int3"}, "int3")):
        with pytest.raises(UsageProblem, match=said):
            compared(folder, **options)
    with pytest.raises(UsageProblem, match="nothing"):
        compare_adapters([])


def test_progress_counts_every_module(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    compared(write_folder(tmp_path / "a", MIXED), progress=lambda done, count: calls.append((done, count)))

    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


values = st.lists(st.floats(1e-3, 1e3), max_size=12).map(lambda v: tuple(sorted(v, reverse=True)))


@settings(max_examples=80)
@given(values=values, energy=st.floats(0.01, 0.9999))
def test_energies_are_those_of_their_values(values: tuple[float, ...], energy: float) -> None:
    energies = Energies(values=values)
    squares = torch.tensor(values, dtype=torch.float64).square()
    rank = energies.rank_of_energy(energy)

    assert energies.norm == pytest.approx(math.sqrt(float(squares.sum())))
    if values:
        kept = float(squares[:rank].sum() / squares.sum())
        assert kept >= energy * (1 - 1e-12)
        assert rank == 0 or float(squares[: rank - 1].sum() / squares.sum()) < energy * (1 + 1e-12)
        assert 1 - 1e-9 <= energies.stable_rank <= energies.effective_rank * (1 + 1e-9) <= len(values) * (1 + 2e-9)
    else:
        assert (rank, energies.norm, energies.effective_rank, energies.stable_rank) == (0, 0, 0, 0)

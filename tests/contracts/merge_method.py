"""What every merge method must hold, run over every file of `adapterhub/weights/merge/methods/` by `tests/weights/test_merge.py`.

A method is either exact in the updates or an approximation; the contract does not ask which. It asks that the method is
right where there is only one right answer, that it never answers with NaN, and that what is said about its error is
true.
"""

from __future__ import annotations

import importlib
import inspect
import math
import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from adapterhub.core.errors import MergeRefused, UsageProblem
from adapterhub.weights.catalogue import describe
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.merge import MergeInput, MergeResult, merge, method_names
from tests.support.adapter_folders import dense, error_of, exact_sum, random_delta, relative, updates_in, write_folder

LOSSLESS = {"density": 1.0, "gamma": 0.0, "epsilon": 0.0}
"""Values of the options that drop numbers at which they drop none."""

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TINY = {"layers.0.q_proj": (9, 7), "layers.0.up_proj": (5, 7), "layers.1.q_proj": (9, 7)}
WEIGHTS = st.one_of(
    st.floats(-2, 2).filter(lambda w: abs(w) > 1e-6), st.sampled_from([0.0, 1.0, -1.0, 1e-6, 1e6, -1e6])
)
ADAPTERS = st.lists(st.tuples(st.integers(1, 6), WEIGHTS, st.sampled_from(DTYPES)), min_size=1, max_size=3)
"""Rank, weight and dtype of each."""

SHAPES = {f"model.layers.{i}.{m}": s for i in range(2) for m, s in {"q_proj": (12, 10), "up_proj": (20, 10)}.items()}


def load(name: str) -> ModuleType:
    return importlib.import_module(f"adapterhub.weights.merge.methods.{name}")


def apply(
    name: str, deltas: Sequence[LowRank], weights: Sequence[float], seeds: Sequence[int] = (), **options: object
) -> LowRank:
    """What the method makes of one module; `seeds` are those of the adapters' masks, by default their places."""
    function = load(name).merge
    if "generators" in inspect.signature(function).parameters:
        options["generators"] = [torch.Generator().manual_seed(s) for s in seeds or range(len(deltas))]
    return function(deltas, weights, **options)


def lossless(name: str) -> dict[str, object]:
    """The options of the method that make it drop nothing."""
    parameters = inspect.signature(load(name).merge).parameters
    return {key: value for key, value in LOSSLESS.items() if key in parameters}


def merged(
    tmp_path: Path, method: str, folders: Sequence[Path], weights: Sequence[float], out: str = "out", **options: object
) -> MergeResult:
    pairs = zip(folders, weights, strict=True)
    inputs = [MergeInput(folder=f, label=f.name, weight=w) for f, w in pairs]
    return merge(inputs, tmp_path / out, method=method, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", method_names())
class MergeMethodContract:
    """Subclass it in a test module to run it."""

    def test_docstring_names_space_and_convention(self, method: str) -> None:
        text = load(method).__doc__ or ""

        assert text.startswith(f"`{method}`: ")
        assert any(f"Space: {space}" in text for space in ("factor", "core", "delta"))
        assert "Convention" in text

    def test_options_are_typed_keyword_arguments(self, method: str) -> None:
        function = load(method).merge
        first, second, *options = inspect.signature(function).parameters.values()

        assert (first.name, second.name) == ("deltas", "weights")
        assert all(o.kind is o.KEYWORD_ONLY and o.default is not o.empty for o in options)
        assert all(o.name in typing.get_type_hints(function) for o in options)

    def test_what_is_read_without_importing_is_what_the_method_takes(self, method: str) -> None:
        about = describe(method)

        _, _, *options = inspect.signature(load(method).merge).parameters.values()
        special = {"generators", "rank", "max_error", "seed"}
        assert about.summary
        assert {o.name: o.default for o in about.options if o.name != "seed"} == {
            o.name: o.default for o in options if o.name not in special
        }
        assert all(o.default is None or o.convert(str(o.default)) == o.default for o in about.options)

    @settings(max_examples=15)
    @given(out=st.integers(1, 9), width=st.integers(1, 9), adapters=ADAPTERS, one_rank=st.booleans())
    def test_any_adapters_give_numbers_that_do_not_depend_on_their_order(
        self, method: str, out: int, width: int, adapters: list[tuple[int, float, torch.dtype]], *, one_rank: bool
    ) -> None:
        deltas = [
            random_delta(i, out=out, width=width, rank=adapters[0][0] if one_rank else rank, dtype=dtype)
            for i, (rank, _, dtype) in enumerate(adapters)
        ]
        weights = [weight for _, weight, _ in adapters]
        seeds = list(range(len(adapters)))
        try:
            forth = apply(method, deltas, weights, seeds)
            back = apply(method, deltas[::-1], weights[::-1], seeds[::-1])
        except MergeRefused:
            return  # what it does not merge it says; which cases those are is the method's own affair

        assert forth.shape == (out, width)
        assert forth.rank >= 1
        assert forth.is_finite()
        size = math.hypot(*(float(dense([d], [w]).norm()) for d, w in zip(deltas, weights, strict=True)))
        assert float((dense([forth]) - dense([back])).norm()) <= 1e-6 * max(size, float(dense([forth]).norm()))

    @settings(max_examples=10)
    @given(
        weight=WEIGHTS,
        rank=st.integers(1, 6),
        dtype=st.sampled_from(DTYPES),
        place=st.integers(0, 2),
        scale=st.sampled_from([1.0, 16 / math.sqrt(8), 1e-3]),
    )
    def test_one_adapter_among_weights_of_zero_is_its_update_times_its_weight(
        self, method: str, weight: float, rank: int, dtype: torch.dtype, place: int, scale: float
    ) -> None:
        assume(weight)
        deltas = [random_delta(i, out=8, width=7, rank=rank, dtype=dtype, scale=scale) for i in range(3)]

        result = apply(method, deltas, [weight * (i == place) for i in range(3)], **lossless(method))

        assert relative(dense([result]), dense([deltas[place]], [weight])) < 1e-6

    @settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        modules=st.lists(st.sets(st.sampled_from(sorted(TINY)), min_size=1), min_size=2, max_size=3),
        ranks=st.lists(st.integers(1, 4), min_size=3, max_size=3),
        weights=st.lists(WEIGHTS.filter(bool), min_size=3, max_size=3),
        dtype=st.sampled_from(DTYPES),
    )
    def test_any_module_sets_give_a_folder_whose_error_is_the_reported_one(
        self,
        method: str,
        tmp_path_factory: pytest.TempPathFactory,
        modules: list[set[str]],
        ranks: list[int],
        weights: list[float],
        dtype: torch.dtype,
    ) -> None:
        root = tmp_path_factory.mktemp("sets")
        folders = [
            write_folder(
                root / str(i),
                {m: TINY[m] for m in sorted(names)},
                ranks=ranks[i],
                seed=i,
                dtype=dtype,
                use_rslora=i == 1,
            )
            for i, names in enumerate(modules)
        ]
        try:
            result = merged(root, method, folders, weights[: len(folders)])
        except MergeRefused:
            refused = list(root.glob("*out*"))
            assert refused == []
            return

        made = updates_in(result.out_folder)
        assert set(made) == set().union(*modules)
        assert all(torch.isfinite(update).all() for update in made.values())
        true = error_of(made, exact_sum(folders, weights[: len(folders)]))
        assert result.relative_error == pytest.approx(true, rel=1e-3, abs=1e-7)
        assert result.worst_error >= result.relative_error * (1 - 1e-9)

    def test_zero_updates_give_numbers(self, method: str) -> None:
        zero = LowRank(a=torch.ones(2, 5), b=torch.zeros(4, 2))

        result = apply(method, [zero, zero], [0.7, 0.3])

        assert not dense([result]).any()
        assert result.rank >= 1

    def test_a_module_that_an_adapter_lacks_counts_as_zero_or_is_refused(self, method: str) -> None:
        delta = random_delta(0, out=12, width=10, rank=4)
        lacking = LowRank(a=torch.zeros(0, 10), b=torch.zeros(12, 0))

        try:
            result = apply(method, [lacking, delta], [0.7, 0.3], **lossless(method))
        except MergeRefused:
            return

        assert relative(dense([result]), 0.3 * dense([delta])) < 1e-6

    def test_a_rank_asked_for_comes_out(self, method: str, tmp_path: Path) -> None:
        folders = [write_folder(tmp_path / f"in{i}", SHAPES, seed=i) for i in range(2)]

        for rank in (1, 3):
            result = merged(tmp_path, method, folders, [0.7, 0.3], f"out{rank}", rank=rank)

            assert result.ranks == {rank: len(SHAPES)}
        with pytest.raises(UsageProblem, match="rank 0"):
            merged(tmp_path, method, folders, [0.7, 0.3], rank=0)

    @pytest.mark.parametrize("max_error", [0.5, 0.05])
    def test_an_error_asked_for_is_kept(self, method: str, max_error: float, tmp_path: Path) -> None:
        folders = [write_folder(tmp_path / f"in{i}", SHAPES, seed=i, ranks=4) for i in range(2)]

        result = merged(tmp_path, method, folders, [0.7, 0.3], max_error=max_error)

        assert result.truncation_error is not None
        assert result.truncation_error <= max_error * (1 + 1e-6)

    def test_same_inputs_give_the_same_bytes(self, method: str, tmp_path: Path) -> None:
        folders = [write_folder(tmp_path / f"in{i}", SHAPES, seed=i) for i in range(2)]

        for out in ("first", "second"):
            merged(tmp_path, method, folders, [0.7, 0.3], out)

        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()

    def test_clashing_shapes_are_refused_with_every_module(self, method: str, tmp_path: Path) -> None:
        other = {m: (s[0], s[1] + 2) if "up" in m else s for m, s in SHAPES.items()}
        folders = [write_folder(tmp_path / "in0", SHAPES), write_folder(tmp_path / "in1", other)]

        with pytest.raises(MergeRefused) as refused:
            merged(tmp_path, method, folders, [0.7, 0.3])

        assert [m for m in SHAPES if any(m in r for r in refused.value.reasons)] == [m for m in SHAPES if "up" in m]
        assert not (tmp_path / "out").exists()

"""Merging PEFT folders: exactness, identity, what is refused, and what is written."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

pytest.register_assert_rewrite("tests.contracts.merge_method")

from adapterhub.core.errors import Conflict, MergeRefused, UsageProblem  # noqa: E402
from adapterhub.weights.merge import method_names  # noqa: E402
from tests.contracts.merge_method import MergeMethodContract, lossless  # noqa: E402
from tests.support.adapter_folders import PREFIX, error_of, exact_sum, updates_in, write_folder  # noqa: E402
from tests.support.shared_data import shared  # noqa: E402
from tests.weights.merging import config_of, run  # noqa: E402

QV = {f"model.layers.{i}.self_attn.{m}": s for i in range(3) for m, s in {"q_proj": (8, 8), "v_proj": (4, 8)}.items()}
MLP = {f"model.layers.{i}.mlp.up_proj": (20, 8) for i in range(3)}


@pytest.mark.slow
class TestMethods(MergeMethodContract):
    """The contract, over every method there is."""


def test_methods_are_found_without_importing_them() -> None:
    code = (
        "import sys, adapterhub.weights.merge as m; names = m.method_names(); "
        "print(*names, *[n for n in names if f'adapterhub.weights.merge.methods.{n}' in sys.modules])"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said.split() == list(method_names())
    assert {"cat", "linear", "svd"} <= set(method_names())


# ---------------------------------------------------------------- exactness

adapters = st.lists(
    st.tuples(
        st.lists(st.integers(1, 9), min_size=3, max_size=3),  # a rank for each layer
        st.booleans(),  # rsLoRA
        st.sampled_from([QV, MLP, QV | MLP]),
        st.floats(-2, 2).filter(lambda w: abs(w) > 0.05),
        st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    ),
    min_size=2,
    max_size=4,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(adapters=adapters, method=st.sampled_from(["cat", "svd"]))
def test_cat_and_full_svd_are_exact(tmp_path_factory: pytest.TempPathFactory, adapters: list, method: str) -> None:
    root = tmp_path_factory.mktemp("merge")
    folders, weights = [], []
    for i, (ranks, use_rslora, shapes, weight, dtype) in enumerate(adapters):
        of = {m: ranks[int(m.split(".")[2])] for m in shapes}
        alphas = {f"layers.{n}.self_attn.q_proj": 3 + n for n in range(3)}
        folders.append(
            write_folder(
                root / str(i), shapes, ranks=of, seed=i, dtype=dtype, use_rslora=use_rslora, alpha_pattern=alphas
            )
        )
        weights.append(weight)

    result = run(root / "out", *zip(folders, weights, strict=True), method=method)

    error = error_of(updates_in(root / "out"), exact_sum(folders, weights))
    assert error < 1e-6
    assert result.relative_error == pytest.approx(error, rel=1e-3, abs=1e-10)
    assert result.dtype == "float32"


def test_the_order_of_adapters_changes_nothing(tmp_path: Path) -> None:
    folders = [
        write_folder(tmp_path / "a", QV, seed=1),
        write_folder(tmp_path / "b", QV | MLP, ranks=3, seed=2),
        write_folder(tmp_path / "c", MLP, ranks=7, seed=3),
    ]
    weights = [0.7, -0.3, 0.5]

    run(tmp_path / "forth", *zip(folders, weights, strict=True))
    run(tmp_path / "back", *zip(folders[::-1], weights[::-1], strict=True))

    assert error_of(updates_in(tmp_path / "back"), updates_in(tmp_path / "forth")) < 1e-6
    assert config_of(tmp_path / "back") == config_of(tmp_path / "forth")


def test_convolutions_and_embeddings_are_merged(tmp_path: Path) -> None:
    shapes = {"embed_tokens": (16, 8), "conv": (5, 3, 2, 2), "conv1d": (5, 3, 2), "layers.0.q": (8, 6)}
    folders = [write_folder(tmp_path / n, shapes, ranks=2 + i, seed=i) for i, n in enumerate("ab")]

    run(tmp_path / "out", (folders[0], 0.7), (folders[1], 0.3))

    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert stored[f"{PREFIX}conv.lora_A.weight"].shape == (5, 3, 2, 2)
    assert stored[f"{PREFIX}conv.lora_B.weight"].shape == (5, 5, 1, 1)
    assert stored[f"{PREFIX}embed_tokens.lora_embedding_A"].shape == (5, 16)
    assert error_of(updates_in(tmp_path / "out"), exact_sum(folders, [0.7, 0.3])) < 1e-6


def test_merging_an_adapter_with_itself_keeps_its_rank(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", QV, ranks=3)

    result = run(tmp_path / "out", (folder, 0.7), (folder, 0.3))

    assert dict(result.ranks) == {3: len(QV)}
    assert error_of(updates_in(tmp_path / "out"), updates_in(folder)) < 1e-6


@pytest.mark.parametrize("method", ["cat", "svd", "linear"])
def test_an_adapter_less_itself_is_a_zero_update_that_is_said(tmp_path: Path, method: str) -> None:
    folder = write_folder(tmp_path / "a", QV, ranks=3)

    result = run(tmp_path / "out", (folder, 1.0), (folder, -1.0), method=method)

    assert not any(u.any() for u in updates_in(tmp_path / "out").values())
    assert result.relative_error == 0
    assert any("cancel to zero" in w for w in result.warnings)
    if method != "linear":
        assert dict(result.ranks) == {1: len(QV)}


def test_a_method_that_makes_something_of_nothing_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", QV, ranks=3)

    with pytest.raises(MergeRefused, match="exact sum is zero"):
        run(tmp_path / "out", (folder, 0.7), (folder, 0.3), (folder, -1.0), method="linear")


def test_svd_cuts_every_module_to_the_rank_asked_for(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / n, QV, ranks=3, seed=i) for i, n in enumerate("ab")]
    exact = exact_sum(folders, [0.7, 0.3])

    result = run(tmp_path / "out", (folders[0], 0.7), (folders[1], 0.3), method="svd", rank=2)

    assert dict(result.ranks) == {2: len(QV)}
    lost = math.hypot(*(float(torch.linalg.svdvals(u)[2:].norm()) for u in exact.values()))
    whole = math.hypot(*(float(u.norm()) for u in exact.values()))
    assert result.relative_error == pytest.approx(lost / whole, rel=1e-5)


@pytest.mark.parametrize("max_error", [0.0, 0.01, 0.3, 0.9])
def test_svd_takes_the_smallest_ranks_within_the_error(tmp_path: Path, max_error: float) -> None:
    folders = [write_folder(tmp_path / n, QV | MLP, ranks=3, seed=i) for i, n in enumerate("ab")]
    exact = exact_sum(folders, [0.7, 0.05])

    result = run(tmp_path / "out", (folders[0], 0.7), (folders[1], 0.05), method="svd", max_error=max_error)

    assert result.worst_error <= max(max_error, 1e-6)
    updates = updates_in(tmp_path / "out")
    for module, update in exact.items():
        values = torch.linalg.svdvals(update)
        rank = int(torch.linalg.matrix_rank(updates[module], rtol=1e-5))
        assert float(values[rank - 1 :].norm() / values.norm()) > max_error  # one less would not do


# ---------------------------------------------------------------- identity


def test_one_adapter_of_another_weight_is_scaled(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", QV, use_rslora=True, alpha_pattern={"q_proj": 5})

    for method, weight in zip(method_names(), itertools.cycle([0.5, -1.0, 2.0]), strict=False):
        result = run(tmp_path / method, (folder, weight), method=method, **lossless(method))

        assert not result.is_copy
        assert error_of(updates_in(tmp_path / method), exact_sum([folder], [weight])) < 1e-6


def test_asking_for_another_dtype_is_no_copy(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", QV)

    same = run(tmp_path / "same", (folder, 1.0), dtype="float32")
    other = run(tmp_path / "other", (folder, 1.0), dtype="bfloat16")

    assert same.is_copy
    assert not other.is_copy
    assert {t.dtype for t in load_file(tmp_path / "other" / "adapter_model.safetensors").values()} == {torch.bfloat16}


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(("dtype", "least", "most"), [("bfloat16", 1e-4, 1e-2), ("float16", 1e-5, 1e-3)])
def test_rounding_to_a_narrow_dtype_is_part_of_the_error(tmp_path: Path, dtype: str, least: float, most: float) -> None:
    folders = [write_folder(tmp_path / n, QV, seed=i) for i, n in enumerate("ab")]

    result = run(tmp_path / "out", (folders[0], 0.7), (folders[1], 0.3), dtype=dtype)

    assert least < result.relative_error < most
    true = error_of(updates_in(tmp_path / "out"), exact_sum(folders, [0.7, 0.3]))
    assert result.relative_error == pytest.approx(true, rel=1e-4)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e30, -1e7])
def test_absurd_weights_are_refused(tmp_path: Path, weight: float) -> None:
    folder = write_folder(tmp_path / "a", QV)

    with pytest.raises(UsageProblem, match="weight"):
        run(tmp_path / "out", (folder, weight))


def test_nothing_to_merge_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", QV)

    with pytest.raises(MergeRefused, match="every weight is 0"):
        run(tmp_path / "out", (folder, 0.0))
    with pytest.raises(MergeRefused, match="no adapters"):
        run(tmp_path / "out")


# ---------------------------------------------------------------- what is written and said


def test_a_target_whose_adapter_lacks_some_modules_is_not_trusted(tmp_path: Path) -> None:
    lacking = write_folder(tmp_path / "a", {"layers.0.q": (8, 8)}, target_modules=["q"])
    other = write_folder(tmp_path / "b", {"layers.1.q": (8, 8)}, target_modules=["layers.1.q"])

    run(tmp_path / "out", (lacking, 0.7), (other, 0.3))

    # `q` may be in more layers of the base than these two adapters have
    assert config_of(tmp_path / "out")["target_modules"] == ["layers.0.q", "layers.1.q"]


def test_the_storage_order_of_the_base_is_kept(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", QV, fan_in_fan_out=True)
    second = write_folder(tmp_path / "b", QV, seed=1, fan_in_fan_out=True)

    run(tmp_path / "out", (first, 0.7), (second, 0.3))

    assert config_of(tmp_path / "out")["fan_in_fan_out"] is True


def test_disagreements_about_base_and_task_are_said(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", QV, base_model_name_or_path="org/base", revision="abc")
    second = write_folder(tmp_path / "b", QV, base_model_name_or_path="./base", task_type="SEQ_CLS")

    result = run(tmp_path / "out", (first, 0.7), (second, 0.3))

    assert config_of(tmp_path / "out")["base_model_name_or_path"] == "org/base"
    assert sum("org/base" in w and "./base" in w for w in result.warnings) == 1
    assert sum("SEQ_CLS" in w for w in result.warnings) == 1


def test_recipe_is_json_and_names_what_was_done(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / n, QV, seed=i) for i, n in enumerate("ab")]

    result = run(tmp_path / "out", (folders[0], 0.7), (folders[1], -0.3), method="svd", rank=2)

    assert json.loads(json.dumps(result.recipe)) == {
        "method": "svd",
        "options": {"rank": 2},
        "dtype": "float32",
        "inputs": [{"label": "a", "weight": 0.7}, {"label": "b", "weight": -0.3}],
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "cat", "density": 0.5}, "`cat` takes no options, not density"),
        ({"method": "cat", "seed": 3}, "`cat` takes no options, not seed"),
        ({"method": "svd", "energy": 1.5}, "energy 1.5"),
        ({"method": "cat", "rank": 4, "energy": 0.9}, "rank and energy exclude each other"),
        ({"method": "svd", "rank": 4, "max_error": 0.1}, "exclude each other"),
        ({"method": "svd", "rank": 0}, "rank 0"),
        ({"method": "svd", "max_error": 1.5}, "max_error 1.5"),
        ({"method": "_config"}, "no merge method"),
        ({"method": "../cat"}, "no merge method"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_options_are_checked(tmp_path: Path, options: dict[str, object], said: str) -> None:
    folder = write_folder(tmp_path / "a", QV)

    with pytest.raises(UsageProblem, match=said):
        run(tmp_path / "out", (folder, 0.5), **options)

    assert list(tmp_path.iterdir()) == [folder]


def test_progress_counts_modules(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / "a", QV), write_folder(tmp_path / "b", MLP)]
    calls: list[tuple[int, int]] = []

    run(tmp_path / "out", (folders[0], 0.7), (folders[1], 0.3), progress=lambda *c: calls.append(c))

    assert calls == [(i + 1, 9) for i in range(9)]


@pytest.mark.parametrize("method", ["svd", "core", "dare_ties", "ties_svd"])
def test_two_modules_at_once_give_the_bytes_of_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    folders = [write_folder(tmp_path / name, QV | MLP, seed=seed) for seed, name in enumerate("ab")]
    weighted = list(zip(folders, [0.7, 0.3], strict=True))

    two = run(tmp_path / "two", *weighted, method=method, rank=3)
    monkeypatch.setattr("adapterhub.weights.merge.THREADS", 1)
    one = run(tmp_path / "one", *weighted, method=method, rank=3)

    bytes_of_two, bytes_of_one = ((tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("two", "one"))
    assert bytes_of_two == bytes_of_one
    assert (two.relative_error, two.worst_module) == (one.relative_error, one.worst_module)


def test_an_interrupted_merge_ends_its_threads_and_leaves_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", QV | MLP)

    def interrupt(done: int, _all: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", (folder, 0.5), progress=interrupt)

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("merge")]
    assert list(tmp_path.iterdir()) == [folder]


def test_an_empty_folder_is_filled_and_a_full_one_is_not_touched(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", QV)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")

    run(tmp_path / "empty", (folder, 0.5))
    with pytest.raises(Conflict, match="exists"):
        run(tmp_path / "full", (folder, 0.5))

    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine"]


@pytest.mark.slow
def test_three_real_trainings_of_one_recipe_add_up(tmp_path: Path) -> None:
    root = shared("wild") / "ao-wei__gemma3-270m-svg-lora-partb"
    folders = [root / "669c4e5/adapter", root / "0740c0a/adapter", root / "0740c0a/adapter_seed123"]
    weights = [0.5, 0.3, -0.2]

    for method in ("cat", "svd"):
        result = run(tmp_path / method, *zip(folders, weights, strict=True), method=method)

        error = error_of(updates_in(tmp_path / method), exact_sum(folders, weights))
        assert error < 1e-6
        assert result.relative_error == pytest.approx(error, rel=0.01)

"""`adapt diff` and what it stands on: the exact difference of two updates, against dense float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.weights.compare.difference import Difference, differ, side_of_folder
from tests.support.command_line import Adapt
from tests.support.tiny import LAYERS, MODULES, make_adapter, make_base

WEIGHTS = "adapter_model.safetensors"


def compared(first: Path, second: Path) -> Difference:
    return differ(side_of_folder(first, "first"), side_of_folder(second, "second"))


def dense(folder: Path) -> dict[str, np.ndarray]:
    """Every module's update as a dense float64 matrix: the slow reference."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {k: v.astype("f8") for k, v in load_file(folder / WEIGHTS).items()}
    found = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            rank = a.shape[0]
            scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
            found[module] = scale * tensors[name.replace("lora_A", "lora_B")] @ a
    return found


def change(folder: Path, change) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("rank", "rslora"), [(4, False), (8, False), (2, True), (1, False)])
def test_norms_are_those_of_the_dense_updates(tmp_path, rank, rslora):
    first = make_adapter(tmp_path / "a", seed=1)
    second = make_adapter(tmp_path / "b", seed=2, rank=rank, use_rslora=rslora)
    a, b = dense(first), dense(second)

    found = compared(first, second).weights

    # float64 all the way: only the order of the sums differs
    for one in found.modules:
        assert one.apart == pytest.approx(np.linalg.norm(a[one.name] - b[one.name]), rel=1e-12)
        assert one.relative == pytest.approx(one.apart / np.linalg.norm(a[one.name]), rel=1e-12)
    whole = np.sqrt(sum(np.linalg.norm(a[m] - b[m]) ** 2 for m in a))
    assert found.whole.apart == pytest.approx(whole, rel=1e-12)
    assert [m.apart for m in found.modules] == sorted((m.apart for m in found.modules), reverse=True)


def test_the_same_bytes_are_identical_and_nothing_is_computed(tmp_path):
    first, second = (make_adapter(tmp_path / name, seed=1) for name in "ab")

    found = compared(first, second)

    assert (found.is_identical, found.is_same_update, found.weights, found.config) == (True, True, None, ())


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), size=st.floats(0.01, 100))
def test_the_same_update_in_other_factors_is_the_same(tmp_path_factory, seed, size):
    folder = tmp_path_factory.mktemp("gauge")
    first, second = make_adapter(folder / "a", seed=seed), make_adapter(folder / "b", seed=seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))
    for path in (first, second):
        tensors = {k: v.astype("f8") for k, v in load_file(path / WEIGHTS).items()}
        if path == second:
            for name, value in tensors.items():
                tensors[name] = (turn.T @ value) / size if "lora_A" in name else value @ turn * size
        save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})

    found = compared(first, second)

    assert not found.is_identical
    # the turned factors were rounded to float64 themselves
    assert found.weights.whole.relative < 1e-13


def test_rank_and_alpha_that_cancel_are_the_same_update(tmp_path):
    first, second = make_adapter(tmp_path / "a", seed=1), make_adapter(tmp_path / "b", seed=1, lora_alpha=16)
    change(second, lambda t: t.update({k: v / 2 for k, v in t.items() if "lora_B" in k}))

    found = compared(first, second)

    assert found.is_same_update
    assert [(f.name, f.first, f.second) for f in found.config] == [("lora_alpha", 8, 16)]


def test_a_module_that_one_has_counts_whole(tmp_path):
    first, second = make_adapter(tmp_path / "a", seed=1), make_adapter(tmp_path / "b", seed=1, modules=MODULES[:1])
    change(second, lambda t: t.update({k: v for k, v in load_file(first / WEIGHTS).items() if "q_proj" in k}))
    a = dense(first)

    found = compared(first, second).weights

    apart = [m for m in found.modules if m.apart]
    assert {m.name for m in apart} == {m for m in a if m.endswith("v_proj")}
    assert all(m.second is None and m.apart == pytest.approx(np.linalg.norm(a[m.name])) for m in apart)
    assert len(found.modules) - len(apart) == LAYERS


def test_other_shapes_are_named_and_in_no_figure(tmp_path):
    first, second = make_adapter(tmp_path / "a", seed=1), make_adapter(tmp_path / "b", seed=1, width=16)

    found = compared(first, second).weights

    assert (len(found.unlike), found.whole.apart, found.is_same) == (LAYERS * len(MODULES), 0, False)


def test_tensors_that_are_no_factors_are_compared_too(tmp_path):
    head = "base_model.model.lm_head.weight"
    first, second = (make_adapter(tmp_path / n, seed=1, modules_to_save=["lm_head"]) for n in "ab")
    change(first, lambda t: t.update({head: np.ones((4, 8), "f4")}))
    change(second, lambda t: t.update({head: np.full((4, 8), 3, "f4")}))

    found = compared(first, second)

    [one] = found.weights.others
    assert (one.name, one.apart) == (head, pytest.approx(2 * 32**0.5))
    assert not found.is_same_update


def test_a_tensor_of_no_numbers_is_no_difference(tmp_path):
    folders = [make_adapter(tmp_path / name) for name in "ab"]
    for folder in folders:
        change(folder, lambda tensors: tensors.update({"base_model.model.x": np.zeros((0, 4), "f4")}))
    change(folders[0], lambda tensors: tensors.update({"base_model.model.y": np.ones(1, "f4")}))

    assert compared(*folders).weights.whole.apart == 0


def test_dora_is_told_to_be_more_than_its_factors(tmp_path):
    first, second = make_adapter(tmp_path / "a", seed=1), make_adapter(tmp_path / "b", seed=2, use_dora=True)

    [caveat] = compared(first, second).weights.caveats

    assert "`use_dora`" in caveat


def test_the_order_of_target_modules_says_nothing(tmp_path):
    first = make_adapter(tmp_path / "a", seed=1)
    second = make_adapter(tmp_path / "b", seed=1, target_modules=list(reversed(MODULES)))

    assert compared(first, second).config == ()


def test_a_setting_that_says_no_more_than_leaving_it_out_is_no_difference(tmp_path):
    first = make_adapter(tmp_path / "a", seed=1)
    plain = {"use_dora": False, "rank_pattern": {}, "revision": None, "init_lora_weights": True}
    second = make_adapter(tmp_path / "b", seed=1, **plain)
    third = make_adapter(tmp_path / "c", seed=1, init_lora_weights="pissa")

    assert compared(first, second).config == ()
    assert [(f.name, f.first, f.second) for f in compared(first, third).config] == [
        ("init_lora_weights", "absent", "pissa")
    ]


@pytest.fixture
def adapt(tmp_path) -> Adapt:
    adapt = Adapt(tmp_path)
    make_base(tmp_path / "base")
    make_base(tmp_path / "tuned", seed=5)
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    adapt.ok("base", "add", "./tuned", "--as", "tuned")
    for version, seed in (("1.0", 1), ("1.1", 2)):
        make_adapter(tmp_path / version, seed=seed)
        adapt.ok("add", f"./{version}", "--name", "legal-qa", "--version", version, "--base", "base-7b")
    return adapt


def test_two_versions_by_their_specs(adapt, tmp_path):
    told = adapt.json("compare", "--diff", "legal-qa==1.0", "legal-qa==1.1")
    text = adapt.ok("compare", "--diff", "legal-qa==1.0", "legal-qa==1.1")

    a, b = dense(tmp_path / "1.0"), dense(tmp_path / "1.1")
    apart = np.sqrt(sum(np.linalg.norm(a[m] - b[m]) ** 2 for m in a) / sum(np.linalg.norm(a[m]) ** 2 for m in a))
    assert told["weights"]["relative"] == pytest.approx(apart, rel=1e-12)
    assert told["base_verdict"] == "SAME_WEIGHTS"
    assert [f["field"] for f in told["manifest"]] == ["version"]
    assert [f["path"] for f in told["files"] if f["first"] != f["second"]] == [WEIGHTS]
    assert told["weights"]["modules"][0]["name"] in text
    assert f"{apart:.4g} of the first's norm" in text


def test_an_installed_adapter_and_the_folder_it_was_added_from(adapt):
    assert adapt.ok("compare", "--diff", "legal-qa==1.0", "./1.0") == "identical: every file has the same bytes\n"


def test_bases_that_differ_are_told(adapt):
    adapt.ok("add", "./1.0", "--name", "other", "--base", "tuned")

    told = adapt.json("compare", "--diff", "legal-qa==1.0", "other")

    assert (told["identical"], told["base_verdict"]) == (True, BaseVerdict.SAME_SHAPES.name)
    assert "base\tSAME_SHAPES" in adapt.ok("compare", "--diff", "legal-qa==1.0", "other")


def test_no_figure_is_said_of_what_has_no_shape_in_common(adapt, tmp_path):
    make_adapter(tmp_path / "wide", width=16)
    both = make_adapter(tmp_path / "both", seed=1, modules=("q_proj",))
    tensors = load_file(both / WEIGHTS)
    wide = load_file(tmp_path / "wide" / WEIGHTS)
    save_file(tensors | {name: wide[name] for name in wide if "v_proj" in name}, both / WEIGHTS)

    assert adapt.ok("compare", "--diff", "legal-qa==1.0", "./wide").startswith(
        "cannot compare the updates: no tensor has the same shape in both\n"
    )
    assert (
        f", without {LAYERS} modules of other shapes"
        in adapt.ok("compare", "--diff", "legal-qa==1.0", "./both").splitlines()[0]
    )


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["base", "./1.0"], 10, "hint: write `./base` to name the folder"),
    (["./nowhere", "./1.0"], 10, "no such folder: `nowhere`"),
    (["nothing", "./1.0"], 10, "no adapter `nothing`"),
    (["./base", "./1.0"], 16, "adapter_config.json"),
])  # fmt: skip
def test_refusals(adapt, arguments, code, said):
    assert said in adapt.fails(code, "compare", "--diff", *arguments)

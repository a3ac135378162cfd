"""What an orphan is: matched by digests, then tensors, then names and shapes, and how sure each match is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapterhub.library.identify import FAMILIES, Identity, identify
from adapterhub.library.identify.matching import MatchedFamily
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base, tensors_of_base

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@pytest.fixture
def adapt(tmp_path) -> Adapt:
    adapt = Adapt(tmp_path)
    make_base(tmp_path / "base")
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    for seed, name in enumerate(("legal-qa", "summarize"), 1):
        make_adapter(tmp_path / name, seed=seed)
        adapt.ok("add", f"./{name}", "--name", name, "--base", "base-7b")
    return adapt


def look(adapt: Adapt, path: Path) -> Identity:
    return identify(adapt.library, path)


def matches(adapt: Adapt, path: Path) -> list[tuple[str, str, str]]:
    return [(m.sure, m.what, m.name) for m in look(adapt, path).matches]


def rewritten(source: Path, target: Path, change) -> Path:
    """A lone weights file with the tensors of `source`, changed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(change(load_file(source / WEIGHTS)), target)
    return target


# ---------------------------------------------------------------- adapters
def test_a_folder_with_the_same_bytes_is_proven_and_so_is_its_base(adapt, tmp_path):
    assert matches(adapt, tmp_path / "legal-qa") == [
        ("proven", "adapter", "legal-qa==1.0.0"),
        ("proven", "base", "base-7b"),
    ]


def test_a_lone_file_under_any_name_is_known_by_its_bytes(adapt, tmp_path):
    shutil.copy(tmp_path / "summarize" / WEIGHTS, tmp_path / "checkpoint.bin")

    found = look(adapt, tmp_path / "checkpoint.bin")

    assert (found.matches[0].sure, found.matches[0].name) == ("proven", "summarize==1.0.0")
    assert found.matches[0].how == "the weights file has the same bytes"


def test_an_adapter_that_was_removed_is_known_until_it_is_swept(adapt, tmp_path):
    adapt.ok("remove", "legal-qa", "--yes")
    before = look(adapt, tmp_path / "legal-qa").matches[0]
    adapt.ok("cache", "clean", "--grace", "0")
    after = matches(adapt, tmp_path / "legal-qa")

    assert (before.sure, before.name, before.folder) == ("proven", "legal-qa==1.0.0", None)
    assert "was removed" in before.how
    assert "adapter" not in {what for _, what, _ in after}


@pytest.mark.parametrize("change", [
    lambda t: dict(reversed(t.items())),
    lambda t: {k.removeprefix(PREFIX): v for k, v in t.items()},
    lambda t: {k.replace(".weight", ".default.weight"): v for k, v in t.items()},
    lambda t: {f"x{i}": v for i, v in enumerate(t.values())},
], ids=["other order", "without the prefix", "with the name in memory", "under other names"])  # fmt: skip
def test_the_same_tensors_in_another_file_are_proven(adapt, tmp_path, change):
    path = rewritten(tmp_path / "summarize", tmp_path / "lost" / "w.safetensors", change)

    found = look(adapt, path).matches[0]

    assert (found.sure, found.what, found.name) == ("proven", "adapter", "summarize==1.0.0")
    assert "all 8 tensors" in found.how


def test_some_of_its_tensors_make_it_likely(adapt, tmp_path):
    other = load_file(tmp_path / "summarize" / WEIGHTS)
    mixed = lambda t: t | {k: other[k] for k in list(t)[:2]}  # noqa: E731
    path = rewritten(tmp_path / "legal-qa", tmp_path / "w.safetensors", mixed)

    found = {m.name: (m.sure, m.how) for m in look(adapt, path).matches if m.what == "adapter"}

    assert found == {
        "legal-qa==1.0.0": ("likely", "6 of its 8 tensors are tensors of that adapter"),
        "summarize==1.0.0": ("likely", "2 of its 8 tensors are tensors of that adapter"),
    }


def test_the_same_numbers_in_another_precision_are_likely(adapt, tmp_path):
    path = rewritten(
        tmp_path / "legal-qa", tmp_path / "w.safetensors", lambda t: {k: v.astype("f2") for k, v in t.items()}
    )

    [found] = [m for m in look(adapt, path).matches if m.what == "adapter"]

    assert (found.sure, found.name) == ("likely", "legal-qa==1.0.0")
    assert "precision" in found.how


def test_untrained_tensors_prove_nothing(adapt, tmp_path):
    zeros = lambda t: {k: np.zeros_like(v) if "lora_B" in k else v for k, v in t.items()}  # noqa: E731
    fresh = make_adapter(tmp_path / "fresh", seed=8)
    save_file(zeros(load_file(fresh / WEIGHTS)), fresh / WEIGHTS, metadata={"format": "pt"})
    adapt.ok("add", "./fresh", "--name", "fresh", "--base", "base-7b")
    path = rewritten(make_adapter(tmp_path / "other", seed=9), tmp_path / "w.safetensors", zeros)

    assert "adapter" not in {what for _, what, _ in matches(adapt, path)}


def test_an_object_that_no_adapter_names_is_told(adapt, tmp_path):
    store = adapt.library.store
    (tmp_path / "notes.txt").write_text("hello")
    from adapterhub.core.disk.files import digest_of_file

    digest, _ = digest_of_file(tmp_path / "notes.txt")
    with store.intent("test") as intent:
        (intent.folder / "x").write_text("hello")
        store.adopt(intent.folder / "x", digest)

    assert matches(adapt, tmp_path / "notes.txt") == [("proven", "object", digest)]


def test_a_manifest_beside_it_is_believed_only_as_far_as_it_goes(adapt, tmp_path):
    adapt.ok("push", "legal-qa", "--to", "./published")
    [folder] = (tmp_path / "published" / "legal-qa").iterdir()
    other = Adapt(tmp_path, "other-home")

    assert matches(other, folder)[:2] == [
        ("likely", "adapter", "legal-qa==1.0.0"),
        ("likely", "base", json.loads((folder / "adapterhub.json").read_text())["base"]["weights"][7:19]),
    ]
    (folder / "adapter_config.json").write_text((folder / "adapter_config.json").read_text() + " ")
    assert [m.sure for m in look(other, folder).matches if m.what == "adapter"] == ["possible"]


# ---------------------------------------------------------------- bases
def test_the_only_base_that_has_its_modules_is_likely(adapt, tmp_path):
    make_base(tmp_path / "wide", width=16)
    adapt.ok("base", "add", "./wide", "--as", "wide")
    make_adapter(tmp_path / "lost", seed=7, width=16, base=None)

    [found] = look(adapt, tmp_path / "lost").matches

    assert (found.sure, found.what, found.name) == ("likely", "base", "wide")
    assert "all 4 modules" in found.how


def test_bases_of_the_same_shapes_are_possible_and_the_one_that_is_named_is_likely(adapt, tmp_path):
    make_base(tmp_path / "tuned", seed=5)
    adapt.ok("base", "add", "./tuned", "--as", "tuned")
    make_adapter(tmp_path / "lost", seed=7, base=None)
    make_adapter(tmp_path / "named", seed=7, base="tuned")

    assert matches(adapt, tmp_path / "lost") == [("possible", "base", "base-7b"), ("possible", "base", "tuned")]
    assert matches(adapt, tmp_path / "named") == [("likely", "base", "tuned"), ("possible", "base", "base-7b")]


def test_a_copy_of_a_tensor_of_the_base_proves_it(adapt, tmp_path):
    make_base(tmp_path / "tuned", seed=5)
    adapt.ok("base", "add", "./tuned", "--as", "tuned")
    path = make_adapter(tmp_path / "lost", seed=7)
    name = "model.embed_tokens.weight"
    tensors = load_file(path / WEIGHTS) | {PREFIX + name: tensors_of_base(5)[name]}
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})

    found = look(adapt, path).matches[0]

    assert (found.sure, found.what, found.name) == ("proven", "base", "tuned")
    assert found.how == f"carries its `{name}`, byte for byte"


def test_a_base_that_is_only_named_is_possible(tmp_path):
    adapt = Adapt(tmp_path)
    make_adapter(tmp_path / "lost", base="test/tiny")

    assert matches(adapt, tmp_path / "lost") == [("possible", "base", "test/tiny")]


def test_an_adapter_on_the_first_layers_may_be_for_a_deeper_base(adapt, tmp_path):
    path = rewritten(
        make_adapter(tmp_path / "lost", seed=7, base=None),
        tmp_path / "w.safetensors",
        lambda t: {k: v for k, v in t.items() if ".layers.0." in k},
    )

    [found] = look(adapt, path).matches

    assert (found.sure, found.name) == ("possible", "base-7b")
    assert "it has 2 layers, the adapter is on the first 1" in found.how


# ---------------------------------------------------------------- families
def adapter_of(family: MatchedFamily, folder: Path, *, layers: int | None = None, suffix: str | None = None) -> Path:
    """A file with rank-1 factors in the names and sizes of a family, as PEFT writes them."""
    wanted = {n: s for n, s in family.sizes.items() if suffix is None or n.endswith(suffix)}
    tensors = {}
    for layer in range(layers or family.layers):
        for name, (out, into) in wanted.items():
            key = f"{PREFIX}model.{family.stack}.{layer}.{name.replace('*', '0')}.lora_"
            tensors[f"{key}A.weight"] = np.full((1, into), 0.5, "f2")
            tensors[f"{key}B.weight"] = np.full((out, 1), 0.5, "f2")
    save_file(tensors, folder / "w.safetensors")
    return folder / "w.safetensors"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.models)
def test_each_family_is_told_by_its_own_modules(tmp_path, family):
    path = adapter_of(family, tmp_path)

    found = identify(Adapt(tmp_path).library, path).matches

    assert [(m.sure, m.what, m.name) for m in found] == [("likely", "family", family.models)]


def test_no_two_families_of_the_table_are_the_same():
    keys = [(f.stack, f.layers, tuple(sorted(f.sizes.items()))) for f in FAMILIES]

    assert len(set(keys)) == len(keys)


def test_few_modules_may_fit_several_families(tmp_path):
    llama = next(f for f in FAMILIES if f.models.startswith("Llama 2 70B"))
    path = adapter_of(llama, tmp_path, suffix="q_proj")

    found = identify(Adapt(tmp_path).library, path).matches

    assert {"Llama 65B", llama.models, "Qwen2 72B, Qwen2.5 72B"} <= {m.name for m in found}
    assert {m.sure for m in found} == {"possible"}


# ---------------------------------------------------------------- the command
def test_the_command_prints_a_table_and_one_document(adapt, tmp_path):
    lines = adapt.ok("identify", "./legal-qa").splitlines()
    told = adapt.json("identify", "./legal-qa")

    assert lines[0] == "sure\twhat\tname\thow"
    assert lines[1].startswith("proven\tadapter\tlegal-qa==1.0.0\t")
    assert set(told["files"]) == {WEIGHTS, "adapter_config.json"}
    assert told["matches"][0]["digest"] == adapt.json("show", "legal-qa")["digest"]


def test_what_nobody_knows_is_exit_code_10(adapt, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")

    assert "`notes.txt` matches no adapter" in adapt("identify", "notes.txt").stderr
    assert adapt("identify", "notes.txt").exit_code == 10
    assert "no such folder" in adapt.fails(10, "identify", "./nowhere")


def test_a_file_of_another_program_is_named(adapt, tmp_path):
    save_file({"lora_unet_down.lora_down.weight": np.ones((4, 4), "f4") * 3}, tmp_path / "k.safetensors")

    assert "kohya" in adapt("identify", "./k.safetensors").stderr

"""GGUF adapters, of our own export and of llama.cpp's converter's layout, come back as the adapter that they were."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import adapterhub
from adapterhub import Library
from adapterhub.core.errors import BaseMismatch, RefusedAdapter
from adapterhub.inference.export import export
from tests.contracts.export import HEADS, KEY_HEADS, SHAPES, make_base
from tests.dialects.mixtures import FAMILIES, IDS, SCALE, Mixture, mixture, named, write
from tests.support.adapter_folders import updates_in, write_folder

pytestmark = pytest.mark.slow


def library_with_base(tmp_path: Path) -> Library:
    library = Library(tmp_path / "home")
    library.bases.add(make_base(tmp_path / "base"), "tiny")
    return library


def _added(library: Library, path: Path, base: str = "tiny") -> Path:
    """The folder of the adapter that the library made of a file."""
    build = library.add(path, name=path.stem, base=base).build
    folder: Path = build.folder
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_our_own_export_comes_back_as_the_same_update(dtype, tmp_path) -> None:
    library = library_with_base(tmp_path)
    folder = write_folder(
        tmp_path / "peft", SHAPES, ranks={name: 2 if "k_proj" in name else 4 for name in SHAPES}, use_rslora=True
    )
    export(folder, tmp_path / "a.gguf", form="gguf", library=library, base="tiny", dtype=dtype)

    found = updates_in(_added(library, tmp_path / "a.gguf"))

    true = updates_in(folder)
    assert found.keys() == true.keys()
    for name, update in true.items():
        rounding = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
        assert float((found[name] - update).norm() / update.norm()) < rounding


def test_a_second_export_gives_the_same_tensors(tmp_path) -> None:
    library = library_with_base(tmp_path)
    folder = write_folder(tmp_path / "peft", SHAPES)
    export(folder, tmp_path / "a.gguf", form="gguf", library=library, base="tiny")
    _added(library, tmp_path / "a.gguf")
    export("a@tiny", tmp_path / "again.gguf", form="gguf", library=library)

    first, second = (
        {t.name: bytes(t.data) for t in gguf.GGUFReader(tmp_path / f"{n}.gguf").tensors} for n in ("a", "again")
    )

    assert first == second


def converted(path: Path, alpha: float = 8.0, **more: Any) -> dict[str, torch.Tensor]:
    """Write a file as `convert_lora_to_gguf.py` does, alpha beside plain factors; returns the updates by module."""
    writer = gguf.GGUFWriter(path, more.pop("arch", "llama"))
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", more.pop("kind", "lora"))
    writer.add_float32("adapter.lora.alpha", alpha)
    for key, value in more.pop("values", {}).items():
        writer.add_string(key, value)
    torch.manual_seed(1)
    updates = {}
    for module, name, heads in (
        ("self_attn.q_proj", "attn_q", HEADS),
        ("self_attn.k_proj", "attn_k", KEY_HEADS),
        ("mlp.down_proj", "ffn_down", 0),
    ):
        out, width = SHAPES[f"model.layers.1.{module}"]
        a, b = torch.randn(4, width), torch.randn(out, 4)
        updates[f"model.layers.1.{module}"] = alpha / 4 * b.double() @ a.double()
        stored = b.reshape(heads, 2, out // heads // 2, 4).swapaxes(1, 2).reshape(out, 4) if heads else b
        writer.add_tensor(f"blk.1.{name}.weight.lora_a", a.numpy())
        writer.add_tensor(f"blk.1.{name}.weight.lora_b", np.ascontiguousarray(stored.numpy()))
    for name, data in more.pop("tensors", {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return updates


def test_a_converter_s_file_has_its_alpha_over_the_rank(tmp_path) -> None:
    library = library_with_base(tmp_path)
    true = converted(tmp_path / "a.gguf")

    found = updates_in(_added(library, tmp_path / "a.gguf"))

    assert found.keys() == true.keys()
    for name, update in true.items():
        torch.testing.assert_close(found[name], update, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_come_back_from_gguf(family, tmp_path) -> None:
    source: Mixture = mixture(tmp_path / "base", family)
    tensors = named(source.plain)
    called = dict(zip(("gate", "up", "down"), FAMILIES[family][3], strict=True))
    for (layer, expert, name), pair in source.pairs.items():
        tensors |= named({f"{source.holder(layer)}.{expert}.{called[name]}": pair})
    library = Library(tmp_path / "home")
    library.bases.add(source.folder, alias="tiny")
    library.add(write(tmp_path / "peft", tensors), name="x", base="tiny")
    export("x@tiny", tmp_path / "a.gguf", form="gguf", library=library)

    folder = _added(library, tmp_path / "a.gguf")

    found = load_file(folder / "adapter_model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], t) for name, t in tensors.items() if ".lora_A." in name)
    assert all(torch.equal(found[name], SCALE * t) for name, t in tensors.items() if ".lora_B." in name)
    with adapterhub.attach(source.load(), "a@tiny", library=library) as attached, torch.no_grad():
        assert source.error(attached.model(input_ids=IDS).logits) < 1e-6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"arch": "qwen3"}, "is for `qwen3`, and `tiny` is `llama`"),
        ({"kind": "cvec"}, "expected adapter and lora"),
        ({"values": {"adapterhub.base.weights": "sha256:" + "0" * 64}}, "other weights than `tiny`"),
        ({"tensors": {"blk.0.attn_norm.weight": np.ones(32, "f4")}}, "is no factor of a LoRA"),
        ({"tensors": {"blk.0.attn_v.weight.lora_a": np.ones((4, 32), "f4")}}, "one factor of two"),
        ({"tensors": {f"blk.9.attn_v.weight.lora_{s}": np.ones((4, 4), "f4") for s in "ab"}}, "no module for `blk.9"),
        ({"tensors": {f"blk.0.attn_output.weight.lora_{s}": np.ones((4, 32), "f4") for s in "ab"}}, "factors of shapes"),
        ({"tensors": {"blk.0.attn_q.weight.lora_a": np.ones((4, 32), "i4")}}, "quantised"),
        ({"alpha": float("nan")}, "`adapter.lora.alpha` is nan"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_by_name(changes, reason, tmp_path) -> None:
    library = library_with_base(tmp_path)
    converted(tmp_path / "a.gguf", **changes)

    with pytest.raises((RefusedAdapter, BaseMismatch), match=reason):
        library.add(tmp_path / "a.gguf", name="x", base="tiny")
    assert not library.list()


def test_without_a_base_the_file_is_refused(tmp_path) -> None:
    converted(tmp_path / "a.gguf")
    with pytest.raises(RefusedAdapter, match="only") as refused:
        Library(tmp_path / "home").add(tmp_path / "a.gguf", name="x", guess_base=False)
    assert "--base" in refused.value.hint or "--base" in str(refused.value)


def test_no_cut_or_changed_header_is_believed(tmp_path) -> None:
    library = library_with_base(tmp_path)
    converted(tmp_path / "a.gguf")
    whole = (tmp_path / "a.gguf").read_bytes()
    broken = [whole[:length] for length in (5, 20, 60, 300, len(whole) - 1)]
    broken += [
        whole[:8] + struct.pack("<Q", 1 << 62) + whole[16:],
        whole[:16] + struct.pack("<Q", 1 << 62) + whole[24:],
    ]
    broken += [whole[:4] + struct.pack(">I", 3) + whole[8:], whole[:24] + struct.pack("<Q", 1 << 63) + whole[32:]]
    for number, content in enumerate(broken):
        (tmp_path / f"{number}.gguf").write_bytes(content)
        with pytest.raises(RefusedAdapter):
            library.add(tmp_path / f"{number}.gguf", name="x", base="tiny")
    assert not library.list()

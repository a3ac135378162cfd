"""Reading factors from a PEFT folder and writing safetensors files tensor by tensor."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from adapterhub.core.errors import DigestMismatch, MalformedConfig, MalformedTensorFile, RefusedAdapter
from adapterhub.formats.peft.pairs import FactorLayout
from adapterhub.formats.safetensors.file import read_header
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.lowrank.factors import AdapterFactors, TensorFileWriter
from tests.support.adapter_folders import PREFIX, dense, updates_in, write_folder

SHAPES = {
    "model.embed_tokens": (16, 8),
    "model.layers.0.self_attn.q_proj": (8, 6),
    "model.layers.0.conv": (5, 3, 2, 2),
    "model.layers.0.conv1d": (5, 3, 2),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_kind_of_module_is_read_as_the_update_peft_applies(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_folder(
        tmp_path / "a", SHAPES, ranks={m: i + 1 for i, m in enumerate(SHAPES)}, dtype=dtype, use_rslora=True
    )

    with AdapterFactors(folder) as adapter:
        read = {module: adapter.read(module) for module in adapter.modules}

    expected = updates_in(folder)
    assert list(read) == sorted(SHAPES)
    for module, delta in read.items():
        assert delta.a.dtype == dtype
        assert torch.allclose(dense([delta]), expected[module], rtol=1e-14)


def test_layout_tells_names_and_shapes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", SHAPES, ranks=2)
    stored = {name: tuple(t.shape) for name, t in load_file(folder / "adapter_model.safetensors").items()}

    with AdapterFactors(folder) as adapter:
        layouts = {module: factors.layout for module, factors in adapter.modules.items()}

    rebuilt = {n: s for m, at in layouts.items() for n, s in zip(at.names(m), at.shapes(2), strict=True)}
    assert rebuilt == stored
    assert {m: at.kind for m, at in layouts.items()} == {
        "model.embed_tokens": "embedding",
        "model.layers.0.self_attn.q_proj": "linear",
        "model.layers.0.conv": "conv",
        "model.layers.0.conv1d": "conv",
    }
    assert str(FactorLayout(kind="conv", out=5, a_shape=(3, 2, 2))) == "conv 5 x 3 x 2 x 2"


def test_tensors_that_are_no_factor_are_kept_apart(tmp_path: Path) -> None:
    extra = {f"{PREFIX}score.weight": torch.ones(2, 8), f"{PREFIX}a.lora_A.bias": torch.ones(3)}
    folder = write_folder(tmp_path / "a", {"q": (8, 6)}, extra=extra)

    with AdapterFactors(folder) as adapter:
        assert {s.name for s in adapter.others} == set(extra)
        score = next(s for s in adapter.others if "score" in s.name)
        assert adapter.data(score) == torch.ones(2, 8).numpy().tobytes()


def test_every_pair_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    tensors = {
        "no_b.lora_A.weight": torch.ones(4, 6),
        "no_a.lora_B.weight": torch.ones(6, 4),
        "ranks.lora_A.weight": torch.ones(4, 6), "ranks.lora_B.weight": torch.ones(6, 3),
        "config.lora_A.weight": torch.ones(2, 6), "config.lora_B.weight": torch.ones(6, 2),
        "flat.lora_A.weight": torch.ones(24), "flat.lora_B.weight": torch.ones(6, 4),
        "empty.lora_A.weight": torch.ones(4, 0), "empty.lora_B.weight": torch.ones(6, 4),
        "whole.lora_A.weight": torch.ones(4, 6, dtype=torch.int32), "whole.lora_B.weight": torch.ones(6, 4),
        "both.lora_A.weight": torch.ones(4, 6), "both.lora_B.weight": torch.ones(6, 4),
        "both.lora_embedding_A": torch.ones(4, 6), "both.lora_embedding_B": torch.ones(6, 4),
        "fits.lora_A.weight": torch.ones(4, 6), "fits.lora_B.weight": torch.ones(6, 4),
    }  # fmt: skip
    save_file({PREFIX + n: t for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["fits"], "base_model_name_or_path": "x"}
    (folder / "adapter_config.json").write_text(json.dumps(config))

    with pytest.raises(RefusedAdapter) as refused:
        AdapterFactors(folder)

    found = {text.split("`")[1]: code for code, text in refused.value.findings}
    assert found == {
        "no_b": "E_PAIR", "no_a": "E_PAIR", "ranks": "E_RANK", "config": "E_RANK", "flat": "E_SHAPE",
        "empty": "E_SHAPE", "whole": "E_DTYPE", "both": "E_PAIR",
    }  # fmt: skip


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", {"q": (8, 6)})
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(MalformedTensorFile, match=r"adapter_model\.safetensors"):
        AdapterFactors(folder)

    (folder / "adapter_config.json").unlink()
    with pytest.raises(MalformedConfig, match=r"adapter_config\.json"):
        AdapterFactors(folder)


def test_a_file_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", {"q": (64, 64)})

    with AdapterFactors(folder) as adapter:
        path = adapter.header.path
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DigestMismatch):
            adapter.read("q")


def planned(**shapes: tuple[int, ...]) -> list[TensorSpec]:
    return [TensorSpec.planned(name, "F32", shape) for name, shape in shapes.items()]


def test_what_was_written_is_read_by_the_library_and_by_us(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    first, second = torch.randn(3, 5), torch.randn(7).bfloat16()

    with TensorFileWriter(path, planned(first=(300, 5), second=(7000,))) as writer:
        writer.add("first", first)
        writer.add("second", second)

    loaded = load_file(path)
    assert torch.equal(loaded["first"], first)
    assert torch.equal(loaded["second"], second)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    header = read_header(path)
    assert header.data_start % 8 == 0
    assert [s.name for s in header.tensors] == ["first", "second"]


def test_views_are_written_in_their_own_order(tmp_path: Path) -> None:
    square = torch.arange(12.0).reshape(3, 4)

    with TensorFileWriter(tmp_path / "out", planned(t=(4, 3))) as writer:
        writer.add("t", square.T)

    assert torch.equal(load_file(tmp_path / "out")["t"], square.T)


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    def write() -> None:
        with TensorFileWriter(tmp_path / "out", planned(t=(4, 3))) as writer:
            writer.add("t", torch.ones(4, 3))
            raise KeyError

    with pytest.raises(KeyError):
        write()

    assert list(tmp_path.iterdir()) == []


def test_a_header_larger_than_planned_leaves_no_file(tmp_path: Path) -> None:
    def write() -> None:
        with TensorFileWriter(tmp_path / "out", planned(t=(1,))) as writer:
            for i in range(9):
                writer.add(f"tensor{i}", torch.ones(1))

    with pytest.raises(ValueError, match="reserved"):
        write()

    assert list(tmp_path.iterdir()) == []


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")

    with TensorFileWriter(path, planned(t=(1,))) as writer:
        writer.add("t", torch.ones(1))
        assert path.read_bytes() == b"old"

    assert torch.equal(load_file(path)["t"], torch.ones(1))


def test_reading_holds_one_module_in_memory(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", {f"layers.{i}.q": (512, 512) for i in range(40)}, ranks=8)
    module_bytes = 2 * 8 * 512 * 4
    tracemalloc.start()  # the buffers behind the tensors are Python's, so it sees them

    with AdapterFactors(folder) as adapter:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for module in adapter.modules:
            adapter.read(module)
        peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()

    assert peak < 3 * module_bytes  # the last one is let go when the next one is there

"""A GGUF file as a base: fingerprint, hints, and the proof that it is the copy of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from adapterhub import Library
from adapterhub.core.errors import Malformed
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseVerdict
from adapterhub.formats.base.folders import fingerprint_folder
from tests.support.copies import Tensors, saved

HEADS, KEYS, SIZE, LAYERS = 4, 2, 64, 2
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
}


def llama(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (50, SIZE), "model.norm.weight": (SIZE,)}
    for n in range(LAYERS):
        front = f"model.layers.{n}."
        shapes |= {
            front + "self_attn.q_proj.weight": (SIZE, SIZE),
            front + "self_attn.k_proj.weight": (SIZE // 2, SIZE),
        }
        shapes |= {front + "mlp.down_proj.weight": (SIZE, 128), front + "input_layernorm.weight": (SIZE,)}
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def gguf(path: Path, tensors: Tensors, kind: GGMLQuantizationType | None = GGMLQuantizationType.Q8_0) -> Path:
    """What llama.cpp's converter and quantiser write of a Llama: rows of queries and keys turned, norms in float32."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(SIZE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    for name, tensor in tensors.items():
        layer, numbers = name.split(".")[2] if ".layers." in name else "", tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = HEADS if "q_proj" in name else KEYS
            numbers = numbers.reshape(heads, 2, -1, SIZE).swapaxes(1, 2).reshape(numbers.shape)
        own = NAMES[name.partition(f"layers.{layer}.")[2]] if layer else NAMES[name]
        place = f"blk.{layer}.{own}" if layer else own
        if kind is None or numbers.ndim == 1:
            writer.add_tensor(place, np.ascontiguousarray(numbers))
        else:
            writer.add_tensor(place, quantize(np.ascontiguousarray(numbers), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fingerprint(place: Path) -> BaseFingerprint:
    return fingerprint_folder(place, cache_folder=None)[0]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path / "source", llama(), model_type="llama")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_a_gguf_file_is_proved_by_its_fingerprint_and_by_its_numbers(kind: str, source: Path, tmp_path: Path) -> None:
    copy = gguf(tmp_path / "copy.gguf", llama(), GGMLQuantizationType[kind])
    other = gguf(tmp_path / "other.gguf", llama(seed=1), GGMLQuantizationType[kind])
    library = Library(tmp_path / "home")

    assert compare(fingerprint(source), fingerprint(copy)).label == f"SAME_WEIGHTS_QUANTISED (gguf-{kind.lower()})"
    assert compare(fingerprint(source), fingerprint(other)).verdict is BaseVerdict.SAME_SHAPES
    for full in (False, True):
        assert (
            library.compare_bases(str(source), str(copy), full=full).label
            == f"SAME_WEIGHTS_QUANTISED (gguf-{kind.lower()})"
        )
        assert library.compare_bases(str(source), str(other), full=full).verdict is BaseVerdict.SAME_SHAPES


def test_a_gguf_file_in_floats_is_the_model_in_another_precision(source: Path, tmp_path: Path) -> None:
    copy = gguf(tmp_path / "copy.gguf", llama(), None)

    found = compare(fingerprint(source), fingerprint(copy))

    assert found.label == "SAME_WEIGHTS_OTHER_PRECISION"
    assert found.differences == ("10 tensors are floats in both, and agree in 160 sampled values",)


def test_a_registered_gguf_file_has_hints_and_survives_reading(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    library.add_base(gguf(tmp_path / "copy.gguf", llama()), "copy")

    record = Library(tmp_path / "home").bases.get("copy")

    assert record.hints.model_type == "llama"
    assert (record.hints.hidden_size, record.hints.layers) == (SIZE, LAYERS)
    assert record.hints.parameters == sum(tensor.numel() for tensor in llama().values())
    assert {fact.dtype for fact in record.tensors} == {"Q8_0", "F32"}
    assert record.fingerprint.samples.keys() == set()
    assert record.fingerprint.copy.ranges.keys() == llama().keys()


def test_a_layer_or_a_head_more_is_another_model(source: Path, tmp_path: Path) -> None:
    fewer = {name: tensor for name, tensor in llama().items() if ".layers.1." not in name}
    copy = gguf(tmp_path / "copy.gguf", fewer)

    assert compare(fingerprint(source), fingerprint(copy)).verdict is BaseVerdict.DIFFERENT

    headed = llama() | {"lm_head.weight": torch.randn(50, SIZE).bfloat16()}
    with_head = saved(tmp_path / "headed", headed, model_type="llama")
    found = compare(fingerprint(with_head), fingerprint(gguf(tmp_path / "tied.gguf", llama())))
    assert found.verdict is BaseVerdict.DIFFERENT
    assert found.differences == ("`lm_head.weight` is in the first only",)


def test_one_file_of_several_in_a_folder_must_be_named(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    gguf(folder / "a.gguf", llama())
    assert fingerprint(folder) == fingerprint(folder / "a.gguf")

    gguf(folder / "b.gguf", llama(seed=1))
    with pytest.raises(Malformed, match=r"holds 2 models in GGUF: `a.gguf`, `b.gguf`"):
        fingerprint(folder)


def test_an_adapter_in_gguf_is_no_model(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_type("adapter")
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(Malformed, match="holds an adapter, expected a model"):
        fingerprint(tmp_path / "a.gguf")

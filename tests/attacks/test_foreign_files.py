"""Hostile LoRA files of other programs: each is refused by name, says why, and leaves nothing behind."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.command_line import Adapt

Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
D = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
A, B = np.ones((2, 8), "f4"), np.ones((8, 2), "f4")
PAIR = {f"{Q}.lora_down.weight": A, f"{Q}.lora_up.weight": B}
PEFT_PAIR = {f"{D}.lora_A.weight": A, f"{D}.lora_B.weight": B}
STATED = {"unet.r": 2, "unet.lora_alpha": 2, "unet.target_modules": ["to_q"]}


def kohya(key: str) -> dict[str, np.ndarray]:
    return {f"{key}.lora_down.weight": A, f"{key}.lora_up.weight": B}


def alpha(value: object, dtype: str = "f4") -> dict[str, np.ndarray]:
    return {**PAIR, f"{Q}.alpha": np.array(value, dtype)}


def header(**fields: object) -> Callable[[Path], None]:
    """A file of diffusers with these settings in its header."""
    text = json.dumps({**STATED, **{f"unet.{key}": value for key, value in fields.items()}})
    return raw_header(text)


def raw_header(text: str) -> Callable[[Path], None]:
    return lambda path: save_file(PEFT_PAIR, path, metadata={"lora_adapter_metadata": text})


def bytes_of(raw: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(raw) and None


def given(entries: str, data: bytes = b"\0" * 64) -> Callable[[Path], None]:
    """A container with that JSON as its header."""
    return bytes_of(struct.pack("<Q", len(entries)) + entries.encode() + data)


TENSOR = '{"dtype":"F32","shape":[2,4],"data_offsets":[%d,%d]}'

CASES: Mapping[str, tuple[object, str]] = {
    "down without up": ({f"{Q}.lora_down.weight": A}, "E_PAIR"),
    "up without down": ({f"{Q}.lora_up.weight": B}, "E_PAIR"),
    "alpha without a pair": ({**PAIR, "lora_unet_conv_in.alpha": np.array(1.0, "f4")}, "E_PAIR"),
    "mid without a pair": ({f"{Q}.lora_mid.weight": np.ones((2, 2, 3, 3), "f4")}, "E_PAIR"),
    "both names for one module": (kohya("lora_unet_conv_in") | kohya("lora_unet_input_blocks_0_0"), "E_CONFLICT"),
    "old and new names for one module": (
        {**PEFT_PAIR, f"{D}.lora.down.weight": A, f"{D}.lora.up.weight": B},
        "E_CONFLICT",
    ),
    "two programs": ({**PAIR, **PEFT_PAIR}, "E_SCHEME"),
    "a program and something unknown": ({**PAIR, "something.else": A}, "E_SCHEME"),
    "ranks that differ": ({f"{Q}.lora_down.weight": A, f"{Q}.lora_up.weight": np.ones((8, 3), "f4")}, "E_RANK"),
    "rank 0": ({f"{Q}.lora_down.weight": A[:0], f"{Q}.lora_up.weight": B[:, :0]}, "E_RANK"),
    "rank above both sides": (
        {f"{Q}.lora_down.weight": np.ones((9, 8), "f4"), f"{Q}.lora_up.weight": np.ones((8, 9), "f4")},
        "E_RANK",
    ),
    "alpha 0": (alpha(0.0), "E_ALPHA"),
    "alpha below 0": (alpha(-1.0), "E_ALPHA"),
    "alpha NaN": (alpha(float("nan")), "E_ALPHA"),
    "alpha infinite": (alpha(float("inf")), "E_ALPHA"),
    "alpha of two numbers": (alpha([1.0, 2.0]), "E_ALPHA"),
    "alpha a huge integer": (alpha(2**62, "i8"), "E_ALPHA"),
    "alpha 1e30": (alpha(1e30), "E_ALPHA"),
    "integer factors": ({k: t.astype("i4") for k, t in PAIR.items()}, "E_DTYPE"),
    "NaN in a factor": ({**PAIR, f"{Q}.lora_up.weight": np.full((8, 2), np.nan, "f4")}, "E_NONFINITE"),
    "a factor of one dimension": ({**PAIR, f"{Q}.lora_up.weight": np.ones(8, "f4")}, "E_SHAPE"),
    "a factor of five dimensions": (
        {f"{Q}.lora_down.weight": np.ones((2, 8, 1, 1, 1), "f4"), f"{Q}.lora_up.weight": np.ones((8, 2, 1, 1, 1), "f4")},
        "E_SHAPE",
    ),
    "a mid of another rank": ({**PAIR, f"{Q}.lora_mid.weight": np.ones((3, 3, 3, 3), "f4")}, "E_SHAPE"),
    "a magnitude over inputs": ({**PAIR, f"{Q}.dora_scale": np.ones((1, 8), "f4")}, "E_SHAPE"),
    "DoRA on some modules": (
        {**PAIR, f"{Q}.dora_scale": np.ones((8, 1), "f4"), **kohya("lora_unet_time_embedding_linear_1")},
        "E_UNSUPPORTED",
    ),
    "a block that is not there": (kohya("lora_unet_input_blocks_9999_1_proj_in"), "E_NAME"),
    "a name that is not whole": (kohya("lora_unet_input_blocks"), "E_NAME"),
    "a doubled prefix": (kohya(f"lora_unet_{Q.removeprefix('lora_')}"), "E_NAME"),
    "a trailing underscore": (kohya(f"{Q}_"), "E_NAME"),
    "a T5 text encoder": (kohya("lora_te3_encoder_block_0_layer_0_SelfAttention_q"), "E_UNSUPPORTED"),
    "LoRA and LoHa": ({**PAIR, "lora_unet_conv_in.hada_w1_a": A}, "E_UNSUPPORTED"),
    "half of a LoHa": ({f"{Q}.hada_w1_a": A, f"{Q}.hada_w1_b": B}, "E_PAIR"),
    "whole differences": ({f"{Q}.diff": np.ones((8, 8), "f4")}, "E_UNSUPPORTED"),
    "an OFT": ({f"{Q}.oft_blocks": np.ones((2, 4, 4), "f4")}, "E_UNSUPPORTED"),
    "a textual inversion": ({"emb_params": A}, "E_UNSUPPORTED"),
    "a full model": ({"model.diffusion_model.out.2.weight": A}, "E_UNSUPPORTED"),
    "PEFT's own words": ({f"unet.base_layer.{h}.weight": t for h, t in (("lora_A", A), ("lora_B", B))}, "E_NAME"),
    "rows that fit no parts": (
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": A,
         "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": B},
        "E_SHAPE",
    ),
    "header: another rank": (header(r=4), "E_CONFIG"),
    "header: another method": (header(peft_type="LOHA"), "E_CONFIG"),
    "header: alpha 0": (header(lora_alpha=0), "E_ALPHA"),
    "header: a module left out": (header(exclude_modules=["to_q"]), "E_CONFIG"),
    "header: modules saved whole": (header(modules_to_save=["proj_in"]), "E_CONFIG"),
    "header: a pattern that backtracks": (header(target_modules=r"((\w|\.)+)+!"), "E_REGEX"),
    "header: a list": (raw_header("[1]"), "E_CONFIG"),
    "header: no JSON": (raw_header("{"), "E_CONFIG"),
    "header: a key twice": (raw_header('{"unet.r": 2, "unet.r": 3, "unet.lora_alpha": 2}'), "E_CONFIG"),
    "header: nested lists": (raw_header("[" * 100_000), "E_CONFIG"),
    "header: a component that is not there": (raw_header('{"text_encoder.r": 2}'), "E_CONFIG"),
    "MLX without its config": ({"model.layers.0.q_proj.lora_a": B, "model.layers.0.q_proj.lora_b": A}, "E_CONFIG"),
    "a pickle by another name": (bytes_of(b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os\x94."), "E_"),
    "a pointer of Git LFS": (bytes_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), "E_"),
    "an empty file": (bytes_of(b""), "E_CONTAINER"),
    "a header of 2^60 bytes": (bytes_of(struct.pack("<Q", 1 << 60) + b"{}"), "E_CONTAINER"),
    "tensors that overlap": (given(f'{{"{Q}.a":{TENSOR % (0, 32)},"{Q}.b":{TENSOR % (0, 32)}}}'), "E_CONTAINER"),
    "a tensor given twice": (given(f'{{"{Q}.a":{TENSOR % (0, 32)},"{Q}.a":{TENSOR % (32, 64)}}}'), "E_CONTAINER"),
    "a path as a name": (given(f'{{"../{Q}.a":{TENSOR % (0, 64)}}}'), "E_"),
    "no tensors": (given("{}", b""), "E_CONTAINER"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_refused_by_name_and_leaves_nothing(case, tmp_path):
    adapt, path = Adapt(tmp_path), tmp_path / "style.safetensors"
    content, code = CASES[case]
    content(path) if callable(content) else save_file(content, path)

    done = adapt("add", path)
    listed = adapt.json("identify", path, path)["files"][0]
    exported = adapt("export", path, "--format", "kohya", "-o", tmp_path / "out")

    assert f"[{code}" in done.stderr
    assert done.exit_code in (16, 11), done.stderr
    assert list(adapt.library.installed()) == []
    assert listed["problem"] or code == "E_NONFINITE"
    assert adapt("identify", path).exit_code in (0, 10)
    assert exported.exit_code not in (0, 1)
    assert not (tmp_path / "out").exists()
    assert not any((tmp_path / "home").rglob("*.safetensors"))


def test_metadata_is_shown_without_marks_that_turn_text_around(tmp_path):
    said = {"modelspec.title": "safe\u202e\u0007<script>", "modelspec.thumbnail": "data:image/png;base64,AAAA"}
    save_file(PAIR, tmp_path / "style.safetensors", metadata=said)
    adapt = Adapt(tmp_path)

    adapt.ok("add", tmp_path / "style.safetensors")

    (build,) = adapt.library.installed()
    assert build.manifest.annotations["title"] == "safe  <script>"
    assert "base64" not in json.dumps(build.manifest.to_json())

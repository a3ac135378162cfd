"""GGUF files as copies: each number of a source is where the rules say, and another model is not."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from adapterhub.core.errors import CouldNotTell, Malformed, MalformedTensorFile
from adapterhub.formats.base.quantised.files import FileReader
from adapterhub.formats.base.quantised.gguf import GgufWeights, gguf_weights, source_names
from adapterhub.formats.gguf.file import GgufModel, read_gguf_model
from adapterhub.formats.gguf.names import READ, architectures
from adapterhub.formats.gguf.types import TYPES

Array = NDArray[Any]
Tensors = dict[str, Array]
HEADS, GROUPS, SIZE, WIDTH = 4, 2, 8, 32
EXPERTS, INNER = 3, 6
ATTENTION = {"attention.head_count": HEADS, "attention.head_count_kv": GROUPS}


def random(*shape: int, seed: int = 0) -> Array:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * 0.05).astype(np.float32)


def written(path: Path, architecture: str, values: Mapping[str, object], tensors: Tensors) -> GgufModel:
    """A GGUF file of plain numbers, by gguf's own writer."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(f"{architecture}.{key}", value)
        else:
            assert isinstance(value, int)
            writer.add_uint32(key if key.startswith("tokenizer.") else f"{architecture}.{key}", value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_gguf_model(path)


def outside(found: GgufWeights, model: GgufModel, source: Mapping[str, Array]) -> dict[str, int]:
    """By name, how many numbers of the source lie outside of what the file says; all places, in a random order."""
    counts = {}
    with FileReader(model.tensors) as reader:
        for name, weight in found.weights.items():
            numbers = source[name].astype(np.float64).reshape(-1)
            at = np.random.default_rng(1).permutation(numbers.size)
            ranges = weight.ranges(reader, at)
            counts[name] = int((~((numbers[at] >= ranges.low) & (numbers[at] <= ranges.high))).sum())
    return counts


# ---------------------------------------------------------------- what the converter does, written forwards
def permuted(weight: Array, heads: int) -> Array:
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def with_turned_rows(source: Tensors) -> Tensors:
    return {
        "blk.1.attn_q.weight": permuted(source["model.layers.1.self_attn.q_proj.weight"], HEADS),
        "blk.1.attn_k.weight": permuted(source["model.layers.1.self_attn.k_proj.weight"], GROUPS),
        "blk.1.attn_v.weight": source["model.layers.1.self_attn.v_proj.weight"],
        "blk.1.attn_q.bias": permuted(source["model.layers.1.self_attn.q_proj.bias"], HEADS),
    }


def with_joined_projections(source: Tensors) -> Tensors:
    parts = with_turned_rows(source)
    return {"blk.1.attn_qkv.weight": np.concatenate([parts[f"blk.1.attn_{leaf}.weight"] for leaf in "qkv"])}


def with_norms_plus_one(source: Tensors) -> Tensors:
    return {
        "blk.0.attn_norm.weight": source["model.layers.0.input_layernorm.weight"] + np.float32(1),
        "token_embd.weight": source["model.embed_tokens.weight"],
    }


def with_stacked_experts(source: Tensors) -> Tensors:
    def stack(leaf: str) -> Array:
        return np.stack([source[f"model.layers.1.mlp.experts.{e}.{leaf}_proj.weight"] for e in range(EXPERTS)])

    return {f"blk.1.ffn_{leaf}_exps.weight": stack(leaf) for leaf in ("gate", "up", "down")}


def with_gate_and_up_as_one(source: Tensors) -> Tensors:
    parts = with_stacked_experts(source)
    both = np.concatenate([parts["blk.1.ffn_gate_exps.weight"], parts["blk.1.ffn_up_exps.weight"]], 1)
    return {"blk.1.ffn_gate_up_exps.weight": both, "blk.1.ffn_down_exps.weight": parts["blk.1.ffn_down_exps.weight"]}


def with_split_stack(source: Tensors) -> Tensors:
    both = source["model.layers.1.mlp.experts.gate_up_proj"]
    return {
        "blk.1.ffn_gate_exps.weight": both[:, :INNER],
        "blk.1.ffn_up_exps.weight": both[:, INNER:],
        "blk.1.ffn_down_exps.weight": source["model.layers.1.mlp.experts.down_proj"],
    }


def with_woven_experts(source: Tensors) -> Tensors:
    both = source["model.layers.0.mlp.experts.gate_up_proj"].transpose(0, 2, 1)
    bias = source["model.layers.0.mlp.experts.gate_up_proj_bias"]
    return {
        "blk.0.ffn_gate_exps.weight": both[:, ::2],
        "blk.0.ffn_up_exps.weight": both[:, 1::2],
        "blk.0.ffn_gate_exps.bias": bias[:, ::2],
        "blk.0.ffn_up_exps.bias": bias[:, 1::2],
        "blk.0.ffn_down_exps.weight": source["model.layers.0.mlp.experts.down_proj"].transpose(0, 2, 1),
        "blk.0.attn_sinks.weight": source["model.layers.0.self_attn.sinks"],
    }


def with_turned_matrices(source: Tensors) -> Tensors:
    return {
        "blk.0.attn_qkv.weight": source["transformer.h.0.attn.c_attn.weight"].T,
        "blk.0.attn_qkv.bias": source["transformer.h.0.attn.c_attn.bias"],
        "token_embd.weight": source["transformer.wte.weight"],
    }


def with_sorted_rows(source: Tensors) -> Tensors:
    heads = source["h.0.self_attention.query_key_value.weight"].reshape(HEADS, 3, SIZE, WIDTH)
    return {"blk.0.attn_qkv.weight": np.concatenate([heads[:, n].reshape(-1, WIDTH) for n in range(3)])}


def with_sorted_groups(source: Tensors) -> Tensors:
    each = HEADS // GROUPS
    groups = source["transformer.h.0.self_attention.query_key_value.weight"].reshape(GROUPS, each + 2, SIZE, WIDTH)
    parts = (groups[:, :each], groups[:, each], groups[:, each + 1])
    return {"blk.0.attn_qkv.weight": np.concatenate([part.reshape(-1, WIDTH) for part in parts])}


def with_groups_apart(source: Tensors) -> Tensors:
    each = HEADS // GROUPS
    groups = source["model.layers.0.attention.wqkv.weight"].reshape(GROUPS, each + 2, SIZE, WIDTH)
    return {
        "blk.0.attn_q.weight": permuted(groups[:, :each].reshape(-1, WIDTH), HEADS),
        "blk.0.attn_k.weight": permuted(groups[:, each].reshape(-1, WIDTH), GROUPS),
        "blk.0.attn_v.weight": groups[:, each + 1].reshape(-1, WIDTH),
    }


def with_latent_heads(source: Tensors) -> Tensors:
    heads = source["model.layers.0.self_attn.kv_b_proj.weight"].reshape(HEADS, 5 + 3, 7)
    return {"blk.0.attn_k_b.weight": heads[:, :5].transpose(0, 2, 1), "blk.0.attn_v_b.weight": heads[:, 5:]}


def with_exponents(source: Tensors) -> Tensors:
    return {
        "blk.0.ssm_a": -np.exp(source["backbone.layers.0.mixer.A_log"]).reshape(-1, 1),
        "blk.0.ssm_conv1d.weight": source["backbone.layers.0.mixer.conv1d.weight"][:, 0],
        "blk.0.ssm_dt.bias": source["backbone.layers.0.mixer.dt_bias"],
        "blk.0.ssm_norm.weight": source["backbone.layers.0.mixer.norm.weight"].reshape(2, -1),
    }


LINEAR = {"ssm.group_count": 2, "ssm.time_step_rank": 6, "ssm.inner_size": 24, "ssm.state_size": 5}


def with_tiled_values(source: Tensors) -> Tensors:
    rows = source["model.layers.0.linear_attn.in_proj_qkv.weight"]
    values = rows[20:].reshape(2, 3, 4, WIDTH).swapaxes(0, 1).reshape(24, WIDTH)
    out = source["model.layers.0.linear_attn.out_proj.weight"].reshape(WIDTH, 2, 3, 4).swapaxes(1, 2)
    log = -np.exp(source["model.layers.0.linear_attn.A_log"]).reshape(2, 3).T
    return {
        "blk.0.attn_qkv.weight": np.concatenate([rows[:20], values]),
        "blk.0.ssm_out.weight": out.reshape(WIDTH, 24),
        "blk.0.ssm_a": log.reshape(6),
    }


def with_inputs_apart(source: Tensors) -> Tensors:
    heads = source["model.layers.0.linear_attn.in_proj_qkvz.weight"].reshape(2, 5 + 5 + 12 + 12, WIDTH)
    query, key, value, gate = (part.reshape(-1, WIDTH) for part in np.split(heads, (5, 10, 22), 1))
    return {"blk.0.attn_qkv.weight": np.concatenate([query, key, value]), "blk.0.attn_gate.weight": gate}


def with_even_rows_first(source: Tensors) -> Tensors:
    weight = source["model.layers.0.self_attn.q_proj.weight"].reshape(HEADS, SIZE, WIDTH)
    rows = np.concatenate([weight[:, 0:4:2], weight[:, 1:4:2], weight[:, 4:]], 1)
    return {"blk.0.attn_q.weight": rows.reshape(-1, WIDTH)}


def with_rows_of_input(source: Tensors) -> Tensors:
    both = source["model.layers.0.block_sparse_moe.input_linear.weight"]
    shared = source["model.layers.0.shared_mlp.input_linear.weight"]
    return {
        "blk.0.ffn_gate_exps.weight": both[:, :INNER],
        "blk.0.ffn_up_exps.weight": both[:, INNER:],
        "blk.0.ffn_gate_shexp.weight": shared[:INNER],
        "blk.0.ffn_up_shexp.weight": shared[INNER:],
    }


def named(front: str, **shapes: tuple[int, ...]) -> Tensors:
    """Random tensors; `__` in a keyword is a dot of the name."""
    return {front + name.replace("__", "."): random(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}


PROJECTIONS = named(
    "model.layers.1.self_attn.", q_proj__weight=(32, 32), k_proj__weight=(16, 32), v_proj__weight=(16, 32)
)
SINGLE = {
    f"model.layers.1.mlp.experts.{expert}.{leaf}_proj.weight": random(*shape, seed=expert)
    for expert in range(EXPERTS)
    for leaf, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH + 0)), ("down", (WIDTH, INNER)))
}
for number, name in enumerate(SINGLE):
    SINGLE[name] = SINGLE[name] + np.float32(number / 64)
CASES: dict[str, tuple[str, dict[str, Any], Tensors, Callable[[Tensors], Tensors]]] = {
    "turned rows": (
        "llama", ATTENTION,
        PROJECTIONS | {"model.layers.1.self_attn.q_proj.bias": random(32)}, with_turned_rows,
    ),
    "projections as one": ("llama", ATTENTION, PROJECTIONS | {"model.layers.1.self_attn.q_proj.bias": random(32)},
                           with_joined_projections),
    "heads by layer": (
        "llama", {"attention.head_count": [1, HEADS], "attention.head_count_kv": [1, GROUPS]},
        PROJECTIONS | {"model.layers.1.self_attn.q_proj.bias": random(32)}, with_turned_rows,
    ),
    "norms plus one": (
        "gemma2", {}, named("model.", layers__0__input_layernorm__weight=(WIDTH,), embed_tokens__weight=(50, WIDTH)),
        with_norms_plus_one,
    ),
    "one of the experts": ("qwen3moe", {}, SINGLE, with_stacked_experts),
    "one of gate and up together": ("qwen3moe", {}, SINGLE, with_gate_and_up_as_one),
    "stack cut": (
        "qwen3moe", {}, named("model.layers.1.mlp.experts.", gate_up_proj=(EXPERTS, 2 * INNER, WIDTH),
                              down_proj=(EXPERTS, WIDTH, INNER)), with_split_stack,
    ),
    "woven experts": (
        "gpt-oss", {}, named("model.layers.0.", mlp__experts__gate_up_proj=(EXPERTS, WIDTH, 2 * INNER),
                             mlp__experts__gate_up_proj_bias=(EXPERTS, 2 * INNER),
                             mlp__experts__down_proj=(EXPERTS, INNER, WIDTH), self_attn__sinks=(HEADS,)),
        with_woven_experts,
    ),
    "turned matrices": (
        "gpt2", {}, named("transformer.", h__0__attn__c_attn__weight=(WIDTH, 96), h__0__attn__c_attn__bias=(96,),
                          wte__weight=(50, WIDTH)), with_turned_matrices,
    ),
    "rows by kind": ("bloom", {"attention.head_count": HEADS},
                     named("h.0.self_attention.", query_key_value__weight=(96, WIDTH)), with_sorted_rows),
    "rows of groups": ("falcon", ATTENTION,
                       named("transformer.h.0.self_attention.", query_key_value__weight=(64, WIDTH)), with_sorted_groups),
    "groups apart": ("internlm2", ATTENTION, named("model.layers.0.attention.", wqkv__weight=(64, WIDTH)),
                     with_groups_apart),
    "latent heads": ("deepseek2", {}, named("model.layers.0.self_attn.", kv_b_proj__weight=(32, 7)), with_latent_heads),
    "exponents": (
        "mamba2", {}, named("backbone.layers.0.mixer.", A_log=(6,), conv1d__weight=(20, 1, 4), dt_bias=(6,),
                            norm__weight=(16,)), with_exponents,
    ),
    "tiled values": (
        "qwen35", LINEAR, named("model.layers.0.linear_attn.", in_proj_qkv__weight=(44, WIDTH),
                                out_proj__weight=(WIDTH, 24), A_log=(6,)), with_tiled_values,
    ),
    "inputs apart": ("qwen3next", LINEAR, named("model.layers.0.linear_attn.", in_proj_qkvz__weight=(68, WIDTH)),
                     with_inputs_apart),
    "even rows first": (
        "glm4", {"attention.head_count": HEADS, "rope.dimension_sections": [1, 1, 2, 0], "rope.dimension_count": 4},
        named("model.layers.0.self_attn.", q_proj__weight=(32, WIDTH)), with_even_rows_first,
    ),
    "rows of the input": (
        "granitemoe", {}, named("model.layers.0.", block_sparse_moe__input_linear__weight=(EXPERTS, 2 * INNER, WIDTH),
                                shared_mlp__input_linear__weight=(2 * INNER, WIDTH)), with_rows_of_input,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_number_of_the_source_is_where_the_rules_say(case: str, tmp_path: Path) -> None:
    architecture, values, source, convert = CASES[case]
    copy = convert(source)
    model = written(tmp_path / "copy.gguf", architecture, values, copy)

    found = gguf_weights(model, source)

    expected = [name for name in source if not (case == "projections as one" and name.endswith("bias"))]
    assert list(found.weights) == expected
    assert found.spare == ()
    assert {name: weight.shape for name, weight in found.weights.items()} == {n: source[n].shape for n in expected}
    assert outside(found, model, source) == dict.fromkeys(expected, 0)


@pytest.mark.parametrize("case", CASES)
def test_a_changed_number_is_found_at_its_place(case: str, tmp_path: Path) -> None:
    architecture, values, source, convert = CASES[case]
    model = written(tmp_path / "copy.gguf", architecture, values, convert(source))
    found = gguf_weights(model, source)

    changed = {name: tensor.copy() for name, tensor in source.items()}
    for tensor in changed.values():
        tensor.reshape(-1)[tensor.size // 3] += 0.02

    assert outside(found, model, changed) == dict.fromkeys(found.weights, 1)


def test_names_of_any_release_and_of_larger_models_lead_to_the_same_tensor(tmp_path: Path) -> None:
    model = written(tmp_path / "m.gguf", "llama", ATTENTION, {"blk.0.ffn_up.weight": random(8, 32)})
    names = (
        "model.layers.0.mlp.up_proj.weight",
        "layers.0.mlp.up_proj.weight",
        "language_model.model.layers.0.mlp.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
        "model.text_model.layers.0.mlp.up_proj.weight",
    )

    assert set(gguf_weights(model, names).weights) == set(names)


@pytest.mark.parametrize("has_experts", [False, True])
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_file_alone_gives_the_names_of_its_source(tmp_path: Path, *, has_experts: bool, is_tied: bool) -> None:
    layer = {"attn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "ffn_norm": (32,)}
    layer |= {"ffn_down_exps": (3, 32, 6)} if has_experts else {"ffn_down": (32, 6)}
    shapes = {f"blk.{n}.{name}.weight": shape for n in range(2) for name, shape in layer.items()}
    shapes |= {"token_embd.weight": (8, 32), "output_norm.weight": (32,), "rope_freqs.weight": (4,)}
    shapes |= {} if is_tied else {"output.weight": (8, 32)}
    values = ATTENTION | {"block_count": 2} | ({"expert_count": 3} if has_experts else {})
    model = written(tmp_path / "m.gguf", "llama", values, {name: random(*shape) for name, shape in shapes.items()})

    names = source_names(model)

    part = "block_sparse_moe.experts.{}.w2" if has_experts else "mlp.down_proj"
    ends = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "post_attention_layernorm"]
    ends += [part.format(expert) for expert in range(3 if has_experts else 1)]
    expected = {f"model.layers.{n}.{end}.weight" for n in range(2) for end in ends}
    expected |= {"model.embed_tokens.weight", "model.norm.weight"} | (set() if is_tied else {"lm_head.weight"})
    assert set(names) == expected
    assert gguf_weights(model, names).spare == ("rope_freqs.weight",)


def test_what_a_file_leaves_out_is_told_from_what_is_unknown(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": random(8, 32), "rope_freqs.weight": random(4)}
    model = written(tmp_path / "m.gguf", "llama", {"block_count": 2}, tensors)
    absent = ["vision_tower.layers.0.mlp.fc1.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "mtp.fc.weight"]
    absent.append("model.layers.2.mlp.up_proj.weight")

    found = gguf_weights(model, ["model.embed_tokens.weight", "lm_head.weight", *absent, "model.new_part.weight"])

    assert found.weights["lm_head.weight"].parts == ("token_embd.weight",)  # tied
    assert (list(found.absent), found.unknown, found.spare) == (
        absent,
        ("model.new_part.weight",),
        ("rope_freqs.weight",),
    )


@pytest.mark.parametrize("rows", [40, 56])
def test_a_vocabulary_may_have_more_rows_or_fewer(rows: int, tmp_path: Path) -> None:
    source = {"model.embed_tokens.weight": random(rows, WIDTH)}
    padded = np.concatenate([source["model.embed_tokens.weight"], np.zeros((48, WIDTH), np.float32)])[:48]
    model = written(tmp_path / "m.gguf", "gemma3n", {}, {"token_embd.weight": padded})

    found = gguf_weights(model, source, {name: tensor.shape for name, tensor in source.items()})

    assert outside(found, model, source) == {"model.embed_tokens.weight": 0}
    with FileReader(model.tensors) as reader:
        ranges = found.weights["model.embed_tokens.weight"].ranges(reader, np.array([0, rows * WIDTH - 1]))
    assert np.isinf(ranges.high).tolist() == [False, rows > 48]


def test_the_first_positions_of_roberta_are_left_out(tmp_path: Path) -> None:
    source = {"roberta.embeddings.position_embeddings.weight": random(20, WIDTH)}
    kept = source["roberta.embeddings.position_embeddings.weight"][2:]
    values = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.padding_token_id": 1}
    model = written(tmp_path / "m.gguf", "bert", values, {"position_embd.weight": kept})

    found = gguf_weights(model, source)

    assert found.weights["roberta.embeddings.position_embeddings.weight"].shape == (20, WIDTH)
    assert sum(outside(found, model, source).values()) == 0


def test_an_architecture_whose_conversion_is_not_known_cannot_be_told(tmp_path: Path) -> None:
    model = written(tmp_path / "m.gguf", "falcon-h1", {}, {"token_embd.weight": random(8, 32)})

    with pytest.raises(CouldNotTell, match="GGUF of `falcon-h1`"):
        gguf_weights(model, ["model.embed_tokens.weight"])


@pytest.mark.parametrize("heads", [None, 0, 5, 3_000_000_000])
def test_heads_that_do_not_fit_are_an_error_that_names_the_tensor(heads: int | None, tmp_path: Path) -> None:
    values = {} if heads is None else {"attention.head_count": heads}
    model = written(tmp_path / "m.gguf", "llama", values, {"blk.1.attn_q.weight": random(32, 32)})

    with pytest.raises(Malformed, match="q_proj"):
        gguf_weights(model, PROJECTIONS)


@pytest.mark.parametrize("case", CASES)
def test_tensors_and_metadata_of_odd_sizes_are_an_error_or_another_model(case: str, tmp_path: Path) -> None:
    architecture, values, source, convert = CASES[case]
    model = written(tmp_path / "copy.gguf", architecture, values, convert(source))
    generator = np.random.default_rng(0)

    for _ in range(40):
        tensors, metadata = dict(model.tensors), dict(model.values)
        for name, (path, spec) in model.tensors.items():
            shapes = [spec.shape, spec.shape[1:] or (1,), (*spec.shape, 2), (0, *spec.shape[1:]), (7, *spec.shape[1:])]
            tensors[name] = path, spec._replace(shape=shapes[generator.integers(len(shapes))])
        for key in metadata.keys() - {"general.architecture"}:
            odd: list[object] = [metadata[key], 0, -1, 3, 1 << 60, "x", None, [1, 2], ["a"], 1.5, True, []]
            metadata[key] = odd[generator.integers(len(odd))]
        hostile = GgufModel(values=metadata, tensors=tensors, lengths={})
        try:
            found = gguf_weights(hostile, source, {name: tensor.shape for name, tensor in source.items()})
            with FileReader(hostile.tensors) as reader:
                for weight in found.weights.values():
                    weight.ranges(reader, np.arange(min(3, int(np.prod(weight.shape)))))
        except (CouldNotTell, Malformed):
            continue


# ---------------------------------------------------------------- headers
def test_quantised_tensors_have_the_places_that_gguf_reads(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    kinds = [kind for kind in TYPES.values() if kind.block > 1 and kind.name in gguf.GGMLQuantizationType.__members__]
    for kind in kinds:
        raw = np.zeros((3, 512 // kind.block * kind.size), np.uint8)
        if gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]] == (kind.block, kind.size):
            writer.add_tensor(f"{kind.name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType[kind.name])
    writer.add_token_list([f"token {n}" for n in range(70_000)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    model = read_gguf_model(tmp_path / "m.gguf")

    assert len(model.tensors) > 20
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        spec = model.tensors[tensor.name][1]
        found = (spec.dtype, spec.shape, spec.start, spec.size_bytes)
        shape = tuple(int(size) for size in tensor.shape)[::-1]
        assert found == (tensor.tensor_type.name, shape, tensor.data_offset, tensor.n_bytes)
    assert model.lengths["tokenizer.ggml.tokens"] == 70_000
    assert model.values["tokenizer.ggml.tokens"] is None


def split_model(folder: Path) -> list[Path]:
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=1)
    tensors = {f"blk.{n}.ffn_up.weight": random(8, 32, seed=n) for n in range(3)}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


def test_any_file_of_a_split_model_leads_to_all(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    assert len(paths) == 3

    for path in paths:
        model = read_gguf_model(path)
        source = {f"model.layers.{n}.mlp.up_proj.weight": random(8, 32, seed=n) for n in range(3)}
        assert sum(outside(gguf_weights(model, source), model, source).values()) == 0
        assert len(model.tensors) == 3


def test_a_split_model_that_lacks_a_file_or_mixes_them_names_the_file(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    whole = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(MalformedTensorFile, match="00002-of-00003"):
        read_gguf_model(paths[0])

    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(MalformedTensorFile, match=r"file 2 of 3 by its header, expected 1"):
        read_gguf_model(paths[0])

    paths[1].write_bytes(whole[:-40])
    with pytest.raises(MalformedTensorFile, match="cut off"):
        read_gguf_model(paths[0])


def test_every_cut_and_every_changed_byte_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    written(path, "llama", ATTENTION | {"tokenizer.ggml.model": "gpt2"}, {"blk.0.attn_q.weight": random(8, 32)})
    raw = path.read_bytes()
    generator = np.random.default_rng(0)
    files = [raw[:end] for end in range(0, len(raw) - 1024, 3)]
    for _ in range(400):
        changed = bytearray(raw)
        for place in generator.integers(0, len(raw) - 1024, generator.integers(1, 4)):
            changed[place] = generator.choice([0, 1, 8, 9, 255, int(generator.integers(256))])
        files.append(bytes(changed))

    refused = 0
    for data in files:
        path.write_bytes(data)
        try:
            read_gguf_model(path)
        except MalformedTensorFile:
            refused += 1

    assert refused > len(files) // 2


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (8, struct.pack("<Q", 1 << 63)),
        (9, struct.pack("<IQ", 8, 1 << 62)),
        (9, struct.pack("<IQ", 6, 1 << 61)),
        (9, struct.pack("<IQ", 9, 4)),
        (9, struct.pack("<IQQ", 8, 3, 1 << 64 - 8)),
    ],
)
def test_a_length_beyond_the_file_is_refused_at_once(kind: int, data: bytes, tmp_path: Path) -> None:
    entry = struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + data
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + entry + bytes(64))

    with pytest.raises(MalformedTensorFile):
        read_gguf_model(tmp_path / "m.gguf")


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")

    with pytest.raises(MalformedTensorFile, match="regular"):
        read_gguf_model(tmp_path / "m.gguf")


# ---------------------------------------------------------------- against others
def test_the_table_of_names_has_all_that_the_installed_gguf_has() -> None:
    spec = spec_from_file_location("gguf_names", Path(__file__).parents[3] / "docs" / "gguf_names.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)

    assert script.lacking() == []
    assert architectures() >= READ


MADE = os.environ.get("ADAPTERHUB_GGUF_COPIES", "")
"""A folder with `models/NAME` as transformers saved it, and `gguf/NAME/*.gguf` as `convert_hf_to_gguf.py` made them."""


@pytest.mark.exhaustive
@pytest.mark.skipif(not MADE, reason="ADAPTERHUB_GGUF_COPIES names no folder of converted models")
@pytest.mark.parametrize("path", sorted(Path(MADE).glob("gguf/*/*.gguf")) if MADE else [], ids=str)
def test_files_of_the_converter_hold_each_number_of_their_source(path: Path) -> None:
    import torch

    source = {}
    for file in sorted(Path(MADE, "models", path.parent.name).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            source |= {name: opened.get_tensor(name).to(torch.float32).numpy() for name in opened.keys()}  # noqa: SIM118 - it is no dict
    model = read_gguf_model(path)
    if model.architecture not in READ:
        pytest.skip(f"the conversion of {model.architecture} is not known")

    found = gguf_weights(model, source, {name: tensor.shape for name, tensor in source.items()})

    assert found.unknown == ()
    alone = gguf_weights(model, source_names(model))
    assert {part for weight in alone.weights.values() for part in weight.parts} == model.tensors.keys() - alone.spare
    assert not {part for part in alone.spare if not part.startswith("rope")}
    assert {name: count for name, count in outside(found, model, source).items() if count} == {}

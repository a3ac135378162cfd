"""What engines read: the rules one by one, verdicts, flags, and `adapt verify --engine`."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapterhub.core.errors import UsageProblem
from adapterhub.formats.engines import (
    FEATURES,
    BaseFacts,
    Verdict,
    engine,
    judge,
    names,
    parse_target,
    together,
)
from adapterhub.formats.engines.llama_cpp import BASES
from adapterhub.formats.engines.vllm import MAX_RANKS, slot_rank
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import read_header
from adapterhub.inference.engine_bases import base_facts
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.library import Library
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter

PREFIX = "base_model.model."
LLAMA = BaseFacts(model_type="llama", vocabulary=1000, is_tied=False)
TIED = BaseFacts(model_type="llama", vocabulary=1000, is_tied=True)


def verdict(folder: Path, target: str, base: BaseFacts = LLAMA) -> Verdict:
    config = AdapterConfig.parse((folder / "adapter_config.json").read_bytes(), "adapter_config.json")
    return judge(target, config, read_header(folder / "adapter_model.safetensors"), base=base)


def adapter(
    folder: Path, *, without: tuple[str, ...] = (), extra: dict[str, tuple[int, ...]] | None = None, **options: Any
) -> Path:
    """A tiny adapter; settings to leave out of its config, and further tensors by name and shape."""
    make_adapter(folder, **options)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in without}))
    if extra:
        weights = folder / "adapter_model.safetensors"
        more = {f"{PREFIX}{name}": np.ones(shape, "f4") for name, shape in extra.items()}
        save_file(load_file(weights) | more, weights, metadata={"format": "pt"})
    return folder


def pair(module: str, rank: int = 4, out: int = 8, width: int = 8) -> dict[str, tuple[int, ...]]:
    return {f"{module}.lora_A.weight": (rank, width), f"{module}.lora_B.weight": (out, rank)}


EMBEDDING = {"model.embed_tokens.lora_embedding_A": (4, 1000), "model.embed_tokens.lora_embedding_B": (8, 4)}
HEAD = pair("lm_head", out=1000)
MAGNITUDES = {
    f"model.layers.{i}.self_attn.{m}.lora_magnitude_vector": (8,) for i in range(2) for m in ("q_proj", "v_proj")
}
FIRST = "model.layers.0.self_attn"

# What each engine says of each variant: y(es), r(efuses), m(isreads).
VARIANTS: dict[str, tuple[dict[str, Any], BaseFacts, dict[str, str]]] = {
    "plain": ({}, LLAMA, {"vllm": "y", "llama.cpp": "y", "peft": "y", "tgi": "y", "sglang": "y"}),
    "rslora": ({"use_rslora": True}, LLAMA, {"vllm": "y", "llama.cpp": "y", "tgi": "y", "sglang": "m"}),
    "rslora of rank 1": ({"use_rslora": True, "rank": 1}, LLAMA, {"sglang": "y", "vllm": "y"}),
    "alpha_pattern": ({"alpha_pattern": {"q_proj": 3}}, LLAMA, {"vllm": "y", "llama.cpp": "y", "tgi": "m", "sglang": "m"}),
    "alpha_pattern that changes nothing": ({"alpha_pattern": {"q_proj": 8}}, LLAMA, {"tgi": "y", "sglang": "y"}),
    "dora": ({"use_dora": True, "extra": MAGNITUDES}, LLAMA, {"vllm": "r", "llama.cpp": "r", "peft": "y", "tgi": "m", "sglang": "r"}),
    "lora_bias": (
        {"lora_bias": True, "extra": {f"{FIRST}.q_proj.lora_B.bias": (8,)}},
        LLAMA, {"vllm": "r", "llama.cpp": "r", "peft": "y", "tgi": "m", "sglang": "m"},
    ),
    "bias": ({"bias": "all", "extra": {f"{FIRST}.q_proj.bias": (8,)}}, LLAMA, {"vllm": "r", "llama.cpp": "r", "tgi": "m", "sglang": "m"}),
    "modules_to_save": (
        {"modules_to_save": ["lm_head"], "extra": {"lm_head.weight": (1000, 8)}},
        LLAMA, {"vllm": "r", "llama.cpp": "r", "peft": "y", "tgi": "m", "sglang": "m"},
    ),
    "score trained whole": (
        {"modules_to_save": ["score"], "task_type": "SEQ_CLS", "extra": {"score.weight": (3, 8)}},
        LLAMA, {"vllm": "y", "llama.cpp": "r", "peft": "y"},
    ),
    "score and another": (
        {"modules_to_save": ["score", "norm"], "extra": {"score.weight": (3, 8), "model.norm.weight": (8,)}},
        LLAMA, {"vllm": "r"},
    ),
    "trainable tokens": (
        {"trainable_token_indices": {"embed_tokens": [1]}, "extra": {"model.embed_tokens.token_adapter.trainable_tokens_delta": (1, 8)}},
        LLAMA, {"vllm": "r", "llama.cpp": "r", "peft": "y", "tgi": "m", "sglang": "m"},
    ),
    "embedding": ({"extra": EMBEDDING, "modules": ("q_proj", "v_proj")}, LLAMA, {"vllm": "y", "llama.cpp": "y", "peft": "y", "tgi": "m"}),
    "embedding, tied": ({"extra": EMBEDDING}, TIED, {"vllm": "y", "llama.cpp": "r"}),
    "embedding of another size": ({"extra": EMBEDDING}, BaseFacts(model_type="llama", vocabulary=999), {"vllm": "r"}),
    "lm_head": ({"extra": HEAD}, LLAMA, {"vllm": "y", "llama.cpp": "y", "tgi": "y", "sglang": "y"}),
    "lm_head, tied": ({"extra": HEAD}, TIED, {"vllm": "y", "llama.cpp": "r"}),
    "lm_head of a huge vocabulary": ({"extra": pair("lm_head", out=258_049)}, BaseFacts(model_type="llama"), {"vllm": "r"}),
    "rank 512": ({"rank": 512}, LLAMA, {"vllm": "y", "llama.cpp": "y"}),
    "rank 513": ({"rank": 513}, LLAMA, {"vllm": "r", "llama.cpp": "y", "sglang": "y"}),
    "rank 513 in a pattern only": ({"rank_pattern": {"nowhere": 513}}, LLAMA, {"vllm": "r"}),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, LLAMA, {"vllm": "r", "llama.cpp": "r", "peft": "y", "tgi": "m", "sglang": "m"}),
    "olora": ({"init_lora_weights": "olora"}, LLAMA, {"vllm": "r", "llama.cpp": "r"}),
    "eva": ({"init_lora_weights": "eva"}, LLAMA, {"vllm": "y", "llama.cpp": "y", "sglang": "y"}),
    "unknown start": ({"init_lora_weights": "mine"}, LLAMA, {"vllm": "r", "llama.cpp": "y"}),
    "layer_replication": ({"layer_replication": [[0, 2], [1, 2]]}, LLAMA, {"vllm": "r", "llama.cpp": "r", "tgi": "m"}),
    "alora": (
        {"alora_invocation_tokens": [5, 6]}, LLAMA,
        {"vllm": "r", "llama.cpp": "y", "ollama": "r", "sglang": "m", "tgi": "m", "peft": "y"},
    ),
    "convolution": ({"extra": {f"{FIRST}.c.lora_A.weight": (4, 8, 3), f"{FIRST}.c.lora_B.weight": (8, 4, 1)}}, LLAMA, {"vllm": "r", "llama.cpp": "r"}),
    "nested": ({"extra": pair("attn.base_layer.out_proj")}, LLAMA, {"vllm": "m", "llama.cpp": "r"}),
    "experts": ({"extra": pair("model.layers.0.mlp.experts.3.up_proj")}, LLAMA, {"vllm": "r", "llama.cpp": "r", "tgi": "m"}),
    "experts of a mixture": (
        {"extra": pair("model.layers.0.mlp.experts.3.up_proj")}, BaseFacts(model_type="qwen3_moe"), {"llama.cpp": "y", "ollama": "y"},
    ),
    "all experts at once": (
        {"target_parameters": ["mlp.experts.down_proj"], "extra": pair("model.layers.0.mlp.experts")},
        BaseFacts(model_type="mixtral"), {"llama.cpp": "y"},
    ),
    "all experts at once, of another mixture": (
        {"target_parameters": ["mlp.experts.down_proj"], "extra": pair("model.layers.0.mlp.experts")},
        BaseFacts(model_type="gpt_oss"), {"llama.cpp": "r"},
    ),
    "positions": (
        {"extra": {"transformer.wpe.lora_embedding_A": (4, 32), "transformer.wpe.lora_embedding_B": (8, 4)}},
        BaseFacts(model_type="gpt2", is_tied=False), {"llama.cpp": "r"},
    ),
    "lm_head of a base without one": ({"extra": HEAD}, BaseFacts(model_type="gemma2", is_tied=False), {"llama.cpp": "r"}),
    "copies vLLM passes over": ({"extra": EMBEDDING | {"model.embed_tokens.base_layer.weight": (1000, 8)}}, LLAMA, {"vllm": "y", "peft": "y"}),
    "copies vLLM refuses": ({"extra": {"model.embed_tokens.weight": (1000, 8)}}, LLAMA, {"vllm": "r", "peft": "y", "llama.cpp": "y"}),
    "a tensor of nothing": ({"extra": {"model.layers.0.thing": (8,)}}, LLAMA, {"vllm": "r", "llama.cpp": "r", "peft": "m"}),
    "some layers": ({"layers_to_transform": [0, 1]}, LLAMA, {"vllm": "y", "llama.cpp": "y", "tgi": "m", "sglang": "y"}),
    "q without v": ({"modules": ("q_proj",)}, LLAMA, {"vllm": "y", "sglang": "r"}),
    "v without q": ({"modules": ("v_proj",)}, LLAMA, {"vllm": "y", "sglang": "m"}),
    "other layers": ({"modules": ("q_proj", "v_proj", "wide")}, LLAMA, {"tgi": "m", "vllm": "r", "sglang": "r"}),
    "pattern": ({"target_modules": ".*(q|v)_proj"}, LLAMA, {"vllm": "y", "sglang": "r"}),
    "r left out": ({"without": ("r",), "rank": 8}, LLAMA, {"vllm": "r", "peft": "y"}),
    "gpt2": ({}, BaseFacts(model_type="gpt2"), {"vllm": "r", "llama.cpp": "y"}),
    "falcon": ({}, BaseFacts(model_type="falcon"), {"vllm": "r", "llama.cpp": "r"}),
    "LoHa": ({"peft_type": "LOHA"}, LLAMA, {"vllm": "r", "llama.cpp": "r", "tgi": "r", "sglang": "r", "peft": "y"}),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_verdict(variant: str, tmp_path: Path) -> None:
    options, base, expected = VARIANTS[variant]
    folder = adapter(tmp_path / "adapter", **options)

    found = {target: verdict(folder, target, base) for target in expected}

    letters = {"refuses": "r", "misreads": "m"}
    said = {
        t: "".join(sorted({letters[r.effect] for r in v.reasons}, reverse=True))[:1] or "y" for t, v in found.items()
    }
    assert expected == said, {t: [r.text for r in v.reasons] for t, v in found.items()}


def test_ranks_that_differ(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", rank_pattern={"o_proj": 2}, extra=pair(f"{FIRST}.o_proj", rank=2))

    found = {target: [r.feature for r in verdict(folder, target).reasons] for target in names()}

    assert found == {
        "llama.cpp": [], "ollama": [], "peft": [], "vllm": [], "sglang": ["scale", "ranks"],
        "tgi": ["scale_pattern", "ranks", "layers"],
    }  # fmt: skip


def test_every_reason_is_told_at_once(tmp_path: Path) -> None:
    folder = adapter(
        tmp_path / "adapter", use_dora=True, modules_to_save=["norm"], bias="all", init_lora_weights="pissa", rank=600
    )

    assert {"dora", "modules_to_save", "bias", "start", "rank"} == {r.feature for r in verdict(folder, "vllm").reasons}


# ---------------------------------------------------------------- the rules as data
@pytest.mark.parametrize("name", names())
def test_an_engine_is_complete(name: str) -> None:
    rules = engine(name)

    assert (rules.__doc__ or "").startswith(f"{rules.NAME}")
    assert isinstance(rules.VERSIONS, tuple)
    assert len(rules.SOURCE) > 40
    for rule in rules.RULES:
        assert rule.feature in FEATURES
        assert rule.effect in ("refuses", "misreads", "notes")
        assert rule.when is not None or FEATURES[rule.feature].test is not FEATURES["rank"].test, rule


def test_rules_lie_in_one_file_an_engine_and_import_nothing_heavy() -> None:
    code = (
        "import sys; from adapterhub.formats.engines import names, engine; [engine(n) for n in names()]; "
        "print([m for m in ('torch', 'peft', 'numpy', 'vllm', 'gguf') if m in sys.modules])"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_version_is_compared_with_what_was_read(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")

    notes = {v: verdict(folder, f"vllm@{v}").notes for v in ("0.32", "0.32.0", "0.33.1", "0.3", "1.0")}

    assert {v: any("may differ" in n for n in said) for v, said in notes.items()} == {
        "0.32": False, "0.32.0": False, "0.33.1": False, "0.3": True, "1.0": True,
    }  # fmt: skip


def test_targets_are_parsed() -> None:
    assert [parse_target(t) for t in ("vllm@0.32", "llama.cpp", "VLLM", "llama.cpp@b11739")] == [
        ("vllm", "0.32"), ("llama.cpp", None), ("vllm", None), ("llama.cpp", "b11739"),
    ]  # fmt: skip
    for wrong in ("tensorrt", "vllm@", "vllm@0.32; rm", "", "llama_cpp"):
        with pytest.raises(UsageProblem):
            parse_target(wrong)


def test_flags_name_the_smallest_slot(tmp_path: Path) -> None:
    ranks = {1: 1, 2: 8, 8: 8, 9: 16, 65: 128, 300: 320, 512: 512}

    assert ranks == {rank: slot_rank(rank) for rank in ranks}
    assert slot_rank(MAX_RANKS[-1] + 1) is None
    flags = verdict(adapter(tmp_path / "a", rank=12), "vllm").flags
    assert flags == ("--enable-lora", "--max-lora-rank", "16")


def test_one_server_for_several_adapters(tmp_path: Path) -> None:
    several = [{"rank": 4}, {"rank": 30, "modules": ("q_proj", "v_proj", "o_proj")}, {"rank": 900, "use_dora": True}]

    both = {
        target: together(verdict(adapter(tmp_path / f"{target}{i}", **o), target) for i, o in enumerate(several))
        for target in ("vllm", "sglang")
    }

    assert both == {
        "vllm": ("--enable-lora", "--max-lora-rank", "32"),
        "sglang": ("--enable-lora", "--max-lora-rank", "30", "--lora-target-modules", "o_proj", "q_proj", "v_proj"),
    }


def test_what_is_not_known_of_the_base_is_said(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", extra=HEAD)

    said = verdict(folder, "llama.cpp", BaseFacts()).notes

    assert any("unknown here" in note for note in said)
    assert verdict(folder, "llama.cpp", BaseFacts()).ok


def test_facts_of_a_base_come_from_its_files(base: BaseRecord, tmp_path: Path) -> None:
    assert base_facts(base) == BaseFacts(
        model_type="llama", vocabulary=16, is_tied=True, outer_type="llama"
    )  # it has no output head
    assert base_facts(None) == BaseFacts()
    (tmp_path / "base" / "config.json").unlink()
    assert base_facts(base).model_type == "llama"  # from the record


@pytest.mark.parametrize("kind", BASES)
def test_every_base_of_llama_cpp_has_names_in_gguf(kind: str) -> None:
    gguf = importlib.import_module("gguf")

    assert BASES[kind].architecture in gguf.MODEL_ARCH_NAMES.values()


# ---------------------------------------------------------------- adapt verify --engine
@pytest.fixture
def adapt(tmp_path: Path, library: Library, base: BaseRecord, add: Any) -> Adapt:
    add("legal-qa")
    add("summarize", rank=6, use_rslora=True)
    return Adapt(tmp_path)


def test_check_says_yes_with_flags(adapt: Adapt) -> None:
    said = adapt.ok("verify", "legal-qa", "--engine", "vllm@0.32", "--engine", "llama.cpp")

    assert "vllm@0.32  yes  --enable-lora --max-lora-rank 8" in said
    assert "llama.cpp  yes" in said


def test_check_of_several_adds_up_the_flags(adapt: Adapt) -> None:
    said = adapt.ok("verify", "--all", "--engine", "vllm")

    assert "vllm, 2 adapters on one server: --enable-lora --max-lora-rank 8" in said


@pytest.mark.parametrize(("targets", "code"), [(["vllm", "sglang"], 3), (["sglang"], 11), (["vllm", "tgi"], 0)])
def test_exit_code_of_check(targets: list[str], code: int, adapt: Adapt) -> None:
    asked = [word for target in targets for word in ("--engine", target)]

    done = adapt("verify", "summarize", *asked, "--json")

    document = json.loads(done.stdout)
    assert (code, [v["target"] for v in document[0]["verdicts"]]) == (done.exit_code, targets)
    reasons = [v["reasons"] for v in document[0]["verdicts"] if not v["ok"]]
    assert all(r["feature"] == "scale" and "rsLoRA" in r["detail"] for (r,) in reasons)


def test_check_without_a_target_asks_every_engine(adapt: Adapt) -> None:
    document = json.loads(adapt("verify", "legal-qa", "--engine", "all", "--json").stdout)

    assert list(names()) == [v["target"] for v in document[0]["verdicts"]]


def test_what_is_not_sound_is_no_for_everybody(adapt: Adapt, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "broken")
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, path)

    done = adapt("verify", str(folder), "--engine", "vllm", "--engine", "peft")

    assert done.exit_code == 11
    assert "invalid: [E_NONFINITE]" in done.stdout
    assert "yes" not in done.stdout


def test_an_adapter_of_another_base_is_no(adapt: Adapt, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "wider", width=16)

    done = adapt("verify", str(folder), "--engine", "vllm", "--base", "base-7b")

    assert (done.exit_code, "invalid: [E_" in done.stdout) == (11, True)


def test_what_cannot_be_read_is_refused_with_its_findings(adapt: Adapt, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert "E_CONFIG" in adapt.fails(16, "verify", str(tmp_path / "empty"), "--engine", "vllm")


@pytest.mark.parametrize("command", [("verify", "--engine", "vllm"), ("verify",)])
def test_check_answers_like_verify_in_the_order_of_the_question(command: tuple[str, ...], adapt: Adapt) -> None:
    make_adapter(adapt.folder / "more")
    asked = ("legal-qa", "./more", "summarize")

    said = json.loads(adapt(*command, *asked, "--base", "base-7b", "--json").stdout)

    assert [one["adapter"][:6] for one in said] == ["legal-", "./more", "summar"]


@pytest.mark.parametrize("command", [("verify", "--engine", "vllm"), ("verify",)])
def test_a_folder_of_the_same_name_is_not_taken_for_an_adapter(command: tuple[str, ...], adapt: Adapt) -> None:
    (adapt.folder / "legal-qa").mkdir()

    [said] = json.loads(adapt.ok(*command, "legal-qa", "--json"))

    assert said["adapter"].startswith("legal-qa")


def test_check_asks_for_adapters_and_known_engines(adapt: Adapt) -> None:
    assert "give adapters or folders" in adapt.fails(2, "verify")
    assert "unknown engine `tensorrt`, expected one of llama.cpp" in adapt.fails(
        2, "verify", "legal-qa", "--engine", "tensorrt"
    )

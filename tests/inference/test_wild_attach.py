"""Attach on adapters that strangers published: as plain PEFT does it, or refused with a reason.

Their bases are built with the widths and layers that the tensors ask for, a small vocabulary, and one random weight for
all layers of a shape, which makes a model of a billion parameters in a second.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.initialization import no_init_weights

from adapterhub.core.errors import AdapterHubError
from adapterhub.inference.loader import attach, base_digest
from adapterhub.library.library import Library
from tests.support.hostile_kinds import PICKLE
from tests.support.shared_data import shared
from tests.support.wild import is_kept, rows, wild

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of much that is meant here

VOCABULARY = 64
IDS = torch.arange(2, 14).reshape(2, 6)


def with_shared_weights(kind: type[nn.Module], config: Any) -> nn.Module:
    """A model whose parameters of one shape are one tensor."""
    with no_init_weights():
        model = kind(config)
    generator = torch.Generator().manual_seed(0)
    made: dict[tuple[bool, torch.Size], nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_gain = "norm" in type(module).__name__.lower() and name == "weight"
            kind_of = (is_gain, parameter.shape)
            if kind_of not in made:
                numbers = float(is_gain) + 0.05 * torch.randn(parameter.shape, generator=generator)
                made[kind_of] = nn.Parameter(numbers)
            setattr(module, name, made[kind_of])
    return model.eval()


def gpt2(kind: type[nn.Module] = GPT2LMHeadModel, labels: int = 2, width: int = 768, layers: int = 12) -> nn.Module:
    heads = 12 if width > 2 else 2
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=width, n_layer=layers, n_head=heads, num_labels=labels,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return with_shared_weights(kind, config)


def bert() -> nn.Module:
    return with_shared_weights(BertForSequenceClassification, BertConfig(vocab_size=VOCABULARY, intermediate_size=64))


def distilbert(labels: int = 2) -> nn.Module:
    config = DistilBertConfig(vocab_size=VOCABULARY, hidden_dim=64, num_labels=labels)
    return with_shared_weights(DistilBertForSequenceClassification, config)


def bloom() -> nn.Module:
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=1024, n_layer=24, n_head=16)
    return with_shared_weights(BloomForCausalLM, config)


def gpt_neo() -> nn.Module:
    config = GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=768, num_layers=12, num_heads=12, intermediate_size=64,
        attention_types=[[["global", "local"], 6]], max_position_embeddings=32,
    )  # fmt: skip
    return with_shared_weights(GPTNeoForCausalLM, config)


def gpt_neox() -> nn.Module:
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, intermediate_size=64
    )
    return with_shared_weights(GPTNeoXForCausalLM, config)


def opt() -> nn.Module:
    config = OPTConfig(vocab_size=VOCABULARY, ffn_dim=64, max_position_embeddings=32)
    return with_shared_weights(OPTForCausalLM, config)


def gemma3() -> nn.Module:
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=640, num_hidden_layers=18, num_attention_heads=4, num_key_value_heads=1,
        head_dim=256, intermediate_size=64, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    return with_shared_weights(Gemma3ForCausalLM, config)


def t5() -> nn.Module:
    config = T5Config(vocab_size=VOCABULARY, d_model=512, num_layers=6, num_heads=8, d_ff=64, decoder_start_token_id=0)
    return with_shared_weights(T5ForConditionalGeneration, config)


def vit() -> nn.Module:
    return with_shared_weights(ViTForImageClassification, ViTConfig(intermediate_size=64, num_labels=2))


VIT = "Yunyi307__vit-lora-coco-classification/a6cfe40/PythonProjec_2/outputs_pipeline/best_model"
"""Its modules are named as transformers 5 no longer has them."""
IRONHACK = "ironhack-labs__lab-lora-tuning-peft"
GEMMA = "ao-wei__gemma3-270m-svg-lora-partb"
REGRESSION = "huggingface__peft/28fe1f1/tests/regression"
ACCEPTED: dict[str, Callable[[], nn.Module]] = {
    "BK7195__deltacompression-poc/4089d44/adapter": gpt_neox,
    "Hareshjethani__BERT-GPT2-Multitask-Finetuning/03c2fb1": bert,
    "TheSotti__Lightweight-Fine-Tuning-to-FM/fd0cc55/gpt-lora": lambda: gpt2(GPT2ForSequenceClassification, labels=3),
    f"{GEMMA}/0740c0a/adapter": gemma3,
    f"{GEMMA}/0740c0a/adapter_seed123": gemma3,
    f"{GEMMA}/669c4e5/adapter": gemma3,
    "huggingface__peft/3db9c68/tests/regression/lora_opt-125m_bnb_8bit/0.5.0": opt,
    f"{IRONHACK}/34ccfa4/peft_lab_outputs/checkpoint-14": bloom,
    f"{IRONHACK}/8100927/peft_lab_outputs/lora_model": bloom,
    f"{IRONHACK}/83e777b/lora_exp_r4_a16_d0.05_e1/checkpoint-7": gpt2,
    f"{IRONHACK}/8548c00/peft_lab_outputs/lora_model": gpt_neo,
    f"{IRONHACK}/85a98b0/peft_lab_outputs/checkpoint-14": lambda: gpt2(width=2, layers=2),
    f"{IRONHACK}/bbafc8d/peft_lab_outputs/lora_model": gpt2,
    "nasif1731__T5-LoRA-Summarizer/86d099a/t5-summarizer-lora": t5,
    "rkarnwal__udacity/cedfa77/peft_model": distilbert,
    "stathopoan__Apply-Lightweight-Fine-Tuning-to-a-Foundation-LLM-Model/750a1c2/lora_model": lambda: gpt2(
        GPT2ForSequenceClassification, labels=6
    ),
}


@dataclass(frozen=True, slots=True)
class Refused:
    base: Callable[[], nn.Module]
    said: str


POINTER = Refused(bert, "Git LFS pointer")
HAND_WRITTEN = Refused(bert, "hand-written kind")
REFUSED: dict[str, Refused] = {
    "Kuntya__Udacity/c4b1f41/trainer_peft": Refused(lambda: distilbert(labels=6), "classifier"),
    "huggingface__peft/3ccc225/results_glue/adapter_ckpt": Refused(bert, "UNILORA"),
    "AnHu2410__MD_crosslingual/6c09ade/adapter": Refused(bert, "`adapters` library"),
    "MathieuNlp__Sam_LoRA/a1a6e0f": HAND_WRITTEN,
    "MathieuNlp__Sam_LoRA/ad4cb56": HAND_WRITTEN,
    "iopenattheclose__PotterBot/8e808ee": Refused(bert, "Apple's MLX"),
    "timohavdk__sd-lora/75f8a21": Refused(bert, "names of diffusers"),
    "Hmbown__shannon-control-unit/0a12a4e/1b-scu": POINTER,
    "Hmbown__shannon-control-unit/0a12a4e/3b-fixed": POINTER,
    "Hmbown__shannon-control-unit/0a12a4e/3b-scu": POINTER,
    "alenisaw__it-ner-peft-compression/47d3dd5/models/bert_lora": POINTER,
    "alenisaw__it-ner-peft-compression/e5a4f82/models/bert_lora": POINTER,
}


def converted(folder: Path, into: Path, **settings: object) -> Path:
    """A copy of an adapter folder with its pickle made a safetensors file, where it has one, and settings changed."""
    shutil.copytree(folder, into)
    for path in into.iterdir():
        path.chmod(0o644)
    pickle = into / "adapter_model.bin"
    if pickle.is_file():
        tensors = torch.load(pickle, weights_only=True, map_location="cpu")
        save_file({n: t.contiguous() for n, t in tensors.items()}, into / "adapter_model.safetensors", {"format": "pt"})
        pickle.unlink()
    config = into / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return into


def logits(model: nn.Module) -> Tensor:
    inputs = {"decoder_input_ids": IDS.flip(1)} if getattr(model.config, "is_encoder_decoder", False) else {}
    with torch.no_grad():
        return model(input_ids=IDS, **inputs).logits


def gives_the_logits_of_plain_peft(name: str, folder: Path, library: Library) -> str:
    """Nothing if it does, else by how much it does not."""
    adapter = converted(wild(name), folder / "adapter")
    model = ACCEPTED[name]()
    before = base_digest(model)

    with attach(model, adapter, library=library) as attached:
        ours = logits(attached.model)
        assert before == attached.base_digest()

    # PEFT refuses to read one config for its misspelt task, which says nothing about the update.
    readable = converted(adapter, folder / "readable", **({"task_type": None} if "rkarnwal" in name else {}))
    theirs = logits(PeftModel.from_pretrained(ACCEPTED[name](), readable))
    assert before == base_digest(model)
    difference, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
    return "" if difference <= 1e-5 * largest else f"{name}: {difference} of {largest}"


def is_refused_with_a_reason(name: str, library: Library) -> str:
    """Nothing if it is and the model stays as it was, else what came instead."""
    model = REFUSED[name].base()
    before, modules = base_digest(model), [id(module) for module in model.modules()]

    with pytest.raises(AdapterHubError) as refusal:
        attach(model, wild(name), library=library)

    assert (before, modules) == (base_digest(model), [id(module) for module in model.modules()])
    return "" if REFUSED[name].said in str(refusal.value) else f"{name}: {refusal.value}"


@pytest.mark.parametrize("name", [name for name in ACCEPTED if is_kept(name)])
def test_wild_adapter_gives_the_logits_of_plain_peft(name: str, tmp_path: Path, library: Library) -> None:
    assert gives_the_logits_of_plain_peft(name, tmp_path, library) == ""


@pytest.mark.parametrize("name", [name for name in REFUSED if is_kept(name)])
def test_wild_adapter_that_does_not_fit_is_refused_with_a_reason(name: str, library: Library) -> None:
    assert is_refused_with_a_reason(name, library) == ""


def test_the_other_wild_adapters_give_the_logits_of_plain_peft(tmp_path: Path, library: Library) -> None:
    others = [name for name in ACCEPTED if not is_kept(name)]

    assert [said for n in others if (said := gives_the_logits_of_plain_peft(n, tmp_path / n, library))] == []


@pytest.mark.slow
def test_the_other_wild_adapters_that_do_not_fit_are_refused_with_a_reason(library: Library) -> None:
    others = [name for name in REFUSED if not is_kept(name)]

    assert [said for name in others if (said := is_refused_with_a_reason(name, library))] == []


def test_pickles_are_refused_unopened(tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted(wild(f"{REGRESSION}/lora_mlp/0.6.1"), tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(PICKLE)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(AdapterHubError, match="pickle"):
        attach(Toy(conv=False), folder, library=library)

    assert not (tmp_path / "CANARY_RAN").exists()


def test_every_wild_folder_with_weights_is_attached_or_refused_here() -> None:
    folders = {row["folder"] for row in rows(shared("wild")) if row["weights_file"]}

    assert folders == {*ACCEPTED, *REFUSED, *ORACLES.values(), VIT}


def test_wild_vit_adapter_of_transformers_4_gives_the_logits_of_its_renamed_copy_in_plain_peft(
    tmp_path: Path, library: Library
) -> None:
    folder = converted(wild(VIT), tmp_path / "adapter")
    now = converted(wild(VIT), tmp_path / "renamed", target_modules=["q_proj", "v_proj"])
    names = {"encoder.layer.": "layers.", "attention.attention.query": "attention.q_proj"}
    names["attention.attention.value"] = "attention.v_proj"
    tensors = load_file(now / "adapter_model.safetensors")
    for old, new in names.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(tensors, now / "adapter_model.safetensors", {"format": "pt"})
    pixels = torch.linspace(-1, 1, 3 * 224 * 224).reshape(1, 3, 224, 224)
    model = vit()
    before = base_digest(model)

    with torch.no_grad(), attach(model, folder, library=library) as attached:
        ours = attached.model(pixel_values=pixels).logits
        said = attached.warnings
    with torch.no_grad():
        theirs, bare = PeftModel.from_pretrained(vit(), now).eval()(pixel_values=pixels).logits, model(pixels).logits

    assert torch.allclose(theirs, ours, rtol=1e-5, atol=0)
    assert not torch.allclose(bare, ours, rtol=1e-2, atol=0)
    assert any("`vit.encoder.layer.0.attention.attention.query` is `vit.layers.0.attention.q_proj`" in s for s in said)
    assert before == base_digest(model)


# ---------------------------------------------------------------- outputs of 2023
class Toy(nn.Module):
    """The bases of PEFT's regression adapters of 2023, and what was asked of them."""

    def __init__(self, *, conv: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.is_conv = conv
        if conv:
            self.conv2d = nn.Conv2d(5, 10, 3)
            self.lin0 = nn.Linear(10, 2)
        else:
            self.lin0 = nn.Linear(10, 20)
            self.lin1 = nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_conv:
            out = self.lin0(torch.relu(self.conv2d(x.float().reshape(2, 5, 3, 3))).flatten(1))
        else:
            out = self.lin1(torch.relu(self.lin0(x.float())))
        return torch.log_softmax(out, dim=-1)


ORACLES = {
    name: f"{REGRESSION}/{name}/0.6.1"
    for name in ("lora_mlp", "lora_conv2d", "lora_mlp_modules_to_save", "ia3_mlp", "adalora_mlp")
}


@pytest.mark.parametrize("name", ORACLES)
def test_regression_adapter_gives_the_output_stored_in_2023(name: str, library: Library) -> None:
    folder = wild(ORACLES[name])
    expected = load_file(folder / "output.safetensors")["output"]

    attached = attach(Toy(conv="conv" in name).eval(), folder, library=library)

    with torch.no_grad():
        output = attached.model(torch.arange(90).reshape(9, 10))
    # The outputs of AdaLoRA are as large as 200, where float32 has steps of 1.5e-5.
    assert torch.allclose(expected, output, rtol=2e-7, atol=1e-5)

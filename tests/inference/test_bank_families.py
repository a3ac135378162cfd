"""A bank against plain PEFT, over families of models, methods and precisions: forward, rows and generate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
)
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from adapterhub.core.errors import UnsupportedAdapter
from adapterhub.inference.bank import AdapterBank
from adapterhub.library.library import Library
from tests.support.peft_bases import mixtral as mixtral_float32
from tests.support.tiny_models import IDS, VOCABULARY, bert, convnet, gpt2, llama, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SOUND = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(0))
WAVE = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))


def made(kind: type[nn.Module], config: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return kind(config).eval()

    return make


mistral = made(MistralForCausalLM, MistralConfig(**SMALL))
qwen2 = made(Qwen2ForCausalLM, Qwen2Config(**SMALL))
starcoder2 = made(Starcoder2ForCausalLM, Starcoder2Config(**SMALL))
gemma = made(GemmaForCausalLM, GemmaConfig(**SMALL, head_dim=8))
gemma3 = made(Gemma3ForCausalLM, Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=8))
t5 = made(
    T5ForConditionalGeneration,
    T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=None,
    ),
)  # fmt: skip
vit = made(
    ViTForImageClassification,
    ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8,
        num_labels=3,
    ),
)  # fmt: skip
vit_mae = made(
    ViTMAEForPreTraining,
    ViTMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8,
        decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=4,
        decoder_intermediate_size=48, mask_ratio=0.5,
    ),
)  # fmt: skip
whisper = made(
    WhisperForConditionalGeneration,
    WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
        max_source_positions=20, max_target_positions=32, decoder_start_token_id=1, bos_token_id=1, pad_token_id=0,
        eos_token_id=None, suppress_tokens=None, begin_suppress_tokens=None,
    ),
)  # fmt: skip
wav2vec2 = made(
    Wav2Vec2ForCTC,
    Wav2Vec2Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4, num_feat_extract_layers=2,
    ),
)  # fmt: skip

TEXT: dict[str, Tensor] = {"input_ids": IDS}
BOTH: dict[str, Tensor] = {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
PICTURE: dict[str, Tensor] = {"pixel_values": PIXELS}
MASKED: dict[str, Tensor] = PICTURE | {"noise": torch.linspace(0, 1, 8).reshape(2, 4)}
SPEECH: dict[str, Tensor] = {"input_features": SOUND, "decoder_input_ids": IDS[:, :5]}
PLAIN_CALL: dict[str, Tensor] = {"ids": IDS}


def mixtral() -> nn.Module:
    torch.manual_seed(0)
    return mixtral_float32().eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A base, what it is called with, an adapter for it, and the engine that runs it."""

    base: Callable[[], nn.Module]
    inputs: dict[str, Tensor]
    config: Callable[[], PeftConfig]
    rows: bool = True
    engine: str = "native"


def case(
    base: Callable[[], nn.Module], inputs: dict[str, Tensor], *targets: str, rows: bool = True, **more: Any
) -> Case:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(targets)} | more
    return Case(base=base, inputs=inputs, config=lambda: LoraConfig(**settings), rows=rows)


def on_peft(base: Callable[[], nn.Module], inputs: dict[str, Tensor], config: Callable[[], PeftConfig]) -> Case:
    return Case(base=base, inputs=inputs, config=config, rows=False, engine="peft")


ALL = {"target_modules": "all-linear"}
SOME = ["q_proj", "down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES: dict[str, Case] = {
    "llama": case(llama, TEXT, **ALL),
    "llama rslora": case(llama, TEXT, use_rslora=True, **ALL),
    "llama patterns": case(llama, TEXT, *SOME, rank_pattern={"q_proj": 8}, alpha_pattern={"down": 3, "down_proj": 5}),
    "llama one layer": case(llama, TEXT, "q_proj", layers_to_transform=[1]),
    "llama lora_bias": case(llama, TEXT, "q_proj", "up_proj", lora_bias=True),
    "llama dora": case(llama, TEXT, *SOME, use_dora=True),
    "llama embedding": case(llama, TEXT, "embed_tokens", "v_proj"),
    "llama head": case(llama, TEXT, "lm_head", "v_proj"),
    "llama saved": case(llama, TEXT, "q_proj", modules_to_save=["lm_head", "norm"]),
    "gpt2": case(gpt2, TEXT, "c_attn", "c_proj", "c_fc", fan_in_fan_out=True),
    "gpt2 tied embedding": case(gpt2, TEXT, "wte", "c_fc", fan_in_fan_out=True),
    "gpt2 dora": case(gpt2, TEXT, "c_attn", use_dora=True, fan_in_fan_out=True),
    "mistral": case(mistral, TEXT, **ALL),
    "mixtral attention": case(mixtral, TEXT, "q_proj", "o_proj"),
    "qwen2": case(qwen2, TEXT, **ALL),
    "starcoder2": case(starcoder2, TEXT, **ALL),
    "gemma": case(gemma, TEXT, "q_proj", "down_proj", "embed_tokens"),
    "gemma3": case(gemma3, TEXT, "q_proj", "down_proj", "embed_tokens"),
    "bert": case(bert, TEXT, "query", "value", "dense", task_type="SEQ_CLS"),
    "t5": case(t5, BOTH, "q", "v", "wi", "wo"),
    "vit": case(vit, PICTURE, "projection", "q_proj", "v_proj", modules_to_save=["classifier"]),
    "vit_mae": case(vit_mae, MASKED, "projection", "q_proj", "v_proj", "fc1", "decoder_embed"),
    "whisper": case(whisper, SPEECH, "q_proj", "v_proj", "fc1"),
    "wav2vec2": case(wav2vec2, {"input_values": WAVE}, "q_proj", "v_proj", "projection"),
    "convolutions": case(convnet, PLAIN_CALL, "wide", "narrow", modules_to_save=["head"], rows=False),
    "experts": on_peft(mixtral, TEXT, lambda: LoraConfig(r=2, target_modules=["q_proj"], target_parameters=EXPERTS)),
    "convolution dora": on_peft(convnet, PLAIN_CALL, lambda: LoraConfig(r=2, target_modules=["wide"], use_dora=True)),
    "embedding dora": on_peft(llama, TEXT, lambda: LoraConfig(r=2, target_modules=["embed_tokens"], use_dora=True)),
    "adalora": on_peft(llama, TEXT, lambda: AdaLoraConfig(init_r=6, target_r=4, total_step=10, target_modules=SOME)),
    "ia3": on_peft(llama, TEXT, lambda: IA3Config(target_modules=SOME, feedforward_modules=["down_proj"])),
    "ia3 gpt2": on_peft(gpt2, TEXT, lambda: IA3Config(target_modules=["c_attn", "c_fc"], feedforward_modules=["c_fc"])),
    "loha": on_peft(llama, TEXT, lambda: LoHaConfig(r=4, target_modules=SOME)),
    "lokr": on_peft(bert, TEXT, lambda: LoKrConfig(r=2, target_modules=["query"], decompose_both=True)),
    "vera": on_peft(llama, TEXT, lambda: VeraConfig(r=4, target_modules=SOME)),
}  # fmt: skip
WRITING = {"llama", "llama dora", "llama embedding", "gpt2", "gemma3", "starcoder2", "t5", "whisper", "ia3", "experts"}


def answers(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        out = model(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()})
    return (out if isinstance(out, Tensor) else out.logits).float()


def plain(case: Case, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    return PeftModel.from_pretrained(case.base().to(dtype), folder).base_model.model.eval()


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    one = CASES[request.param]
    root = tmp_path_factory.mktemp("adapters")
    return request.param, [save_adapter(root / f"{i}", one.base, one.config(), seed=i) for i in (1, 2)]


IN_BFLOAT16 = ("llama", "llama dora", "llama saved", "gpt2", "bert", "t5", "vit", "experts", "ia3", "lokr")
"""One of each kind of layer; the others differ in their names and shapes."""


@pytest.mark.parametrize(
    ("pair", "dtype"),
    [*((name, torch.float32) for name in CASES), *((name, torch.bfloat16) for name in IN_BFLOAT16)],
    indirect=["pair"],
)
def test_logits_equal_plain_peft(pair: tuple[str, list[Path]], dtype: torch.dtype, library: Library) -> None:
    name, folders = pair
    one = CASES[name]
    model = one.base().to(dtype)
    untouched = answers(model, one.inputs)
    expected = [answers(plain(one, folder, dtype), one.inputs) for folder in folders]

    with AdapterBank(model, library=library) as bank:
        names = [bank.load(folder) for folder in folders]
        engines = [bank.explain(n).splitlines()[1] for n in names]
        actual = []
        for loaded in names:
            with bank.use(loaded):
                actual.append(answers(model, one.inputs))

    # the same operations in the same dtypes; a fused sum differs in its last bits, which bfloat16 carries further
    tolerance = (
        {"rtol": 1e-5, "atol": 2e-5}
        if dtype == torch.float32
        else {"rtol": 0.02, "atol": 0.02 * float(untouched.abs().max())}
    )
    assert engines == [f"  engine: {one.engine}"] * 2
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)
    assert not torch.allclose(expected[0], expected[1], rtol=1e-3)  # the two can be told apart
    assert torch.equal(answers(model, one.inputs), untouched)


def refuse_rows(one: Case, folder: Path, library: Library) -> None:
    with AdapterBank(one.base(), library=library) as bank:
        name = bank.load(folder)
        with pytest.raises(UnsupportedAdapter, match="PEFT's layers are on the whole model"):
            bank.rows([name, None])


@pytest.mark.parametrize(
    "pair", [name for name, one in CASES.items() if one.rows or one.engine == "peft"], indirect=True
)
def test_each_row_gets_its_own_adapter(pair: tuple[str, list[Path]], library: Library) -> None:
    name, folders = pair
    one = CASES[name]
    if one.engine == "peft":
        refuse_rows(one, folders[0], library)
        return
    expected = [answers(plain(one, folder), one.inputs) for folder in folders]
    model = one.base()

    with AdapterBank(model, library=library) as bank:
        first, second = (bank.load(folder) for folder in folders)
        with bank.rows([first, second]):
            mixed = answers(model, one.inputs)
        with bank.rows([None, first]):
            half = answers(model, one.inputs)

    for mine, theirs in [(mixed[0], expected[0][0]), (mixed[1], expected[1][1]), (half[1], expected[0][1])]:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=5e-5)
    torch.testing.assert_close(half[0], answers(model, one.inputs)[0], rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(
    ("name", "beams"), [*((name, 1) for name in sorted(WRITING)), *((name, 3) for name in ("llama", "t5", "ia3"))]
)
def test_generated_text_equals_plain_peft(name: str, beams: int, tmp_path: Path, library: Library) -> None:
    one = CASES[name]
    folders = [save_adapter(tmp_path / f"{i}", one.base, one.config(), seed=i) for i in (1, 2)]
    inputs = {key: value for key, value in one.inputs.items() if key != "decoder_input_ids"}
    options = inputs | {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    expected = [plain(one, folder).generate(**options) for folder in folders]
    model = one.base()

    with AdapterBank(model, library=library) as bank:
        first, second = (bank.load(folder) for folder in folders)
        with bank.use(first):
            alone = model.generate(**options)
        if one.rows:
            with bank.rows([second, first]):
                mixed = model.generate(**options)

    assert torch.equal(alone, expected[0])
    if not one.rows:
        return
    assert torch.equal(mixed[0], expected[1][0])
    assert torch.equal(mixed[1], expected[0][1])

"""Tiny models of transformers, in place of those that PEFT's test suite downloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import transformers as t
from torch import nn

from tests.peft_variants.configuration import Base

_IDS: Final = torch.arange(1, 25).reshape(2, 12)
_TEXT: Final = {"input_ids": _IDS}
_WIDTH: Final = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_DECODER: Final = {**_WIDTH, "vocab_size": 64, "num_key_value_heads": 2, "eos_token_id": None, "pad_token_id": 0}


def _made(kind: Callable[[Any], nn.Module], config: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        model = kind(config).eval()
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")
        return model

    return make


def _encoder(kind: Callable[[Any], nn.Module], labels: int = 3) -> Callable[[], nn.Module]:
    return _made(kind, t.BertConfig(**_WIDTH, vocab_size=64, max_position_embeddings=32, num_labels=labels))


llama: Final = Base(name="Llama", make=_made(t.LlamaForCausalLM, t.LlamaConfig(**_DECODER)), inputs=_TEXT)
llama_with_biases: Final = Base(
    name="Llama with biases",
    make=_made(t.LlamaForCausalLM, t.LlamaConfig(**_DECODER, attention_bias=True, mlp_bias=True)),
    inputs=_TEXT,
)
tied_llama: Final = Base(
    name="Llama with a tied head",
    make=_made(t.LlamaForCausalLM, t.LlamaConfig(**_DECODER, tie_word_embeddings=True)),
    inputs=_TEXT,
)
gpt2: Final = Base(
    name="GPT-2",
    make=_made(t.GPT2LMHeadModel, t.GPT2Config(vocab_size=64, n_positions=32, n_embd=64, n_layer=2, n_head=4)),
    inputs=_TEXT,
)
t5: Final = Base(
    name="T5",
    make=_made(
        t.T5ForConditionalGeneration,
        t.T5Config(
            vocab_size=64, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0,
            pad_token_id=0, eos_token_id=None,
        ),
    ),
    inputs={"input_ids": _IDS, "decoder_input_ids": _IDS[:, :5]},
)  # fmt: skip
bert: Final = Base(name="BERT", make=_encoder(t.BertModel), inputs=_TEXT)
bert_classifier: Final = Base(name="BERT classifier", make=_encoder(t.BertForSequenceClassification), inputs=_TEXT)
bert_tagger: Final = Base(name="BERT tagger", make=_encoder(t.BertForTokenClassification), inputs=_TEXT)
bert_answerer: Final = Base(name="BERT answerer", make=_encoder(t.BertForQuestionAnswering, 2), inputs=_TEXT)
llama_classifier: Final = Base(
    name="Llama classifier",
    make=_made(t.LlamaForSequenceClassification, t.LlamaConfig(**_DECODER, num_labels=3)),
    inputs=_TEXT,
)
llama4: Final = Base(
    name="Llama 4",
    make=_made(
        t.Llama4ForCausalLM,
        t.Llama4TextConfig(**_DECODER, intermediate_size_mlp=96, head_dim=16, num_local_experts=3),
    ),
    inputs=_TEXT,
)
gpt_oss: Final = Base(
    name="GPT-OSS",
    make=_made(
        t.GptOssForCausalLM, t.GptOssConfig(**_DECODER, head_dim=16, num_local_experts=3, num_experts_per_tok=2)
    ),
    inputs=_TEXT,
)

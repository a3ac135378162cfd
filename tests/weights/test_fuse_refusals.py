"""What `adapt fuse` refuses, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from adapterhub.core.errors import (
    MergeRefused,
    RefusedAdapter,
)
from adapterhub.library.library import Library
from adapterhub.weights.fuse import Fused
from tests.support.adapter_folders import write_folder
from tests.support.fuse_models import (
    EXPERTS,
    QV,
    Make,
    dimensions,
    fuse,
    fused_in,
    gpt_oss_square,
    masked_bert,
    mixtral,
    save_adapter,
    save_base,
    t5,
    tensors_in,
    tied,
    untied,
)
from tests.support.tiny_models import bert, gpt2

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def fused(tmp_path: Path) -> Callable[..., Fused]:
    return partial(fused_in, tmp_path)


# ---------------------------------------------------------------- refused by name
def copied_head(folder: Path) -> None:
    """A file that holds the head beside the embedding it is tied to."""
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def quantised(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith("q_proj.weight")]:
        tensors[name.replace("weight", "qweight")] = tensors.pop(name).to(torch.int32)
    for name in [n for n in tensors if n.endswith("v_proj.weight")]:
        tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without_head(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["LlamaModel"]}))


def nothing(folder: Path) -> None:
    """The base as it is."""


def changed_config(**values: object) -> dict[str, object]:
    return {"changed": values}


REFUSED: dict[str, tuple[Make, dict[str, Any], Callable[[Path], None], list[str]]] = {
    "tied head": (tied, {"target_modules": ["lm_head", "q_proj"]}, nothing, ["`lm_head` is tied to `model.embed_tokens.weight`"]),
    "tied pair with two updates": (
        tied, {"target_modules": ["lm_head", "embed_tokens"]}, nothing, ["but the adapter changes each in another way"]
    ),
    "tied pair with two updates, head in the file": (
        tied, {"target_modules": ["lm_head", "embed_tokens"]}, copied_head, ["but the adapter changes each in another way"]
    ),
    "rows of a tied embedding, and a pair for its head": (
        tied, {"target_modules": ["lm_head"], "trainable_token_indices": [1, 2]}, nothing, ["but the adapter changes each in another way"]
    ),
    "DoRA on a tied pair": (
        tied, {"target_modules": ["lm_head", "embed_tokens"], "use_dora": True}, nothing, ["but the adapter changes each in another way"]
    ),
    "tied pair, in a base without a head": (
        tied, {"target_modules": ["lm_head", "embed_tokens"]}, without_head, ["`lm_head` is tied to `model.embed_tokens.weight`"]
    ),
    "tied pair of an encoder and a decoder": (
        t5, {"target_modules": ["lm_head", "shared"]}, nothing, ["`lm_head` is tied to `shared.weight`", "`shared.weight` is tied to a second place"]
    ),
    "tied head of GPT-2": (gpt2, {"target_modules": ["lm_head", "c_attn"]}, nothing, ["`lm_head` is tied to `transformer.wte.weight`"]),
    "tied embedding": (tied, {"target_modules": ["embed_tokens", "q_proj"]}, nothing, ["`model.embed_tokens.weight` is tied to a second place"]),
    "tied embedding, head in the file": (
        tied, {"target_modules": ["embed_tokens"]}, copied_head, ["`model.embed_tokens.weight` is tied to `lm_head.weight`"]
    ),
    "tied head in the file": (
        tied, {"target_modules": ["lm_head"]}, copied_head, ["`lm_head.weight` is tied to `model.embed_tokens.weight`"]
    ),
    "tokens of a tied embedding, head in the file": (
        tied, {"target_modules": QV, "trainable_token_indices": [1, 2]}, copied_head, ["`model.embed_tokens.weight` is tied to `lm_head.weight`"]
    ),
    "embedding of a masked model": (
        masked_bert, {"target_modules": ["word_embeddings", "query"]}, nothing, ["`bert.embeddings.word_embeddings.weight` is tied to a second place"]
    ),
    "embedding of encoder and decoder": (t5, {"target_modules": ["shared", "q"]}, nothing, ["`shared.weight` is tied to a second place"]),
    "DoRA on one of a tied pair": (
        tied, {"target_modules": ["embed_tokens"], "use_dora": True}, nothing, ["`model.embed_tokens.weight` is tied to a second place"]
    ),
    "one of a tied pair saved": (
        tied, {"target_modules": QV, "modules_to_save": ["embed_tokens"]}, nothing, ["`model.embed_tokens.weight` is tied to a second place"]
    ),
    "tied head saved": (tied, {"target_modules": QV, "modules_to_save": ["lm_head"]}, nothing, ["`model.embed_tokens.weight` is tied to a head"]),
    "lora_bias without a bias": (
        untied, {"target_modules": QV, "lora_bias": True}, nothing, [f"`model.layers.{i}.self_attn.{m}` has a bias in its factors" for i in (0, 1) for m in QV]
    ),
    "grouped convolution": (dimensions, {"target_modules": ["grouped", "line"], "r": 4}, nothing, ["`grouped` is a convolution in 2 groups"]),
    "experts that are one tensor each": (
        mixtral, {"target_modules": ["q_proj"], "target_parameters": EXPERTS}, nothing,
        ["`model.layers.0.mlp.experts.gate_up_proj` is a parameter without a tensor", "`model.layers.0.mlp.experts.down_proj` is a parameter without a tensor"],
    ),
    "square experts alone": (
        gpt_oss_square, {"target_modules": [], "target_parameters": EXPERTS[1:]}, nothing,
        ["`model.layers.0.mlp.experts` (target_parameters) fits the base's parameters in more than one way"],
    ),
    "quantised base": (
        untied, {"target_modules": QV}, quantised,
        ["`model.layers.0.self_attn.q_proj` is stored as `model.layers.0.self_attn.q_proj.qweight`", "`model.layers.1.self_attn.v_proj` is stored as I8"],
    ),
    "PiSSA": (untied, {"target_modules": QV} | changed_config(init_lora_weights="pissa"), nothing, ["init_lora_weights pissa"]),
    "unknown initialisation": (untied, {"target_modules": QV} | changed_config(init_lora_weights="novel"), nothing, ["unknown initialisation (novel)"]),
    "layer replication": (untied, {"target_modules": QV} | changed_config(layer_replication=[[0, 1], [0, 2]]), nothing, ["layer_replication"]),
    "aLoRA": (untied, {"target_modules": QV} | changed_config(alora_invocation_tokens=[1, 2]), nothing, ["aLoRA"]),
    "tied factors": (untied, {"target_modules": QV} | changed_config(ensure_weight_tying=True), nothing, ["ensure_weight_tying"]),
    "token numbers that do not fit": (
        untied, {"target_modules": QV, "trainable_token_indices": [1, 2]} | changed_config(trainable_token_indices=[1, 2, 3]), nothing,
        ["`model.embed_tokens` has trained rows that do not match trainable_token_indices"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_place_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, lora, prepare_base, expected = REFUSED[name]
    base = save_base(tmp_path / "base", make)
    prepare_base(base)
    adapter = save_adapter(tmp_path / "adapter", make, **lora)

    with pytest.raises(MergeRefused) as caught:
        fuse(adapter, tmp_path / "out", library=Library(tmp_path / "home"), base=str(base))

    for text in expected:
        assert any(text in reason for reason in caught.value.reasons), caught.value.reasons
    assert not (tmp_path / "out").exists()


def test_torchs_attention_is_refused_by_name(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    tensors = {f"attention.{n}": t.detach() for n, t in nn.MultiheadAttention(8, 2).state_dict().items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    adapter = write_folder(tmp_path / "adapter", {"attention": (24, 8)})

    with pytest.raises(MergeRefused, match="`attention` is part of torch's MultiheadAttention"):
        fuse(adapter, tmp_path / "out", library=Library(tmp_path / "home"), base=str(base))


def test_methods_other_than_lora_are_refused_by_name(tmp_path: Path) -> None:
    from peft import IA3Config

    base = save_base(tmp_path / "base", untied)
    model = get_peft_model(untied(), IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    model.save_pretrained(tmp_path / "adapter")

    with pytest.raises(MergeRefused, match="is of type IA3, expected LORA"):
        fuse(tmp_path / "adapter", tmp_path / "out", library=Library(tmp_path / "home"), base=str(base))


@pytest.mark.parametrize(
    ("make", "lora", "text"),
    [
        (untied, {"target_modules": QV, "use_dora": True}, "has DoRA magnitudes"),
        (bert, {"target_modules": ["query"], "bias": "all"}, "has biases that replace"),
        (untied, {"target_modules": QV, "modules_to_save": ["lm_head"]}, "has modules that replace"),
        (untied, {"target_modules": QV, "trainable_token_indices": [1]}, "has rows that replace"),
    ],
)
def test_what_does_not_add_up_is_refused_in_a_sum_and_with_a_weight(make, lora, text, tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    base = str(save_base(tmp_path / "base", make))
    adapter = save_adapter(tmp_path / "adapter", make, **lora)

    for asked in ({adapter: 0.5}, {adapter: 1.0, str(adapter): 1.0}):
        with pytest.raises(MergeRefused) as caught:
            fuse(asked, tmp_path / "out", library=library, base=base)
        assert any(text in reason for reason in caught.value.reasons)


def test_an_incomplete_adapter_is_refused_by_name(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    base = str(save_base(tmp_path / "base", bert))
    adapter = save_adapter(
        tmp_path / "adapter", bert, target_modules=["query"], modules_to_save=["classifier"], task_type="SEQ_CLS"
    )
    tensors = tensors_in(adapter)
    kept = {n: t for n, t in tensors.items() if "layer.1" not in n and "classifier.bias" not in n}
    save_file(kept, adapter / "adapter_model.safetensors", metadata={"format": "pt"})

    with pytest.raises(MergeRefused) as caught:
        fuse(adapter, tmp_path / "out", library=library, base=base)

    reasons = " ".join(caught.value.reasons)
    assert "`bert.encoder.layer.1.attention.self.query` is a target in the adapter's config" in reasons
    assert "`classifier.bias` should be replaced whole" in reasons


def test_a_head_that_the_base_does_not_hold_is_refused_by_name(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    base = save_base(tmp_path / "base", bert)
    adapter = save_adapter(
        tmp_path / "adapter", bert, target_modules=["query"], modules_to_save=["classifier"], task_type="SEQ_CLS"
    )
    tensors = {n: t for n, t in tensors_in(base).items() if not n.startswith("classifier")}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(MergeRefused, match=r"`classifier\.weight` replaces a tensor that is not in the base's files"):
        fuse(adapter, tmp_path / "out", library=library, base=str(base))


def test_another_copy_of_an_embedding_is_refused_and_a_true_one_is_not(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    base = str(save_base(tmp_path / "base", untied, torch.bfloat16))
    # PEFT saves a copy of the embedding beside its factors, here in the dtype of training
    adapter = save_adapter(tmp_path / "adapter", lambda: untied().bfloat16().float(), target_modules=["embed_tokens"])
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    tensors = tensors_in(adapter)
    assert tensors[name].dtype == torch.float32

    fuse(adapter, tmp_path / "out", library=library, base=base)
    tensors[name][5, 5] += 1
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})

    with pytest.raises(RefusedAdapter, match="differs from the base's"):
        fuse(adapter, tmp_path / "other", library=library, base=base)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_adapter_that_is_not_finite_is_refused_and_leaves_nothing(tmp_path: Path, bad: float) -> None:
    library = Library(tmp_path / "home")
    library.bases.add(save_base(tmp_path / "base", untied), "base")
    adapter = save_adapter(tmp_path / "adapter", untied, target_modules=QV)
    tensors = tensors_in(adapter)
    name = max(name for name in tensors if "lora_B" in name)
    tensors[name][-1, -1] = bad
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})

    with pytest.raises(RefusedAdapter, match="E_NONFINITE"):
        fuse(adapter, tmp_path / "out", library=library, base="base")

    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base", "home"]

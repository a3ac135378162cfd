"""What replaces a part of the base is carried over where only one adapter has it or all have the same; or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.core.errors import MergeRefused
from tests.support.adapter_folders import PREFIX, write_folder
from tests.support.peft_bases import (
    Attention,
    Base,
    apart,
    attached,
    bert,
    effects,
    fresh,
    llama,
    llama_with_biases,
    logits,
    save,
    tied_llama,
    weighted,
)
from tests.weights.merging import config_of, run

pytestmark = pytest.mark.filterwarnings("ignore")

QV = {f"model.layers.{i}.self_attn.{m}": s for i in range(3) for m, s in {"q_proj": (8, 8), "v_proj": (4, 8)}.items()}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def edit(folder: Path, part: str, change: float = 1.0) -> Path:
    """The folder, with `change` added to the tensors whose name holds `part`."""
    tensors = {n: t + change if part in n else t for n, t in tensors_of(folder).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def is_exact(base: Base, out: Path, folders: list[Path], weights: list[float]) -> bool:
    wanted = weighted([effects(attached(base, f)) for f in folders], weights)
    return apart(effects(attached(base, out)), wanted) < 1e-6


def loaded(base: Base, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(fresh(base), folder).eval()


def base_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The weights that the model has in place of the base's, by their names in the base."""
    found = {}
    for name, tensor in model.base_model.model.state_dict().items():
        if ".lora_" not in name:
            found[name.replace(".base_layer", "")] = tensor
    return found


# ---------------------------------------------------------------- biases of the base


@pytest.mark.parametrize("kind", ["all", "lora_only"])
def test_trained_biases_of_one_adapter_are_those_of_the_merge(kind: str, tmp_path: Path) -> None:
    first = save(tmp_path / "a", llama_with_biases, {"r": 2, "target_modules": ["q_proj"], "bias": kind})
    # It wraps modules whose biases the first adapter names without a wrap.
    second = save(tmp_path / "b", llama_with_biases, {"r": 3, "target_modules": ["k_proj", "up_proj"]}, seed=1)

    result = run(tmp_path / "out", (first, 0.7), (second, 0.3))

    mine, theirs = (base_tensors(loaded(llama_with_biases, f)) for f in (tmp_path / "out", first))
    base = fresh(llama_with_biases).state_dict()
    biases = [name for name in base if name.endswith(".bias")]
    changed = [name for name in biases if not torch.equal(theirs[name], base[name])]
    assert changed == (biases if kind == "all" else [name for name in biases if "q_proj" in name])
    assert all(torch.equal(mine[name], theirs[name]) for name in base)
    assert config_of(tmp_path / "out")["bias"] == kind
    assert any("are carried over unchanged from `a`" in w for w in result.warnings)
    assert is_exact(llama_with_biases, tmp_path / "out", [first, second], [0.7, 0.3])


def test_equal_biases_are_carried_over_and_different_ones_refused_by_name(tmp_path: Path) -> None:
    first = save(tmp_path / "a", llama_with_biases, {"r": 2, "target_modules": ["q_proj"], "bias": "all"})
    second = save(tmp_path / "b", llama_with_biases, {"r": 2, "target_modules": ["q_proj"], "bias": "all"}, seed=1)
    tensors = tensors_of(second) | {n: t for n, t in tensors_of(first).items() if n.endswith(".bias")}
    save_file(tensors, second / "adapter_model.safetensors", metadata={"format": "pt"})

    run(tmp_path / "out", (first, 0.7), (second, 0.3))
    edit(second, "layers.1.self_attn.o_proj.bias")
    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "no", (first, 0.7), (second, 0.3))

    assert is_exact(llama_with_biases, tmp_path / "out", [first, second], [0.7, 0.3])
    (reason,) = refused.value.reasons
    assert "`model.layers.1.self_attn.o_proj.bias` differs between `a` and `b`" in reason


def test_a_merge_with_trained_biases_can_be_merged_again(tmp_path: Path) -> None:
    first = save(tmp_path / "a", llama_with_biases, {"r": 2, "target_modules": ["q_proj"], "bias": "lora_only"})
    second = save(tmp_path / "b", llama_with_biases, {"r": 2, "target_modules": ["v_proj"]}, seed=1)

    run(tmp_path / "half", (first, 0.5), (second, 0.5))
    run(tmp_path / "out", (tmp_path / "half", 2.0), (second, -1.0))

    mine, theirs = (base_tensors(loaded(llama_with_biases, f)) for f in (tmp_path / "out", first))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


# ---------------------------------------------------------------- trained rows of embeddings

ROWS = [{"trainable_token_indices": [1, 3]}, {"trainable_token_indices": {"embed_tokens": [2], "lm_head": [0, 4]}}]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("base", [llama, tied_llama])
def test_trained_rows_of_one_adapter_are_those_of_the_merge(
    base: Base, rows: dict[str, object], tmp_path: Path
) -> None:
    if base is tied_llama and isinstance(rows["trainable_token_indices"], dict):
        rows = {"trainable_token_indices": {"embed_tokens": [2]}}
    first = save(tmp_path / "a", base, {"r": 2, "target_modules": ["q_proj"], **rows})
    second = save(tmp_path / "b", base, {"r": 3, "target_modules": ["v_proj"]}, seed=1)

    result = run(tmp_path / "out", (first, 0.7), (second, 0.3))

    assert config_of(tmp_path / "out")["trainable_token_indices"] == rows["trainable_token_indices"]
    assert any("rows of `model.embed_tokens`" in w or "rows of `lm_head`" in w for w in result.warnings)
    assert is_exact(base, tmp_path / "out", [first, second], [0.7, 0.3])
    mine, theirs = loaded(base, tmp_path / "out"), loaded(base, first)
    for model in (mine, theirs):
        model.base_model.disable_adapter_layers()  # leaves the rows in place
        for layer in model.modules():
            if hasattr(layer, "token_adapter"):
                layer.enable_adapters(enabled=True)
    assert torch.equal(logits(mine), logits(theirs))
    assert not torch.equal(logits(mine), logits(fresh(base)))


def test_rows_of_two_layers_are_named_by_layer(tmp_path: Path) -> None:
    options = {"r": 2, "target_modules": ["q_proj"]}
    first = save(tmp_path / "a", llama, {**options, "trainable_token_indices": [1, 3]})
    second = save(tmp_path / "b", llama, {**options, "trainable_token_indices": {"lm_head": [5]}}, seed=1)

    run(tmp_path / "out", (first, 0.7), (second, 0.3))

    assert config_of(tmp_path / "out")["trainable_token_indices"] == {"lm_head": [5], "model.embed_tokens": [1, 3]}
    assert is_exact(llama, tmp_path / "out", [first, second], [0.7, 0.3])
    stored = tensors_of(tmp_path / "out")
    for folder in (first, second):
        rows = {n: t for n, t in tensors_of(folder).items() if "trainable_tokens" in n}
        assert all(torch.equal(stored[name], tensor) for name, tensor in rows.items())


def test_other_rows_of_one_layer_are_refused_by_name(tmp_path: Path) -> None:
    options = {"r": 2, "target_modules": ["q_proj"]}
    first = save(tmp_path / "a", llama, {**options, "trainable_token_indices": [1, 3]})
    others = save(tmp_path / "b", llama, {**options, "trainable_token_indices": [1, 4]})
    trained = edit(save(tmp_path / "c", llama, {**options, "trainable_token_indices": [1, 3]}), "trainable_tokens")

    for other in (others, trained):
        with pytest.raises(MergeRefused, match=r"embed_tokens.*trainable_token_indices.*differs between `a`"):
            run(tmp_path / "no", (first, 0.7), (other, 0.3))


def test_rows_of_a_layer_that_has_factors_are_refused(tmp_path: Path) -> None:
    first = save(tmp_path / "a", llama, {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": [1, 3]})
    second = save(tmp_path / "b", llama, {"r": 2, "target_modules": ["embed_tokens"]}, save_embedding_layers=False)
    whole = save(tmp_path / "c", llama, {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]})

    with pytest.raises(MergeRefused, match=r"embed_tokens` has LoRA factors, but `a` replaces rows of it"):
        run(tmp_path / "out", (first, 0.7), (second, 0.3))
    with pytest.raises(MergeRefused, match=r"embed_tokens` comes whole from `c`, and `a` replaces rows of it"):
        run(tmp_path / "out", (first, 0.7), (whole, 0.3))


def test_a_number_of_rows_that_the_config_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", llama, {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": [1, 3]})
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(config_of(folder) | {"trainable_token_indices": [1, 2, 3]}))

    for weight in (1.0, 0.5):
        with pytest.raises(MergeRefused, match=r"trainable_tokens_delta.*does not announce"):
            run(tmp_path / "out", (folder, weight))


# ---------------------------------------------------------------- copies of embeddings


@pytest.mark.parametrize("base", [llama, tied_llama])
def test_adapters_on_embeddings_and_the_head_add_up_beside_their_copies(base: Base, tmp_path: Path) -> None:
    first = save(tmp_path / "a", base, {"r": 2, "target_modules": ["embed_tokens", "lm_head", "q_proj"]})
    second = save(tmp_path / "b", base, {"r": 3, "target_modules": ["embed_tokens", "lm_head"]}, seed=1)

    result = run(tmp_path / "out", (first, 0.7), (second, 0.3))

    assert {n for n in tensors_of(tmp_path / "out") if ".lora_" not in n} == {
        f"{PREFIX}lm_head.base_layer.weight", f"{PREFIX}model.embed_tokens.base_layer.weight",
    }  # fmt: skip
    assert sum("copy of" in w and "`lm_head`" in w and "`model.embed_tokens`" in w for w in result.warnings) == 1
    assert is_exact(base, tmp_path / "out", [first, second], [0.7, 0.3])


def test_the_copy_of_a_resized_embedding_finds_its_place_in_the_merge(tmp_path: Path) -> None:
    def resized() -> torch.nn.Module:
        return llama(2, vocab_size=40)

    first = save(tmp_path / "a", resized, {"r": 2, "target_modules": ["q_proj"]}, save_embedding_layers=True)
    edit(first, "embed_tokens", 0.5)
    second = save(tmp_path / "b", resized, {"r": 2, "target_modules": ["embed_tokens"]}, save_embedding_layers=False)

    run(tmp_path / "out", (first, 0.7), (second, 0.3))

    assert f"{PREFIX}model.embed_tokens.weight" in tensors_of(first)
    mine, theirs = (base_tensors(loaded(resized, f)) for f in (tmp_path / "out", first))
    assert torch.equal(mine["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])
    assert not torch.equal(mine["model.embed_tokens.weight"], fresh(resized).state_dict()["model.embed_tokens.weight"])
    assert is_exact(resized, tmp_path / "out", [first, second], [0.7, 0.3])


def test_copies_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    first = save(tmp_path / "a", llama, {"r": 2, "target_modules": ["embed_tokens"]})
    second = edit(save(tmp_path / "b", llama, {"r": 2, "target_modules": ["embed_tokens"]}), "base_layer")

    with pytest.raises(MergeRefused, match=r"`model\.embed_tokens\.weight` differs between `a` and `b`"):
        run(tmp_path / "out", (first, 0.7), (second, 0.3))


def test_a_copy_of_what_another_adapter_saves_is_refused_unless_it_is_the_same(tmp_path: Path) -> None:
    first = save(tmp_path / "a", llama, {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]})
    second = save(tmp_path / "b", llama, {"r": 2, "target_modules": ["q_proj"]}, save_embedding_layers=True)

    with pytest.raises(MergeRefused, match=r"`model\.embed_tokens\.weight`.*differs between"):
        run(tmp_path / "no", (first, 0.7), (second, 0.3))
    name = f"{PREFIX}model.embed_tokens.weight"
    tensors = tensors_of(second) | {name: tensors_of(first)[name]}
    save_file(tensors, second / "adapter_model.safetensors", metadata={"format": "pt"})
    for out, order in (("ab", (first, second)), ("ba", (second, first))):
        run(tmp_path / out, *((folder, 0.5) for folder in order))

        assert config_of(tmp_path / out)["modules_to_save"] == ["embed_tokens"]
        assert torch.equal(tensors_of(tmp_path / out)[name], tensors[name])


def test_large_copies_are_compared_and_written_piece_by_piece(tmp_path: Path) -> None:
    copy = torch.randn(700_000, 8)  # more than one piece
    extra = {f"{PREFIX}embed_tokens.base_layer.weight": copy}
    shapes = {"embed_tokens": (700_000, 8), "q_proj": (8, 8)}
    first, second = (write_folder(tmp_path / n, shapes, ranks=1, extra=extra, seed=i) for i, n in enumerate("ab"))
    third = write_folder(tmp_path / "c", shapes, ranks=1, extra={n: t.clone().index_fill_(0, torch.tensor(699_999), 0) for n, t in extra.items()})  # fmt: skip

    run(tmp_path / "out", (first, 0.7), (second, 0.3))
    with pytest.raises(MergeRefused, match=r"embed_tokens\.weight` differs"):
        run(tmp_path / "no", (first, 0.7), (third, 0.3))

    assert torch.equal(tensors_of(tmp_path / "out")[next(iter(extra))], copy)


# ---------------------------------------------------------------- layers made of layers


def test_a_layer_of_layers_has_one_rank_and_its_bias_its_place(tmp_path: Path) -> None:
    first = save(tmp_path / "a", Attention, {"r": 2, "target_modules": ["attn"], "bias": "all"})
    second = save(tmp_path / "b", Attention, {"r": 2, "target_modules": ["attn"], "use_rslora": True}, seed=1)
    tensors = tensors_of(second)
    for name in tensors:
        if "out_proj" not in name and "lora_B" in name:
            tensors[name].zero_()  # so that one of the two pairs needs less than the other
    save_file(tensors, second / "adapter_model.safetensors", metadata={"format": "pt"})

    result = run(tmp_path / "out", (first, 0.7), (second, -0.3))

    assert dict(result.ranks) == {4: 2}
    config = config_of(tmp_path / "out")
    assert (config["target_modules"], config["r"], config["rank_pattern"]) == (["attn"], 4, {})
    assert is_exact(Attention, tmp_path / "out", [first, second], [0.7, -0.3])
    mine, theirs = (base_tensors(loaded(Attention, f)) for f in (tmp_path / "out", first))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_saved_head_of_bert_is_carried_over(tmp_path: Path) -> None:
    first = save(tmp_path / "a", bert, {"r": 2, "target_modules": ["query"], "modules_to_save": ["classifier"]})
    second = save(tmp_path / "b", bert, {"r": 2, "target_modules": ["value"]}, seed=1)

    run(tmp_path / "out", (first, 0.7), (second, 0.3))

    assert is_exact(bert, tmp_path / "out", [first, second], [0.7, 0.3])

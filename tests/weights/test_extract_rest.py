"""What no LoRA can hold is told by name and carried where PEFT can; what does not go together is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForSequenceClassification

from adapterhub.core.errors import BaseMismatch, Conflict, DiskFull, Incompatible, NotAllowed, UsageProblem
from adapterhub.weights.extract import ExtractOptions, extract
from tests.contracts.export import files_of_at_most
from tests.support.adapter_folders import error_of, updates_in
from tests.support.model_pairs import (
    LAYERS,
    changed,
    edit,
    fused,
    look,
    low_rank,
    merged_pair,
    run,
    saved,
    tensors_of,
    write_model,
)
from tests.support.quantised_copies import float8_copy
from tests.support.tiny_models import gpt2, llama, logits, plain_peft


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path, Path]:
    return merged_pair(tmp_path_factory.mktemp("pair"))


# ---------------------------------------------------------------- what a LoRA cannot hold
NORMS = ("model.norm.weight", "model.layers.1.input_layernorm.weight")


@pytest.fixture
def with_norms(tmp_path) -> tuple[Path, Path, nn.Module]:
    names = {name: torch.full((32,), 0.5) for name in NORMS} | {
        "model.layers.0.self_attn.q_proj.weight": low_rank(32, 32, 2)
    }
    model = changed(llama(), names)
    return saved(llama(), tmp_path / "base"), saved(model, tmp_path / "tuned"), model


def test_changed_norms_are_listed_with_their_size(tmp_path, with_norms):
    base, tuned, _ = with_norms

    result = run(tmp_path, base, tuned, rank=2)

    listed = [(o.name, o.reason, o.elements, o.is_savable, o.is_carried) for o in result.left_out]
    assert sorted((name, "a vector", 32, True, False) for name in NORMS) == listed
    assert [pytest.approx(0.5 * 32**0.5)] * 2 == [o.change for o in result.left_out]
    norms, update = 2**0.5 * 0.5 * 32**0.5, float(low_rank(32, 32, 2).norm())
    assert pytest.approx(norms / (norms**2 + update**2) ** 0.5, rel=1e-5) == result.missing_share
    assert result.relative_error < 1e-5


def test_save_rest_carries_norms_so_that_nothing_is_missing(tmp_path, with_norms):
    base, tuned, model = with_norms

    result = run(tmp_path, base, tuned, rank=2, save_rest=True)

    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(name.removesuffix(".weight") for name in NORMS) == config["modules_to_save"]
    assert {True} == {o.is_carried for o in result.left_out}
    assert result.missing_share < 1e-5
    found = logits(plain_peft(llama, tmp_path / "out"))
    assert torch.allclose(found, logits(model), atol=1e-4, rtol=1e-4)


def test_a_norm_whose_name_ends_others_is_not_carried(tmp_path):
    base, tuned = write_model(tmp_path / "base", LAYERS), write_model(tmp_path / "tuned", LAYERS)
    edit(tuned, {"norm.weight": torch.ones(8), "layers.0.q.weight": low_rank(8, 8, 1)})

    result = run(tmp_path, base, tuned, rank=1, save_rest=True)

    # PEFT would replace `layers.0.input_norm` too, whose name ends with `norm`
    assert [(o.name, o.is_savable) for o in result.left_out] == [("norm.weight", False)]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["modules_to_save"] is None


def test_biases_of_layers_with_factors_are_told_and_stay_out(tmp_path):
    names = {
        "transformer.h.0.attn.c_attn.weight": low_rank(32, 96, 2),
        "transformer.h.0.attn.c_attn.bias": torch.ones(96),
        "transformer.h.1.ln_1.bias": torch.ones(32),
    }
    base, tuned = saved(gpt2(), tmp_path / "base"), saved(changed(gpt2(), names), tmp_path / "tuned")

    result = run(tmp_path, base, tuned, rank=2, save_rest=True)

    assert [(o.name, o.reason, o.is_carried) for o in result.left_out] == [
        ("transformer.h.0.attn.c_attn.bias", "a bias", False),
        ("transformer.h.1.ln_1.bias", "a bias", True),
    ]
    # a module is carried whole: its weight comes along
    assert "base_model.model.transformer.h.1.ln_1.weight" in tensors_of(tmp_path / "out")
    assert result.missing_share > 0.1


def test_a_new_head_for_a_task_is_refused_unless_it_is_carried(tmp_path):
    base = saved(llama().model, tmp_path / "base")
    model = with_head()
    tuned = saved(model, tmp_path / "tuned")

    with pytest.raises(BaseMismatch, match=r"`score.weight`: \[3, 32\] in the tuned model, not in the base") as refusal:
        run(tmp_path, base, tuned, rank=2)
    result = run(tmp_path, base, tuned, rank=2, save_rest=True)

    assert "--save-rest" in refusal.value.hint
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert tuple(config[key] for key in ("modules_to_save", "task_type", "target_modules")) == (
        ["score"],
        "SEQ_CLS",
        ["q_proj"],
    )
    assert [(o.name, o.change, o.is_carried) for o in result.left_out] == [("score.weight", None, True)]
    bare = with_head(seed=5, changes=False)
    assert torch.allclose(logits(PeftModel.from_pretrained(bare, tmp_path / "out")), logits(model), atol=1e-4)


def with_head(seed: int = 0, *, changes: bool = True) -> nn.Module:
    """A classifier on the base; its head is random, by `seed`."""
    torch.manual_seed(seed)
    config = llama().config
    config.num_labels, config.pad_token_id = 3, 0
    model = LlamaForSequenceClassification(config).eval()
    model.model.load_state_dict(llama().model.state_dict())
    names = {f"model.layers.{i}.self_attn.q_proj.weight": low_rank(32, 32, 2) for i in (0, 1)}
    return changed(model, names) if changes else model


def test_a_resized_vocabulary_is_refused_with_its_shapes_or_left_out(tmp_path, pair):
    base, adapter, _ = pair
    model = fused(llama, adapter)
    model.resize_token_embeddings(70)
    tuned = saved(model, tmp_path / "tuned")

    with pytest.raises(BaseMismatch) as refusal:
        run(tmp_path, base, tuned, rank=4)
    result = run(tmp_path, base, tuned, rank=4, skip_unequal=True)

    lines = str(refusal.value).splitlines()[1:]
    shapes = "[64, 32] in the base, [70, 32] in the tuned model"
    assert [f"  `lm_head.weight`: {shapes}", f"  `model.embed_tokens.weight`: {shapes}"] == lines
    assert [("lm_head.weight", shapes, 70 * 32), ("model.embed_tokens.weight", shapes, 70 * 32)] == [
        (o.name, o.reason, o.elements) for o in result.left_out
    ]
    assert error_of(updates_in(tmp_path / "out"), updates_in(adapter)) < 1e-5


def test_a_router_of_experts_gets_no_factors(tmp_path):
    shapes = LAYERS | {"layers.0.mlp.gate.weight": (4, 8), "layers.0.mlp.experts.0.up.weight": (8, 8)}
    base, tuned = write_model(tmp_path / "base", shapes), write_model(tmp_path / "tuned", shapes)
    edit(tuned, {name: torch.ones(shapes[name]) for name in list(shapes)[-2:]})

    result = run(tmp_path, base, tuned, rank=1, save_rest=True)

    assert [(o.name, o.reason, o.is_carried) for o in result.left_out] == [
        ("layers.0.mlp.gate.weight", "the router of a mixture of experts", True)
    ]
    assert result.ranks == {1: 1}


def test_convolutions_get_factors_of_their_shape_and_grouped_ones_do_not(tmp_path):
    shapes = {
        "conv.weight": (8, 4, 3, 3),
        "deep.weight": (8, 1, 3, 3),
        "conv1.weight": (6, 4, 3),
        "stack.weight": (2, 4, 4),
    }
    base, tuned = write_model(tmp_path / "base", shapes), write_model(tmp_path / "tuned", shapes)
    random = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in shapes.items()}
    edit(tuned, random)

    result = run(tmp_path, base, tuned, rank=8)

    found = updates_in(tmp_path / "out")
    assert {"conv", "conv1"} == found.keys()
    for module, update in found.items():
        assert torch.allclose(update, random[f"{module}.weight"].flatten(1).double(), atol=1e-5)
    tensors = tensors_of(tmp_path / "out")
    assert tensors["base_model.model.conv.lora_A.weight"].shape == (8, 4, 3, 3)
    assert tensors["base_model.model.conv.lora_B.weight"].shape == (8, 8, 1, 1)
    assert [(o.name, o.reason) for o in result.left_out] == [
        ("deep.weight", "a convolution in groups"),
        ("stack.weight", "a stack of matrices"),
    ]


def test_counters_of_a_norm_are_no_quantised_weights(tmp_path):
    shapes = {"conv.weight": (4, 4, 3, 3), "bn.weight": (4,), "bn.running_mean": (4,)}
    base, tuned = write_model(tmp_path / "base", shapes), write_model(tmp_path / "tuned", shapes)
    for seen, folder in enumerate((base, tuned)):
        edit(folder, {"bn.num_batches_tracked": torch.tensor(seen)})
    edit(tuned, {"conv.weight": torch.ones(4, 4, 3, 3), "bn.running_mean": torch.ones(4)})

    result = run(tmp_path, base, tuned, rank=1, save_rest=True)

    found = [(o.name, o.change, o.is_carried) for o in result.left_out]
    assert found == [("bn.num_batches_tracked", None, True), ("bn.running_mean", pytest.approx(2.0), True)]
    stored = tensors_of(tmp_path / "out")
    assert stored["base_model.model.bn.num_batches_tracked"].item() == 1


# ---------------------------------------------------------------- refusals
def test_every_tensor_that_does_not_pair_up_is_listed(tmp_path):
    base, tuned = write_model(tmp_path / "base", LAYERS), write_model(tmp_path / "tuned", LAYERS)
    edit(tuned, {"norm.weight": None, "layers.1.q.weight": torch.ones(8, 8)})

    with pytest.raises(BaseMismatch) as refusal:
        run(tmp_path, base, tuned, rank=1)

    assert str(refusal.value).splitlines()[1:] == [
        "  `layers.1.q.weight`: [8, 8] in the tuned model, not in the base",
        "  `norm.weight`: [8] in the base, not in the tuned model",
    ]
    assert "--skip-unequal" in refusal.value.hint
    assert not (tmp_path / "out").exists()


def test_equal_models_give_no_adapter(tmp_path):
    base, tuned = write_model(tmp_path / "base", LAYERS), write_model(tmp_path / "tuned", LAYERS)

    with pytest.raises(Incompatible, match="nothing to extract"):
        run(tmp_path, base, tuned, rank=1)


def test_models_that_differ_in_norms_alone_give_no_adapter(tmp_path):
    base, tuned = write_model(tmp_path / "base", LAYERS), write_model(tmp_path / "tuned", LAYERS)
    edit(tuned, {"norm.weight": torch.ones(8)})

    with pytest.raises(Incompatible, match=r"`norm\.weight`: a vector"):
        run(tmp_path, base, tuned, rank=1)

    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "nowhere") == ["base", "tuned"]


def test_a_tied_embedding_of_an_unknown_class_is_left_out(tmp_path):
    base, tuned = write_model(tmp_path / "base", LAYERS), write_model(tmp_path / "tuned", LAYERS)
    edit(tuned, {"embed_tokens.weight": torch.ones(16, 8), "layers.0.q.weight": torch.ones(8, 8)})

    result = run(tmp_path, base, tuned, rank=1)

    assert [o.name for o in result.left_out] == ["embed_tokens.weight"]
    assert "may share" in result.left_out[0].reason


def test_numbers_that_are_none_are_refused_by_name(tmp_path):
    base, tuned = write_model(tmp_path / "base", LAYERS), write_model(tmp_path / "tuned", LAYERS)
    edit(tuned, {"layers.0.q.weight": torch.full((8, 8), torch.nan), "norm.weight": torch.full((8,), torch.inf)})

    with pytest.raises(Incompatible) as refusal:
        run(tmp_path, base, tuned, rank=1)

    assert [f"  `{n}` holds NaN or infinite numbers" for n in ("layers.0.q.weight", "norm.weight")] == str(
        refusal.value
    ).splitlines()[1:]
    assert not (tmp_path / "out").exists()


def test_quantised_weights_are_refused_by_name(tmp_path):
    base, tuned = write_model(tmp_path / "base", LAYERS), write_model(tmp_path / "tuned", LAYERS)
    tensors = load_file(tuned / "model.safetensors")
    tensors["layers.0.q.weight"] = tensors["layers.0.q.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(Incompatible, match=r"`layers\.0\.q\.weight` is stored as F8_E4M3"):
        run(tmp_path, base, tuned, rank=1)


def test_factors_too_large_for_the_dtype_are_refused(tmp_path):
    base, tuned = write_model(tmp_path / "base", LAYERS), write_model(tmp_path / "tuned", LAYERS)
    edit(tuned, {"layers.0.q.weight": torch.full((8, 8), 1e12)})

    with pytest.raises(Incompatible, match="not finite in F16"):
        run(tmp_path, base, tuned, rank=1, dtype="float16")

    assert run(tmp_path, base, tuned, rank=1).relative_error < 1e-6


@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 4, "energy": 0.5}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.5}, {"max_error": 1.0},
     {"rank": 1, "dtype": "int8"}],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageProblem):
        ExtractOptions(**options)


def test_what_is_there_is_not_written_over(tmp_path, pair):
    base, _, tuned = pair
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()

    with pytest.raises(Conflict):
        run(tmp_path, base, tuned, rank=1)


def test_a_place_that_cannot_be_written_is_refused(tmp_path, pair):
    base, _, tuned = pair
    (tmp_path / "file").touch()

    with pytest.raises(NotAllowed, match="Nothing was kept"):
        run(tmp_path, base, tuned, rank=1, out="file/out")


def test_a_full_disk_leaves_nothing(tmp_path, pair):
    base, _, tuned = pair

    with files_of_at_most(8_000), pytest.raises(DiskFull):
        run(tmp_path, base, tuned, rank=32)

    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_extraction_leaves_nothing(tmp_path, pair):
    base, _, tuned = pair

    def interrupt(done: int, _all: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(look(base), look(tuned), tmp_path / "out", ExtractOptions(rank=1), progress=interrupt)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_base", [True, False])
def test_a_quantised_copy_is_refused_by_its_format(is_base: bool, tmp_path: Path) -> None:  # noqa: FBT001
    llama().save_pretrained(tmp_path / "source")
    float8_copy(tmp_path / "source", tmp_path / "copy")
    pair = ("copy", "source") if is_base else ("source", "copy")

    with pytest.raises(Incompatible, match=r"copy` is a quantised copy \(fp8-block\)"):
        run(tmp_path, *(tmp_path / name for name in pair), rank=4, skip_unequal=True)

    assert not (tmp_path / "out").exists()

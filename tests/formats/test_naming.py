"""The modules of an adapter in the files of a base, under the names of other releases and classes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from adapterhub.formats.naming.files import find_in_files
from adapterhub.formats.naming.finding import BaseNames
from adapterhub.formats.naming.renames import Rename, Renames
from adapterhub.formats.naming.table import every_rename, renames_for, table

TEXT = "{}layers.{}.self_attn.q_proj"
TOWER = "{}encoder.layers.{}.self_attn.q_proj"


def modules(front: str, kind: str = TEXT) -> list[str]:
    return [kind.format(front, layer) for layer in (0, 1)]


def files(*names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (8, 8) for each in names for name in each}


LLAVA = files(
    modules("language_model.model."), modules("vision_tower.vision_model.", TOWER), ["language_model.lm_head"]
)
GEMMA4 = files(modules("model.language_model."), modules("model.vision_tower.", TOWER), ["lm_head"])
QWEN = files(modules("model."), ["visual.blocks.0.attn.qkv", "lm_head"])
TEXT_ONLY = files(modules("model."), ["lm_head"])


def found(wanted: list[str], base: dict[str, tuple[int, ...]], model_type: str | None) -> BaseNames:
    return find_in_files(dict.fromkeys(wanted, (8, 8)), base, model_type)


@pytest.mark.parametrize("model_type", ["type", None])
@pytest.mark.parametrize(
    ("front", "base", "there"),
    [
        ("model.language_model.", ("llava", LLAVA), "language_model.model."),
        ("language_model.model.", ("llava", LLAVA), "language_model.model."),
        ("model.", ("llava", LLAVA), "language_model.model."),
        ("language_model.", ("llava", LLAVA), "language_model.model."),
        ("model.", ("gemma4", GEMMA4), "model.language_model."),
        ("language_model.model.", ("gemma4", GEMMA4), "model.language_model."),
        ("model.language_model.", ("qwen2_5_vl", QWEN), "model."),
        ("model.", ("qwen2_5_vl", QWEN), "model."),
        ("model.language_model.", ("llama", TEXT_ONLY), "model."),
        ("language_model.model.", ("llama", TEXT_ONLY), "model."),
        ("language_model.", ("llama", TEXT_ONLY), "model."),
        ("", ("llama", TEXT_ONLY), "model."),
        ("base.model.", ("llama", TEXT_ONLY), "model."),
    ],
)
def test_layers_of_the_text_model_are_found(
    front: str, base: tuple[str, dict[str, tuple[int, ...]]], there: str, model_type: str | None
) -> None:
    names = found(modules(front), base[1], model_type and base[0])

    assert names.is_complete
    assert [names.here(module) for module in modules(front)] == modules(there)
    assert [names.there(module) for module in modules(there)] == modules(front)


@pytest.mark.parametrize("head", ["lm_head", "language_model.lm_head"])
@pytest.mark.parametrize(("model_type", "base"), [("llava", LLAVA), ("gemma4", GEMMA4), ("llama", TEXT_ONLY)])
def test_the_head_is_found_with_the_layers(head: str, model_type: str, base: dict[str, tuple[int, ...]]) -> None:
    names = found([*modules("language_model.model."), head], base, model_type)

    assert names.is_complete
    assert names.here(head) in {name.removesuffix(".weight") for name in base}


def test_old_names_of_a_vision_tower_are_found_beside_those_of_the_text() -> None:
    wanted = [*modules("model.language_model."), "model.visual.blocks.0.attn.qkv"]

    names = found(wanted, QWEN, "qwen2_5_vl")

    assert [names.here(module) for module in wanted] == [*modules("model."), "visual.blocks.0.attn.qkv"]
    assert "are those of transformers 5 and were mapped to those of transformers 4" in names.mapped(wanted)


def test_layers_that_two_towers_have_are_nobodys() -> None:
    names = found(modules("", TOWER), files(modules("text_model.", TOWER), modules("vision_model.", TOWER)), "clip")

    assert not names.is_complete
    assert len(names.readings) == 2
    assert names.here(modules("", TOWER)[0]) == modules("", TOWER)[0]


def test_shapes_decide_between_two_towers() -> None:
    base = files(modules("text_model.", TOWER)) | {f"{name}.weight": (6, 6) for name in modules("vision_model.", TOWER)}

    assert found(modules("", TOWER), base, "clip").here(modules("", TOWER)[1]) == modules("text_model.", TOWER)[1]


def test_two_names_never_lead_to_one_module() -> None:
    wanted = [TEXT.format("model.", 0), TEXT.format("model.language_model.", 0)]

    assert not found(wanted, TEXT_ONLY, "llama").is_complete
    assert not found(["model.layers%2f.0.self_attn.q_proj", *modules("model.")[1:]], TEXT_ONLY, "llama").is_complete


def test_renames_of_another_type_are_not_tried() -> None:
    other = [name.replace("self_attn", "attn") for name in modules("model.")]

    assert not found(other, TEXT_ONLY, "llama").is_complete


def test_no_layer_is_taken_for_another() -> None:
    assert not found([TEXT.format("model.", 2)], TEXT_ONLY, "llama").is_complete


def test_a_text_adapter_reaches_no_layers_of_the_tower() -> None:
    names = found(modules("model."), GEMMA4, "gemma4")

    assert [module for module in (n.removesuffix(".weight") for n in GEMMA4) if not names.reaches(module)] == modules(
        "model.vision_tower.", TOWER
    )


# ---------------------------------------------------------------- renames
def test_layers_and_experts_are_renamed_alike() -> None:
    names = [f"model.layers.{layer}.mlp.experts.{e}.up_proj.weight" for layer in (3, 11) for e in (0, 117)]

    renamed = renames_for("qwen3_moe").of(names)

    assert [(each.name, each.expert, each.source) for each in renamed.values()] == [
        (f"model.layers.{layer}.mlp.experts.gate_up_proj", e, 1) for layer in (3, 11) for e in (0, 117)
    ]


def test_a_rename_that_counts_counts() -> None:
    counts = Renames((Rename(sources=(r"queries\.(\d+)",), targets=(r"layers.\1.query",), offset=1),))

    assert [each.name for each in counts.of(["queries.0", "queries.41"]).values()] == [
        "layers.1.query",
        "layers.42.query",
    ]


def test_pairs_of_renames_wait_for_the_first_of_them() -> None:
    pairs = Renames((Rename(sources=("norm0", "norm1"), targets=("norm1", "norm2"), has_guard=True),))

    assert [each.name for each in pairs.of(["a.norm1", "a.norm2"]).values()] == ["a.norm1", "a.norm2"]
    assert [each.name for each in pairs.of(["a.norm0", "a.norm1"]).values()] == ["a.norm1", "a.norm2"]


def test_parts_of_other_types_than_usual_have_their_own_renames() -> None:
    plain, vit = renames_for("llava"), renames_for("llava", {"vision_config": {"model_type": "vit"}})
    name = "vision_tower.encoder.layer.0.intermediate.dense.weight"

    assert plain.of([name])[name].name == "model.vision_tower.encoder.layer.0.intermediate.dense.weight"
    assert vit.of([name])[name].name == "model.vision_tower.layers.0.mlp.fc1.weight"


def test_the_table_covers_what_it_names() -> None:
    known = table()

    assert len(known.renames) > 250
    assert len(list(every_rename())) > 100
    assert known.main["llava"] == "LlavaForConditionalGeneration"
    assert known.bare["llama"] == "LlamaModel"

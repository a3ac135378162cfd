"""What PEFT writes for its other methods and variants: true reasons, and no errors that their tensors only look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.trust.verify import Finding, verify_folder
from tests.support.verify_world import P, make, pair


def ones(dtype: str = "f4", **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {f"{P}q.{name.replace('__', '.')}": np.ones(shape, dtype) for name, shape in shapes.items()}


def errors(folder: Path) -> list[Finding]:
    return [finding for finding in verify_folder(folder).findings if finding.severity == "error"]


ACCEPTED: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {
    "SHiRA": ({"peft_type": "SHIRA"}, ones(shira_weight=(4,)) | ones("i4", shira_indices=(2, 4))),
    "KaSA": ({"kasa_config": {"beta": 1e-4}}, pair("q") | ones(lora_diag=(2,))),
    "MonteCLoRA": (
        {"monteclora_config": {"num_samples": 2}},
        pair("q") | ones(lora_monteclora_sampler__std_prior=(2,)),
    ),
    "VeLoRA": ({"velora_config": {"num_groups": 2}}, pair("q") | ones(lora_velora_embed=(4,))),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, ones(lora_A__weight=(2, 8), lora_B__weight=(8, 1))),
    "2023": ({"enable_lora": [True, False, True]}, ones(lora_A__weight=(4, 8), lora_B__weight=(16, 2, 1))),
    "VeRA": (
        {"peft_type": "VERA", "bias": "vera_only"},
        ones(vera_lambda_b=(8,), vera_lambda_d=(2,), base_layer__bias=(8,)),
    ),
    "tied": (
        {"ensure_weight_tying": True, "target_modules": ["embed_tokens"]},
        pair("embed_tokens") | pair("lm_head"),
    ),
    "prompts": (
        {"peft_type": "PROMPT_TUNING", "task_type": "SEQ_CLS"},
        {"prompt_embeddings": np.ones((2, 8), "f4"), "base_model.score.weight": np.ones((3, 8), "f4")},
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_tensors_of_a_method_or_variant_are_no_errors(name: str, tmp_path: Path) -> None:
    config, tensors = ACCEPTED[name]

    assert errors(make(tmp_path / "a", tensors, **config)) == []


@pytest.mark.parametrize("name", ["KaSA", "MonteCLoRA", "VeLoRA"])
def test_the_same_tensors_are_errors_without_the_setting(name: str, tmp_path: Path) -> None:
    assert [finding.code for finding in errors(make(tmp_path / "a", ACCEPTED[name][1]))] == ["E_PAIR"]


def test_integers_are_errors_where_the_numbers_would_reach_a_model(tmp_path: Path) -> None:
    integers = {name: tensor.astype("i4") for name, tensor in pair("q").items()}

    assert "E_DTYPE" in [finding.code for finding in errors(make(tmp_path / "a", integers))]


def test_a_bias_of_an_untargeted_module_is_no_bias_of_the_method(tmp_path: Path) -> None:
    tensors = ones(vera_lambda_b=(8,), vera_lambda_d=(2,)) | {f"{P}k.bias": np.ones(8, "f4")}

    (error,) = errors(make(tmp_path / "a", tensors, peft_type="VERA", bias="vera_only"))

    assert error.code == "E_BASE_WEIGHT"


def test_a_peft_model_inside_another_is_named(tmp_path: Path) -> None:
    (error,) = errors(make(tmp_path / "a", {P + name: tensor for name, tensor in pair("q").items()}))

    assert error.code == "E_UNSUPPORTED"
    assert error.message.startswith("was saved from a PEFT model inside another PEFT model: `base_model.model.base_")


def test_a_method_that_never_attaches_says_so(tmp_path: Path) -> None:
    config, tensors = ACCEPTED["SHiRA"]

    messages = [str(finding) for finding in verify_folder(make(tmp_path / "a", tensors, **config)).findings]

    assert any("SHIRA can be stored and shared, but not attached or merged here" in text for text in messages)

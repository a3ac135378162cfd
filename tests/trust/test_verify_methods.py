"""What PEFT writes for its other methods and variants: true reasons, and no errors that their tensors only look like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapterhub.core.errors import MalformedTensorFile
from adapterhub.formats.foreign.conversion import foreign_path
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


def test_a_doubled_prefix_is_left_out(tmp_path: Path) -> None:
    report = verify_folder(make(tmp_path / "a", {P + name: tensor for name, tensor in pair("q").items()}))

    assert report.errors == ()
    assert any("`base_model.model.` twice" in finding.message for finding in report.findings)


def test_a_method_that_never_attaches_says_so(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", ones(psoft_R=(4,)), peft_type="PSOFT")

    messages = [str(finding) for finding in verify_folder(folder).findings]

    assert any("PSOFT can be stored and shared, but not attached or merged here" in text for text in messages)


def test_only_indices_may_be_whole_numbers(tmp_path: Path) -> None:
    tensors = ones("i4", shira_weight=(4,)) | ones("i4", shira_indices=(2, 4))

    report = verify_folder(make(tmp_path / "a", tensors, peft_type="SHIRA"))

    assert [f.message for f in report.findings if f.code == "E_DTYPE"] == ["I32 in `base_model.model.q.shira_weight`"]


@pytest.mark.parametrize("count", [2, 3])
def test_parts_of_an_adapter_are_refused_by_name_with_the_command_that_joins_them(count: int, tmp_path: Path) -> None:
    folder = make(tmp_path / "a", pair("q"))
    whole = folder / "adapter_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    for number, (name, tensor) in enumerate(tensors.items(), 1):
        save_file({name: tensor}, folder / f"adapter_model-{number:05}-of-{count:05}.safetensors")

    (finding,) = errors(folder)
    with pytest.raises(MalformedTensorFile, match=r"parts of PEFT weights|PEFT weights in 2 parts"):
        foreign_path(folder)

    assert finding.code == "E_CONTAINER"
    if count > len(tensors):
        assert "holds 2 of 3 parts" in finding.message
        return
    command = finding.hint.partition("python -c ")[2].strip('"')
    subprocess.run([sys.executable, "-c", command], cwd=folder, check=True)
    assert errors(folder) == []
    assert load_file(whole).keys() == tensors.keys()

"""Copies of two small models by many writers: each is told to be that of its source, and of no other model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseComparison, BaseVerdict
from adapterhub.formats.base.folders import fingerprint_folder
from adapterhub.formats.base.quantised.deep import compare_models
from adapterhub.formats.base.quantised.opening import opened
from tests.same_base.changes import WAYS, changed_folder
from tests.same_base.pairs import rows_of
from tests.support.hostile_copies import WRITERS, make_right

FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
GGUF = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4")
MOVED = ("gptq", "awq")
"""Whose files do not tell that nothing was moved before it was rounded."""
FAR = ("other numbers", "layers swapped", "rows permuted", "1 %")
MADE = os.environ.get("ADAPTERHUB_QUANTISED_COPIES", "")


@pytest.fixture(scope="module", params=FAMILIES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a source under "", and those of models that are nearly the same."""
    config, kind = FAMILIES[request.param]
    torch.manual_seed(0)
    model = kind(
        config(
            vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=False,
        )
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape) * 0.01  # norms and biases are constant otherwise
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder / "source")
    return {"": folder / "source"} | {way: changed_folder(folder / "source", folder / way, way) for way in FAR}


def verdicts(model: Path, copy: Path) -> Iterator[BaseComparison]:
    """By fingerprint, by files and by every number."""
    yield compare(*(fingerprint_folder(place, cache_folder=None)[0] for place in (model, copy)))
    yield compare_models(opened(model), opened(copy))
    yield compare_models(opened(model), opened(copy), full=True)


@pytest.mark.parametrize("writer", [*WRITERS, *GGUF])
def test_a_copy_is_that_of_its_source_and_of_no_other_model(
    writer: str, models: dict[str, Path], tmp_path: Path
) -> None:
    config = json.loads((models[""] / "config.json").read_text())
    copy = make_right(writer, load_file(models[""] / "model.safetensors"), config, tmp_path / "copy")
    right = BaseVerdict.LIKELY_SAME_QUANTISED if writer in MOVED else BaseVerdict.SAME_WEIGHTS_QUANTISED

    assert [found.verdict for found in verdicts(models[""], copy)] == [right] * 3
    for way in FAR:
        by_fingerprint, *by_files = (found.verdict for found in verdicts(models[way], copy))
        assert by_files == [BaseVerdict.SAME_SHAPES] * 2, way
        if writer not in MOVED or way == "other numbers":  # 16 numbers a tensor do not tell what moved them
            assert by_fingerprint is BaseVerdict.SAME_SHAPES, way


@pytest.mark.skipif(not MADE, reason="ADAPTERHUB_QUANTISED_COPIES names no folder of copies and sources")
def test_no_verdict_on_copies_by_other_writers_is_wrong(tmp_path: Path) -> None:
    rows = list(rows_of(Path(MADE), tmp_path, others=len(WAYS), most_full=1 << 24, only="tiny-"))

    assert rows
    assert [str(row) for row in rows if row.is_wrong] == []

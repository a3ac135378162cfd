"""Choices by row in every model class of transformers that can be made tiny: a row gets its own adapter, or a refusal."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
import torch
import transformers
from peft import LoraConfig
from torch import Tensor, nn

from adapterhub.core.errors import RefusedAdapter, UnsupportedAdapter
from adapterhub.inference.bank import AdapterBank
from adapterhub.library.library import Library
from tests.support.every_class import SIDE, VOCABULARY, built, classes, first_output, inputs_of
from tests.support.tiny_models import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

LINEAR: Final = (nn.Linear,)
LAYERS: Final = (*LINEAR, nn.Embedding, nn.Conv1d, nn.Conv2d)
SIZES: Final = ((2, 2), (3, 5), (2, 9))
"""Rows and tokens; in the first, no size tells which axis is which."""

SURE: Final = (
    ("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel"), ("bert", "BertModel"), ("vit", "ViTModel"),
    ("t5", "T5ForConditionalGeneration"), ("bart", "BartForConditionalGeneration"), ("xlnet", "XLNetModel"),
    ("longformer", "LongformerModel"), ("led", "LEDModel"), ("fsmt", "FSMTModel"), ("opt", "OPTForCausalLM"),
    ("mixtral", "MixtralForCausalLM"), ("nllb-moe", "NllbMoeModel"), ("modernbert", "ModernBertModel"),
    ("whisper", "WhisperModel"), ("llava", "LlavaForConditionalGeneration"),
)  # fmt: skip
"""Classes whose attention or layers have rows, with time first in some: to refuse everything is no answer."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    transformers.logging.set_verbosity(before)


def adapters_for(model: Callable[[], nn.Module], targets: Sequence[str], root: Path) -> list[Path]:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=list(targets))
    return [save_adapter(root / f"{seed}", model, config, seed=seed) for seed in (1, 2)]


def answer(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)  # some models draw noise
    return first_output(model, inputs)


def has_rows(bank: AdapterBank, names: list[str], inputs: dict[str, Tensor]) -> bool:
    """Whether the bank takes a choice by row here; then each row is what it is where all rows have its adapter."""
    rows = len(next(iter(inputs.values())))
    choices = [names[0], None, names[1]][:rows]
    whole = {}
    for choice in choices:
        with bank.use(choice):
            whole[choice] = answer(bank.model, inputs)
    try:
        with bank.rows(choices):
            mixed = answer(bank.model, inputs)
    except UnsupportedAdapter:
        return False
    apart = min(float((whole[names[0]][row] - whole[None][row]).abs().max()) for row in range(rows))
    off = max(float((mixed[row] - whole[choice][row]).abs().max()) for row, choice in enumerate(choices))
    assert off <= 0.02 * apart + 1e-5, f"a row is {off:.3g} off, adapters are {apart:.3g} apart"
    return True


def row_wise(kind: str, name: str, root: Path, library: Library) -> bool | None:
    """Whether its linear layers have rows, None if the class cannot be made tiny, called or trained here."""
    try:
        model = built(kind, name)
        for rows, tokens in SIZES:
            answer(model, inputs_of(model, rows, tokens))
        every = [[part for part, m in model.named_modules() if type(m) in types] for types in (LAYERS, LINEAR)]
        folders = [adapters_for(lambda: built(kind, name), targets, root / f"{i}") for i, targets in enumerate(every)]
    except Exception:  # noqa: BLE001 - whatever transformers raises for sizes that do not fit each other
        return None
    found = []
    for pair in folders:
        with AdapterBank(built(kind, name), library=library, allow_base_mismatch=True) as bank:
            try:
                names = [bank.load(folder, name=folder.name) for folder in pair]
            except RefusedAdapter:  # PEFT writes layers of some experts in a form of its own
                continue
            found.append(all(has_rows(bank, names, inputs_of(bank.model, *size)) for size in SIZES))
    return any(found) if found else None


@pytest.mark.parametrize(("kind", "name"), SURE)
def test_each_row_gets_its_own_adapter_where_rows_have_a_place(
    kind: str, name: str, tmp_path: Path, library: Library
) -> None:
    assert row_wise(kind, name, tmp_path, library)


def test_no_class_gives_one_rows_adapter_to_another(
    tmp_path: Path, library: Library, amount: Callable[[int, int], int]
) -> None:
    told = []
    for kind, name in classes()[:: amount(130, 1)]:
        told.append(row_wise(kind, name, tmp_path, library))
        shutil.rmtree(tmp_path, ignore_errors=True)

    assert told.count(True) > len(told) / 5, f"{told.count(True)} have rows, {told.count(False)} are refused"


# ---------------------------------------------------------------- images
IMAGE, START = VOCABULARY - 1, VOCABULARY - 4


def qwen(grids: Sequence[tuple[int, int, int]], per_row: Sequence[int]) -> dict[str, Tensor]:
    """Images of these sizes in patches, so many of them in each row."""
    patches = sum(t * h * w for t, h, w in grids)
    rows, left = [], list(grids)
    for count in per_row:
        row = []
        for _ in range(count):
            _, high, wide = left.pop(0)
            row += [START, *[IMAGE] * (high * wide // 4)]
        rows.append([*row, 5, 6, 7])
    most = max(map(len, rows))
    ids = torch.tensor([[0] * (most - len(row)) + row for row in rows])
    pixels = torch.randn(patches, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(3))
    given = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": torch.tensor(grids)}
    return given | {"attention_mask": (ids > 0).long(), "mm_token_type_ids": (ids == IMAGE).long()}


def llava(per_row: Sequence[int]) -> dict[str, Tensor]:
    tokens = (SIDE // 8) ** 2
    rows = [[*[IMAGE] * (tokens * count), *range(5, 9 + tokens * (max(per_row) - count))] for count in per_row]
    pixels = torch.randn(sum(per_row), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    return {"input_ids": torch.tensor(rows), "pixel_values": pixels}


def smolvlm(per_row: Sequence[int]) -> dict[str, Tensor]:
    """Each row has room for the most images; those that are zero are none."""
    rows = [[*[IMAGE] * (4 * count), *range(5, 9 + 4 * (max(per_row) - count))] for count in per_row]
    shape = (len(per_row), max(per_row), 3, SIDE, SIDE)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    for row, count in enumerate(per_row):
        pixels[row, count:] = 0
    return {"input_ids": torch.tensor(rows), "pixel_values": pixels}


IMAGES: Final[dict[str, tuple[str, str, dict[str, Tensor]]]] = {
    "Qwen3-VL": ("qwen3_vl", "Qwen3VLForConditionalGeneration", qwen([(1, 4, 4), (1, 4, 4)], [1, 1])),
    "Qwen3-VL, one row": ("qwen3_vl", "Qwen3VLForConditionalGeneration", qwen([(1, 4, 4)], [1, 0])),
    "Qwen2-VL, unequal": ("qwen2_vl", "Qwen2VLForConditionalGeneration", qwen([(1, 4, 4), (1, 2, 4)], [1, 1])),
    "Qwen2-VL, one row": ("qwen2_vl", "Qwen2VLForConditionalGeneration", qwen([(1, 4, 4)], [0, 1])),
    "Qwen2-VL, two in one row": ("qwen2_vl", "Qwen2VLForConditionalGeneration", qwen([(1, 4, 4)] * 2, [2, 0])),
    "LLaVA": ("llava", "LlavaForConditionalGeneration", llava([1, 1])),
    "LLaVA, two in one row": ("llava", "LlavaForConditionalGeneration", llava([2, 0])),
    "SmolVLM": ("smolvlm", "SmolVLMForConditionalGeneration", smolvlm([1, 1])),
    "SmolVLM, two in one row": ("smolvlm", "SmolVLMForConditionalGeneration", smolvlm([2, 0])),
}


@pytest.mark.parametrize("case", IMAGES)
def test_image_parts_are_refused_and_text_parts_have_rows(case: str, tmp_path: Path, library: Library) -> None:
    kind, name, inputs = IMAGES[case]
    linear = [part for part, m in built(kind, name).named_modules() if type(m) in LINEAR]
    text = [part for part in linear if "language_model" in part or "text_model" in part]
    assert 0 < len(text) < len(linear)

    told = []
    for place, targets in enumerate((text, linear)):
        with AdapterBank(built(kind, name), library=library, allow_base_mismatch=True) as bank:
            names = [
                bank.load(folder, name=folder.name)
                for folder in adapters_for(lambda: built(kind, name), targets, tmp_path / f"{place}")
            ]
            told.append(has_rows(bank, names, inputs))

    assert told == [True, False]

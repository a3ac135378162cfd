"""Loads a base that generates text, and lets it answer, with transformers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapterhub.core.errors import Incompatible, UsageProblem, shown
from adapterhub.core.extras import require
from adapterhub.formats.diffusion.components import PIPELINE_FILE
from adapterhub.formats.prompts.form import RAW, PromptForm
from adapterhub.inference.generation import Question, Writing, write
from adapterhub.inference.loader.base.quantised import hold_layout
from adapterhub.weights.dtypes import CHOSEN_DTYPES

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_base(
    folder: Path,
    *,
    dtype: str = "auto",
    load_in: str | None = None,
    labels: int | None = None,
    is_encoder: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal or sequence-to-sequence model in `folder` and its tokenizer, frozen, on the first GPU if there is one.

    With `labels`, it is a classifier of so many labels, whose head is untrained unless the folder has it; with
    `is_encoder`, it is the model without any head.
    `load_in` quantises the linear layers with bitsandbytes while loading: `4bit` (NF4, with the other tensors in
    `dtype`) or `8bit` (LLM.int8). Reads only safetensors weights, and runs no code that comes with the model.

    Raises:
        Incompatible: transformers cannot load it as such a model.
        MissingExtra: quantising needs bitsandbytes, which is not installed.
        UsageProblem: the weights are quantised already.
    """
    if (folder / PIPELINE_FILE).is_file() or (folder.parent / PIPELINE_FILE).is_file():
        raise Incompatible(
            f"`{folder}` draws images, or is part of a pipeline that does, expected a model of texts",
            hint="`adapt run SPEC PROMPT --image out.png` draws; `adapterhub.attach` takes the pipeline in Python",
        )
    if load_in is not None:
        require("quantized", f"loading in {load_in}")
    import transformers

    # Notes on attention kernels and tied weights do not help a user who wants one answer.
    for noisy in ("transformers", "bitsandbytes"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    what = "generates text" if labels is None else "classifies texts"
    place = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        if is_encoder:
            kind = transformers.AutoModel
        if labels is not None:
            kind = transformers.AutoModelForSequenceClassification
            options["num_labels"] = labels
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if load_in is not None:
            _ensure_not_quantised(folder, config)
            precision = CHOSEN_DTYPES.get(dtype) or getattr(config, "dtype", None) or torch.float32
            options |= {"quantization_config": _packing(load_in, precision), "device_map": {"": place}}
        model = kind.from_pretrained(folder, dtype=CHOSEN_DTYPES.get(dtype, "auto"), use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise Incompatible(
            f"`{folder}` cannot be loaded as a model that {what}: {shown(str(error).strip(), 200)}",
            hint="load the model yourself; `adapterhub.attach(model, …)` accepts a model of any kind",
        ) from None
    model.requires_grad_(requires_grad=False)
    hold_layout(model.modules())  # before the first call: its bytes and its answers stay the same
    if getattr(model, "hf_quantizer", None) is None:  # a quantised model cannot be moved
        model = model.to(place)
    if labels is not None:
        # Such a model looks for the last token that is no padding; `classify` pads nothing.
        model.config.get_text_config().pad_token_id = -1
    return model.eval(), tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, for prompts alone.

    Raises:
        Incompatible: transformers cannot load it.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise Incompatible(f"`{folder}` has no tokenizer that loads: {shown(str(error).strip(), 200)}") from None


def answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    chat: bool = False,
) -> str:
    """The greedy continuation of `prompt`; `chat` puts the prompt into the base's chat template first."""
    question = Question(text=prompt, form=PromptForm(form="chat") if chat else RAW)
    return write(model, tokenizer, [question], Writing(max_new_tokens=max_new_tokens))[0].text


def _ensure_not_quantised(folder: Path, config: PretrainedConfig) -> None:
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return
    method = stored.get("quant_method", "") if isinstance(stored, dict) else getattr(stored, "quant_method", "")
    raise UsageProblem(
        f"the weights in `{folder}` are quantised already ({shown(str(method))})", hint="omit `--load-in`"
    )


def _packing(load_in: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    from transformers import BitsAndBytesConfig

    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)

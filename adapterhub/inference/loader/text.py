"""Loads a base that generates text, and lets it answer, with transformers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapterhub.core.errors import AdapterHubError, Incompatible, Malformed, UsageProblem, shown
from adapterhub.core.extras import require
from adapterhub.formats.diffusion.components import PIPELINE_FILE
from adapterhub.formats.prompts.form import RAW, PromptForm
from adapterhub.inference.generation import Question, Writing, continued, write
from adapterhub.inference.loader.base import hold_layout
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
    """Load the causal or sequence-to-sequence model in `folder` and its tokenizer, frozen, on the first GPU if any.

    With `labels`, it is a classifier of so many labels, whose head is untrained unless the folder has it; with
    `is_encoder`, it is the model without any head.
    `load_in` quantises the linear layers with bitsandbytes while loading: `4bit` (NF4, with the other tensors in
    `dtype`) or `8bit` (LLM.int8). Reads only safetensors weights, and runs no code that comes with the model.

    Raises:
        Incompatible: transformers cannot load it as such a model, or there is too little memory.
        Malformed: settings in its files do not fit the weights, each other or transformers, which a few tokens show.
        MissingExtra: quantising needs bitsandbytes, which is not installed.
        UsageProblem: the weights are quantised already.
    """
    if (folder / PIPELINE_FILE).is_file() or (folder.parent / PIPELINE_FILE).is_file():
        raise Incompatible(
            f"`{folder}` draws images, or is part of a pipeline that does, expected a model of texts",
            hint="`adapt run SPEC PROMPT --image out.png` draws; `adapterhub.attach` takes the pipeline in Python",
        )
    if folder.suffix == ".gguf":
        raise Incompatible(
            f"`{folder}` is a GGUF file, which llama.cpp runs, expected a folder that transformers loads",
            hint="`adapt serve --engine llama.cpp` answers on it; name its source with `--base` for an answer here",
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
    with _worded(folder, f"a model that {what}"):
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
        model.requires_grad_(requires_grad=False)
        hold_layout(model.modules())  # before the first call: its bytes and its answers stay the same
        if getattr(model, "hf_quantizer", None) is None:  # a quantised model cannot be moved
            model = model.to(place)
        if labels is not None:
            # Such a model looks for the last token that is no padding; `classify` pads nothing.
            model.config.get_text_config().pad_token_id = -1
        model = model.eval()
    with _worded(folder, f"a model that {what}", it_loads=True):
        _try_once(model, tokenizer, writes=labels is None and not is_encoder)
    return model, tokenizer


@contextmanager
def _worded(folder: Path, what: str, *, it_loads: bool = False) -> Iterator[None]:
    """Within, what transformers and torch raise for the files in `folder` becomes an error that names the folder."""
    try:
        yield
    except AdapterHubError:
        raise
    except Exception as error:  # noqa: BLE001 - each setting fails in a way of its own
        told = shown(str(error).strip() or type(error).__name__, 200)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in told:
            raise Incompatible(
                f"`{folder}` needs more memory than there is: {told}",
                hint="`--dtype bfloat16` halves what float32 takes; `--load-in 4bit` takes an eighth",
            ) from None
        if not it_loads and isinstance(error, OSError | ValueError | KeyError | ImportError):
            raise Incompatible(
                f"`{folder}` cannot be loaded as {what}: {told}",
                hint="load the model yourself; `adapterhub.attach(model, …)` accepts a model of any kind",
            ) from None
        state = "loads but does not answer" if it_loads else "does not load"
        raise Malformed(
            f"`{folder}` {state}, because a setting in its files does not fit: {type(error).__name__}: {told}",
            hint="compare `config.json`, `generation_config.json` and the tokenizer's files with those of the original",
        ) from None


def _try_once(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, writes: bool) -> None:
    """Run the bare base on a few tokens, so that what its files break shows before anything is attached."""
    row = [int(number) for number in tokenizer("a b c")["input_ids"]]
    if not row or max(row) >= model.get_input_embeddings().weight.shape[0]:
        row = [0, 0, 0]
    if writes:
        continued(model, tokenizer, [row], Writing(), stops=[()], limits=[2])
        return
    ids = torch.tensor([row], device=model.device)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in `folder`, for prompts only.

    Raises:
        Incompatible: transformers cannot load it.
        Malformed: settings in its files do not fit each other.
    """
    import transformers

    with _worded(folder, "a tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    chat: bool = False,
) -> str:
    """Return the greedy continuation of `prompt`; `chat` puts the prompt into the base's chat template first."""
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

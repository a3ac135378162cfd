"""Loading a base that writes text, and asking it: what `adapt run` and the demo need of transformers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from adapterhub.core.errors import Incompatible, UsageProblem, shown
from adapterhub.core.extras import require
from adapterhub.inference.generation import Question, Writing, write
from adapterhub.inference.loader.base.quantised import hold_layout
from adapterhub.weights.dtypes import CHOSEN_DTYPES


def load_base(folder: Path, *, dtype: str = "auto", load_in: str | None = None) -> tuple[Any, Any]:
    """The causal or sequence-to-sequence model in `folder` and its tokenizer, frozen, on the first GPU if there is one.

    `load_in` packs its linear layers on the way: `4bit` (NF4, with the other tensors in `dtype`) or `8bit`
    (LLM.int8), with bitsandbytes. Only safetensors weights are read and no code that comes with the model is run.

    Raises:
        Incompatible: transformers cannot load it as a model that writes text.
        MissingExtra: packing needs bitsandbytes, which is not installed.
        UsageProblem: the weights are packed already.
    """
    if load_in is not None:
        require("quantized", f"loading in {load_in}")
    import transformers

    # its notes on attention kernels and tied weights are no concern of somebody who asks for one answer
    for noisy in ("transformers", "bitsandbytes"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    place = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        if load_in is not None:
            _refuse_packed(folder, config)
            precision = CHOSEN_DTYPES.get(dtype) or getattr(config, "dtype", None) or torch.float32
            options |= {"quantization_config": _packing(load_in, precision), "device_map": {"": place}}
        model = kind.from_pretrained(folder, dtype=CHOSEN_DTYPES.get(dtype, "auto"), use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise Incompatible(
            f"`{folder}` cannot be loaded as a model that writes text: {shown(str(error).strip(), 200)}",
            hint="`adapterhub.attach(model, …)` attaches to a model of any kind that you load yourself",
        ) from None
    model.requires_grad_(requires_grad=False)
    hold_layout(model.modules())  # before anybody calls it: its bytes and its answers stay the same
    if getattr(model, "hf_quantizer", None) is None:  # a packed model stays where it was put
        model = model.to(place)
    return model.eval(), tokenizer


def answer(model: Any, tokenizer: Any, prompt: str, *, max_new_tokens: int = 64, chat: bool = False) -> str:  # noqa: ANN401 - transformers and PEFT
    """What the model writes after `prompt`, greedily; with `chat`, after the prompt in the base's chat template."""
    question = Question(text=prompt, chat=chat)
    return write(model, tokenizer, [question], Writing(max_new_tokens=max_new_tokens))[0].text


def _refuse_packed(folder: Path, config: Any) -> None:  # noqa: ANN401 - transformers
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return
    method = stored.get("quant_method", "") if isinstance(stored, dict) else getattr(stored, "quant_method", "")
    raise UsageProblem(
        f"the weights in `{folder}` are packed already ({shown(str(method))})", hint="run it without --load-in"
    )


def _packing(load_in: str, dtype: torch.dtype) -> Any:  # noqa: ANN401 - transformers
    from transformers import BitsAndBytesConfig

    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)

"""Loading a base that writes text, and asking it: what `adapt run` and the demo need of transformers."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from adapterhub.errors import Incompatible, shown

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_base(folder: Path, *, dtype: str = "auto") -> tuple[Any, Any]:
    """The causal or sequence-to-sequence model in `folder` and its tokenizer, frozen, on the first GPU if there is one.

    Only safetensors weights are read and no code that comes with the model is run.

    Raises:
        Incompatible: transformers cannot load it as a model that writes text.
    """
    import transformers

    # its notes on attention kernels and tied weights are no concern of somebody who asks for one answer
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        model = kind.from_pretrained(folder, dtype=_DTYPES.get(dtype, "auto"), use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise Incompatible(
            f"`{folder}` cannot be loaded as a model that writes text: {shown(str(error).strip(), 200)}",
            hint="`adapterhub.attach(model, …)` attaches to a model of any kind that you load yourself",
        ) from None
    model.requires_grad_(requires_grad=False)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def answer(model: Any, tokenizer: Any, prompt: str, *, max_new_tokens: int = 64, chat: bool = False) -> str:  # noqa: ANN401 - transformers and PEFT
    """What the model writes after `prompt`, greedily; with `chat`, after the prompt in the base's chat template."""
    if chat:
        turns = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat).to(model.device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sampling settings of the base's own generation config, unused here
        made = model.generate(
            **tokens,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    new = made[0] if model.config.is_encoder_decoder else made[0][tokens["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True))

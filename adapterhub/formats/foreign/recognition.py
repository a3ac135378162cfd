"""Which program wrote a LoRA file, by what its names are: every name must be one of the same program.

Never by trial: a name says by itself whose it is. What is recognised and not taken has a name here as well, so that the
refusal says what the file is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from adapterhub.core.errors import MalformedTensorFile, shown

PEFT: Final = "peft"
UNKNOWN: Final = "unknown"

_PART: Final = r"(?:unet|transformer|transformer_2|text_encoder|text_encoder_2|text_encoder_3)"
_UNET_ROOT: Final = r"(?:down_blocks|up_blocks|mid_block|conv_in|conv_out|time_embedding|add_embedding)"
_DIT_ROOT: Final = (
    r"(?:transformer_blocks|single_transformer_blocks|x_embedder|context_embedder|time_text_embed|norm_out|proj_out)"
)
_HALVES: Final = r"(?:lora_[AB]\.weight|lora_(?:down|up)\.weight|lora\.(?:down|up)\.weight)"
_PRODUCTS: Final = r"hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t[12])"
_FLAT: Final = r"(?:lora_unet|lora_te[123]?|lora_transformer|lycoris)"
_BFL: Final = r"(?:double_blocks|single_blocks|img_in|txt_in|time_in|vector_in|guidance_in|final_layer)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to name tensors. `reader` is the module of `programs` that reads it; "" where it is refused by name."""

    key: str
    title: str
    names: re.Pattern[str]
    reader: str = ""
    why: str = ""


def _scheme(key: str, title: str, names: str, reader: str = "", why: str = "") -> Scheme:
    return Scheme(key=key, title=title, names=re.compile(names, re.ASCII), reader=reader, why=why)


_TRAIN: Final = "only LoRA, LoHa and LoKr have a form in PEFT that computes the same"

SCHEMES: Final = (
    _scheme(PEFT, "PEFT weights under another name", r"base_model\.model\..+"),
    _scheme(
        "diffusers-old",
        "a LoRA of an image model in the old names of diffusers",
        rf"(?:{_PART}\.)?[\w.]+\.processor\.to_(?:q|k|v|out)_lora\.(?:down|up)\.weight",
        "diffusers",
    ),
    _scheme(
        "xlabs",
        "a LoRA of Flux in the names of XLabs",
        r"(?:diffusion_model\.)?(?:double|single)_blocks\.\d+\.processor\.(?:qkv|proj)_lora[12]?\.(?:down|up)\.weight",
        "xlabs",
    ),
    _scheme(
        "control",
        "a control LoRA of an image model",
        r"[\w.]+\.(?:query|key)_norm\.scale|lora_controlnet|control_model\..+",
        why="it widens the model's input, which an adapter cannot",
    ),
    _scheme(
        "flat-peft",
        "a flattened LoRA in names that no program here writes",
        r"lora_\w+_lora_(?:down|up)\.weight",
        why="write it with the trainer's own export, with a dot before `lora_down`",
    ),
    _scheme(
        "oft",
        "an OFT, BOFT, GLoRA or (IA)3 of LyCORIS",
        rf"{_FLAT}_\w+\.(?:oft_\w+|boft_\w+|[ab][12]\.weight|on_input|weight|rescale|diag)",
        why=_TRAIN,
    ),
    _scheme(
        "full-difference",
        "whole differences of weights (`diff`), not a LoRA",
        r".+\.(?:diff|diff_b|w_norm|b_norm|set_weight|reshape_weight)",
        why="`adapt extract` makes a LoRA from two models",
    ),
    _scheme(
        "kohya",
        "a LoRA of an image model in the names of kohya's sd-scripts",
        rf"{_FLAT}_\w+\.(?:lora_(?:down|up|mid)\.weight|alpha|dora_scale|{_PRODUCTS})",
        "kohya",
    ),
    _scheme(
        "comfyui",
        "a LoRA of an image model in the names of ComfyUI",
        rf"(?:diffusion_model|text_encoders)\.[\w.]+\.(?:{_HALVES}|lora_mid\.weight|alpha|dora_scale|{_PRODUCTS})",
        "comfyui",
    ),
    _scheme(
        "bfl",
        "a LoRA of Flux in the names of its original checkpoint",
        rf"{_BFL}(?:\.[\w.]+)?\.(?:{_HALVES}|alpha|dora_scale|lora_B\.bias|{_PRODUCTS})",
        "comfyui",
    ),
    _scheme(
        "litgpt",
        "a LoRA of LitGPT, whose `attn` fuses q, k and v group by group",
        r"(?:transformer\.h\.\d+\.|lm_head)[\w.]*\.?lora_[AB]",
        why="LitGPT converts its checkpoints with `litgpt convert_from_litgpt` after `litgpt merge_lora`",
    ),
    _scheme(
        "gpt2",
        "a PEFT LoRA without PEFT's prefix",
        r"(?:transformer\.(?:h|wte|word_embeddings|encoder)\b|model\.|bert\.|encoder\.)[\w.]*\.lora_[AB]\.weight",
        why="save it with PEFT's `save_pretrained`, which writes the names and the config",
    ),
    _scheme(
        "diffusers",
        "a LoRA of an image model in the names of diffusers",
        rf"(?:{_PART}\.|(?={_UNET_ROOT}\.|{_DIT_ROOT}\.))[\w.]+\.(?:lora_[AB](?:\.default)?\.weight|lora_B\.bias|"
        rf"lora\.(?:down|up)\.weight|lora_linear_layer\.(?:down|up)\.weight|lora_magnitude_vector(?:\.weight)?|alpha|"
        rf"dora_scale)",
        "diffusers",
    ),
    _scheme("mlx", "a LoRA of Apple's MLX", r"[\w.]+\.(?:lora_[ab]|m)", "mlx"),
    _scheme(
        "torchtune",
        "a LoRA of torchtune",
        r"layers\.\d+\.(?:attn|mlp)\.[\w.]+\.(?:lora_[ab]\.weight|magnitude)|(?:output|tok_embeddings)\.lora_[ab]\.weight",
        why="torchtune's checkpointers write PEFT folders: `output_dir/epoch_N/adapter_model.safetensors`",
    ),
    _scheme(
        "nemo",
        "a LoRA of NVIDIA NeMo",
        r".+\.adapter\.linear_(?:in|out)\.weight",
        why="NeMo exports to PEFT with `nemo llm export … --target hf-peft`",
    ),
    _scheme("hand-written", "a LoRA of a hand-written kind that does not name its modules", r"w_[ab]_\d+"),
    _scheme(
        "textual-inversion",
        "a textual inversion, which is a word and not a LoRA",
        r"(?:emb_params|clip_[lg]|string_to_param\.\*|<[^>]{1,80}>|bundle_emb\..+)",
        why="load it with the image program's own embeddings",
    ),
    _scheme(
        "ip-adapter",
        "an IP-Adapter or ControlNet-LLLite",
        r"(?:image_proj|ip_adapter|lllite_\w+)\..+",
        why="it adds layers to the model instead of changing weights",
    ),
    _scheme(
        "checkpoint",
        "a full model",
        r"(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\..+|(?:model\.)?(?:layers|embed_tokens"
        rf"|lm_head|{_UNET_ROOT}|{_DIT_ROOT}|{_BFL})\.(?:[\w.]+\.)?(?:weight|bias)",
        why="`adapt base add` registers a base",
    ),
)
"""Every scheme; the first whose expression a whole name matches is the name's."""

_KEPT_NAMES: Final = 1 << 14  # the files of a folder have the same names, and a name meets ten expressions
_BY_KEY: Final = {scheme.key: scheme for scheme in SCHEMES}


@lru_cache(maxsize=_KEPT_NAMES)
def scheme_of(name: str) -> str:
    """The key of the scheme of one tensor's name; `unknown` for none."""
    return next((scheme.key for scheme in SCHEMES if scheme.names.fullmatch(name)), UNKNOWN)


def recognise(names: Iterable[str], where: str) -> Scheme | None:
    """The scheme of a file's names, one of `SCHEMES`; None where no name is of any.

    Raises:
        MalformedTensorFile: E_SCHEME for names of several programs, with one of each; E_UNSUPPORTED for a kind that is
            known and not taken.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for name in names:
        key = scheme_of(name)
        counts[key] += 1
        first.setdefault(key, name)
    if set(counts) == {UNKNOWN}:
        return None
    for key in counts:
        scheme = _BY_KEY.get(key)
        if scheme is not None and not scheme.reader and key != PEFT:
            what = f"holds {scheme.title} (`{shown(first[key])}`)"
            raise MalformedTensorFile(where, what, code="E_UNSUPPORTED", hint=scheme.why)
    if len(counts) > 1:
        kinds = [f"{count} of {_title(key)}, such as `{shown(first[key])}`" for key, count in counts.most_common()]
        raise MalformedTensorFile(
            where,
            f"mixes names of several programs: {'; '.join(kinds)}",
            code="E_SCHEME",
            hint="no tensor is left out; take the file that the trainer wrote",
        )
    return _BY_KEY[next(iter(counts))]


def _title(key: str) -> str:
    return "no program known here" if key == UNKNOWN else _BY_KEY[key].title


def scheme_among(names: Iterable[str]) -> Scheme | None:
    """The first scheme that some name of a file is of; None where no name says one. For refusals, not for reading."""
    keys = dict.fromkeys(scheme_of(name) for name in names)
    return next((_BY_KEY[key] for key in keys if key in _BY_KEY), None)

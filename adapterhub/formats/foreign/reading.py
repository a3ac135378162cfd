"""The result of reading a foreign file: modules, each with its rank, its alpha and its tensors."""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, NoReturn

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.core.limits import limits
from adapterhub.formats.licenses import Expression
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import FACTOR_DTYPES, TensorSpec

MAX_ALPHA: Final = 65_536
PARTS: Final = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3")
"""The components of a pipeline that a LoRA may be on."""

CARRIED: Final = frozenset({"use_dora", "use_rslora", "lora_bias"})
"""Variants of LoRA that a file's tensors and alphas carry."""

HEADER: Final = "lora_adapter_metadata"
"""The key of diffusers' own settings in a file's header."""

MATRIX: Final = 2
_IMAGE: Final = 4
_SCALARS: Final = {"F16": "<e", "F32": "<f", "F64": "<d"}

Method = Literal["LORA", "LOHA", "LOKR"]
Rows = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorSource:
    """A foreign file: its header, a way to read small tensors, the config beside it, and what is known of the base.

    `base` has the shapes of the base's weights by the names of its modules; empty if no base is given.
    """

    file: TensorFile
    where: str
    read: Callable[[TensorSpec], bytes]
    config: Mapping[str, Any] | None = None
    base: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def refuse(self, code: str, reason: str, hint: str = "") -> NoReturn:
        """Raise for the file.

        Raises:
            MalformedTensorFile: always, with `code`.
        """
        raise MalformedTensorFile(self.where, reason, code=code, hint=hint)

    def shape_of(self, part: str, module: str) -> tuple[int, ...] | None:
        """Return the shape of a module's weight in the base, which may be one component or a pipeline of several."""
        return self.base.get(f"{part}.{module}") or self.base.get(module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The bytes of one tensor to write: those of `source`, or some of its rows in this order, or it transposed.

    With `mid` (`[r, r, h, w]`), `source` is the `down` of a convolution in three parts, into which `mid` is folded.
    """

    source: TensorSpec
    shape: tuple[int, ...]
    rows: Rows = ()
    is_transposed: bool = False
    mid: TensorSpec | None = None

    @property
    def dtype(self) -> str:
        """The dtype to write: the file's own, but float32 for computed tensors."""
        return "F32" if self.mid is not None else self.source.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """The update of one module: `slots` are its tensors by the end of PEFT's name for them.

    `part` is the component of a pipeline that has the module, "" for a model of one. `alpha` is what PEFT divides by
    the rank; None if the file states none, which means the rank. `unused_alpha`: what a file states beside a LoKr of
    whole sides, whose scale is 1 all the same.
    """

    part: str
    name: str
    slots: Mapping[str, Cut]
    rank: int
    alpha: float | None = None
    unused_alpha: float | None = None

    @property
    def scale(self) -> float:
        """The factor on B·A, for a file without rsLoRA."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A whole foreign file, understood. `spelling` is what a writer needs to write the same names again.

    `families` are the keys of the transformers that the file's own names may be of; () where they are diffusers'.
    For a writer, `class_name` is diffusers' class of the base's denoiser, and `architecture` what the original's header
    said of the model; "" if unknown.
    """

    scheme: str
    modules: tuple[Module, ...]
    method: Method = "LORA"
    use_rslora: bool = False
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    families: tuple[str, ...] = ()
    class_name: str = ""
    architecture: str = ""
    spelling: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The components that the file has modules of, sorted."""
        return tuple(sorted({module.part for module in self.modules}))

    @property
    def is_exact(self) -> bool:
        """Whether every number is one of the file's."""
        return not any(cut.mid for module in self.modules for cut in module.slots.values())

    def unused_alphas(self) -> dict[str, Any]:
        """For a writer: the alphas that count for nothing, as one number or by module; nothing where there are none."""
        found = {self.full_name(m): m.unused_alpha for m in self.modules if m.alpha is None and m.unused_alpha}
        numbers = set(found.values())
        return {"unused_alpha": numbers.pop() if len(numbers) == 1 else found} if numbers else {}

    def full_name(self, module: Module) -> str:
        """Return the name of a module in the PEFT folder: behind its component where the file has several."""
        return f"{module.part}.{module.name}" if len(self.parts) > 1 else module.name


def scalar(source: FactorSource, spec: TensorSpec) -> float:
    """Return the number that an `alpha` holds.

    Raises:
        MalformedTensorFile: E_ALPHA for anything but one finite number above 0, at most `MAX_ALPHA`.
    """
    if spec.dtype not in FACTOR_DTYPES or spec.shape not in ((), (1,)):
        found = f"is {spec.dtype} of shape {list(spec.shape)}"
        source.refuse("E_ALPHA", f"`{shown(spec.name)}` {found}, expected one floating number")
    raw = source.read(spec)
    value = (
        struct.unpack("<f", b"\0\0" + raw)[0] if spec.dtype == "BF16" else struct.unpack(_SCALARS[spec.dtype], raw)[0]
    )
    if not (math.isfinite(value) and 0 < value <= MAX_ALPHA):
        what = f"`{shown(spec.name)}` is {value:g}, expected a number above 0 and at most {MAX_ALPHA}"
        hint = "programs read 0 in two ways: as the rank, or as no effect" if value == 0 else ""
        source.refuse("E_ALPHA", what, hint)
    return float(value)


def lora_module(
    source: FactorSource,
    part: str,
    name: str,
    found: Mapping[str, TensorSpec],
    *,
    alpha: float | None,
    label: str = "",
) -> Module:
    """One LoRA module from its tensors: `down` and `up`, and perhaps `mid`, `magnitude` and `bias`.

    Args:
        source: the file.
        part: the component, "" for none.
        name: the module's name in the base.
        found: the tensors by what they are.
        alpha: the number beside the pair.
        label: the file's own name for the module, for errors.

    Raises:
        MalformedTensorFile: E_PAIR, E_SHAPE, E_RANK or E_DTYPE.
    """
    label = shown(label or name)
    down, up = found.get("down"), found.get("up")
    if down is None or up is None:
        there = ", ".join(f"`{kind}`" for kind in sorted(found)) or "an alpha"
        missing = "down and up" if down is None and up is None else "down" if down is None else "up"
        source.refuse("E_PAIR", f"`{label}` has {there} without {missing}", "the file is cut short, or was edited")
    for spec in found.values():
        if spec.dtype not in FACTOR_DTYPES:
            source.refuse("E_DTYPE", f"`{shown(spec.name)}` is {spec.dtype}, expected {', '.join(FACTOR_DTYPES)}")
    a, b = down.shape, up.shape
    weight = source.shape_of(part, name)
    _check_factors(source, a, b, most=max(_IMAGE, len(weight or ())), label=label)
    mid = found.get("mid")
    if mid is not None:
        if len(a) != _IMAGE or set(a[MATRIX:]) != {1} or len(mid.shape) != _IMAGE or mid.shape[:2] != (a[0], a[0]):
            text = f"`{label}` has a mid of shape {list(mid.shape)}, expected [{a[0]}, {a[0]}, height, width]"
            source.refuse("E_SHAPE", text)
        a = (*a[:2], *mid.shape[2:])
    shape_a, shape_b = _fitted(a, b, weight)
    slots = {
        "lora_A.weight": Cut(source=down, shape=shape_a, mid=mid),
        "lora_B.weight": Cut(source=up, shape=shape_b),
    }
    slots |= _vectors(source, found, a, shape_b)
    return Module(part=part, name=name, slots=slots, rank=a[0], alpha=alpha)


def _check_factors(source: FactorSource, a: tuple[int, ...], b: tuple[int, ...], *, most: int, label: str) -> None:
    """Raise unless A and B are factors of one matrix or convolution of at most `most` dimensions."""
    if not (MATRIX <= len(a) <= most and len(a) == len(b) and all(a) and set(b[MATRIX:]) <= {1} and b[0]):
        if a[:1] == (0,):
            source.refuse("E_RANK", f"`{label}` has rank 0")
        text = f"`{label}` has factors of shapes {list(a)} and {list(b)}, expected [r, in] and [out, r]"
        source.refuse("E_SHAPE", text)
    if a[0] != b[1]:
        source.refuse("E_RANK", f"`{label}` has factors of ranks {a[0]} and {b[1]}")
    width = math.prod(a[1:])
    if a[0] > max(b[0], width) or a[0] > limits().rank:
        source.refuse("E_RANK", f"`{label}` has rank {a[0]}, more than both sides of its {b[0]} x {width} matrix")


def _vectors(
    source: FactorSource, found: Mapping[str, TensorSpec], a: tuple[int, ...], b: tuple[int, ...]
) -> dict[str, Cut]:
    """DoRA's magnitudes and the bias of B: one number for each output."""
    out, slots = b[0], {}
    magnitude, bias = found.get("magnitude"), found.get("bias")
    if magnitude is not None:
        if magnitude.shape not in [(out,), (out, 1), (out, *([1] * (len(a) - 1)))]:
            text = f"`{shown(magnitude.name)}` has shape {list(magnitude.shape)}, expected [{out}, 1]"
            source.refuse("E_SHAPE", text, "one number for each output; norms over inputs are not PEFT's DoRA")
        shape = (out,) if len(b) == MATRIX else (1, out, *b[MATRIX:])
        slots["lora_magnitude_vector"] = Cut(source=magnitude, shape=shape)
    if bias is not None:
        if bias.shape != (out,):
            source.refuse("E_SHAPE", f"`{shown(bias.name)}` has shape {list(bias.shape)}, expected [{out}]")
        slots["lora_B.bias"] = Cut(source=bias, shape=bias.shape)
    return slots


def _fitted(
    a: tuple[int, ...], b: tuple[int, ...], weight: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes that the base's layer wants: `[r, in]` and `[r, in, 1, 1]` are the same numbers."""
    if weight is None or len(weight) == len(a):
        return a, b
    if len(weight) == MATRIX and set(a[MATRIX:]) <= {1}:
        return a[:MATRIX], b[:MATRIX]
    if len(a) == MATRIX and set(weight[MATRIX:]) == {1}:
        ones = (1,) * (len(weight) - MATRIX)
        return (*a, *ones), (*b, *ones)
    return a, b


PEFT: Final = "peft"
UNKNOWN: Final = "unknown"

_PART: Final = r"(?:unet|transformer|transformer_2|text_encoder|text_encoder_2|text_encoder_3)"
_UNET_ROOT: Final = r"(?:down_blocks|up_blocks|mid_block|conv_in|conv_out|time_embedding|add_embedding)"
_DIT_ROOT: Final = (
    r"(?:transformer_blocks|single_transformer_blocks|x_embedder|context_embedder|time_text_embed|norm_out|proj_out)"
)
_HALVES: Final = r"(?:lora_[AB](?:\.default)?\.weight|lora_(?:down|up)\.weight|lora\.(?:down|up)\.weight)"
_PRODUCTS: Final = r"hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t[12])"
_FLAT: Final = r"(?:lora_unet|lora_te[123]?|lora_transformer|lycoris|Hunyuan_video_I2V_lora)"
_BFL: Final = (
    r"(?:double_blocks|single_blocks|img_in|txt_in|time_in|vector_in|guidance_in|final_layer|joint_blocks|"
    r"blocks\.\d+\.(?:self_attn|cross_attn|ffn\.[02](?=\.))|head\.head|img_emb\.proj|(?:time|text)_embedding\.[02](?=\.)|"
    r"time_projection|(?:layers|noise_refiner|context_refiner)\.\d+\.(?:attention|feed_forward|adaLN_modulation))"
)

_ORIGINAL: Final = (
    r"(?:double|single|joint)_blocks\.|(?:time|vector|guidance)_in\.|final_layer\.|img_in\.proj\.|"
    r"txt_in\.(?:individual_token_refiner|[ct]_embedder|input_embedder)\.|blocks\.\d+\.(?:self|cross)_attn\.|blocks\.\d+\.ffn\.[02]\."
)
"""Original names that diffusers has for no transformer; some write them behind `transformer.`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to name tensors. `reader` is the module of `programs` that reads it; "" if it is refused by name."""

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
        rf"{_FLAT}_[\w-]+\.(?:lora_(?:down|up|mid)\.weight|alpha|dora_scale|{_PRODUCTS})",
        "kohya",
    ),
    _scheme(
        "comfyui",
        "a LoRA of an image model in the names of ComfyUI",
        rf"(?:diffusion_model|text_encoders)\.[\w.-]+\.(?:{_HALVES}|lora_mid\.weight|alpha|dora_scale|{_PRODUCTS})",
        "comfyui",
    ),
    _scheme(
        "bfl",
        "a LoRA of an image model in the names of its original checkpoint",
        rf"(?:transformer\.(?={_ORIGINAL}))?{_BFL}(?:\.[\w.]+)?\.(?:{_HALVES}|alpha|dora_scale|lora_B\.bias|{_PRODUCTS})",
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
        rf"(?:{_PART}\.|(?={_UNET_ROOT}\.|{_DIT_ROOT}\.))[\w.-]+\.(?:lora_[AB](?:\.default)?\.weight|lora_B\.bias|"
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
    """Return the key of the scheme of one tensor's name; `unknown` for none."""
    return next((scheme.key for scheme in SCHEMES if scheme.names.fullmatch(name)), UNKNOWN)


def recognise(names: Iterable[str], where: str) -> Scheme | None:
    """Return the scheme of a file's names, one of `SCHEMES`; None if no name is of any.

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
    """Return the first scheme that some name of a file is of; None if no name has one.

    For refusals, not for reading.
    """
    keys = dict.fromkeys(scheme_of(name) for name in names)
    return next((_BY_KEY[key] for key in keys if key in _BY_KEY), None)


_MOST_TRIGGERS: Final = 10
_MOST_CHARACTERS: Final = 500
_JSON_BYTES: Final = 1 << 20
_HALF: Final = 2
_TRAINING: Final = MappingProxyType(
    {
        "ss_network_module": "module",
        "ss_network_dim": "rank",
        "ss_network_alpha": "alpha",
        "ss_steps": "steps",
        "ss_num_epochs": "epochs",
        "ss_learning_rate": "learning_rate",
        "ss_unet_lr": "unet_learning_rate",
        "ss_text_encoder_lr": "text_encoder_learning_rate",
        "ss_optimizer": "optimizer",
        "ss_resolution": "resolution",
        "ss_clip_skip": "clip_skip",
        "ss_seed": "seed",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A word that the adapter may have been trained on. `kind`: `stated` by the author, or `guessed` from captions."""

    text: str
    kind: str
    source: str

    def to_json(self) -> dict[str, str]:
        """Return the value in a manifest."""
        return {"text": self.text, "from": self.source, "kind": self.kind}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignHeader:
    """The facts in a header, cleaned for showing: one printable line each."""

    title: str = ""
    description: str = ""
    license: str | None = None
    architecture: str = ""
    base_sha256: str = ""
    stated_hash: str = ""
    triggers: tuple[Trigger, ...] = ()
    training: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def annotations(self) -> dict[str, Any]:
        """Its part of a manifest's `annotations`, without empty fields."""
        found: dict[str, Any] = {
            "title": self.title,
            "architecture": self.architecture,
            "base_sha256": self.base_sha256,
            "training": dict(self.training),
            "triggers": [trigger.to_json() for trigger in self.triggers],
        }
        return {key: item for key, item in found.items() if item}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAbout:
    """Facts about another program's file that a manifest's `annotations` keep for people: each text is one line."""

    family: str = ""
    title: str = ""
    triggers: tuple[str, ...] = ()

    @classmethod
    def of(cls, annotations: Mapping[str, Any]) -> ImageAbout:
        """Read the texts, and leave out what is malformed; anyone may have written a manifest."""
        family, title, found = (annotations.get(key) for key in ("family", "title", "triggers"))
        listed = found if isinstance(found, list | tuple) else ()
        words = [one.get("text") for one in listed if isinstance(one, Mapping)]
        return cls(
            family=_clean(family) if isinstance(family, str) else "",
            title=_clean(title) if isinstance(title, str) else "",
            triggers=tuple(_clean(word) for word in words[:_MOST_TRIGGERS] if isinstance(word, str) and _clean(word)),
        )


def read_metadata(metadata: Mapping[str, str]) -> ForeignHeader:
    """Return the hints of a header; what is malformed is left out."""
    said = {key: _clean(value) for key, value in metadata.items() if key != HEADER and len(value) <= _JSON_BYTES}
    return ForeignHeader(
        title=said.get("modelspec.title", ""),
        description=said.get("modelspec.description", ""),
        license=_license(said.get("modelspec.license", "")),
        architecture=said.get("modelspec.architecture") or said.get("ss_base_model_version", ""),
        base_sha256=_hex(metadata.get("ss_new_sd_model_hash", "")),
        stated_hash=_hex(metadata.get("sshs_model_hash", "") or metadata.get("modelspec.hash_sha256", "")),
        triggers=tuple(_triggers(metadata)),
        training={name: said[key] for key, name in _TRAINING.items() if said.get(key) not in (None, "", "None")},
    )


def _clean(text: str) -> str:
    """One printable line: no control characters, no marks that turn the direction of text."""
    return "".join(c if c.isprintable() else " " for c in text[:_MOST_CHARACTERS]).strip()


def _license(text: str) -> str | None:
    return text if text and Expression.parse(text) is not None else None


def _hex(text: str) -> str:
    text = text.strip().lower().removeprefix("0x").removeprefix("sha256:")
    return text if len(text) == 64 and set(text) <= set("0123456789abcdef") else ""


def _triggers(metadata: Mapping[str, str]) -> Iterator[Trigger]:
    seen: set[str] = set()
    for text, kind, source in _words(metadata):
        word = _clean(text)
        if word and word.casefold() not in seen and len(seen) < _MOST_TRIGGERS:
            seen.add(word.casefold())
            yield Trigger(text=word, kind=kind, source=source)


def _words(metadata: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for key in ("modelspec.trigger_phrase", "ss_trigger_words", "trigger_phrase"):
        yield from ((word, "stated", key) for word in metadata.get(key, "").split(","))
    for dataset in _json(metadata, "ss_datasets", list):
        subsets = dataset.get("subsets") if isinstance(dataset, dict) else None
        for subset in subsets if isinstance(subsets, list) else ():
            tokens = subset.get("class_tokens") if isinstance(subset, dict) else None
            if isinstance(tokens, str):
                yield tokens, "guessed", "ss_datasets"
    counts: Counter[str] = Counter()
    for tags in _json(metadata, "ss_tag_frequency", dict).values():
        known = {tag: count for tag, count in tags.items() if type(count) is int} if isinstance(tags, dict) else {}
        most = max(known.values(), default=0)  # no more images than the commonest tag is known
        counts.update({tag.strip(): count for tag, count in known.items() if count * _HALF > most})
    for tag, _ in counts.most_common(_MOST_TRIGGERS):
        yield tag, "guessed", "ss_tag_frequency"


def _json(metadata: Mapping[str, str], key: str, kind: type) -> Any:
    text = metadata.get(key, "")
    if not text:
        return kind()
    try:
        value = strict_json(text.encode(), limit_bytes=_JSON_BYTES)
    except ValueError:
        return kind()
    return value if isinstance(value, kind) else kind()

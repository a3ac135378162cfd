"""What the file of an adapter may bring into a model: an allow-list over its tensor names.

Only factors of the adapter's own method, and modules that its config says it replaces whole, have a place here. A name
that leads anywhere else refuses the adapter: no file reaches a weight of the base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from adapterhub.errors import (
    BaseMismatch,
    MalformedConfig,
    MalformedTensorFile,
    RefusedAdapter,
    UnsupportedAdapter,
    shown,
)
from adapterhub.factors import PEFT_PREFIX
from adapterhub.loader.base_model import BaseModel
from adapterhub.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.peft_config import AdapterConfig, saved_name
from adapterhub.tensorfile import TensorFile, TensorSpec, read_header

FACTOR_NAMES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "LORA": ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
        "ADALORA": ("lora_A", "lora_B", "lora_E"),
        "IA3": ("ia3_l",),
        "LOHA": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        "LOKR": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        "VERA": ("vera_lambda_b", "vera_lambda_d"),
    }
)
"""The methods that can be attached, and what PEFT calls their factors."""

SHARED_FACTORS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({"VERA": ("vera_A", "vera_B")})
"""Factors that all modules share; they stand beside the model in the file (`base_model.vera_A`)."""

_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)

_MAX_CONFIG_BYTES: Final = 1 << 20
LISTED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdapterContents:
    """An adapter's config, and the place of every tensor of its file.

    `factors`: by module of the base and factor (`lora_A.weight`). `saved`: by module that is replaced whole and name
    inside it. `shared`: by name of a factor that all modules share. `copies`: tensors that repeat an embedding of the
    base, by its name; they are compared with it and never loaded.
    """

    label: str
    folder: Path
    config: AdapterConfig
    header: TensorFile
    factors: Mapping[str, Mapping[str, TensorSpec]]
    saved: Mapping[str, Mapping[str, TensorSpec]]
    shared: Mapping[str, TensorSpec]
    copies: Mapping[str, TensorSpec]
    warnings: tuple[str, ...] = ()

    def read(self, spec: TensorSpec) -> Tensor:
        """One tensor of the file, in memory of its own: a mapped file could be cut short under a running model.

        Raises:
            RefusedAdapter: a dtype that torch does not have.
            MalformedTensorFile: the file has become shorter since its header was read.
        """
        dtype = _DTYPES.get(spec.dtype)
        if dtype is None:
            found = ("E_DTYPE", f"`{shown(spec.name)}` is stored as {shown(spec.dtype)}")
            raise RefusedAdapter(f"`{shown(self.label)}` cannot be read", [found])
        room = torch.empty(spec.size_bytes, dtype=torch.uint8)
        with self.header.path.open("rb") as stream:
            stream.seek(spec.start)
            if stream.readinto(room.numpy().data) != spec.size_bytes:
                raise MalformedTensorFile(str(self.header.path), f"ends inside tensor `{shown(spec.name)}`")
        return room.view(dtype).reshape(spec.shape)


def read_contents(folder: Path, label: str, base: BaseModel) -> AdapterContents:
    """The contents of the PEFT folder `folder`, every tensor placed in `base`; `label` names it in errors.

    Raises:
        MalformedConfig, MalformedTensorFile: a file that breaks its format.
        UnsupportedAdapter: a method that cannot be attached here.
        RefusedAdapter: tensors that have no place; every one is listed.
        BaseMismatch: the base lacks modules that the adapter is for.
    """
    config = AdapterConfig.parse(_read_config(folder), str(folder / CONFIG_FILE))
    if config.peft_type not in FACTOR_NAMES:
        raise UnsupportedAdapter(
            f"`{shown(label)}` is of type {config.peft_type}, which cannot be attached here",
            hint=f"{', '.join(FACTOR_NAMES)} can",
        )
    header = read_header(folder / WEIGHTS_FILE)
    sorter = _Sorter(config, base)
    for spec in header.tensors:
        sorter.place(spec)
    contents = AdapterContents(
        label=label,
        folder=folder,
        config=config,
        header=header,
        factors=MappingProxyType(sorter.factors),
        saved=MappingProxyType(sorter.saved),
        shared=MappingProxyType(sorter.shared),
        copies=MappingProxyType(sorter.copies),
        warnings=sorter.warnings(),
    )
    if sorter.findings:
        raise RefusedAdapter(f"`{shown(label)}` holds tensors that must not reach a model", limited(sorter.findings))
    _refuse_unfit(contents, base)
    return contents


def limited(findings: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first findings; a hostile file could give sixty thousand."""
    rest = len(findings) - LISTED
    return findings if rest <= 0 else [*findings[:LISTED], (findings[-1][0], f"and {rest} more")]


class _Sorter:
    """Places tensors one by one and gathers what has no place."""

    def __init__(self, config: AdapterConfig, base: BaseModel) -> None:
        self.config = config
        self.base = base
        self.factors: dict[str, dict[str, TensorSpec]] = {}
        self.saved: dict[str, dict[str, TensorSpec]] = {}
        self.shared: dict[str, TensorSpec] = {}
        self.copies: dict[str, TensorSpec] = {}
        self.findings: list[tuple[str, str]] = []
        self._bases = {tensor.name for tensor in base.tensors()}
        self._embeddings = base.embeddings
        self._savable = config.saved_modules
        names = "|".join(FACTOR_NAMES[config.peft_type])
        self._factor = re.compile(rf"(?P<module>.+)\.(?P<factor>{names})(?P<part>\.weight|\.bias)?")

    def place(self, spec: TensorSpec) -> None:
        """Find the place of one tensor."""
        shared = spec.name.removeprefix("base_model.")
        if shared in SHARED_FACTORS.get(self.config.peft_type, ()):
            self.shared[shared] = spec
            return
        name = saved_name(spec.name.removeprefix(PEFT_PREFIX))
        if not spec.name.startswith(PEFT_PREFIX):
            self._refuse("E_UNSUPPORTED", spec, f"expected a name that begins with `{PEFT_PREFIX}`, as PEFT writes it")
            return
        saved = self._saved_module(name)
        match = self._factor.fullmatch(name)
        if match is not None and saved is not None:
            self._refuse("E_UNSUPPORTED", spec, f"`{shown(saved)}` is replaced whole and has factors as well")
        elif match is not None:
            part = match["part"] or (".weight" if match["factor"] == "lora_magnitude_vector" else "")
            self.factors.setdefault(match["module"], {})[match["factor"] + part] = spec
        elif saved is not None:
            self.saved.setdefault(saved, {})[name.removeprefix(saved + ".")] = spec
        else:
            self._place_copy(name, spec)

    def warnings(self) -> tuple[str, ...]:
        """What is odd but harmless."""
        found = [
            f"its file repeats {what} of the base; it is not loaded" for what in sorted(f"`{n}`" for n in self.copies)
        ]
        if self.config.bias != "none":
            found.append(f"its config trains biases of the base (bias {self.config.bias}), but its file has none")
        return tuple(found)

    def _place_copy(self, name: str, spec: TensorSpec) -> None:
        plain = name.replace(".base_layer.", ".")
        if plain.rpartition(".")[0] in self._embeddings and plain in self._bases:
            self.copies[plain] = spec
        elif plain in self._bases and name.endswith(".bias") and self.config.bias != "none":
            self._refuse("E_UNSUPPORTED", spec, f"it trained biases of the base itself (bias {self.config.bias})")
        elif plain in self._bases:
            self._refuse("E_BASE_WEIGHT", spec, "it would overwrite a weight of the base")
        else:
            self._refuse(
                "E_UNSUPPORTED", spec, f"it is no factor of {self.config.peft_type} and no module that is saved"
            )

    def _saved_module(self, name: str) -> str | None:
        """The module that is replaced whole and holds `name`, matched by its end, as PEFT does."""
        parts = name.split(".")
        paths = (".".join(parts[:count]) for count in range(1, len(parts)))
        return next((p for p in paths if p in self.base.modules and p.endswith(self._savable)), None)

    def _refuse(self, code: str, spec: TensorSpec, reason: str) -> None:
        self.findings.append((code, f"`{shown(spec.name)}`: {reason}"))


def _read_config(folder: Path) -> bytes:
    path = folder / CONFIG_FILE
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_CONFIG_BYTES + 1)  # one more than the parser takes, so that it sees the excess
    except OSError as error:
        raise MalformedConfig(str(path), f"cannot be opened: {error.strerror}") from None


# ---------------------------------------------------------------- against the base
def _refuse_unfit(contents: AdapterContents, base: BaseModel) -> None:
    """Refuse an adapter whose modules the base lacks, or that lacks modules its config is for."""
    label = shown(contents.label)
    if not contents.factors:
        raise RefusedAdapter(
            f"`{label}` does nothing", [("E_PAIR", f"its file holds no factor of {contents.config.peft_type}")]
        )
    unknown = sorted(name for name in contents.factors if name not in base.modules or not name)
    if unknown:
        listed = ", ".join(f"`{shown(name)}`" for name in unknown[:3])
        count = f"{len(unknown)} of {len(contents.factors)} modules that `{label}` is for are"
        raise BaseMismatch(f"{count} not in this model, such as {listed}", hint=_naming_hint(unknown[0], base))
    attention = sorted(name for name in contents.factors if isinstance(base.modules[name], nn.MultiheadAttention))
    if attention:
        raise UnsupportedAdapter(
            f"`{label}` cannot be attached without writing to the base",
            [
                f"`{shown(n)}` is torch's MultiheadAttention, to whose weights PEFT adds the update for each call"
                for n in attention[:LISTED]
            ],
        )
    findings = [("E_PAIR", reason) for reason in (*_missing_saved(contents, base), *_missing_targets(contents, base))]
    if findings:
        raise RefusedAdapter(f"`{label}` lacks tensors that its config promises", limited(findings))


def _naming_hint(module: str, base: BaseModel) -> str:
    """Why a module may not be found under its name."""
    ends = [
        name
        for name in base.modules
        if "." in name and (f".{name}".endswith(f".{module}") or f".{module}".endswith(f".{name}"))
    ]
    if ends:
        return (
            f"this model has `{shown(ends[0])}`: the adapter was made for the same layers inside another class"
            " (with or without a head)"
        )
    return "it was made for another model, or for names of another version of its library; attach it to that base"


def _missing_saved(contents: AdapterContents, base: BaseModel) -> Iterable[str]:
    """Modules that the config replaces whole and that the file does not hold."""
    named = contents.config.modules_to_save
    for name, module in base.modules.items():
        if not name or not named or not name.endswith(named) or name in contents.saved:
            continue
        is_inside = any(name.startswith(saved + ".") for saved in contents.saved)
        has_state = next(module.parameters(), None) is not None
        if has_state and not is_inside:
            yield f"`{shown(name)}`: the config replaces it whole (modules_to_save), the file has no tensor of it"


def _missing_targets(contents: AdapterContents, base: BaseModel) -> Iterable[str]:
    """Modules that the config targets and that the file skips, although it has others of the same last name.

    A name that the file has nowhere is left to `verify`, which warns of it: there the config, not the file, is odd.
    """
    config = contents.config
    if config.targets_all:
        return
    last_names = {name.rpartition(".")[2] for name in contents.factors}
    kinds = {type(base.modules[name]) for name in contents.factors}
    covered = {id(base.modules[name]) for name in contents.factors}  # a shared module has several names
    for name, module in base.modules.items():
        if id(module) in covered or type(module) not in kinds or name.rpartition(".")[2] not in last_names:
            continue
        if config.targets(name) and not any(name.startswith(saved) for saved in contents.saved):
            yield f"`{shown(name)}`: the config targets it, the file has no factors for it"

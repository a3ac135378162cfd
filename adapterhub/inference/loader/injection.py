"""Injects adapters into a model: PEFT's layers, filled with the adapters' tensors.

PEFT builds the layers (empty, on the `meta` device); this module assigns the numbers, slot by slot. The slots come from
the layers that PEFT built, so only an adapter's own parameters can be assigned, and each slot takes exactly one tensor
of the right shape.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from adapterhub.core.errors import BaseMismatch, MalformedConfig, RefusedAdapter, UnsupportedAdapter, shown
from adapterhub.core.limits import limits
from adapterhub.formats.base.fingerprint import resize_hint
from adapterhub.formats.manifest import CONFIG_FILE
from adapterhub.formats.peft.fields import Fields
from adapterhub.formats.peft.methods import ADALORA_MARGIN, METHODS
from adapterhub.formats.peft.patterns import Budget, FullPattern, PatternTooSlow
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.loader.activation import activate
from adapterhub.inference.loader.as_written import config_as_written, needs_generating, places_in, points_outside
from adapterhub.inference.loader.base import BaseModel
from adapterhub.inference.loader.reading import LISTED, AdapterContents, limited
from adapterhub.weights.extension import extension_where_possible
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer


class Scale(NamedTuple):
    """The factor on a module's update, `scaling`, with the rank and alpha that it comes from."""

    rank: int
    alpha: float
    scaling: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setup:
    """What makes the config for PEFT, and the scale of each module (empty for methods without one).

    `ranks`: rank by module where PEFT's config cannot express it.
    """

    config: Callable[[], Any]
    scales: Mapping[str, Scale]
    ranks: Mapping[str, int]
    warnings: tuple[str, ...] = ()


def set_up(contents: AdapterContents, base: BaseModel) -> Setup:
    """Return the settings with which PEFT builds this adapter's layers.

    Raises:
        MalformedConfig: a setting of the method has a wrong type.
    """
    make = MAKERS[contents.config.peft_type]
    return make(contents, _common(contents, base))


def _common(contents: AdapterContents, base: BaseModel) -> dict[str, Any]:
    """Return the settings that every method has."""
    transposed = _conv1d()
    return {
        "target_modules": contents.modules,
        "modules_to_save": sorted(contents.saved) or None,
        "fan_in_fan_out": any(isinstance(base.modules[name], transposed) for name in contents.modules),
        "inference_mode": True,
    }


def _conv1d() -> type[nn.Module]:
    """Return the transposed linear layer of GPT-2."""
    from transformers.pytorch_utils import Conv1D

    layer: type[nn.Module] = Conv1D
    return layer


def _peft(kind: str, **settings: Any) -> Callable[[], Any]:
    """Make a config of PEFT when it is needed: a bank that adds the factors itself needs none."""

    def make() -> Any:
        import peft

        return getattr(peft, kind)(**settings)

    return make


# ---------------------------------------------------------------- one maker a method
def _lora(contents: AdapterContents, common: dict[str, Any]) -> Setup:
    config = contents.config
    scales = _scales(contents)
    rank, pattern = _ranks({contents.parameters.get(name, name): scale.rank for name, scale in scales.items()})
    made = _peft(
        "LoraConfig",
        r=rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        rank_pattern=pattern,
        bias="none",
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        lora_bias=config.lora_bias,
        alora_invocation_tokens=config.alora_invocation_tokens and list(config.alora_invocation_tokens),
        init_lora_weights=False,
        target_parameters=sorted(contents.parameters.values()) or None,
        **common,
    )
    return Setup(config=made, scales=scales, ranks={})


def _scales(contents: AdapterContents) -> dict[str, Scale]:
    config = contents.config
    if not config.rank_pattern and not config.alpha_pattern:
        name = next(iter(contents.factors), "")
        scale = Scale(config.rank_of(name), config.alpha_of(name), config.scaling_of(name))
        return dict.fromkeys(contents.factors, scale)
    called = {name: contents.adapters_name(name) for name in contents.factors}
    return {
        name: Scale(rank=config.rank_of(its), alpha=config.alpha_of(its), scaling=config.scaling_of(its))
        for name, its in called.items()
    }


def _ranks(ranks: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """Return the most common rank, and PEFT's `rank_pattern` for the others.

    PEFT takes the first key that matches the end of a name, so the longer of two names comes first.
    """
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = sorted((name for name, rank in ranks.items() if rank != usual), key=len, reverse=True)
    if others:  # then every name is a key: an exception could be the end of a usual one
        ends = tuple("." + name for name in others)
        others = sorted({*others, *(name for name in ranks if name.endswith(ends))}, key=len, reverse=True)
    return usual, {re.escape(name): ranks[name] for name in others}


def _adalora(contents: AdapterContents, common: dict[str, Any]) -> Setup:
    alpha = contents.config.lora_alpha or 0
    # The tensors have the ranks that training left over; the schedule means nothing any more.
    ranks = {name: specs["lora_E"].shape[0] for name, specs in contents.factors.items() if "lora_E" in specs}
    scales = {
        name: Scale(rank=rank, alpha=alpha, scaling=contents.config.adalora_scaling(rank))
        for name, rank in ranks.items()
    }
    most = max(ranks.values(), default=1)
    schedule = {"init_r": most, "target_r": most, "total_step": 1}
    made = _peft("AdaLoraConfig", **schedule, lora_alpha=alpha, init_lora_weights=False, **common)
    return Setup(config=made, scales=scales, ranks=ranks)


def _ia3(contents: AdapterContents, common: dict[str, Any]) -> Setup:
    fields = Fields(contents.config.extra)
    named = fields.names_or_pattern("feedforward_modules")
    _check_fields(contents, fields)
    pattern = FullPattern(named, Budget()) if isinstance(named, str) else None

    def scales_inputs(name: str) -> bool:
        try:
            return pattern.matches(name) if pattern else name.endswith(named or ())
        except PatternTooSlow:
            raise _too_slow(contents) from None

    feedforward = [name for name in contents.factors if scales_inputs(contents.adapters_name(name))]
    made = _peft("IA3Config", feedforward_modules=feedforward, init_ia3_weights=False, **common)
    return Setup(config=made, scales={}, ranks={})


def _lycoris(contents: AdapterContents, common: dict[str, Any]) -> Setup:
    fields = Fields(contents.config.extra)
    settings: dict[str, Any] = {"use_effective_conv2d": fields.flag("use_effective_conv2d")}
    kind = "LoHaConfig"
    if contents.config.peft_type == "LOKR":
        kind = "LoKrConfig"
        factor = fields.take("decompose_factor")
        settings |= {
            "decompose_both": fields.flag("decompose_both"),
            "decompose_factor": -1 if factor is None else factor,
        }
        if factor is not None and (type(factor) is not int or not -1 <= factor <= limits().rank):
            fields.wrong("decompose_factor", f"a whole number from -1 to {limits().rank}")
    _check_fields(contents, fields)
    scales = _scales(contents)
    usual, pattern = _ranks({name: scale.rank for name, scale in scales.items()})
    common = {key: value for key, value in common.items() if key != "fan_in_fan_out"}
    settings |= {"r": usual, "alpha": contents.config.lora_alpha, "rank_pattern": pattern, "init_weights": False}
    made = _peft(kind, **settings, **common)
    return Setup(config=made, scales=scales, ranks={})


def _vera(contents: AdapterContents, common: dict[str, Any]) -> Setup:
    fields = Fields(contents.config.extra)
    key = fields.take("projection_prng_key")
    if key is not None and (type(key) is not int or not 0 <= key < 1 << 63):
        fields.wrong("projection_prng_key", "a natural number")
    _check_fields(contents, fields)
    settings = {"projection_prng_key": key or 0, "save_projection": True, "init_weights": False}
    made = _peft("VeraConfig", r=contents.config.r or 256, **settings, **common)
    warnings: tuple[str, ...] = ()
    if not contents.shared:
        warnings = ("its file has no projections; they are generated from its random seed, as PEFT does",)
    return Setup(config=made, scales={}, ranks={}, warnings=warnings)


def _as_written(contents: AdapterContents, common: dict[str, Any]) -> Setup:
    warnings = ("some of its numbers are generated from its random seed, as PEFT does",)
    return Setup(
        config=lambda: config_as_written(contents, common),
        scales={},
        ranks={},
        warnings=warnings if needs_generating(contents) else (),
    )


_OWN: Final = {"LORA": _lora, "ADALORA": _adalora, "IA3": _ia3, "LOHA": _lycoris, "LOKR": _lycoris, "VERA": _vera}
MAKERS: Final[Mapping[str, Callable[[AdapterContents, dict[str, Any]], Setup]]] = MappingProxyType(
    {name: _OWN.get(name, _as_written) for name, method in METHODS.items() if method.factors}
)


# ---------------------------------------------------------------- settings that AdapterConfig does not parse
def _check_fields(contents: AdapterContents, fields: Fields) -> None:
    if fields.problems:
        raise MalformedConfig(str(contents.folder / CONFIG_FILE), "; ".join(fields.problems[:20]))


def _too_slow(contents: AdapterContents) -> MalformedConfig:
    return MalformedConfig(
        str(contents.folder / CONFIG_FILE),
        "its patterns take too long to match",
        code="E_REGEX",
        hint="list the module names instead",
    )


class Fitting:
    """Collects the tensors that do not fit, module by module; `label` names the adapter in errors."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._missing: list[tuple[str, str]] = []
        self._misshapen: list[str] = []
        self._hint = ""

    def matched(
        self, module: str, specs: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]]
    ) -> Mapping[str, TensorSpec]:
        """Return the tensors of `specs` that fit `shapes`, by PEFT's name for a slot (`lora_A.weight`).

        Notes the others.
        """
        if shapes == {key: spec.shape for key, spec in specs.items()}:
            return specs
        for key in sorted(shapes.keys() - specs.keys()):
            self._missing.append(("E_PAIR", f"`{shown(module)}` has no tensor `{shown(key)}`"))
        for key in sorted(specs.keys() - shapes.keys()):
            code, why = "E_PAIR", "has no place in the module"
            if key.startswith("lora_magnitude_vector"):
                code, why = "E_VARIANT", "is a DoRA magnitude, but the config does not use DoRA"
            self._missing.append((code, f"`{shown(specs[key].name)}` {why}"))
        fitting = {}
        for key in sorted(shapes.keys() & specs.keys()):
            shape, spec = shapes[key], specs[key]
            if shape == spec.shape:
                fitting[key] = spec
            else:
                here = f"`{shown(module or spec.name)}` needs {key} of shape {list(shape)}"
                self._misshapen.append(f"{here}, the adapter has {list(spec.shape)}")
                self._hint = self._hint or resize_hint(module, shape, spec.shape)
        return fitting

    def ensure_fit(self) -> None:
        """Raise unless everything fitted.

        Raises:
            BaseMismatch: tensors do not have the shapes of the base's modules.
            RefusedAdapter: tensors are missing, or have no slot in the layers.
        """
        label = shown(self.label)
        if self._misshapen:
            rest = len(self._misshapen) - LISTED
            listed = [*self._misshapen[:LISTED], *([f"and {rest} more"] if rest > 0 else [])]
            raise BaseMismatch(
                "\n".join([f"`{label}` does not fit the shapes of this model", *(f"  {line}" for line in listed)]),
                hint=self._hint,
            )
        if self._missing:
            raise RefusedAdapter(f"`{label}` does not fit its layers", limited(self._missing))


def check_replacements(contents: AdapterContents, base: BaseModel) -> None:
    """Raise unless the trained biases and rows of the adapter fit the base, and nothing else of it is on them.

    Raises:
        UnsupportedAdapter: the config does not announce a bias, or the adapter changes one module in two ways.
        BaseMismatch: the base lacks a module or rows, or has other shapes.
    """
    label = shown(contents.label)
    unclear = list(_in_two_ways(contents))
    if unclear:
        raise UnsupportedAdapter(f"`{label}` cannot be attached here", unclear[:LISTED])
    misfits = [*_bias_misfits(contents, base), *_row_misfits(contents, base)]
    if misfits:
        raise BaseMismatch("\n".join([f"`{label}` does not fit this model", *(f"  {m}" for m in misfits[:LISTED])]))


def replace_in(base: BaseModel, contents: AdapterContents) -> None:
    """Let the base use the adapter's biases and rows, after `check_replacements`."""
    for name, spec in contents.biases.items():
        module, _, key = name.rpartition(".")
        base.replace(module, key, contents.read(spec).to(_parameter(base, name)))
    for name, spec in contents.rows.items():
        weight = _parameter(base, f"{name}.weight")
        places = torch.tensor(contents.trained_rows(name), device=weight.device)
        changed = weight.detach().index_copy(0, places, contents.read(spec).to(weight))
        for each in (name, *_tied_to(name, contents, base)):
            base.replace(each, "weight", changed)


def _tied_to(name: str, contents: AdapterContents, base: BaseModel) -> list[str]:
    """Other modules with the weight of the input embedding `name`, such as a tied head: PEFT changes them as well."""
    embedding, weight = base.modules[name], base.modules[name].weight
    if name not in base.embeddings or not isinstance(embedding, nn.Embedding):
        return []
    return [
        other
        for other, module in base.modules.items()
        if module is not embedding and getattr(module, "weight", None) is weight and other not in contents.rows
    ]


def _in_two_ways(contents: AdapterContents) -> Iterator[str]:
    if contents.config.bias.endswith("_only"):
        for name in contents.biases:
            if name.rpartition(".")[0] not in contents.factors:
                yield f"`{shown(name)}` is a bias of a module that it does not target (bias {contents.config.bias})"
    for name in sorted(contents.rows.keys() & contents.factors.keys()):
        yield f"`{shown(name)}` has factors, and rows of it are replaced (trainable_token_indices)"


def _bias_misfits(contents: AdapterContents, base: BaseModel) -> Iterator[str]:
    for name, spec in contents.biases.items():
        here = tuple(_parameter(base, name).shape)
        if here != spec.shape:
            yield f"`{shown(name)}` has the shape {list(here)}, the adapter's {list(spec.shape)}"


def _row_misfits(contents: AdapterContents, base: BaseModel) -> Iterator[str]:
    for name, spec in contents.rows.items():
        rows = contents.trained_rows(name)
        weight = getattr(base.modules.get(name), "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.ndim != MATRIX_NDIM or not weight.is_floating_point():
            yield f"`{shown(name)}` is no embedding here, but the adapter replaces rows of it"
        elif spec.shape != (len(rows), weight.shape[1]) or len(set(rows)) != len(rows):
            wanted = [len(rows), weight.shape[1]]
            yield f"`{shown(name)}` needs rows of the shape {wanted}, the adapter has {list(spec.shape)}"
        elif max(rows, default=0) >= weight.shape[0]:
            yield f"`{shown(name)}` has {weight.shape[0]} rows, and the adapter replaces row {max(rows)}"


def _parameter(base: BaseModel, name: str) -> torch.Tensor:
    module, _, key = name.rpartition(".")
    parameter: torch.Tensor = getattr(base.modules[module], key)
    return parameter


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadyAdapter:
    """An adapter that was checked against the base and can be put on it; `name` is its name in PEFT."""

    name: str
    contents: AdapterContents
    setup: Setup
    weight: float


def peft_names(labels: Sequence[str]) -> list[str]:
    """Return a name per adapter that PEFT and torch accept: no dot, no `lora_`, no method name of a torch container."""
    names: list[str] = []
    for label in labels:
        stem = "adapter-" + (re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:64] or "0")
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def inject(base: BaseModel, adapters: Sequence[ReadyAdapter]) -> PeftModel:
    """Return the base with all `adapters` on it and active, as a `PeftModel`.

    The caller restores the base if this raises.

    Raises:
        UnsupportedAdapter: PEFT has no layer for a module, or none for these adapters together.
        BaseMismatch: tensors do not have the shapes of the base's modules.
        RefusedAdapter: tensors are missing, or have no slot in the layers.
    """
    # PEFT draws random numbers for layers that are filled right after; the user's generator must not advance.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), extension_where_possible():
        warnings.simplefilter("ignore")  # the causes of PEFT's warnings are checked here
        model = _build(base, adapters)
        for adapter in adapters:
            filling = _Filling(base, model, adapter)
            filling.run()
            replace_in(base, adapter.contents)
            if adapter.contents.config.alora_invocation_tokens is not None:
                layers = [filling.modules[name] for name in adapter.contents.factors]
                base.handles += activate(base.model, adapter.contents, layers)
        model.base_model.set_adapter([adapter.name for adapter in adapters])
        model.requires_grad_(requires_grad=False)
        _follow_modes(base, model)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise RefusedAdapter("the adapter is incomplete", [("E_PAIR", f"no tensor for `{shown(name)}`")])
    return model


def set_scales(modules: Mapping[str, Any], adapter: ReadyAdapter) -> None:
    """Set the scale of the adapter's update, times its weight, in each of its layers. Replaces an earlier weight."""
    for name, scale in adapter.setup.scales.items():
        layer = modules[name]
        divisor = float(layer.ranknum[adapter.name]) + ADALORA_MARGIN if hasattr(layer, "ranknum") else 1.0
        layer.scaling[adapter.name] = scale.scaling * divisor * adapter.weight
        alphas = layer.lora_alpha if hasattr(layer, "lora_alpha") else layer.alpha
        alphas[adapter.name] = scale.alpha


_PEFT_REFUSES: Final = (
    ValueError,
    TypeError,
    NotImplementedError,
    AttributeError,
    LookupError,
    RuntimeError,
    ImportError,
)
"""What PEFT raises for settings that it cannot build; some of its methods check little themselves."""


_WRITTEN_OUT: Final = (
    "these modules are quantised in a way that PEFT has no layers for: load the model with its numbers written out,"
    " as with `dequantize=True` in its quantisation config, or load its source"
)


def _build(base: BaseModel, adapters: Sequence[ReadyAdapter]) -> PeftModel:
    from peft import PeftModel

    model = None
    for adapter in adapters:
        try:
            # `PeftModel`, not the class for the task: that one changes the base (its generation hook, its head).
            if model is None:
                model = PeftModel(base.model, adapter.setup.config(), adapter.name, low_cpu_mem_usage=True)
            else:
                model.add_adapter(adapter.name, adapter.setup.config(), low_cpu_mem_usage=True)
        except _PEFT_REFUSES as error:
            raise UnsupportedAdapter(
                f"PEFT cannot attach `{shown(adapter.contents.label)}` to this model",
                [shown(str(error), 300)],
                hint=_WRITTEN_OUT if base.holds_codes(adapter.contents.factors) else "",
            ) from error
    assert model is not None  # there is an adapter
    return model


def _follow_modes(base: BaseModel, model: PeftModel) -> None:
    """Put each of PEFT's wrappers into the mode, training or evaluation, of the module that it wraps."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model.training = model.base_model.training = base.model.training
    for name, module in base.model.named_modules():
        original = base.modules.get(name)
        if original is None or original is module:
            continue
        if isinstance(module, BaseTunerLayer):
            module.train(original.training)
        else:
            module.training = original.training  # a copy keeps the modes inside it


class _Slot(NamedTuple):
    """A place for one tensor, a parameter or buffer of `holder`, with the shape, device and dtype that it takes.

    `below`: for indices, the sizes that those of each row stay below.
    """

    holder: Any
    key: str
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    below: tuple[int, ...] = ()


class _Filling:
    """Assigns one adapter's tensors to the layers that PEFT built for it."""

    def __init__(self, base: BaseModel, model: PeftModel, adapter: ReadyAdapter) -> None:
        self.base = base
        self.model = model
        self.adapter = adapter
        self.contents = adapter.contents
        self.tuner: nn.Module = model.base_model
        self.modules = dict(base.model.named_modules(remove_duplicate=False))
        self.fitting = Fitting(adapter.contents.label)
        self._first = next(base.model.parameters())

    def run(self) -> None:
        """Check everything, then assign."""
        self._ensure_same_layers()
        work = [*self._factors(), *self._saved(), *self._shared()]
        self.fitting.ensure_fit()
        for slot, spec in work:
            tensor = self.contents.read(spec)
            if slot.below and points_outside(tensor, slot.below):
                found = [("E_SHAPE", f"`{shown(spec.name)}` points outside of a weight of {list(slot.below)}")]
                raise RefusedAdapter(f"`{shown(self.contents.label)}` does not fit its layers", found)
            _assign(slot, tensor)
        set_scales(self.modules, self.adapter)

    def _ensure_same_layers(self) -> None:
        """Raise unless PEFT, which matches names by their end, wrapped exactly the modules that the file names."""
        from peft.utils import ModulesToSaveWrapper

        wrapped = {name for name, layer in self._layers() if self._slots(layer)}
        saved = {
            name
            for name, module in self.modules.items()
            if isinstance(module, ModulesToSaveWrapper) and self.adapter.name in module.modules_to_save
        }
        odd = (wrapped ^ set(self.contents.factors)) | (saved ^ set(self.contents.saved))
        if odd:
            raise UnsupportedAdapter(
                f"PEFT wraps other modules than those of `{shown(self.contents.label)}`",
                [f"`{shown(name)}`" for name in sorted(odd)[:LISTED]],
            )

    def _layers(self) -> Iterator[tuple[str, BaseTunerLayer]]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return ((name, module) for name, module in self.modules.items() if isinstance(module, BaseTunerLayer))

    def _factors(self) -> Iterator[tuple[_Slot, TensorSpec]]:
        for name, specs in self.contents.factors.items():
            layer: Any = self.modules[name]
            parameter = self.contents.parameters.get(name)
            holder = name if parameter is None else parameter.rpartition(".")[0]
            assert layer.get_base_layer() is self.base.modules[holder]  # the module of the base itself, not a copy
            # PEFT names a pair on a parameter by the depth of its wrapper, which must be the expected one.
            assert parameter is None or layer.parameter_name == parameter.rpartition(".")[2]
            self._resize(layer, name)
            yield from self._matched(name, specs, self._slots(layer))

    def _slots(self, layer: BaseTunerLayer) -> dict[str, _Slot]:
        """Return the adapter's places on one layer, by their names in files."""
        config = self.contents.config
        if config.peft_type in _OWN:
            return _own_slots(layer, self.adapter.name)
        base = next(layer.get_base_layer().parameters())
        places = places_in(layer, self.adapter.name, config.method.factors)
        return {
            name: _slot(holder, key, tensor, base)._replace(below=below) for name, holder, key, tensor, below in places
        }

    def _saved(self) -> Iterator[tuple[_Slot, TensorSpec]]:
        for name, specs in self.contents.saved.items():
            wrapper: Any = self.modules[name]
            copy: nn.Module = wrapper.modules_to_save[self.adapter.name]
            slots = {}
            for key, tensor in copy.state_dict(keep_vars=True).items():
                path, _, last = key.rpartition(".")
                slots[key] = _slot(copy.get_submodule(path), last, tensor)
            yield from self._matched(name, specs, slots)

    def _shared(self) -> Iterator[tuple[_Slot, TensorSpec]]:
        slots = {}
        for name in self.contents.shared:
            first, _, key = name.partition(".")
            holder: Any = getattr(self.tuner, first)[self.adapter.name] if key else getattr(self.tuner, first)
            key = key or self.adapter.name
            if key in holder:
                base = self._first if holder[key].is_meta else None
                slots[name] = _slot(holder, key, holder[key], base)
        yield from self._matched("", self.contents.shared, slots)

    def _resize(self, layer: BaseTunerLayer, name: str) -> None:
        """Give a layer the rank of its tensors, where PEFT's config has one rank for all layers (AdaLoRA)."""
        rank, adapter = self.adapter.setup.ranks.get(name), self.adapter.name
        if rank is None:
            return
        place = next(layer.get_base_layer().parameters()).device
        for container, axis in ((layer.lora_A, 0), (layer.lora_E, 0), (layer.lora_B, 1)):
            shape = list(container[adapter].shape)
            shape[axis] = rank
            container[adapter] = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
        layer.ranknum[adapter] = nn.Parameter(torch.tensor([float(rank)], device=place), requires_grad=False)
        layer.r[adapter] = rank

    def _matched(
        self, module: str, specs: Mapping[str, TensorSpec], slots: Mapping[str, _Slot]
    ) -> Iterator[tuple[_Slot, TensorSpec]]:
        """Every slot with its tensor; `fitting` notes those that do not match."""
        shapes = {key: slot.shape for key, slot in slots.items()}
        for key, spec in self.fitting.matched(module, specs, shapes).items():
            yield slots[key], spec


def _own_slots(layer: BaseTunerLayer, name: str) -> dict[str, _Slot]:
    """Return the parameters of adapter `name` on one layer, by their names in PEFT's files."""
    slots: dict[str, _Slot] = {}
    base = next(layer.get_base_layer().parameters())
    for attribute in dict.fromkeys((*layer.adapter_layer_names, "lora_magnitude_vector")):
        container = getattr(layer, attribute, None)
        if container is None or name not in container:
            continue
        item = container[name]
        if isinstance(item, nn.Module):
            for key, parameter in item.named_parameters():
                path, _, last = key.rpartition(".")
                slots[f"{attribute}.{key}"] = _slot(item.get_submodule(path), last, parameter, base)
        else:
            slots[attribute] = _slot(container, name, item, base)
    return slots


def _slot(holder: Any, key: str, now: Tensor, base: Tensor | None = None) -> _Slot:
    """Return the slot of the tensor `now`.

    With `base`, an empty slot takes the base's device, and float32 as in PEFT.
    """
    device, dtype = now.device, now.dtype
    if base is not None and not dtype.is_floating_point:
        device = base.device
    elif base is not None:
        device, dtype = base.device, torch.float64 if base.dtype == torch.float64 else torch.float32
    return _Slot(holder=holder, key=key, shape=tuple(now.shape), device=device, dtype=dtype)


def _assign(slot: _Slot, tensor: Tensor) -> None:
    """Put `tensor` into the slot; the tensor that was there is replaced, never written to."""
    kept = tensor.to(device=slot.device, dtype=slot.dtype)
    if not isinstance(slot.holder, nn.Module):
        slot.holder[slot.key] = kept  # a dictionary of plain tensors
    elif isinstance(slot.holder, nn.ParameterDict):
        slot.holder[slot.key] = nn.Parameter(kept, requires_grad=False)
    elif slot.key in slot.holder._parameters:  # noqa: SLF001 - no public way to ask
        setattr(slot.holder, slot.key, nn.Parameter(kept, requires_grad=False))
    else:
        slot.holder._buffers[slot.key] = kept  # noqa: SLF001 - keeps whether the buffer is saved

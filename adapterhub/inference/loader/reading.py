"""The tensors of an adapter, and their places in the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from adapterhub.core.disk.held_file import HeldFile
from adapterhub.core.errors import BaseMismatch, RefusedAdapter, UnsupportedAdapter, UsageProblem, shown
from adapterhub.distribution.finding import FoundAdapter
from adapterhub.formats.dialects import NAME_IT
from adapterhub.formats.dialects.experts import Stack, Stacks
from adapterhub.formats.dialects.per_expert import StackedParameter, stacked
from adapterhub.formats.diffusion.components import COMPONENTS, stated_component
from adapterhub.formats.naming.experts import ExpertPart
from adapterhub.formats.naming.finding import AMBIGUOUS_HINT, Shape, ambiguous_names, find_names
from adapterhub.formats.peft.config import AdapterConfig, ensure_attachable, owner, saved_name
from adapterhub.formats.peft.pairs import MATRIX_NDIM, PEFT_PREFIX, ROWS
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.loader.base import BaseModel, PipelineModules
from adapterhub.inference.loader.file_names import named
from adapterhub.trust.verify import Subject
from adapterhub.weights.dtypes import TENSOR_DTYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleNames:
    """One set of names for the modules of a base.

    `here` maps each name to the base's own. `parts` are the modules of single experts, which are stacked here. `note`
    describes how the names were changed, and `readings` the possible ways to change them, if more than one remains.
    """

    here: Mapping[str, str]
    there: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    parts: Mapping[str, ExpertPart] = field(default_factory=lambda: MappingProxyType({}))
    note: str = ""
    readings: tuple[str, ...] = ()

    def adapters_name(self, module: str) -> str:
        """Return the adapter's name for a module of the base."""
        return self.there.get(module, module)

    def has(self, modules: Iterable[str]) -> bool:
        """Return whether the base has all `modules` of an adapter under these names."""
        return all(module in self.here for module in modules)


def names_for(modules: Iterable[str] | Mapping[str, Shape | None], base: BaseModel, component: str = "") -> ModuleNames:
    """Return the names of `base` with which an adapter for `modules` was made; the base's own if it has all of them.

    A mapping gives the shapes of their updates, which tell parts of the model apart. With `component`, they are the
    names inside that component of a pipeline, and lead to it alone.
    """
    wanted = modules if isinstance(modules, Mapping) else dict.fromkeys(modules)
    names = find_names(wanted, named(base, component))
    front = f"{component}." if component else ""
    own = [name[len(front) :] for name in base.modules if name.startswith(front)]
    own = [name for name in own if names.reaches(name)]
    called = {name: names.there(name) for name in own}
    here = {called[name]: front + name for name in own}
    here |= {m: front + names.here(m) for m in wanted if names.here(m) != m}
    there = {name: there for there, name in here.items()} if component or not names.is_own else {}
    return ModuleNames(here=here, there=there, parts=names.parts, note=names.mapped(wanted), readings=names.readings)


LISTED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdapterContents:
    """An adapter's config, and the place of every tensor in its file.

    `factors`: by module of the base and factor (`lora_A.weight`). `saved`: by module that the adapter replaces whole
    and name inside it. `shared`: by name of a factor that all modules share. `copies`: tensors that repeat an embedding
    of the base, by its name; they are compared with it and never loaded. `biases`: trained biases of the base, by name.
    `rows`: trained rows of an embedding, by module. `parameters`: for a module in `factors` whose pair is not for the
    module's weight, the parameter of the base that it is for. All names are those of the base; `names` maps them to the
    adapter's own, to which the patterns of its config apply.
    """

    label: str
    folder: Path
    config: AdapterConfig
    header: TensorFile
    weights: HeldFile
    factors: Mapping[str, Mapping[str, TensorSpec]]
    saved: Mapping[str, Mapping[str, TensorSpec]]
    shared: Mapping[str, TensorSpec]
    copies: Mapping[str, TensorSpec]
    biases: Mapping[str, TensorSpec]
    rows: Mapping[str, TensorSpec]
    parameters: Mapping[str, str]
    names: ModuleNames
    warnings: tuple[str, ...] = ()

    @property
    def modules(self) -> list[str]:
        """The modules of the base that have factors, without those whose single parameters have them."""
        return sorted(self.factors.keys() - self.parameters.keys())

    @property
    def routers(self) -> list[str]:
        """The modules with factors that were linear layers when the adapter was made; PEFT has their weight instead."""
        return [name for name in self.parameters if not self.config.targets_parameter(self.adapters_name(name))]

    def trained_rows(self, module: str) -> tuple[int, ...]:
        """Return the numbers of the rows of the embedding `module` that `rows` replaces."""
        return self.config.trained_rows(self.names.adapters_name(module))

    def adapters_name(self, factor: str) -> str:
        """Return the adapter's name for the module or parameter that the pair `factor` is for."""
        parameter = self.parameters.get(factor)
        if parameter is None:
            return self.names.adapters_name(factor)
        module, _, key = parameter.rpartition(".")
        called = self.names.adapters_name(module)
        return f"{called}.{key}" if self.config.targets_parameter(f"{called}.{key}") else called

    def read(self, spec: TensorSpec) -> Tensor:
        """One tensor, in memory of its own, from the bytes that were checked.

        Raises:
            RefusedAdapter: torch does not have the dtype.
            DigestMismatch: the file has changed since it was checked.
        """
        dtype = TENSOR_DTYPES.get(spec.dtype)
        if dtype is None:
            found = ("E_DTYPE", f"`{shown(spec.name)}` is stored as {shown(spec.dtype)}")
            raise RefusedAdapter(f"`{shown(self.label)}` cannot be read", [found])
        room = torch.empty(spec.size_bytes, dtype=torch.uint8)
        self.weights.read_into(room.numpy().data, spec.start)
        return room.view(dtype).reshape(spec.shape)


def limited(findings: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the first findings; a hostile file can have sixty thousand."""
    rest = len(findings) - LISTED
    return findings if rest <= 0 else [*findings[:LISTED], (findings[-1][0], f"and {rest} more")]


_WRAPPED: Final = ".base_layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """`names`: the base's parameter by the module (and depth) under which the file has its pair.

    `missing` and `unclear` describe for people which pairs the file lacks, and which targets are ambiguous.
    """

    names: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)


def holder_of(module: str) -> str:
    """Return the module that a wrapper of parameters wraps: `experts` for `experts.base_layer`."""
    while module.endswith(_WRAPPED):
        module = module.removesuffix(_WRAPPED)
    return module


def parameters_in(factors: Collection[str], config: AdapterConfig, base: BaseModel, names: ModuleNames) -> Parameters:
    """Return the parameter of the base for each of the adapter's pairs on parameters."""
    found = Parameters()
    seen: set[int] = set()
    for name in factors if config.is_lora else ():
        if _is_router(base.modules.get(name)) and not config.targets_parameter(f"{names.adapters_name(name)}.weight"):
            found.names[name] = f"{name}.weight"
    for name, module in base.modules.items() if config.target_parameters else ():
        called = names.adapters_name(name)
        own = [key for key, _ in module.named_parameters(recurse=False) if config.targets_parameter(f"{called}.{key}")]
        if not own or id(module) in seen:
            continue
        seen.add(id(module))
        if config.targets(called):
            found.unclear.append(f"`{shown(name)}` is a target itself, and so is its parameter `{own[0]}`")
        for depth, key in enumerate(reversed(own)):
            place = name + ".base_layer" * depth
            found.names[place] = f"{name}.{key}"
            if place not in factors:
                found.missing.append(
                    f"`{shown(name)}`: the config targets its parameter `{shown(key)}`, but the file has no factors"
                    " for it"
                )
    return found


def _is_router(module: nn.Module | None) -> bool:
    """Whether a module of transformers 5 is the router of a mixture, which was a linear layer in transformers 4."""
    if not type(module).__module__.startswith("transformers.models.") or not type(module).__name__.endswith(_ROUTERS):
        return False
    return isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.ndim == MATRIX_NDIM


_ROUTERS: Final = ("Router", "Gate", "TopKGating")


def _for_stacks(subject: Subject, label: str, base: BaseModel, names: ModuleNames) -> Subject:
    """Return the adapter with the dialect of its expert pairs judged by the model, and pairs on single experts joined.

    Raises:
        RefusedAdapter: the dialect stays open.
        UnsupportedAdapter: pairs on single experts have no form on the stacked ones of the model.
    """
    subject = subject.on(_stacks(subject.config, base, names))
    if subject.inner is not None and subject.inner.unclear:
        found = [("E_DIALECT", f"it {subject.inner.problem}")]
        raise RefusedAdapter(f"`{shown(label)}` has no one meaning", found, hint=NAME_IT)
    if not names.parts:
        return subject
    targets = {part.parameter for part in names.parts.values()}

    def parameter(name: str) -> StackedParameter:
        holder, _, key = name.rpartition(".")
        called, module = names.adapters_name(holder), base.modules[holder]
        own = (k for k, _ in module.named_parameters(recurse=False))
        is_target = subject.config.targets_parameter
        keys = [k for k in own if f"{holder}.{k}" in targets or is_target(f"{called}.{k}")]
        return StackedParameter(
            name=f"{called}.{key}",
            experts=len(getattr(module, key)),
            depth=keys[::-1].index(key),
            is_transposed=bool(getattr(module, "is_transposed", False)),
        )

    return subject.remade(stacked(subject.form, names.parts, parameter))


def _stacks(config: AdapterConfig, base: BaseModel, names: ModuleNames) -> Stacks:
    """Return the stacked parameter of the model that each pair is on."""
    places = parameters_in((), config, base, names).names

    def stacks(module: str) -> list[Stack]:
        holder = holder_of(module)
        parameter = places.get(names.here.get(holder, holder) + module[len(holder) :])
        if parameter is None:
            return []
        owner_name, _, key = parameter.rpartition(".")
        found = base.modules[owner_name]
        shape = tuple(getattr(found, key).shape)
        return [Stack(shape, bool(getattr(found, "is_transposed", False)))] if len(shape) > MATRIX_NDIM else []

    return stacks


def ensure_complete(contents: AdapterContents, base: BaseModel, parameters: Parameters) -> None:
    """Raise unless the base has all modules of the adapter and the adapter has tensors for all targets of its config.

    Raises:
        BaseMismatch: the base lacks modules of the adapter.
        UnsupportedAdapter: torch reads a layer without calling it, or a module is a target in two ways.
        RefusedAdapter: the file lacks tensors that the config promises.
    """
    label = shown(contents.label)
    if not contents.factors:
        raise RefusedAdapter(
            f"`{label}` has no effect", [("E_PAIR", f"its file contains no {contents.config.peft_type} factors")]
        )
    modules = contents.modules
    attention = [name for name in modules if isinstance(base.modules.get(owner(name)), nn.MultiheadAttention)]
    if attention:
        raise UnsupportedAdapter(
            f"`{label}` cannot be attached without changing the base",
            [
                f"`{shown(n)}` is torch's MultiheadAttention; PEFT adds the update to its weights on each call"
                for n in attention[:LISTED]
            ],
        )
    unknown = [name for name in modules if name not in base.modules or not name]
    if unknown:
        listed = ", ".join(f"`{shown(name)}`" for name in unknown[:3])
        count = f"{len(unknown)} of {len(contents.factors)} modules of `{label}` are"
        raise BaseMismatch(f"{count} not in this model, such as {listed}", hint=_OTHER_MODEL)
    if parameters.unclear:
        raise UnsupportedAdapter(f"`{label}` cannot be attached here", parameters.unclear[:LISTED])
    missing = (*_missing_saved(contents, base), *_missing_targets(contents, base), *parameters.missing)
    findings = [("E_PAIR", reason) for reason in missing]
    if findings:
        raise RefusedAdapter(f"`{label}` lacks tensors that its config promises", limited(findings))


_OTHER_MODEL: Final = (
    "it was made for another model, or for module names of another library version; attach it to that model"
)


def _missing_saved(contents: AdapterContents, base: BaseModel) -> Iterable[str]:
    """Modules that the config replaces whole and that the file lacks."""
    if not contents.config.modules_to_save:
        return
    reachable = set(contents.names.here.values())
    for name, module in base.modules.items():
        if not name or name not in reachable or _is_in(contents.saved, name) or not _is_replaced(name, contents):
            continue
        if next(module.parameters(), None) is not None:
            yield f"`{shown(name)}`: the config replaces it whole (modules_to_save), but the file has no tensor of it"


def _is_replaced(name: str, contents: AdapterContents) -> bool:
    """Return whether PEFT would replace this module; it compares the end of the adapter's name for the module.

    A module that contained it for the adapter may not exist here. Replacing that one means replacing its parts.
    """
    names, ends = contents.names, contents.config.modules_to_save
    called = names.adapters_name(name)
    if called.endswith(ends):
        return True
    parts = called.split(".")
    holders = (".".join(parts[:count]) for count in range(1, len(parts)))
    return bool(names.note) and any(h.endswith(ends) and h not in names.here for h in holders)


def _missing_targets(contents: AdapterContents, base: BaseModel) -> Iterable[str]:
    """Modules that the config targets and that the file lacks, although it has others with the same last name.

    `verify` warns about a last name that the file has nowhere: in that case the config is wrong, not the file.
    """
    config = contents.config
    if config.targets_all:
        return
    modules = [*contents.modules, *contents.routers]
    last_names = {name.rpartition(".")[2] for name in modules}
    kinds = {type(base.modules[name]) for name in modules}
    covered = {id(base.modules[name]) for name in modules}  # a shared module has several names
    reachable = set(contents.names.here.values())  # not the other components of a pipeline
    for name, module in base.modules.items():
        if (
            id(module) in covered
            or type(module) not in kinds
            or name.rpartition(".")[2] not in last_names
            or name not in reachable
        ):
            continue
        if config.targets(contents.names.adapters_name(name)) and not _is_in(contents.saved, name):
            yield f"`{shown(name)}`: the config targets it, but the file has no factors for it"


def _is_in(saved: Iterable[str], name: str) -> bool:
    """Return whether the module is in `saved`, or inside a module that is."""
    return any(f"{name}.".startswith(f"{module}.") for module in saved)


def read_contents(subject: Subject, label: str, base: BaseModel, component: str = "") -> AdapterContents:
    """Return the contents of an open PEFT folder, with every tensor placed in `base`; `label` names it in errors.

    `component`: the part of a pipeline whose own names the adapter has.

    Raises:
        UnsupportedAdapter: its method or a setting of it can never be attached here.
        RefusedAdapter: tensors have no place; lists each of them.
        BaseMismatch: the base lacks modules of the adapter.
    """
    config, header = subject.config, subject.weights
    ensure_attachable(config, label)
    plain = _plain_factors(subject)
    shapes = {pair.module: pair.update for pair in subject.keys.pairs}
    modules = modules_in(header, config) if plain is None else {holder_of(module) for module in plain}
    names = names_for({module: shapes.get(module) for module in modules}, base, component)
    if names.readings:
        raise BaseMismatch(f"`{shown(label)}`: {ambiguous_names(names.readings)}", hint=AMBIGUOUS_HINT)
    if subject.inner is not None or names.parts:
        subject = _for_stacks(subject, label, base, names)
        config, header, plain = subject.config, subject.weights, _plain_factors(subject)
    sorter = _Sorter(config, base, names)
    if plain is None:
        for spec in header.tensors:
            sorter.place(spec)
    else:
        sorter.take(plain)
    parameters = parameters_in(sorter.factors, config, base, names)
    contents = AdapterContents(
        label=label,
        folder=subject.folder,
        config=config,
        header=header,
        weights=subject.held,
        factors=MappingProxyType(sorter.factors),
        saved=MappingProxyType(sorter.saved),
        shared=MappingProxyType(sorter.shared),
        copies=MappingProxyType(sorter.copies),
        biases=MappingProxyType(sorter.biases),
        rows=MappingProxyType(sorter.rows),
        parameters=MappingProxyType(parameters.names),
        names=names,
        warnings=sorter.warnings(),
    )
    if sorter.findings:
        raise RefusedAdapter(f"`{shown(label)}` contains tensors that must not reach a model", limited(sorter.findings))
    ensure_complete(contents, base, parameters)
    return contents


def _plain_factors(subject: Subject) -> dict[str, dict[str, TensorSpec]] | None:
    """Return the factors by the file's modules, where a LoRA has nothing else, as most do; None if it may."""
    config, keys = subject.config, subject.keys
    if not config.is_lora or config.saved_modules or any(variant.marks for variant in config.variants.values()):
        return None
    if keys.saved or keys.biases or keys.tokens or keys.copies or keys.others:
        return None
    factors: dict[str, dict[str, TensorSpec]] = {}
    for module, kind, a, b, magnitude, bias, _ in keys.pairs:
        if kind != "linear" or a is None or b is None or ".modules_to_save" in module:
            return None
        factors[module] = found = {"lora_A.weight": a, "lora_B.weight": b}
        if magnitude is not None:
            found["lora_magnitude_vector.weight"] = magnitude
        if bias is not None:
            found["lora_B.bias"] = bias
    return factors


def _factor_pattern(config: AdapterConfig) -> re.Pattern[str]:
    names = "|".join(config.method.factors)
    part = r"\.weight|\.bias" if config.is_lora else r"(?:\.[^.]+)+"  # a factor may be a module with parts of its own
    return re.compile(rf"(?P<module>.+)\.(?P<factor>{names})(?P<part>{part})?")


def modules_in(header: TensorFile, config: AdapterConfig) -> set[str]:
    """Return the modules that the file has factors for, by the file's names."""
    pattern = _factor_pattern(config)
    found = (pattern.fullmatch(saved_name(spec.name.removeprefix(PEFT_PREFIX))) for spec in header.tensors)
    return {holder_of(match["module"]) for match in found if match is not None}


def _is_of_original(name: str, config: AdapterConfig) -> bool:
    """Whether it is the bias of a module that the adapter replaces whole, which PEFT saves with all other biases."""
    return config.bias != "none" and name.endswith(".original_module.bias")


class _Sorter:
    """Places tensors one by one, and collects those that have no place."""

    def __init__(self, config: AdapterConfig, base: BaseModel, names: ModuleNames) -> None:
        self.config = config
        self.base = base
        self.names = names
        self.factors: dict[str, dict[str, TensorSpec]] = {}
        self.saved: dict[str, dict[str, TensorSpec]] = {}
        self.shared: dict[str, TensorSpec] = {}
        self.copies: dict[str, TensorSpec] = {}
        self.biases: dict[str, TensorSpec] = {}
        self.rows: dict[str, TensorSpec] = {}
        self.findings: list[tuple[str, str]] = []
        self._embeddings = base.embeddings
        self._savable = config.saved_modules
        self._factor = _factor_pattern(config)

    def take(self, factors: Mapping[str, dict[str, TensorSpec]]) -> None:
        """Find the places of the factors of a plain LoRA."""
        for module, specs in factors.items():
            self.factors.setdefault(self._here(module), {}).update(specs)

    def place(self, spec: TensorSpec) -> None:
        """Find the place of one tensor."""
        shared = spec.name.removeprefix("base_model.")
        if spec.name != shared and shared.partition(".")[0] in self.config.method.shared:
            self.shared[shared] = spec
            return
        if self.config.is_of_variant(spec.name) or _is_of_original(spec.name, self.config):
            return
        name = saved_name(spec.name.removeprefix(PEFT_PREFIX))
        if not spec.name.startswith(PEFT_PREFIX):
            self._refuse("E_UNSUPPORTED", spec, f"expected a name that begins with `{PEFT_PREFIX}`, as in PEFT's files")
            return
        saved = self._saved_module(name)
        match = self._factor.fullmatch(name)
        if match is not None and saved is not None:
            self._refuse("E_UNSUPPORTED", spec, f"`{shown(saved)}` is replaced whole, and has factors too")
        elif match is not None:
            part = match["part"] or (".weight" if match["factor"] == "lora_magnitude_vector" else "")
            self.factors.setdefault(self._here(match["module"]), {})[match["factor"] + part] = spec
        elif name.endswith(ROWS) and self.config.trainable_token_indices is not None:
            self.rows[self._here(name.removesuffix(ROWS))] = spec
        elif saved is not None:
            module = self._here(saved)
            self.saved.setdefault(module, {})[self._tensor(name).removeprefix(module + ".")] = spec
        else:
            self._place_copy(name, spec)

    def warnings(self) -> tuple[str, ...]:
        """Unusual but harmless parts of the file and its config."""
        found = [
            f"its file contains a copy of the base's `{name}`, which is not loaded" for name in sorted(self.copies)
        ]
        if self.names.note:
            found.append(f"its {self.names.note}")
        if self.config.bias != "none" and not self.biases:
            found.append(f"its config trains biases of the base (bias {self.config.bias}), but its file contains none")
        return tuple(found)

    @cached_property
    def _bases(self) -> set[str]:
        return {tensor.name for tensor in self.base.tensors()}

    def _place_copy(self, name: str, spec: TensorSpec) -> None:
        plain = self._tensor(name.replace(".token_adapter.base_layer.", ".").replace(".base_layer.", "."))
        if plain in self._bases and name.endswith(".bias") and self.config.bias != "none":
            self.biases[plain] = spec
        elif plain.rpartition(".")[0] in self._embeddings and plain in self._bases:
            self.copies[plain] = spec
        elif plain in self._bases:
            self._refuse("E_BASE_WEIGHT", spec, "it would overwrite a weight of the base")
        else:
            self._refuse(
                "E_UNSUPPORTED", spec, f"it is neither a {self.config.peft_type} factor nor part of a saved module"
            )

    def _saved_module(self, name: str) -> str | None:
        """Return the module with the tensor `name` that is replaced whole.

        Its name is matched by its end, as PEFT does.

        That module may not exist here (`intermediate`, in a model whose `intermediate.dense` is `mlp.fc1`); then it is
        the tensor's own module.
        """
        if not self._savable:
            return None
        parts = name.split(".")
        paths = [".".join(parts[:count]) for count in range(1, len(parts))]
        saved = [path for path in paths if path.endswith(self._savable)]
        found = next((path for path in saved if path in self.names.here), None)
        if found is None and saved and self.names.note and paths[-1] in self.names.here:
            return paths[-1]
        return found

    def _here(self, module: str) -> str:
        """Return the base's name for a module of the adapter; an unknown name is returned unchanged."""
        holder = holder_of(module)
        return self.names.here.get(holder, holder) + module[len(holder) :]

    def _tensor(self, name: str) -> str:
        """Return the base's name for a tensor of the adapter."""
        holder, _, last = name.rpartition(".")
        return f"{self._here(holder)}.{last}"

    def _refuse(self, code: str, spec: TensorSpec, reason: str) -> None:
        self.findings.append((code, f"`{shown(spec.name)}`: {reason}"))


def component_for(found: FoundAdapter, files: Subject, base: BaseModel, fits: Callable[[str], bool]) -> str:
    """Return the component whose own names the adapter uses.

    "" when its names begin with components, or `base` is one model.

    An adapter that fits several components goes to the one that its manifest names as its origin, or to the one whose
    weights it was made for (`fits`).

    Raises:
        BaseMismatch: the pipeline lacks a component that the adapter changes.
        UsageProblem: several components fit alike.
    """
    if not isinstance(base.model, PipelineModules):
        return ""
    names, modules = base.model.names, modules_in(files.weights, files.config)
    fronts = {module.partition(".")[0] for module in modules}
    if fronts <= set(COMPONENTS):
        absent = sorted(fronts - set(names), key=COMPONENTS.index)
        if absent:
            listed = ", ".join(f"`{name}`" for name in absent)
            what = f"`{shown(found.label, 200)}` changes {listed}, which this pipeline does not have in memory"
            raise BaseMismatch(what, hint=f"load the pipeline with it; this one has {', '.join(names)}")
        return ""
    having = [name for name in names if names_for(modules, base, name).has(modules)]
    stated = stated_component(found.manifest.annotations) if found.manifest else ""
    if stated in having:
        return stated
    if len(having) > 1:
        having = [name for name in having if fits(name)] or having
    if len(having) > 1:
        listed = " and ".join(f"`{name}`" for name in having)
        raise UsageProblem(
            f"`{shown(found.label, 200)}` fits {listed} of this pipeline alike",
            hint=f"attach it to one: attach(pipeline.{having[0]}, …), or add it with `--base NAME/{having[0]}`",
        )
    return having[0] if having else next(iter(names))

"""Finds the place in the base of every tensor in an adapter's file: an allow-list of names.

Only factors of the adapter's own method have a place, and modules that its config replaces whole. Any other name
refuses the adapter: no file can reach a weight of the base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

from adapterhub.core.errors import RefusedAdapter, shown
from adapterhub.formats.peft.config import AdapterConfig, ensure_attachable, saved_name
from adapterhub.formats.peft.pairs import PEFT_PREFIX, ROWS
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.reading.contents import AdapterContents, limited
from adapterhub.inference.loader.reading.lacking import ensure_complete
from adapterhub.inference.loader.reading.naming import ModuleNames, names_for
from adapterhub.inference.loader.reading.parameters import holder_of, parameters_in
from adapterhub.trust.verify import Subject


def read_contents(subject: Subject, label: str, base: BaseModel, component: str = "") -> AdapterContents:
    """The contents of an open PEFT folder, with every tensor placed in `base`; `label` names it in errors.

    `component`: the part of a pipeline whose own names the adapter has.

    Raises:
        UnsupportedAdapter: its method or a setting of it can never be attached here.
        RefusedAdapter: tensors have no place; lists each of them.
        BaseMismatch: the base lacks modules of the adapter.
    """
    config, header = subject.config, subject.weights
    ensure_attachable(config, label)
    plain = _plain_factors(subject)
    modules = modules_in(header, config) if plain is None else {holder_of(module) for module in plain}
    names = names_for(modules, base, component)
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
    """The factors by the file's modules, where a LoRA has nothing else, as most do; None where it may."""
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
    return re.compile(rf"(?P<module>.+)\.(?P<factor>{names})(?P<part>\.weight|\.bias)?")


def modules_in(header: TensorFile, config: AdapterConfig) -> set[str]:
    """The modules that the file has factors for, by the file's names."""
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
        if shared in self.config.method.shared:
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
        if self.names.other is not None:
            called = sorted(self.names.adapters_name(holder_of(name)) for name in self.factors)
            found.append(f"its {self.names.other.note(called)}")
        if self.config.bias != "none" and not self.biases:
            found.append(f"its config trains biases of the base (bias {self.config.bias}), but its file contains none")
        return tuple(found)

    @cached_property
    def _bases(self) -> set[str]:
        return {tensor.name for tensor in self.base.tensors()}

    def _place_copy(self, name: str, spec: TensorSpec) -> None:
        plain = self._tensor(name.replace(".base_layer.", "."))
        if plain.rpartition(".")[0] in self._embeddings and plain in self._bases:
            self.copies[plain] = spec
        elif plain in self._bases and name.endswith(".bias") and self.config.bias != "none":
            self.biases[plain] = spec
        elif plain in self._bases:
            self._refuse("E_BASE_WEIGHT", spec, "it would overwrite a weight of the base")
        else:
            self._refuse(
                "E_UNSUPPORTED", spec, f"it is neither a {self.config.peft_type} factor nor part of a saved module"
            )

    def _saved_module(self, name: str) -> str | None:
        """The module with the tensor `name` that is replaced whole. Its name is matched by its end, as PEFT does.

        That module may not exist here (`intermediate`, in a model whose `intermediate.dense` is `mlp.fc1`); then it is
        the tensor's own module.
        """
        if not self._savable:
            return None
        parts = name.split(".")
        paths = [".".join(parts[:count]) for count in range(1, len(parts))]
        saved = [path for path in paths if path.endswith(self._savable)]
        found = next((path for path in saved if path in self.names.here), None)
        if found is None and saved and self.names.other is not None and paths[-1] in self.names.here:
            return paths[-1]
        return found

    def _here(self, module: str) -> str:
        """The base's name for a module of the adapter; an unknown name is returned unchanged."""
        holder = holder_of(module)
        return self.names.here.get(holder, holder) + module[len(holder) :]

    def _tensor(self, name: str) -> str:
        """The base's name for a tensor of the adapter."""
        holder, _, last = name.rpartition(".")
        return f"{self._here(holder)}.{last}"

    def _refuse(self, code: str, spec: TensorSpec, reason: str) -> None:
        self.findings.append((code, f"`{shown(spec.name)}`: {reason}"))

"""Every tensor of an adapter's file gets its place in the base, or refuses the adapter: an allow-list of names.

Only factors of the adapter's own method, and modules that its config says it replaces whole, have a place here. A name
that leads anywhere else refuses the adapter: no file reaches a weight of the base.
"""

from __future__ import annotations

import re
from types import MappingProxyType

from adapterhub.core.errors import RefusedAdapter, UnsupportedAdapter, shown
from adapterhub.formats.peft.config import AdapterConfig, saved_name
from adapterhub.formats.peft.methods import METHODS
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.reading.contents import AdapterContents, limited
from adapterhub.inference.loader.reading.lacking import ensure_complete
from adapterhub.inference.loader.reading.naming import ModuleNames, names_for
from adapterhub.inference.loader.reading.parameters import holder_of, parameters_in
from adapterhub.trust.verify import Subject
from adapterhub.weights.lowrank.layouts import PEFT_PREFIX


def read_contents(subject: Subject, label: str, base: BaseModel) -> AdapterContents:
    """The contents of a PEFT folder that was opened, every tensor placed in `base`; `label` names it in errors.

    Raises:
        UnsupportedAdapter: a method that cannot be attached here.
        RefusedAdapter: tensors that have no place; every one is listed.
        BaseMismatch: the base lacks modules that the adapter is for.
    """
    config, header = subject.config, subject.weights
    if not config.method.factors:
        raise UnsupportedAdapter(
            f"`{shown(label)}` is of type {config.peft_type}, which cannot be attached here",
            hint=f"{', '.join(name for name, method in METHODS.items() if method.factors)} can",
        )
    names = names_for(_modules_in(header, config), base)
    sorter = _Sorter(config, base, names)
    for spec in header.tensors:
        sorter.place(spec)
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
        parameters=MappingProxyType(parameters.names),
        names=names,
        warnings=sorter.warnings(),
    )
    if sorter.findings:
        raise RefusedAdapter(f"`{shown(label)}` holds tensors that must not reach a model", limited(sorter.findings))
    ensure_complete(contents, base, parameters)
    return contents


def _factor_pattern(config: AdapterConfig) -> re.Pattern[str]:
    names = "|".join(config.method.factors)
    return re.compile(rf"(?P<module>.+)\.(?P<factor>{names})(?P<part>\.weight|\.bias)?")


def _modules_in(header: TensorFile, config: AdapterConfig) -> set[str]:
    """The modules that the file has factors for, as it calls them."""
    pattern = _factor_pattern(config)
    found = (pattern.fullmatch(saved_name(spec.name.removeprefix(PEFT_PREFIX))) for spec in header.tensors)
    return {holder_of(match["module"]) for match in found if match is not None}


class _Sorter:
    """Places tensors one by one and gathers what has no place."""

    def __init__(self, config: AdapterConfig, base: BaseModel, names: ModuleNames) -> None:
        self.config = config
        self.base = base
        self.names = names
        self.factors: dict[str, dict[str, TensorSpec]] = {}
        self.saved: dict[str, dict[str, TensorSpec]] = {}
        self.shared: dict[str, TensorSpec] = {}
        self.copies: dict[str, TensorSpec] = {}
        self.findings: list[tuple[str, str]] = []
        self._bases = {tensor.name for tensor in base.tensors()}
        self._embeddings = base.embeddings
        self._savable = config.saved_modules
        self._factor = _factor_pattern(config)

    def place(self, spec: TensorSpec) -> None:
        """Find the place of one tensor."""
        shared = spec.name.removeprefix("base_model.")
        if shared in self.config.method.shared:
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
            self.factors.setdefault(self._here(match["module"]), {})[match["factor"] + part] = spec
        elif saved is not None:
            module = self._here(saved)
            self.saved.setdefault(module, {})[self._tensor(name).removeprefix(module + ".")] = spec
        else:
            self._place_copy(name, spec)

    def warnings(self) -> tuple[str, ...]:
        """What is odd but harmless."""
        found = [
            f"its file repeats {what} of the base; it is not loaded" for what in sorted(f"`{n}`" for n in self.copies)
        ]
        if self.names.other is not None:
            called = sorted(self.names.adapters_name(holder_of(name)) for name in self.factors)
            found.append(f"its {self.names.other.note(called)}")
        if self.config.bias != "none":
            found.append(f"its config trains biases of the base (bias {self.config.bias}), but its file has none")
        return tuple(found)

    def _place_copy(self, name: str, spec: TensorSpec) -> None:
        plain = self._tensor(name.replace(".base_layer.", "."))
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
        """The module that is replaced whole and holds `name`, matched by its end, as PEFT does.

        What held it may be no module here (`intermediate`, in a model whose `intermediate.dense` is `mlp.fc1`); then it
        is the module that the tensor belongs to.
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
        """The base's name for a module of the adapter; a name that it does not have stays as it is."""
        holder = holder_of(module)
        return self.names.here.get(holder, holder) + module[len(holder) :]

    def _tensor(self, name: str) -> str:
        """The base's name for a tensor of the adapter."""
        holder, _, last = name.rpartition(".")
        return f"{self._here(holder)}.{last}"

    def _refuse(self, code: str, spec: TensorSpec, reason: str) -> None:
        self.findings.append((code, f"`{shown(spec.name)}`: {reason}"))

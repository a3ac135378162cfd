"""Checks that every slot of an adapter's layers has a tensor of its shape, and that every tensor has a slot."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub.core.errors import BaseMismatch, RefusedAdapter, shown
from adapterhub.formats.base.vocabulary import resize_hint
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.loader.reading.contents import LISTED, limited


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
        """The tensors of `specs` that fit `shapes`, by PEFT's name for a slot (`lora_A.weight`). Notes the others."""
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

"""Whether every place of an adapter's layers has a tensor of its shape, and every tensor a place."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub.core.errors import BaseMismatch, RefusedAdapter, shown
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.loader.reading.contents import LISTED, limited


class Fitting:
    """Gathers what does not fit, module by module; `label` names the adapter in errors."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._missing: list[tuple[str, str]] = []
        self._misshapen: list[str] = []

    def matched(
        self, module: str, specs: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, TensorSpec]:
        """The tensors of `specs` that fit `shapes`, by what PEFT calls a place (`lora_A.weight`); others are noted."""
        for key in shapes.keys() - specs.keys():
            self._missing.append(("E_PAIR", f"`{shown(module)}` has no tensor `{shown(key)}`"))
        for key in specs.keys() - shapes.keys():
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
                here = f"`{shown(module or spec.name)}` takes {key} of shape {list(shape)}"
                self._misshapen.append(f"{here}, the adapter has {list(spec.shape)}")
        return fitting

    def ensure_fit(self) -> None:
        """Raise if anything did not fit.

        Raises:
            BaseMismatch: tensors that do not have the shape of the base's modules.
            RefusedAdapter: tensors that are missing, or have no place in the layers.
        """
        label = shown(self.label)
        if self._misshapen:
            rest = len(self._misshapen) - LISTED
            listed = [*self._misshapen[:LISTED], *([f"and {rest} more"] if rest > 0 else [])]
            raise BaseMismatch(
                "\n".join([f"`{label}` does not have the shapes of this model", *(f"  {line}" for line in listed)])
            )
        if self._missing:
            raise RefusedAdapter(f"`{label}` does not fit the layers it is for", limited(self._missing))

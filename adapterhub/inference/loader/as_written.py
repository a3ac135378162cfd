"""Methods that PEFT builds from their own settings: every factor has a place in the layers that it makes.

Nothing here knows what a method computes. The settings are those of the file, with the modules in full, and the places
of a layer are what the row of the method calls its factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from torch import Tensor, nn

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.settings import excess, undetermined
from adapterhub.inference.loader.reading import AdapterContents

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

_OURS: Final = frozenset(
    {
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "trainable_token_indices",
        "bias",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "task_type",
    }
)
"""Settings that the reader decides: the tensors name the modules that have factors, and biases have places apart."""


_SEEDED: Final = frozenset({"FOURIERFT", "WAVEFT"})
"""Methods whose files never say which entries of a transformed weight they train."""


class Place(NamedTuple):
    """A tensor that a layer has for an adapter, at `key` of `holder`; `name` is what files call it.

    `below`: for whole numbers, which point into the layer's weight, its sizes (flat for one row of numbers).
    """

    name: str
    holder: Any
    key: str
    tensor: Tensor
    below: tuple[int, ...] = ()


def needs_generating(contents: AdapterContents) -> bool:
    """Return whether PEFT makes a part of the adapter from a random seed, as its file does not hold it."""
    method = contents.config.method
    lacks_shared = bool(method.shared) and not contents.shared
    lacks_own = contents.config.peft_type == "TINYLORA" and not any(
        "tinylora_P" in f for f in contents.factors.values()
    )
    return contents.config.peft_type in _SEEDED or lacks_shared or lacks_own


def config_as_written(contents: AdapterContents, common: Mapping[str, Any]) -> Any:
    """PEFT's config with the settings of the file.

    Raises:
        UnsupportedAdapter: names in its patterns are not those of the model, or a part of it is in no file.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(contents.config.peft_type)]
    known = {field.name for field in fields(kind)}
    settings = {key: value for key, value in _settings(contents.config).items() if key in known and key not in _OURS}
    if reason := undetermined(settings) or _excess(settings, contents):
        raise UnsupportedAdapter(f"`{shown(contents.label)}` cannot be attached here", [reason])
    patterns = [key for key, value in settings.items() if key.endswith("_pattern") and value]
    if patterns and contents.names.note:
        what = f"its {patterns[0]} speaks of modules that have other names in this model"
        raise UnsupportedAdapter(f"`{shown(contents.label)}` cannot be attached here", [what])
    return kind(**{key: value for key, value in common.items() if key in known} | settings)


def _excess(settings: Mapping[str, Any], contents: AdapterContents) -> str:
    """Return the setting that asks for more room or work than the file's own tensors explain."""
    if reason := excess(settings, [spec.shape for spec in contents.header.tensors]):
        return reason
    bank = contents.shared.get("vblora_vector_bank")
    if "num_vectors" in settings and (bank is None or bank.shape[:1] != (settings["num_vectors"],)):
        return "its bank of vectors (`vblora_vector_bank`) does not have as many as `num_vectors` says"
    return ""


def _settings(config: AdapterConfig) -> dict[str, Any]:
    named = {"rank_pattern": dict(config.rank_pattern), "alpha_pattern": dict(config.alpha_pattern)}
    own = {"r": config.r, "fan_in_fan_out": config.fan_in_fan_out} | named
    return {key: value for key, value in own.items() if value} | dict(config.extra)


def places_in(layer: BaseTunerLayer, adapter: str, factors: tuple[str, ...]) -> Iterator[Place]:
    """Yield the tensors that `layer` has for `adapter`, of those that files hold."""
    for attribute in factors:
        container: Any = getattr(layer, attribute, None)
        if container is None or adapter not in container or not getattr(container, "persistent", True):
            continue
        item = container[adapter]
        if isinstance(item, Tensor):
            weight = layer.get_base_layer().weight
            sizes = tuple(weight.shape) if item.ndim > 1 else (weight.numel(),)
            yield Place(attribute, container, adapter, item, () if item.is_floating_point() else sizes)
            continue
        for key, tensor in item.state_dict(keep_vars=True).items():
            path, _, last = key.rpartition(".")
            holder: nn.Module = item.get_submodule(path)
            yield Place(f"{attribute}.{key}", holder, last, tensor)


def points_outside(indices: Tensor, sizes: tuple[int, ...]) -> bool:
    """Return whether indices, a row for each of the sizes, are negative or not below them."""
    rows = indices.reshape(len(sizes), -1)
    return any(bool(((row < 0) | (row >= size)).any()) for row, size in zip(rows, sizes, strict=True))

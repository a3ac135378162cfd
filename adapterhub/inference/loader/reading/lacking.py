"""Checks that the base has every module of an adapter, and the adapter every tensor that its config promises."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from adapterhub.core.errors import BaseMismatch, RefusedAdapter, UnsupportedAdapter, shown
from adapterhub.formats.modules.key_maps import other_names
from adapterhub.formats.peft.config import owner
from adapterhub.inference.loader.base.model import BaseModel, model_types
from adapterhub.inference.loader.reading.contents import LISTED, AdapterContents, limited
from adapterhub.inference.loader.reading.parameters import Parameters


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
        lines = [f"{count} not in this model, such as {listed}", *_half_mapped(contents)]
        raise BaseMismatch("\n".join(lines), hint=_naming_hint(unknown[0], base))
    if parameters.unclear:
        raise UnsupportedAdapter(f"`{label}` cannot be attached here", parameters.unclear[:LISTED])
    missing = (*_missing_saved(contents, base), *_missing_targets(contents, base), *parameters.missing)
    findings = [("E_PAIR", reason) for reason in missing]
    if findings:
        raise RefusedAdapter(f"`{label}` lacks tensors that its config promises", limited(findings))


def _half_mapped(contents: AdapterContents) -> Iterable[str]:
    """A line about the key map that finds some of the modules. An adapter is never mapped in part."""
    nearest = contents.names.nearest
    if nearest is not None:
        lacking = sorted(name for name in contents.factors if name not in nearest.here)
        listed = ", ".join(f"`{shown(name)}`" for name in lacking[:3])
        yield (
            f"  key map {' and '.join(nearest.key_maps)} ({nearest.release} to {nearest.own}) finds"
            f" {len(contents.factors) - len(lacking)} of them, but not {listed}"
        )


def _naming_hint(module: str, base: BaseModel) -> str:
    """A likely reason why the base has no module of that name."""
    known = {name: name for name in base.modules}
    for other in other_names(base.modules, model_types(base)):
        known = dict(other.here) | known
    ends = [
        here
        for name, here in known.items()
        if "." in name and (f".{name}".endswith(f".{module}") or f".{module}".endswith(f".{name}"))
    ]
    if ends:
        return (
            f"this model has `{shown(ends[0])}`: the adapter was made for the same layers inside another class"
            " (with or without a head)"
        )
    return "it was made for another model, or for module names of another library version; attach it to that model"


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
    """Whether PEFT would replace this module; it compares the end of the adapter's name for the module.

    A module that contained it for the adapter may not exist here. Replacing that one means replacing its parts.
    """
    names, ends = contents.names, contents.config.modules_to_save
    called = names.adapters_name(name)
    if called.endswith(ends):
        return True
    parts = called.split(".")
    holders = (".".join(parts[:count]) for count in range(1, len(parts)))
    return names.other is not None and any(h.endswith(ends) and h not in names.here for h in holders)


def _missing_targets(contents: AdapterContents, base: BaseModel) -> Iterable[str]:
    """Modules that the config targets and that the file lacks, although it has others with the same last name.

    `verify` warns of a last name that the file has nowhere: in that case the config is wrong, not the file.
    """
    config = contents.config
    if config.targets_all:
        return
    modules = contents.modules
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
    """Whether the module is in `saved`, or inside a module that is."""
    return any(f"{name}.".startswith(f"{module}.") for module in saved)

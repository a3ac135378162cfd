"""Whether the base has every module that an adapter is for, and the adapter every tensor that its config promises."""

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
    """Refuse an adapter whose modules the base lacks, or that lacks modules its config is for.

    Raises:
        BaseMismatch: the base lacks modules that the adapter is for.
        UnsupportedAdapter: layers that torch reads without calling them, or parameters that cannot be told apart.
        RefusedAdapter: the file lacks tensors that the config promises.
    """
    label = shown(contents.label)
    if not contents.factors:
        raise RefusedAdapter(
            f"`{label}` does nothing", [("E_PAIR", f"its file holds no factor of {contents.config.peft_type}")]
        )
    attention = [name for name in contents.modules if isinstance(base.modules.get(owner(name)), nn.MultiheadAttention)]
    if attention:
        raise UnsupportedAdapter(
            f"`{label}` cannot be attached without writing to the base",
            [
                f"`{shown(n)}` is torch's MultiheadAttention, to whose weights PEFT adds the update for each call"
                for n in attention[:LISTED]
            ],
        )
    unknown = [name for name in contents.modules if name not in base.modules or not name]
    if unknown:
        listed = ", ".join(f"`{shown(name)}`" for name in unknown[:3])
        count = f"{len(unknown)} of {len(contents.factors)} modules that `{label}` is for are"
        lines = [f"{count} not in this model, such as {listed}", *_half_mapped(contents)]
        raise BaseMismatch("\n".join(lines), hint=_naming_hint(unknown[0], base))
    if parameters.unclear:
        raise UnsupportedAdapter(f"`{label}` cannot be attached here", parameters.unclear[:LISTED])
    missing = (*_missing_saved(contents, base), *_missing_targets(contents, base), *parameters.missing)
    findings = [("E_PAIR", reason) for reason in missing]
    if findings:
        raise RefusedAdapter(f"`{label}` lacks tensors that its config promises", limited(findings))


def _half_mapped(contents: AdapterContents) -> Iterable[str]:
    """A line on the key map that would find some of the modules: an adapter is never mapped in part."""
    nearest = contents.names.nearest
    if nearest is not None:
        lacking = sorted(name for name in contents.factors if name not in nearest.here)
        listed = ", ".join(f"`{shown(name)}`" for name in lacking[:3])
        yield (
            f"  key map {' and '.join(nearest.key_maps)} ({nearest.release} to {nearest.own}) finds"
            f" {len(contents.factors) - len(lacking)} of them, but not {listed}"
        )


def _naming_hint(module: str, base: BaseModel) -> str:
    """Why a module may not be found under its name."""
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
    return "it was made for another model, or for names of another version of its library; attach it to that base"


def _missing_saved(contents: AdapterContents, base: BaseModel) -> Iterable[str]:
    """Modules that the config replaces whole and that the file does not hold."""
    for name, module in base.modules.items():
        if not name or _is_in(contents.saved, name) or not _is_replaced(name, contents):
            continue
        if next(module.parameters(), None) is not None:
            yield f"`{shown(name)}`: the config replaces it whole (modules_to_save), the file has no tensor of it"


def _is_replaced(name: str, contents: AdapterContents) -> bool:
    """Whether PEFT would replace this module, which it tells by the end of the name that the adapter has for it.

    What held the module for the adapter may be no module here, and is replaced then by replacing what it held.
    """
    names, ends = contents.names, contents.config.modules_to_save
    called = names.adapters_name(name)
    if not ends or called.endswith(ends):
        return bool(ends)
    parts = called.split(".")
    holders = (".".join(parts[:count]) for count in range(1, len(parts)))
    return names.other is not None and any(h.endswith(ends) and h not in names.here for h in holders)


def _missing_targets(contents: AdapterContents, base: BaseModel) -> Iterable[str]:
    """Modules that the config targets and that the file skips, although it has others of the same last name.

    A name that the file has nowhere is left to `verify`, which warns of it: there the config, not the file, is odd.
    """
    config = contents.config
    if config.targets_all:
        return
    last_names = {name.rpartition(".")[2] for name in contents.modules}
    kinds = {type(base.modules[name]) for name in contents.modules}
    covered = {id(base.modules[name]) for name in contents.modules}  # a shared module has several names
    for name, module in base.modules.items():
        if id(module) in covered or type(module) not in kinds or name.rpartition(".")[2] not in last_names:
            continue
        if config.targets(contents.names.adapters_name(name)) and not _is_in(contents.saved, name):
            yield f"`{shown(name)}`: the config targets it, the file has no factors for it"


def _is_in(saved: Iterable[str], name: str) -> bool:
    """Whether the module is one of `saved`, or inside of one."""
    return any(f"{name}.".startswith(f"{module}.") for module in saved)

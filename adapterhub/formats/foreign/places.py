"""Where a foreign name leads: the modules of diffusers' component that have its rows, looked up and never guessed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Final

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.foreign.conversion import width_of
from adapterhub.formats.foreign.reading import Cut, FactorSource, Module, Rows
from adapterhub.formats.foreign.tables import SDXL, UNETS, Target, clip_modules, flux_modules
from adapterhub.formats.foreign.writing import ForeignOutput, Read, joined

Targets = tuple[Target, ...]
_HINT_BASE: Final = "name the base with `--base`: its own modules then say where each tensor belongs"


def flat(name: str) -> str:
    """A module's name as kohya writes it."""
    return name.replace(".", "_")


def _alone(names: Iterable[str]) -> Mapping[str, Targets]:
    return {name: (Target(name=name),) for name in names}


@cache
def families() -> Mapping[str, tuple[str, Mapping[str, Targets]]]:
    """The spellings of denoisers: the component and, by each original name, the modules of diffusers."""
    found: dict[str, tuple[str, Mapping[str, Targets]]] = {}
    for unet in UNETS:
        found[unet.key] = ("unet", _alone(unet.ldm))
        found[f"{unet.key}-ldm"] = ("unet", {old: (Target(name=new),) for new, old in unet.ldm.items()})
    found["flux-bfl"] = ("transformer", flux_modules())
    own = {target.name for targets in flux_modules().values() for target in targets}
    found["flux"] = ("transformer", _alone(own))
    return MappingProxyType(found)


@cache
def _flattened(key: str) -> Mapping[str, Targets]:
    return MappingProxyType({flat(name): targets for name, targets in families()[key][1].items()})


@cache
def flat_clip() -> Mapping[str, Targets]:
    """The modules of CLIP by their flattened names."""
    return MappingProxyType({flat(name): (Target(name=name),) for name in clip_modules()})


def denoiser(source: FactorSource, names: list[str], *, is_flat: bool) -> tuple[str, str, Mapping[str, Targets]]:
    """The family of a denoiser's names, its component, and where each leads: the base's own names first, then tables.

    Raises:
        MalformedTensorFile: E_NAME where no family has all of them, with those that lead nowhere; E_CONFLICT where two
            modules of the base flatten to one name.
    """
    wanted = set(names)
    own = _of_base(source, wanted, is_flat=is_flat)
    if own is not None:
        return own
    missing: dict[str, list[str]] = {}
    for key, (part, known) in families().items():
        table = _flattened(key) if is_flat else known
        missing[key] = sorted(wanted - table.keys())
        if not missing[key]:
            return key, part, table
    for unet in UNETS:  # one module under two names, or a file put together of two
        lacking = set(missing[unet.key]) & set(missing[f"{unet.key}-ldm"])
        if not lacking:
            one, other = missing[f"{unet.key}-ldm"][0], missing[unet.key][0]
            text = f"has diffusers' names (`{shown(one)}`) and those of checkpoints (`{shown(other)}`) side by side"
            source.refuse("E_CONFLICT", text, "one module may have two updates; only the trainer knows which counts")
    key = min(missing, key=lambda k: len(missing[k]))
    few = ", ".join(f"`{shown(name)}`" for name in missing[key][:20])
    program = "kohya" if is_flat else "ComfyUI"
    of = f"{len(missing[key])} of {len(wanted)} module names in the spelling of {program} lead nowhere in {key}"
    return source.refuse("E_NAME", f"{of}: {few}", _HINT_BASE)


def _of_base(source: FactorSource, wanted: set[str], *, is_flat: bool) -> tuple[str, str, Mapping[str, Targets]] | None:
    """The base's own names, if it has every one."""
    table: dict[str, Targets] = {}
    parts: set[str] = set()
    for full in source.base:
        part, _, rest = full.partition(".")
        part, name = (part, rest) if part in ("unet", "transformer") else ("", full)
        key = flat(name) if is_flat else name
        if key in wanted:
            if key in table:
                source.refuse("E_CONFLICT", f"`{shown(key)}` is the flattened name of two modules of the base")
            table[key] = (Target(name=name),)
            parts.add(part)
    if wanted - table.keys() or not wanted:
        return None
    part = parts.pop() if len(parts) == 1 else ""
    is_transformer = any(
        name.startswith(("transformer_blocks", "single_transformer_blocks", "blocks")) for name in source.base
    )
    return "base", part or ("transformer" if is_transformer else "unet"), table


def placed(source: FactorSource, module: Module, targets: Targets, label: str) -> list[Module]:
    """The module at each of its targets: A unchanged, B and what goes with outputs cut by rows.

    Raises:
        MalformedTensorFile: E_SHAPE where its rows are not those of the targets.
    """
    if len(targets) == 1 and targets[0].rows(2, 1) is None:
        return [module if module.name == targets[0].name else replace(module, name=targets[0].name)]
    b = module.slots.get("lora_B.weight")
    if b is None:
        source.refuse("E_UNSUPPORTED", f"`{shown(label)}` is fused, and only a plain LoRA can be taken apart by rows")
    out, width = b.source.shape[0], module.slots["lora_A.weight"].shape[1]
    found = []
    for target in targets:
        rows = target.rows(out, width)
        if rows == ():
            source.refuse("E_SHAPE", f"`{shown(label)}` has {out} rows for {width} inputs, which fit no parts of it")
        slots = {end: cut if end == "lora_A.weight" else _rows_of(cut, rows) for end, cut in module.slots.items()}
        weight = source.shape_of(module.part, target.name)
        if weight is not None and weight[0] != slots["lora_B.weight"].shape[0]:
            given = slots["lora_B.weight"].shape[0]
            source.refuse("E_SHAPE", f"`{shown(label)}` gives {given} rows to `{target.name}`, which has {weight[0]}")
        found.append(replace(module, name=target.name, slots=slots))
    return found


def _rows_of(cut: Cut, rows: Rows | None) -> Cut:
    if rows is None:
        return cut
    count = sum(stop - start for start, stop in rows)
    return replace(cut, rows=rows, shape=tuple(count if n == cut.source.shape[0] else n for n in cut.shape))


DENOISERS: Final = ("unet", "transformer")
_MLP: Final = 4
_FACTORS: Final = ("lora_A", "lora_B.weight", "hada_", "lokr_")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModule:
    """A module under the other program's name; `grew`: its rank is the sum of its parts'.

    `tensors`: what to write, still without names, by the end of PEFT's name.
    """

    name: str
    module: Module
    tensors: Mapping[str, ForeignOutput]
    grew: bool = False

    @property
    def dtype(self) -> str:
        """The dtype of its last factor, which an alpha beside it has, too."""
        return [output.dtype for end, output in self.tensors.items() if end.startswith(_FACTORS)][-1]

    @classmethod
    def alone(cls, name: str, module: Module) -> NamedModule:
        """The module with its own tensors."""
        return cls(
            name=name, module=module, tensors={end: ForeignOutput.of("", cut) for end, cut in module.slots.items()}
        )


def family_of(modules: Sequence[Module], stated: object = None) -> str:
    """The spelling to write: the one that the original had, else that of the family which has every module."""
    names = {module.name for module in modules}
    if isinstance(stated, str) and stated:
        return stated
    if any(name.startswith(("transformer_blocks.", "single_transformer_blocks.")) for name in names):
        return "flux-bfl" if names <= _of_flux() else "own"
    fitting = [unet for unet in UNETS if names <= unet.ldm.keys()]
    if not fitting:
        return "own"
    widths = {width_of(m) for m in modules if m.name.endswith(("attn2.to_k", "attn2.to_v"))}
    is_xl = fitting == [SDXL] or (SDXL in fitting and widths and widths <= set(SDXL.context))
    return "sdxl-ldm" if is_xl else "sd1"


def _of_flux() -> set[str]:
    return {target.name for targets in flux_modules().values() for target in targets}


def named(modules: Sequence[Module], family: str, read: Read) -> Iterator[NamedModule]:
    """The modules of a denoiser under the names of `family`.

    Raises:
        UnsupportedAdapter: a module that the family has no name for, or parts that cannot be joined.
    """
    if family == "flux-bfl":
        yield from _fused({module.name: module for module in modules}, read)
        return
    unet = next((unet for unet in UNETS if family == f"{unet.key}-ldm"), None)
    for module in modules:
        name = module.name if unet is None else unet.ldm.get(module.name)
        if name is None:
            message = f"`{shown(module.name)}` has no name in {family}; nothing was written"
            raise UnsupportedAdapter(message)
        yield NamedModule.alone(name, module)


def _fused(modules: dict[str, Module], read: Read) -> Iterator[NamedModule]:
    left = dict(modules)
    for name, targets in flux_modules().items():
        parts = [left.pop(target.name, None) for target in targets]
        there = [part for part in parts if part is not None]
        if not there:
            continue
        if len(targets) == 1:
            yield NamedModule.alone(name, _swapped(there[0]) if name.endswith("adaLN_modulation.1") else there[0])
            continue
        if "lora_A.weight" not in there[0].slots:
            message = f"`{shown(there[0].name)}` is a part of `{name}` there, and only plain LoRA can be joined"
            raise UnsupportedAdapter(f"{message}; nothing was written")
        width = there[0].slots["lora_A.weight"].shape[1]
        usual = [width, width, width, _MLP * width][: len(targets)]
        outs = [part.slots["lora_B.weight"].shape[0] if part else out for part, out in zip(parts, usual, strict=True)]
        down, up, module, grew = joined(parts, outs, read, name)
        yield NamedModule(name=name, module=module, tensors={"lora_A.weight": down, "lora_B.weight": up}, grew=grew)
    if left:
        first = next(iter(left))
        raise UnsupportedAdapter(f"`{shown(first)}` has no name in Flux's checkpoint; nothing was written")


def _swapped(module: Module) -> Module:
    """The halves of the rows in the original's order."""
    slots: dict[str, Cut] = {}
    for slot, cut in module.slots.items():
        out = cut.shape[0]
        rows = ((out // 2, out), (0, out // 2))
        slots[slot] = cut if slot == "lora_A.weight" else replace(cut, rows=rows)
    return replace(module, slots=slots)

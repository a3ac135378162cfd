"""The modules of an adapter in the names that another program has for its denoiser, joined where that program fuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.foreign.products import width_of
from adapterhub.formats.foreign.reading import Cut, Module
from adapterhub.formats.foreign.tables.flux import flux_modules
from adapterhub.formats.foreign.tables.unet import SDXL, UNETS
from adapterhub.formats.foreign.writing import Output, Read, joined

DENOISERS: Final = ("unet", "transformer")
_MLP: Final = 4
_FACTORS: Final = ("lora_A", "lora_B.weight", "hada_", "lokr_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A module under the other program's name; `grew`: its rank is the sum of its parts'.

    `tensors`: what to write, still without names, by the end of PEFT's name.
    """

    name: str
    module: Module
    tensors: Mapping[str, Output]
    grew: bool = False

    @property
    def dtype(self) -> str:
        """The dtype of its last factor, which an alpha beside it has, too."""
        return [output.dtype for end, output in self.tensors.items() if end.startswith(_FACTORS)][-1]

    @classmethod
    def alone(cls, name: str, module: Module) -> Named:
        """The module with its own tensors."""
        return cls(name=name, module=module, tensors={end: Output.of("", cut) for end, cut in module.slots.items()})


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


def named(modules: Sequence[Module], family: str, read: Read) -> Iterator[Named]:
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
        yield Named.alone(name, module)


def _fused(modules: dict[str, Module], read: Read) -> Iterator[Named]:
    left = dict(modules)
    for name, targets in flux_modules().items():
        parts = [left.pop(target.name, None) for target in targets]
        there = [part for part in parts if part is not None]
        if not there:
            continue
        if len(targets) == 1:
            yield Named.alone(name, _swapped(there[0]) if name.endswith("adaLN_modulation.1") else there[0])
            continue
        if "lora_A.weight" not in there[0].slots:
            message = f"`{shown(there[0].name)}` is a part of `{name}` there, and only plain LoRA can be joined"
            raise UnsupportedAdapter(f"{message}; nothing was written")
        width = there[0].slots["lora_A.weight"].shape[1]
        usual = [width, width, width, _MLP * width][: len(targets)]
        outs = [part.slots["lora_B.weight"].shape[0] if part else out for part, out in zip(parts, usual, strict=True)]
        down, up, module, grew = joined(parts, outs, read, name)
        yield Named(name=name, module=module, tensors={"lora_A.weight": down, "lora_B.weight": up}, grew=grew)
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

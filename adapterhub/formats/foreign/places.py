"""Maps foreign names to the modules of diffusers' component that have their rows, looked up and never guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Final, NoReturn

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.foreign.conversion import width_of
from adapterhub.formats.foreign.families import (
    Family,
    Target,
    Targets,
    all_families,
    all_rows,
    family_named,
    family_of_class,
    having,
    likeliest,
    same,
    swapped,
    swapped_pair,
    titles,
)
from adapterhub.formats.foreign.reading import MATRIX, Cut, FactorSource, Module, Reading, Rows
from adapterhub.formats.foreign.tables import SDXL, UNETS, clip_modules
from adapterhub.formats.foreign.writing import ForeignOutput, Read, joined
from adapterhub.formats.safetensors.header import TensorSpec

_HINT_BASE: Final = "name the base with `--base`: its own modules then say where each tensor belongs"
_ORIGINAL: Final = "-original"
_PAIR: Final = ("down", "up")
_MOST_NAMED: Final = 20


def flat(name: str) -> str:
    """Return a module's name as kohya writes it."""
    return name.replace(".", "_")


@cache
def _unet_tables(*, is_flat: bool) -> Mapping[str, tuple[str, Mapping[str, Targets]]]:
    """Return the spellings of UNets: by each name in the file, the module of diffusers.

    And how messages call the family.
    """
    found: dict[str, tuple[str, Mapping[str, Targets]]] = {}
    for unet in UNETS:
        found[unet.key] = (unet.title, same(*unet.ldm))
        found[f"{unet.key}-ldm"] = (unet.title, {old: (Target(name=new),) for new, old in unet.ldm.items()})
    if is_flat:
        found = {key: (title, {flat(n): t for n, t in table.items()}) for key, (title, table) in found.items()}
    return MappingProxyType(found)


@cache
def flat_clip() -> Mapping[str, Targets]:
    """Return the modules of CLIP by their flattened names."""
    return MappingProxyType({flat(name): (Target(name=name),) for name in clip_modules()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """Maps each name of a denoiser to its targets. `families` are the keys of all transformers that may have them."""

    key: str
    part: str
    table: Mapping[str, Targets]
    families: tuple[str, ...] = ()


NO_DENOISER: Final = Spelling(key="", part="", table=MappingProxyType({}))


def denoiser(source: FactorSource, groups: Mapping[str, Mapping[str, TensorSpec]], *, is_flat: bool) -> Spelling:
    """Return the spelling of a denoiser's names: the base's own names first, then tables.

    `groups` has the tensors of each module by what they are.

    Raises:
        MalformedTensorFile: E_NAME where no family has all of them, with those that lead nowhere, or where families
            that differ have them; E_CONFLICT where two modules of the base flatten to one name.
    """
    wanted = set(groups)
    own = _of_base(source, wanted, is_flat=is_flat)
    if own is not None:
        return own
    missing: dict[str, list[str]] = {}
    for key, (title, known) in _unet_tables(is_flat=is_flat).items():
        lacking = sorted(wanted - known.keys())
        if not lacking:
            return Spelling(key=key, part="unet", table=known)
        missing[key] = lacking
        missing[title] = min(missing.get(title, lacking), lacking, key=len)
    for unet in UNETS:  # one module under two names, or a file put together of two
        one, other = missing.pop(f"{unet.key}-ldm"), missing.pop(unet.key)
        if not set(one) & set(other):
            text = (
                f"has diffusers' names (`{shown(one[0])}`) and those of checkpoints (`{shown(other[0])}`) side by side"
            )
            source.refuse("E_CONFLICT", text, "one module may have two updates; only the trainer knows which counts")
    fitting: list[tuple[Family, str, Mapping[str, Targets]]] = []
    for family in all_families():
        for is_own in (False, True):
            known = family.table(groups, is_own=is_own, is_flat=is_flat)
            lacking = sorted(wanted - known.keys())
            missing[family.title] = min(missing.get(family.title, lacking), lacking, key=len)
            if not lacking:
                fitting.append((family, family.key if is_own else family.key + _ORIGINAL, known))
                break
    if not fitting:
        _refuse_names(source, missing, len(wanted), "kohya" if is_flat else "ComfyUI")
    left = _of_one_meaning(source, fitting, groups, is_flat=is_flat)
    families = tuple(family.key for family, _, _ in left)
    return Spelling(key=left[0][1], part="transformer", table=left[0][2], families=families)


def _of_one_meaning(
    source: FactorSource,
    fitting: Sequence[tuple[Family, str, Mapping[str, Targets]]],
    groups: Mapping[str, Mapping[str, TensorSpec]],
    *,
    is_flat: bool,
) -> list[tuple[Family, str, Mapping[str, Targets]]]:
    """Those of the families that have every name which lead it to the same modules.

    If they lead to different modules, the base's modules decide, and without a base the sizes of the factors.
    """
    left = list(fitting)
    if any(table != left[0][2] for _, _, table in left):
        left = [one for one in left if _fits(source, one[0], one[2], groups, is_flat=is_flat)]
    if not left or any(table != left[0][2] for _, _, table in left):
        several = titles([family for family, _, _ in left or fitting])
        text = f"its names are those of {several}, which have different modules of these names"
        source.refuse("E_NAME", text, _HINT_BASE)
    return left


def _fits(
    source: FactorSource,
    family: Family,
    table: Mapping[str, Targets],
    groups: Mapping[str, Mapping[str, TensorSpec]],
    *,
    is_flat: bool,
) -> bool:
    """Whether the base has every module that the family's table leads to, or the factors have the family's sizes."""
    if source.base:
        return all(source.shape_of("transformer", t.name) is not None for targets in table.values() for t in targets)
    pairs = [(name, specs["down"].shape, specs["up"].shape) for name, specs in groups.items() if {*_PAIR} <= {*specs}]
    sizes = [(name, up[0], down[1]) for name, down, up in pairs if min(len(down), len(up)) >= MATRIX]
    return all(family.fits(name, out, width, is_flat=is_flat) for name, out, width in sizes)


def _refuse_names(source: FactorSource, missing: Mapping[str, list[str]], count: int, program: str) -> NoReturn:
    """Raise for names that no family has, with those that are missing in the nearest one."""
    title = min(missing, key=lambda one: len(missing[one]))
    few = ", ".join(f"`{shown(name)}`" for name in missing[title][:_MOST_NAMED])
    where = f"in {title}" if len(missing[title]) < count else f"in any of {', '.join(sorted(missing))}"
    of = f"{len(missing[title])} of {count} module names in the spelling of {program} lead nowhere {where}"
    source.refuse("E_NAME", f"{of}: {few}", _HINT_BASE)


def _of_base(source: FactorSource, wanted: set[str], *, is_flat: bool) -> Spelling | None:
    """Return the base's own names, if it has every one."""
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
    is_transformer = bool(having(targets[0].name for targets in table.values()))
    return Spelling(key="base", part=part or ("transformer" if is_transformer else "unet"), table=table)


def placed(source: FactorSource, module: Module, targets: Targets, label: str) -> list[Module]:
    """Return the module at each of its targets: A unchanged, B and what goes with outputs cut by rows.

    Raises:
        MalformedTensorFile: E_SHAPE where its rows are not those of the targets.
    """
    if len(targets) == 1 and targets[0].rows is all_rows:
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


def clip_name(name: str) -> str:
    """Return the name of a CLIP encoder's module as files have it.

    In transformers 5, one class is without `text_model`.
    """
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


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
        """The dtype of its last factor, which is also that of an alpha beside it."""
        return [output.dtype for end, output in self.tensors.items() if end.startswith(_FACTORS)][-1]

    @classmethod
    def alone(cls, name: str, module: Module) -> NamedModule:
        """Return the module with its own tensors."""
        return cls(
            name=name, module=module, tensors={end: ForeignOutput.of("", cut) for end, cut in module.slots.items()}
        )


def family_of(reading: Reading, modules: Sequence[Module], stated: object, *, is_flat: bool) -> str:
    """Return the spelling to write: that of the original, or of the family that the base or all names show.

    Raises:
        UnsupportedAdapter: the modules are of no family that has a table, or of several with different names.
    """
    names = sorted({module.name for module in modules})
    if not names or (isinstance(stated, str) and stated):
        return stated if isinstance(stated, str) else ""
    parts = sorted({module.part for module in modules})
    if len(parts) > 1:
        raise _unwritten(
            f"it is on {' and '.join(f'`{part}`' for part in parts)}, and their modules have the same names"
        )
    if parts == ["unet"]:
        return _unet_family(modules, names, is_flat=is_flat)
    known = family_of_class(reading.class_name)
    if reading.class_name and known is None:
        raise _unwritten(f"`{shown(reading.class_name)}` has no table of names", _HINT_DIFFUSERS)
    families = [known] if known is not None else having(names)
    if known is None:
        families = likeliest(families, names, map(width_of, modules), reading.architecture)
    written = {tuple(family.written(name) for name in names): family for family in families}
    if len({tuple(map(flat, map(str, found))) if is_flat else found for found in written}) > 1:
        text = f"`{shown(names[0])}` and the others may be of {titles(families)}, whose names differ there"
        raise _unwritten(text, "name the base with `--base`, or add the adapter with one")
    found, family = next(iter(written.items()), ((None,), None))
    if family is None or None in found:
        lacking = next((n for n, other in zip(names, found, strict=False) if other is None), names[0])
        where = f"in {family.title}" if family is not None else "in any family of models that has a table"
        raise _unwritten(f"`{shown(lacking)}` has no name {where}", _HINT_DIFFUSERS)
    return family.key if family.keeps_names else family.key + _ORIGINAL


_HINT_DIFFUSERS: Final = "`--format diffusers` writes the names of diffusers, whatever the model"


def _unwritten(reason: str, hint: str = "") -> UnsupportedAdapter:
    return UnsupportedAdapter(f"{reason}; nothing was written", hint=hint)


def _unet_family(modules: Sequence[Module], names: Sequence[str], *, is_flat: bool) -> str:
    """Return the UNet that has every module. Flattened names of diffusers are read for any UNet, others for none."""
    fitting = [unet for unet in UNETS if unet.ldm.keys() >= set(names)]
    if not fitting and not is_flat:
        raise _unwritten(
            f"`{shown(names[0])}` and the others are not all in one UNet that has a table", _HINT_DIFFUSERS
        )
    widths = {width_of(m) for m in modules if m.name.endswith(("attn2.to_k", "attn2.to_v"))}
    is_xl = fitting == [SDXL] or (SDXL in fitting and widths and widths <= set(SDXL.context))
    return "sdxl-ldm" if is_xl else "sd1" if fitting else "own"


def is_fused(modules: Sequence[Module], spelling: str) -> bool:
    """Return whether the spelling has one name for several modules, so that only plain LoRA can be written in it."""
    family = _original_family(spelling)
    return family is not None and any(len(family.targets(family.original(m.name) or "")) > 1 for m in modules)


def says_down(spelling: str) -> bool:
    """Return whether files of ComfyUI in that spelling say `lora_down` and `lora_up`."""
    family = _original_family(spelling)
    return family is not None and family.says_down


def own_spelling(spelling: str) -> str:
    """Return the same family in the names of diffusers."""
    family = _original_family(spelling)
    return family.key if family is not None else spelling


def _original_family(spelling: str) -> Family | None:
    key, dash, _ = spelling.partition("-")
    return family_named(key) if dash else None


def named(modules: Sequence[Module], spelling: str, read: Read) -> Iterator[NamedModule]:
    """Yield the modules of a denoiser under the names of a family.

    Raises:
        UnsupportedAdapter: a module that the family has no name for, or parts that cannot be joined.
    """
    family = _original_family(spelling)
    if family is not None:
        yield from _original_names(family, {module.name: module for module in modules}, read)
        return
    unet = next((unet for unet in UNETS if spelling == f"{unet.key}-ldm"), None)
    for module in modules:
        name = module.name if unet is None else unet.ldm.get(module.name)
        if name is None:
            raise _unwritten(f"`{shown(module.name)}` has no name in {spelling}")
        yield NamedModule.alone(name, module)


def _original_names(family: Family, modules: Mapping[str, Module], read: Read) -> Iterator[NamedModule]:
    groups: dict[str, None] = {}
    for name in modules:
        original = family.original(name)
        if original is None:
            raise _unwritten(f"`{shown(name)}` has no name in {family.title}")
        groups[original] = None
    for original in groups:
        targets = family.targets(original)
        parts = [modules.get(target.name) for target in targets]
        there = [part for part in parts if part is not None]
        if len(targets) == 1:
            yield NamedModule.alone(original, _back(there[0], targets[0]))
            continue
        if "lora_A.weight" not in there[0].slots:
            what = f"`{shown(there[0].name)}` is a part of `{original}` there, and only plain LoRA can be joined"
            raise _unwritten(what)
        width = there[0].slots["lora_A.weight"].shape[1]
        usual = [width, width, width, _MLP * width][: len(targets)]
        outs = [part.slots["lora_B.weight"].shape[0] if part else out for part, out in zip(parts, usual, strict=True)]
        down, up, module, grew = joined(parts, outs, read, original)
        yield NamedModule(name=original, module=module, tensors={"lora_A.weight": down, "lora_B.weight": up}, grew=grew)


def _back(module: Module, target: Target) -> Module:
    """Return the rows in the original's order."""
    if target.rows not in (swapped, swapped_pair):
        return module
    slots: dict[str, Cut] = {}
    for slot, cut in module.slots.items():
        rows = target.rows(cut.shape[0], width_of(module)) if slot != "lora_A.weight" else None
        slots[slot] = cut if rows is None else replace(cut, rows=rows)
    return replace(module, slots=slots)

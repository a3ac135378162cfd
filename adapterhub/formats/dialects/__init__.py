"""Dialects: the ways in which programs lay out one and the same LoRA, and the inner form that everything here reads.

The inner form is an adapter as PEFT writes it today (`form`). `experts` tells the layouts of stacked experts apart;
`programs` holds other programs, one file each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Final

from adapterhub.formats.dialects.experts import (
    LAYOUTS,
    NAMED,
    ExpertPair,
    Layout,
    Packing,
    Stacks,
    expert_pairs,
    judge,
    relaid,
)
from adapterhub.formats.dialects.form import Form
from adapterhub.formats.dialects.programs import is_odd, read
from adapterhub.formats.dialects.wrapped import is_wrapped, unwrapped
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import TensorFile

PEFT: Final = LAYOUTS[0].name
NAMES: Final = tuple(layout.name for layout in LAYOUTS)
"""The dialects of PEFT's own files, which differ only on stacked experts."""


NAME_IT: Final = "`adapt add FOLDER --dialect NAME` names the one"
"""The step that helps where only the user knows which program wrote a file."""


def may_differ(config: AdapterConfig, weights: TensorFile) -> bool:
    """Return whether the file may be in another form than the inner one, by its names and shapes."""
    return bool(config.target_parameters) or weights.once(is_wrapped) or weights.once(is_odd)


def no_stacks(_module: str) -> tuple[()]:
    """Say that nothing is known of the base."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """An adapter in the inner form, the dialect of its file and the reasons for it.

    `raw` is the form of the file itself, `plain` that with PEFT's own names; `notes` describe how the names differ.
    `unclear` holds the layouts that remain, where they mean different numbers; `form` then leaves them so.
    """

    raw: Form
    plain: Form
    form: Form
    dialect: str = PEFT
    evidence: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unclear: tuple[Layout, ...] = ()
    pairs: tuple[ExpertPair, ...] = ()
    packing: Packing | None = None

    own: ClassVar[str] = PEFT
    """The dialect of the inner form."""

    @property
    def needs_base(self) -> bool:
        """Whether only the side of A is unclear, which the shapes of the base may tell."""
        return len({layout.is_grouped for layout in self.unclear}) == 1

    @property
    def problem(self) -> str:
        """The reason for which the file is ambiguous, as a text after "it"; empty if it is not."""
        if not self.unclear:
            return ""
        readings = "; ".join(f"`{layout.name}`: {layout}" for layout in self.unclear)
        return f"can be read in {len(self.unclear)} ways that mean different numbers ({readings})"

    def on(self, stacks: Stacks) -> Inner:
        """Return the same file, judged by the parameters of a base; a dialect that was named stays."""
        return self if not self.pairs or self.is_named else _judged(self, stacks)

    def read_as(self, dialect: str) -> Inner:
        """Return the same file in the dialect of that name.

        Raises:
            UsageProblem: there is no such dialect.
        """
        return _judged(self, no_stacks, dialect)

    @property
    def is_named(self) -> bool:
        """Whether the user or a manifest named the dialect."""
        return self.evidence == NAMED


def inner_form(raw: Form, stacks: Stacks = no_stacks, named: str = "") -> Inner:
    """Return the inner form of a file in PEFT's names.

    `stacks` knows the stacked parameters of the base; `named` is the dialect that the user or a manifest gives.

    Raises:
        UsageProblem: there is no dialect of that name.
        MalformedTensorFile: another program laid out its experts, in a way that has no meaning or is not read.
    """
    plain, changed = unwrapped(raw)
    plain, written = read(plain)
    notes = (*((f"{changed}, which are left out",) if changed else ()), *((written,) if written else ()))
    return _judged(
        Inner(raw=raw, plain=plain, form=plain, notes=notes, pairs=tuple(expert_pairs(plain))), stacks, named
    )


def _judged(inner: Inner, stacks: Stacks, named: str = "") -> Inner:
    """Return the file with its expert pairs in the inner form, as far as their layout is clear."""
    if not inner.pairs:
        return inner
    verdict = judge(inner.plain, inner.pairs, stacks, named=named, packing=inner.packing)
    layout = verdict.layout
    known = replace(inner, evidence=verdict.evidence, packing=verdict.packing)
    if layout is None:
        return replace(known, form=inner.plain, dialect=PEFT, unclear=verdict.layouts)
    return replace(known, form=relaid(inner.plain, inner.pairs, layout), dialect=layout.name, unclear=())

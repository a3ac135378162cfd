"""Positions of the weights of single experts among stacked experts."""

from __future__ import annotations

from typing import NamedTuple


class ExpertPart(NamedTuple):
    """The place of `experts.3.gate_proj`, say, in the stacked parameter `experts.gate_up_proj` of a model in memory.

    `parameter` is the stacked one, [experts, out, in], or [experts, in, out] if it `is_transposed`. The weight is
    number `part` of the `parts` of equal size that the outputs of expert number `expert` are made of: one after the
    other, or in turns (row by row) if they are `is_interleaved`.
    """

    parameter: str
    expert: int
    part: int
    parts: int
    is_transposed: bool
    is_interleaved: bool

"""`adapt extract`: extract a LoRA adapter from a fine-tuned model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.making import (
    about_options,
    cut_options,
    dtype_option,
    output_option,
    rank_option,
    ranks_text,
)
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.output import size_text
from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from adapterhub.api.weights import Extracted
    from adapterhub.core.specs import BaseSpec
    from adapterhub.weights.extract import LeftOut


@click.command()
@click.argument("tuned", type=BASE, metavar="MODEL")
@click.option("--base", type=BASE, required=True, help="The original model: its name, a Hub id or `./folder`.")
@output_option("NAME-lora")
@rank_option
@cut_options
@dtype_option("float32")
@click.option("--save-rest", is_flag=True, help="Store small modules that a LoRA cannot hold whole: norms, new heads.")
@click.option("--skip-unequal", is_flag=True, help="Skip tensors that only one model has or whose shapes differ.")
@about_options("1.0.0")
@common
def extract(session: Session, tuned: BaseSpec, **options: Any) -> None:
    """Extract a LoRA adapter from a fine-tuned model: its difference from the base, at a low rank.

    Reads both models weight by weight from safetensors and never loads them. Each weight of a linear layer, convolution
    or embedding that differs gets factors, also the output head. Other tensors that differ (norms, biases) are listed.
    The command measures, prints and records the relative error against the exact difference.

    \b
    Examples:
      adapt extract ./models/legal-7b --base base-7b --rank 32
      adapt extract legal-7b --base base-7b --energy 0.95 --dtype bfloat16 -o legal
      adapt extract ./tuned --base ./base --rank 16 --save-rest -o ./out/legal
    """
    extracted = session.opened.extract(tuned, **options)
    session.out.result(extracted.to_json(), lambda: _say(session, extracted))
    waiting = sum(one.is_savable and not one.is_carried for one in extracted.result.left_out)
    if waiting:
        session.out.hint(f"`--save-rest` stores {waiting} of the tensors that are not in the adapter")


def _say(session: Session, extracted: Extracted) -> None:
    out, result = session.out, extracted.result
    if extracted.added is None:
        out.line(f"extracted into {extracted.folder}")
    else:
        manifest = extracted.added.build.manifest
        state = "extracted" if extracted.added.created else "already installed:"
        out.line(f"{state} {extracted.added.build.full_name} {manifest.label}  {size_text(manifest.size_bytes)}")
    out.line(f"  = {shown(extracted.tuned, 200)} - {shown(extracted.base, 200)}")
    out.line(f"  {ranks_text(result.ranks)}; {result.dtype}")
    worst = f", worst in {shown(result.worst_module)}: {result.worst_error:.2g}"
    out.line(f"  relative error against the exact difference: {result.relative_error:.2g}{worst}")
    _list(session, "stored whole", [one for one in result.left_out if one.is_carried])
    missing = [one for one in result.left_out if not one.is_carried]
    _list(session, "not in the adapter", missing)
    if missing:
        out.line(f"  missing with these: {result.missing_share:.2g} of the whole difference")


def _list(session: Session, head: str, left_out: list[LeftOut]) -> None:
    if not left_out:
        return
    numbers = sum(one.elements for one in left_out)
    session.out.line(f"  {head}: {len(left_out)} tensor{'s' * (len(left_out) != 1)}, {numbers:,} numbers")
    by_reason: dict[str, list[LeftOut]] = {}
    for one in left_out:
        by_reason.setdefault(one.reason, []).append(one)
    for reason, alike in by_reason.items():
        more = f" and {len(alike) - 1} more" if alike[1:] else ""
        session.out.line(f"    {shown(alike[0].name)}{more}  {sum(one.elements for one in alike):,}  {reason}")

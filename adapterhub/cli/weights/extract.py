"""`adapt extract`: extract a LoRA adapter from a fine-tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.results import report_warnings
from adapterhub.api.steps.combining import DEFAULT_VERSION, default_name, description_from, ensure_named
from adapterhub.api.steps.merge_choice import one_cut
from adapterhub.cli.options.cutting import cut_options, ranks_text
from adapterhub.cli.options.naming import naming_options
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.output import size_text
from adapterhub.core.arguments import path_of
from adapterhub.core.errors import shown
from adapterhub.formats.documented import json_value

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.intake.clashes import Bump
    from adapterhub.library.library import Added, Library
    from adapterhub.weights.extract import ExtractOptions, ExtractResult, LeftOut


@click.command()
@click.option("--base", type=BASE, required=True, help="The original model: an alias, a Hub id or `./folder`.")
@click.option("--tuned", type=BASE, required=True, help="The fine-tuned model: an alias, a Hub id or `./folder`.")
@click.option("-o", "--output", metavar="NAME|DIR", help="Write to this name or `./folder` [default: NAME-lora].")
@cut_options("float32")
@click.option("--save-rest", is_flag=True, help="Store small modules that a LoRA cannot hold whole: norms, new heads.")
@click.option("--skip-unequal", is_flag=True, help="Skip tensors that only one model has or whose shapes differ.")
@click.option("--version", metavar="VERSION", help=f"Version of the new adapter [default: {DEFAULT_VERSION}].")
@naming_options
@click.option("--task", metavar="TASK", help="Task of the new adapter.")
@click.option("--description", default="", metavar="TEXT", help="Describe the new adapter in one sentence.")
@common
def extract(
    session: Session,
    base: BaseSpec,
    tuned: BaseSpec,
    output: str | None,
    rank: int | None,
    energy: float | None,
    max_error: float | None,
    dtype: str | None,
    save_rest: bool,
    skip_unequal: bool,
    version: str | None,
    bump: Bump | None,
    variant: bool,
    task: str | None,
    description: str,
) -> None:
    """Extract a LoRA adapter from a fine-tuned model: its difference from the base, at a low rank.

    Reads both models weight by weight from safetensors and never loads them. Each weight of a linear layer, convolution
    or embedding that differs gets factors, also the output head. Other tensors that differ (norms, biases) are listed.
    The command measures, prints and records the relative error against the exact difference.

    \b
    Examples:
      adapt extract --base base-7b --tuned ./models/legal-7b --rank 32
      adapt extract --base base-7b --tuned legal-7b --energy 0.95 --dtype bfloat16 -o legal
      adapt extract --base ./base --tuned ./tuned --rank 16 --save-rest -o ./out/legal
    """
    from adapterhub.core.specs import names_folder
    from adapterhub.library.intake.clashes import check_naming
    from adapterhub.weights.extract import ExtractOptions, ensure_room, extract_into_library

    options = ExtractOptions(
        **one_cut(rank=rank, energy=energy, max_error=max_error),  # type: ignore[arg-type]  # a whole number only for the rank
        dtype=dtype,
        save_rest=save_rest,
        skip_unequal=skip_unequal,
    )
    library = session.library
    output = output or default_name([str(tuned.text)], "lora")
    check_naming(bump, variant=variant, version=version)
    if names_folder(output):
        ensure_named(None, bump, variant=variant)
        folder = path_of(output)
        records = _model(session, library, base), _model(session, library, tuned)
        _to_folder(session, *records, folder, options)
        return
    details = {"version": version, "task": task, "description": description}
    about, first = description_from(output, details), _model(session, library, base)
    if bump is None:
        ensure_room(library, first, None, about, options, variant=variant)
    second = _model(session, library, tuned)
    with session.out.steps("extract", unit="weights") as progress:
        added, result = extract_into_library(
            library, first, second, about, options, bump=bump, variant=variant, progress=progress
        )
    report_warnings(session, added)
    _say(session, result, first, second, _headline(added), added.to_json())


def _model(session: Session, library: Library, spec: BaseSpec) -> BaseRecord:
    """The record of the model that `spec` names, from its current files."""
    from adapterhub.formats.base.weight_files import weight_files
    from adapterhub.weights.extract import model_record

    is_folder = spec.kind == "path"
    size = sum(p.stat().st_size for p in weight_files(path_of(spec.text))) if is_folder else None
    with session.out.progress(f"fingerprint {spec}", size) as progress:
        return model_record(library.bases, spec, progress=progress)


def _to_folder(session: Session, base: BaseRecord, tuned: BaseRecord, folder: Path, options: ExtractOptions) -> None:
    from adapterhub.weights.extract import extract as run_extract

    with session.out.steps("extract", unit="weights") as progress:
        result = run_extract(base, tuned, folder, options, progress=progress)
    _say(session, result, base, tuned, f"extracted into {folder}", {"path": str(folder)})


def _headline(added: Added) -> str:
    build, manifest = added.build, added.build.manifest
    state = "extracted" if added.created else "already installed:"
    return f"{state} {build.full_name} {manifest.label}  {size_text(manifest.size_bytes)}"


def _say(
    session: Session,
    result: ExtractResult,
    base: BaseRecord,
    tuned: BaseRecord,
    headline: str,
    document: dict[str, Any],
) -> None:
    for warning in result.warnings:
        session.out.warn(warning)

    def text() -> None:
        out = session.out
        out.line(headline)
        out.line(f"  = {shown(tuned.label, 200)} - {shown(base.label, 200)}")
        out.line(f"  {ranks_text(result.ranks)}; {result.dtype}")
        worst = f", worst in {shown(result.worst_module)}: {result.worst_error:.2g}"
        out.line(f"  relative error against the exact difference: {result.relative_error:.2g}{worst}")
        _list(session, "stored whole", [one for one in result.left_out if one.is_carried])
        missing = [one for one in result.left_out if not one.is_carried]
        _list(session, "not in the adapter", missing)
        if missing:
            out.line(f"  missing with these: {result.missing_share:.2g} of the whole difference")

    session.out.result(document | _document(result), text)
    waiting = sum(one.is_savable and not one.is_carried for one in result.left_out)
    if waiting:
        session.out.hint(f"`--save-rest` stores {waiting} of the tensors that are not in the adapter")


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


def _document(result: ExtractResult) -> dict[str, Any]:
    return {
        "relative_error": result.relative_error,
        "worst_module": result.worst_module,
        "worst_error": result.worst_error,
        "missing_share": result.missing_share,
        "ranks": {str(rank): count for rank, count in sorted(result.ranks.items())},
        "dtype": result.dtype,
        "unchanged_tensors": result.unchanged,
        "left_out": json_value(result.left_out),
        "recipe": dict(result.recipe),
    }

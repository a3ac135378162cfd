"""`adapt fuse`: add an adapter to its base's weights, write the model and report the rounding loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.api.steps.combining import weights_from
from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.options.testing import tells_tests
from adapterhub.cli.output import size_text
from adapterhub.core.arguments import Precision, path_of
from adapterhub.core.errors import shown
from adapterhub.core.specs import BaseSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.formats.contract.results import Tested
    from adapterhub.weights.fuse import Fused


@click.command()
@click.argument("adapters", nargs=-1, required=True, metavar="SPEC|FOLDER...", shell_complete=complete_spec_or_folder)
@click.option(
    "--into",
    "into",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the model to this folder, which must not exist yet.",
)
@click.option("--weights", metavar="W,W,...", help="One weight per adapter [default: equal shares that sum to 1].")
@click.option("--base", type=BASE, help="Use this base (alias or folder) for specs that name none.")
@click.option(
    "--dtype",
    type=kind_of(Precision),
    help="Precision of the model [default: that of each tensor in the base].",
)
@click.option("--allow-base-mismatch", is_flag=True, help="Allow a base with other weights of the same shapes.")
@click.option("--test", is_flag=True, help="Write the model only if it passes the adapter's contract.")
@common
def fuse(
    session: Session,
    adapters: tuple[str, ...],
    into: Path,
    weights: str | None,
    base: BaseSpec | None,
    dtype: str | None,
    allow_base_mismatch: bool,
    test: bool,
) -> None:
    """Write a full model: a base with one or more adapters added, in the base's files.

    Streams the base without loading it, copies unchanged tensors byte for byte, adds the others in float64 and rounds
    once. Measures on every number how much of the update rounding loses; --dtype float32 loses almost nothing. The sum
    of several adapters is exact. Refuses an update that has no exact place in the base's files, such as one to an
    output head tied to the embedding.

    With --test, loads the new model and asks it what the adapter's contract holds, before the folder gets its name. Of
    several adapters, the `never` and `leave_alone` lines bind.

    \b
    Examples:
      adapt fuse legal-qa@base-7b --into ./legal-7b --test
      adapt fuse legal-qa summarize --weights 0.7,0.3 --base base-7b --into ./fused
      adapt fuse ./out/legal-qa --base ./models/base-7b --into ./fused --dtype float32
    """
    numbers = weights_from(weights, adapters)
    from adapterhub.api.steps.contracts.gating import WrittenTest
    from adapterhub.weights.fuse import prepare

    out = session.out
    asked = WrittenTest(session.project_library, out, is_model=True) if test else None
    with out.progress("fingerprint", None) as reading:
        fusion = prepare(
            adapters,
            path_of(into),
            library=session.project_library,
            base=base,
            weights=numbers,
            dtype=dtype,
            allow_base_mismatch=allow_base_mismatch,
            reading=reading,
        )
    with fusion:
        for warning in fusion.warnings:
            out.warn(warning)
        with out.progress("fuse", fusion.size_bytes) as progress:
            fused = fusion.write(progress=progress, test=asked)
    tests = asked.results if asked is not None else []
    document = fused.to_json() | ({"tests": [one.to_json() for one in tests]} if test else {})
    out.result(document, lambda: _say(session, fused, tests))
    _advise(session, fused)


def _say(session: Session, fused: Fused, tests: Sequence[Tested]) -> None:
    out, count = session.out, len(fused.tensors)
    files = f"{fused.files} file{'s' * (fused.files != 1)}"
    out.line(f"fused into {fused.out_folder}  {size_text(fused.size_bytes)} in {files}")
    parts = [fused.base, *(f"{a.weight:g} x {shown(a.label, 200)}" for a in fused.adapters)]
    out.line(f"  = {' + '.join(parts)}")
    out.line(f"  {count} tensor{'s' * (count != 1)} changed, {fused.copied} copied; {', '.join(fused.dtypes)}")
    worst = f", worst in {shown(fused.worst.name)}: {fused.worst.relative_error:.2g}"
    out.line(f"  rounding lost {fused.relative_error:.2g} of the update{worst if fused.relative_error else ''}")
    out.line(f"  {fused.unchanged:.2%} of the updated entries kept their stored value")
    tells_tests(session, tests)


def _advise(session: Session, fused: Fused) -> None:
    """Warn about a large loss and suggest the next step."""
    from adapterhub.weights.fuse import LARGE_LOSS

    if fused.relative_error > LARGE_LOSS:
        session.out.warn(
            f"rounding to {', '.join(fused.dtypes)} lost {fused.relative_error:.0%} of the update: use the adapter"
            " unfused, which loses nothing, or fuse with `--dtype float32`"
        )
    session.out.hint(f"`adapt base add {fused.out_folder}` registers the fused model")

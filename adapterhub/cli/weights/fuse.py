"""`adapt fuse`: add an adapter to its base's weights, write the model and report the rounding loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.making import adapters_argument, base_option, dtype_option, weights_option
from adapterhub.cli.options.params import Session, common
from adapterhub.cli.options.testing import tells_tests
from adapterhub.cli.output import size_text
from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from adapterhub.weights.fuse import Fused


@click.command()
@adapters_argument
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the model to this folder, which must not exist yet.",
)
@weights_option
@base_option
@dtype_option("that of each tensor in the base")
@click.option("--allow-base-mismatch", is_flag=True, help="Allow a base with other weights of the same shapes.")
@click.option("--test", is_flag=True, help="Write the model only if it passes the adapter's contract.")
@common
def fuse(session: Session, adapters: tuple[str, ...], **options: Any) -> None:
    """Write a full model: a base with one or more adapters added, in the base's files.

    Streams the base without loading it, copies unchanged tensors byte for byte, adds the others in float64 and rounds
    once. Measures over all numbers how much of the update is lost by rounding; --dtype float32 loses almost nothing.
    The sum of several adapters is exact. Refuses an update that has no exact place in the base's files, such as one
    to an output head tied to the embedding.

    With --test, loads the new model and tests it by the adapter's contract, before the folder gets its name. Of
    several adapters, the `never` and `leave_alone` lines bind.

    \b
    Examples:
      adapt fuse legal-qa@base-7b -o ./legal-7b --test
      adapt fuse legal-qa summarize --weights 0.7,0.3 --base base-7b -o ./fused
      adapt fuse ./out/legal-qa --base ./models/base-7b -o ./fused --dtype float32
    """
    fused = session.opened.fuse(adapters, **options)
    session.out.result(fused.to_json(), lambda: _say(session, fused))
    _advise(session, fused)


def _say(session: Session, fused: Fused) -> None:
    out, count = session.out, len(fused.tensors)
    files = f"{fused.files} file{'s' * (fused.files != 1)}"
    out.line(f"fused into {fused.out_folder}  {size_text(fused.size_bytes)} in {files}")
    parts = [fused.base, *(f"{a.weight:g} x {shown(a.spec, 200)}" for a in fused.adapters)]
    out.line(f"  = {' + '.join(parts)}")
    out.line(f"  {count} tensor{'s' * (count != 1)} changed, {fused.copied} copied; {', '.join(fused.dtypes)}")
    worst = f", worst in {shown(fused.worst.name)}: {fused.worst.relative_error:.2g}"
    out.line(f"  rounding lost {fused.relative_error:.2g} of the update{worst if fused.relative_error else ''}")
    out.line(f"  {fused.unchanged:.2%} of the updated entries kept their stored value")
    tells_tests(session, fused.tests or ())


def _advise(session: Session, fused: Fused) -> None:
    """Warn about a large loss and suggest the next step."""
    if fused.loses_much:
        session.out.warn(
            f"rounding to {', '.join(fused.dtypes)} lost {fused.relative_error:.0%} of the update: use the adapter"
            " unfused, which loses nothing, or fuse with `--dtype float32`"
        )
    session.out.hint(f"`adapt base add {fused.out_folder}` registers the fused model")

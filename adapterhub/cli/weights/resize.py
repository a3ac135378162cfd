"""`adapt resize`: compute the closest adapter of a lower rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.making import (
    about_options,
    base_option,
    cut_options,
    dtype_option,
    output_option,
    rank_option,
    ranks_text,
)
from adapterhub.cli.options.params import Session, common
from adapterhub.cli.options.testing import tells_tests
from adapterhub.cli.output import size_text
from adapterhub.core.arguments import ResizedTo

if TYPE_CHECKING:
    from adapterhub.api.weights import Resized


@click.command()
@click.argument("adapter", metavar="SPEC|FOLDER", shell_complete=complete_spec_or_folder)
@output_option("the adapter's name and `rN`, `small` or `lora`")
@click.option(
    "--to",
    type=kind_of(ResizedTo),
    help="Make a plain LoRA of LoHa, LoKr, VeRA, OFT, FourierFT, DoRA or another linear method of PEFT, exactly"
    " [with --rank, --energy or --max-error: the closest one]. Reads the base's weights.",
)
@rank_option
@cut_options
@dtype_option("the adapter's own")
@base_option
@about_options("the adapter's own", " [default: the adapter's own]")
@click.option("--test", is_flag=True, help="Write the result only if it passes the adapter's contract.")
@common
def resize(session: Session, adapter: str, **options: Any) -> None:
    """Reduce an adapter to a lower rank: the closest update of that rank, module by module.

    No other update of that rank is closer (Eckart and Young). The command measures, prints and records its distance
    from the adapter. `--energy` and `--max-error` choose the rank of each module. A rank above the adapter's own
    changes nothing. `--to lora` makes a LoRA of an adapter of another method, for the programs that read nothing else:
    PEFT's own layers give the update of each weight of the base; a method whose update is not a linear map is refused.

    \b
    Examples:
      adapt resize legal-qa --rank 4
      adapt resize legal-qa --rank 4 -o legal-qa --variant
      adapt resize legal-qa --rank 2 --test
      adapt resize legal-qa --energy 0.99 -o legal-qa-small
      adapt resize my-loha --to lora
      adapt resize ./out/legal-qa --max-error 0.05 --dtype bfloat16 -o ./out/legal-qa-small
    """
    resized = session.opened.resize(adapter, **options)
    session.out.result(resized.to_json(), lambda: _say(session, resized, options["rank"]))


def _say(session: Session, resized: Resized, rank: int | None) -> None:
    out, result = session.out, resized.made.result
    if resized.added is None:
        out.line(f"resized into {resized.folder}")
    else:
        state = "resized" if resized.added.created else "already installed:"
        out.line(f"{state} {resized.added.build.full_name} {resized.added.build.manifest.label}")
    for when, held in (("before", resized.before), ("after", resized.after)):
        out.line(f"  {when:6}  {size_text(held.size_bytes)}  {ranks_text(held.ranks)}".rstrip())
    worst = f", worst in {result.worst_module}: {result.worst_error:.2g}" if result.worst_error > 0 else ""
    out.line(f"  {result.dtype}; relative error against the adapter: {result.relative_error:.2g}{worst}")
    tells_tests(session, resized.tests or ())
    most = max(resized.after.ranks)
    if rank is not None and rank > most:
        out.line(f"  no module's update has a rank above {most}; rank {rank} would only add zeros")

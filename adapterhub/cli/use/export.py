"""`adapt export`: write an adapter in the format of another program, or a plain list of adapters."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.cli.completion.completing import complete_group, complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.making import base_option
from adapterhub.cli.options.params import Session, common, project_option
from adapterhub.cli.options.testing import tells_tests
from adapterhub.cli.output import size_text
from adapterhub.core.arguments import ExportFormat, Precision, path_of
from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from adapterhub.api.describing import Bill
    from adapterhub.api.installing import Requirements
    from adapterhub.inference.export import Exported

_SHOWN_PATHS: Final = 6


@click.command()
@click.argument("adapters", metavar="[SPEC|FOLDER...]", nargs=-1, shell_complete=complete_spec_or_folder)
@click.option(
    "--format",
    type=kind_of(ExportFormat, "semantic-router", "cyclonedx"),
    help="Write the adapter in this format, a routing file for this router, or a bill of materials (cyclonedx).",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write to a new file (gguf, comfyui, diffusers, kohya, cyclonedx, list) or folder [lists: stdout].",
)
@base_option
@click.option(
    "--dtype",
    type=kind_of(Precision),
    help="Precision of the output [default: exact; for merged, that of the base].",
)
@click.option(
    "--gguf",
    metavar="FILE|NAME",
    help="The base as GGUF: for ollama, its file or its name there; with --test, the file that llama.cpp loads for it.",
)
@click.option("--allow-base-mismatch", is_flag=True, help="Allow a base with other weights of the same shapes.")
@click.option("--test", is_flag=True, help="For gguf, merged, peft, vllm: write it only if it passes its contract.")
@click.option("--llama-server", metavar="FILE", help="With --gguf: this program [default: llama-server in PATH].")
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_group,
    help="For the list: include an optional group of the project.",
)
@click.option("--all-groups", is_flag=True, help="For the list: include every optional group.")
@click.option("--library", is_flag=True, help="For the list: list the library even inside a project.")
@click.option(
    "--url", metavar="URL", help="For semantic-router: where `adapt serve` answers [default: http://127.0.0.1:8000]."
)
@project_option
@common
def export(session: Session, adapters: tuple[str, ...], output: Path | None, **options: Any) -> None:
    """Export an adapter for another program with exactly the effect it has in PEFT, or write a list of adapters.

    gguf: a file for llama.cpp, exact also for rsLoRA and patterns. ollama: that file and a Modelfile (best effort).
    vllm: a folder for vLLM and the flags it needs. peft: plain LoRA with one rank and one scale, for programs that
    support nothing else. merged: base and adapter as one model, as from `adapt fuse`. comfyui, diffusers, kohya: one
    file for image programs. mlx: a folder for mlx-lm. Refuses an adapter that the format cannot express, and writes
    nothing. `adapt pull` writes the original files instead. --test loads the new files and runs the adapter's
    contract on them, before they get their name; a gguf file in llama.cpp's server.

    Without an adapter, it lists the project's locked adapters, or the installed ones, one
    `name==version#sha256:digest` per line; `adapt install -r FILE` installs exactly these. It skips merges that were
    never published; `adapt sync` makes them from the lock file.

    semantic-router: a routing file of `adapt route` as a configuration of vLLM's semantic router. cyclonedx: what the
    adapters are made of, bases, parents, data sets and licences, as CycloneDX 1.6 (an ML-BOM); what manifests, cards
    and bases do not state is left out. Without an adapter, of the project's locked adapters, or of all installed ones.

    \b
    Examples:
      adapt export legal-qa@base-7b --format gguf -o legal-qa.gguf
      adapt export legal-qa --format peft -o ./legal-plain --test
      adapt export my-style --format kohya -o my-style.safetensors
      adapt export legal-qa --format ollama --gguf llama3.2:1b -o ./legal-ollama
      adapt export --all-groups -o adapters.txt
      adapt export --format cyclonedx -o bom.json
      adapt export ./route.json --format semantic-router -o config.yaml
    """
    adapter = adapters[0] if len(adapters) == 1 else adapters or None
    written: Any = session.opened.export(adapter, output, **options)
    is_list = adapter is None or options["format"] == "cyclonedx"

    def say() -> None:
        if is_list:
            _say_list(session, written)
        elif options["format"] == "semantic-router":
            session.out.line(f"wrote {written.path}")
        else:
            _say(session, written, path_of(output or "."))

    session.out.result(written.to_json(), say)
    if is_list and output is not None:
        what = "the bill" if adapters or options["format"] else f"{len(written.requirements)} adapters"
        session.out.note(f"wrote {what} to `{output}`")
    if options["format"] == "semantic-router":
        session.out.note("the router compares texts with its own encoder: check its thresholds on your own prompts")


def _say_list(session: Session, made: Requirements | Bill) -> None:
    if made.output is None:
        session.out.piece(made.text)


def _say(session: Session, exported: Exported, output: Path) -> None:
    out = session.out
    label = shown(exported.label, 200)
    out.line(f"exported {label} as {exported.format}  {output}  {size_text(exported.size_bytes)}")
    if output.is_dir():
        for path in exported.paths[:_SHOWN_PATHS]:
            out.line(f"  {path.relative_to(output)}")
        if len(exported.paths) > _SHOWN_PATHS:
            out.line(f"  and {len(exported.paths) - _SHOWN_PATHS} more")
    if exported.flags:
        out.line(f"  flags: {shlex.join(exported.flags)}")
    tells_tests(session, exported.tests or ())
    for note in exported.notes:
        out.note(f"note: {note}")

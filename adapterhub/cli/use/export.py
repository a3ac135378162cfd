"""`adapt export`: an adapter in the form that another program reads, or a plain list of what is here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.completion.completing import complete_group, complete_spec_or_folder
from adapterhub.cli.options.params import BASE, Session, common, project_option
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec

FORMATS = ("gguf", "merged", "ollama", "peft", "vllm")
"""The files of `adapterhub/inference/export/`, written here so that `--help` needs no torch; a test compares."""


@click.command()
@click.argument("adapter", metavar="[SPEC|FOLDER]", required=False, shell_complete=complete_spec_or_folder)
@click.option("--format", "form", type=click.Choice(FORMATS), help="What to write of the adapter.")
@click.option("--requirements", is_flag=True, help="A plain list, one `name==version#sha256:digest` a line.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A new file for gguf, a new folder for the other formats, a file for the list [default: stdout].",
)
@click.option("--base", type=BASE, help="The base, where the spec names none: an alias, or its folder.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Precision of what is written [default: exact; of merged, that of the base].",
)
@click.option("--ollama-base", metavar="NAME", help="For ollama: what Ollama calls the base, or a GGUF file of it.")
@click.option("--allow-base-mismatch", is_flag=True, help="Take a base of the same shapes with other weights.")
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_group,
    help="For the list: an optional group of the project, too.",
)
@click.option("--all-groups", is_flag=True, help="For the list: every optional group.")
@click.option("--library", "is_library", is_flag=True, help="For the list: what is installed, inside a project, too.")
@project_option
@common
def export(
    session: Session,
    adapter: str | None,
    form: str | None,
    requirements: bool,
    output: Path | None,
    base: BaseSpec | None,
    dtype: str | None,
    ollama_base: str | None,
    allow_base_mismatch: bool,
    groups: tuple[str, ...],
    all_groups: bool,
    is_library: bool,
) -> None:
    """Write an adapter for another program, meaning exactly what PEFT means by it, or a list of adapters.

    gguf: a file for llama.cpp, exact for rsLoRA and patterns. ollama: that file and a Modelfile (best effort).
    vllm: a folder that vLLM reads, and the flags it needs. peft: plain LoRA, with one rank and one scale, for
    programs that read no more. merged: base and adapter as one model, as `adapt fuse` writes it. What a format cannot
    carry is refused by name, and nothing is written. `adapt pull` writes the files as their author made them.

    --requirements: what the project has locked, else what is installed; `adapt install -r FILE` installs exactly these
    again. A merge that was never published is left out: `adapt sync` makes it from the lock file.

    \b
    Examples:
      adapt export legal-qa@base-7b --format gguf -o legal-qa.gguf
      adapt export legal-qa --format ollama --ollama-base llama3.2:1b -o ./legal-ollama
      adapt export --requirements --all-groups -o adapters.txt
    """
    if requirements:
        if adapter or form or base or dtype or ollama_base or allow_base_mismatch:
            raise UsageProblem("`--requirements` lists what is here; an adapter and its options belong to `--format`")
        from adapterhub.cli.projects.export_list import write_list

        write_list(session, output, groups=groups, all_groups=all_groups, is_library=is_library)
        return
    if groups or all_groups or is_library:
        raise UsageProblem("`--group`, `--all-groups` and `--library` belong to `--requirements`")
    if adapter is None or form is None or output is None:
        hint = "`adapt export NAME --format gguf -o NAME.gguf`, or `adapt export --requirements` for a plain list"
        raise UsageProblem("say which adapter to export, `--format` as what, and `-o` where to", hint=hint)
    from adapterhub.cli.use.export_formats import Asked, write_format

    asked = Asked(
        adapter=adapter,
        form=form,
        output=output.expanduser(),
        base=base,
        dtype=dtype,
        ollama_base=ollama_base,
        allow_base_mismatch=allow_base_mismatch,
    )
    write_format(session, asked)

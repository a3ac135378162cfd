"""`adapt export`: write an adapter in the format of another program, or a plain list of adapters."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from adapterhub.cli.completion.completing import complete_group, complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import BASE, Session, common, project_option
from adapterhub.cli.options.testing import tells_tests
from adapterhub.cli.output import size_text
from adapterhub.core.arguments import ExportFormat, Precision, path_of
from adapterhub.core.disk.output_place import output_place
from adapterhub.core.errors import NotAllowed, UsageProblem, shown

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.export import Exported

_SHOWN_PATHS: Final = 6


@click.command()
@click.argument("adapter", metavar="[SPEC|FOLDER]", required=False, shell_complete=complete_spec_or_folder)
@click.option("--format", "form", type=kind_of(ExportFormat), help="Write the adapter in this format.")
@click.option("--requirements", is_flag=True, help="Write a plain list, one `name==version#sha256:digest` per line.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write to a new file (gguf, comfyui, diffusers, kohya, list) or folder; the list goes to stdout by default.",
)
@click.option("--base", type=BASE, help="Use this base (alias or folder) if the spec names none.")
@click.option(
    "--dtype",
    type=kind_of(Precision),
    help="Precision of the output [default: exact; for merged, that of the base].",
)
@click.option("--ollama-base", metavar="NAME", help="For ollama: the base's name in Ollama, or its GGUF file.")
@click.option("--allow-base-mismatch", is_flag=True, help="Allow a base with other weights of the same shapes.")
@click.option("--test", is_flag=True, help="For gguf, merged, peft, vllm: write it only if it passes its contract.")
@click.option(
    "--gguf",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="With --test, for gguf: ask llama.cpp, on this GGUF file of the base.",
)
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
@click.option("--library", "is_library", is_flag=True, help="For the list: list the library even inside a project.")
@click.option(
    "--for", "router", type=click.Choice(["semantic-router"]), help="With `router`: write its configuration to -o."
)
@click.option("--route", type=click.Path(path_type=Path), metavar="FILE", help="With `router`: the routing file.")
@click.option(
    "--url", metavar="URL", help="With `router`: where `adapt serve` answers [default: http://127.0.0.1:8000]."
)
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
    test: bool,
    gguf: Path | None,
    llama_server: str | None,
    groups: tuple[str, ...],
    all_groups: bool,
    is_library: bool,
    router: str | None,
    route: Path | None,
    url: str | None,
) -> None:
    """Export an adapter for another program with exactly the effect it has in PEFT, or write a list of adapters.

    gguf: a file for llama.cpp, exact also for rsLoRA and patterns. ollama: that file and a Modelfile (best effort).
    vllm: a folder for vLLM and the flags it needs. peft: plain LoRA with one rank and one scale, for programs that
    support nothing else. merged: base and adapter as one model, as from `adapt fuse`. comfyui, diffusers, kohya: one
    file for image programs. mlx: a folder for mlx-lm. Refuses an adapter that the format cannot express, and writes
    nothing. `adapt pull` writes the original files instead. --test loads what was written again and asks it what the
    adapter's contract holds, before it gets its name; a gguf file in llama.cpp's server.

    --requirements lists the project's locked adapters, else the installed ones; `adapt install -r FILE` installs
    exactly these. It skips merges that were never published; `adapt sync` makes them from the lock file.

    `router` with --for writes a routing file of `adapt route` as a configuration of vLLM's semantic router.

    \b
    Examples:
      adapt export legal-qa@base-7b --format gguf -o legal-qa.gguf
      adapt export legal-qa --format peft -o ./legal-plain --test
      adapt export my-style --format kohya -o my-style.safetensors
      adapt export legal-qa --format ollama --ollama-base llama3.2:1b -o ./legal-ollama
      adapt export --requirements --all-groups -o adapters.txt
      adapt export router --for semantic-router --route route.json -o config.yaml
    """
    if router is not None:
        if adapter != "router" or route is None or output is None or form or requirements:
            hint = "`adapt export router --for semantic-router --route route.json -o config.yaml`"
            raise UsageProblem("`--for` exports `router`, and needs `--route` and `-o`", hint=hint)
        _export_router(session, route, output, url)
        return
    if route is not None or url is not None:
        raise UsageProblem("`--route` and `--url` are for `adapt export router --for semantic-router`")
    if requirements:
        if adapter or form or base or dtype or ollama_base or allow_base_mismatch or test:
            raise UsageProblem("`--requirements` takes no adapter and none of its options; those need `--format`")
        _export_list(session, output, groups=groups, all_groups=all_groups, is_library=is_library)
        return
    if groups or all_groups or is_library:
        raise UsageProblem("`--group`, `--all-groups` and `--library` need `--requirements`")
    if adapter is None or form is None or output is None:
        hint = "run `adapt export NAME --format gguf -o NAME.gguf`, or `adapt export --requirements` for a plain list"
        raise UsageProblem("an export needs an adapter, `--format` and `-o`", hint=hint)
    exported = session.opened.export(
        adapter,
        output,
        format=form,  # type: ignore[arg-type]  # a word of `ExportFormat`
        base=base,
        dtype=dtype,  # type: ignore[arg-type]  # a word of `Precision`
        ollama_base=ollama_base,
        allow_base_mismatch=allow_base_mismatch,
        test=test,
        gguf=gguf,
        llama_server=llama_server,
    )
    session.out.result(exported.to_json(), lambda: _say(session, exported, path_of(output)))


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


def _export_router(session: Session, route: Path, output: Path, url: str | None) -> None:
    from adapterhub.api.steps.find.exporting import DEFAULT_URL, export_router
    from adapterhub.formats.route import read_route

    read = read_route(route)
    path = export_router(session.library, read, output, url=url or DEFAULT_URL)
    document = {"path": str(path), "adapters": len(read.adapters), "threshold": read.threshold}
    session.out.result(document, lambda: session.out.line(f"wrote {path}"))
    session.out.note("the router compares texts with its own encoder: check its thresholds on your own prompts")


def _export_list(
    session: Session, output: Path | None, *, groups: tuple[str, ...], all_groups: bool, is_library: bool
) -> None:
    """Write the locked adapters of the project, else the installed ones."""
    project = None if is_library else session.project_here
    if project is None and (groups or all_groups):
        raise UsageProblem("`--group` needs a project, and there is none here", hint="run it without `--group`")
    library = session.opened
    found = project.requirements(groups=groups, all_groups=all_groups) if project else library.requirements()
    text = "".join(f"{line}\n" for line in found.requirements)
    if output is not None:
        try:
            output_place(output).write_text(text, encoding="utf-8")
        except OSError as error:
            raise NotAllowed(f"cannot write `{output}`: {error.strerror}") from None
    document = replace(found, output=output).to_json()
    session.out.result(document, lambda: None if output else session.out.piece(text))
    if output is not None:
        session.out.note(f"wrote {len(found.requirements)} adapters to `{output}`")

"""`adapt add`: add PEFT output folders, and LoRA files of other programs, to the library as releases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.adapters.add_several import add_several, size_given
from adapterhub.cli.adapters.added import say_added
from adapterhub.cli.options.making import naming_options
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.options.prompting import prompt_options, warn_of_backslashes
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.core.digests import Progress
    from adapterhub.core.specs import BaseSpec
    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.library.intake.clashes import Bump
    from adapterhub.library.library import Added


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE|FOLDER...")
@click.option("--name", metavar="NAME", help="Name of the adapter [default: the folder's or file's, in lower case].")
@click.option("--base", type=BASE, help="Record this base and check the shapes [default: the one that alone fits].")
@click.option("--no-base", is_flag=True, help="Leave the base unknown.")
@click.option("--task", metavar="TASK", help="Record the task, such as `legal-qa`.")
@click.option("--version", metavar="VERSION", help="PEP 440 version [default: 1.0.0].")
@naming_options
@click.option("--description", default="", metavar="TEXT", help="Describe the adapter in one sentence.")
@click.option(
    "--example",
    "examples",
    multiple=True,
    metavar="TEXT",
    help="Give a prompt as an example, for searches; repeatable.",
)
@click.option("--license", "licence", metavar="SPDX", help="Licence [default: the one in the folder's README].")
@prompt_options
@common
def add(
    session: Session,
    folders: tuple[Path, ...],
    name: str | None,
    base: BaseSpec | None,
    no_base: bool,
    task: str | None,
    version: str | None,
    bump: Bump | None,
    variant: bool,
    description: str,
    examples: tuple[str, ...],
    licence: str | None,
    form: PromptForm | None,
) -> None:
    """Check PEFT output folders and LoRA files of other programs, and add them to the library.

    A file or folder of diffusers, kohya, ComfyUI, XLabs or MLX is recognised by the names in it and becomes
    a PEFT folder: every tensor gets its place and its scale, or the file is refused by name.

    Refuses pickles, damaged or hostile files, NaN, and tensors that do not pair or do not fit the base. A refused
    folder leaves nothing behind. Another folder under a name, version and base that exist is refused, too: --bump takes
    the next version, --variant adds a build of another rank.

    Without --base, the adapter gets the registered base that it fits, if it fits exactly one. Of several folders, those
    that hold no adapter are passed over; the exit code is 3 if one was refused.

    A folder with an `adapterhub.json`, such as a published build or one in the Hugging Face cache, is taken in as that
    file describes it, unless you describe it otherwise.

    Record with --prompt how the adapter wants to be asked: `adapt run`, `serve` and `export` use that form.

    A search finds the adapter by its name, --task, --description and --example, by the prompts of its contract, and
    without a description by what its README says.

    \b
    Examples:
      adapt add ./out/legal-qa --base base-7b --task legal-qa
      adapt add ./out/film --description "Positive or negative film reviews" --example "Was it worth the ticket?"
      adapt add ./out/legal-qa-r4 --name legal-qa --bump minor
      adapt add ./out/larger --template "Which is larger? {input} Answer:"
      adapt add runs/*
      adapt add my-style.safetensors --base sdxl
      adapt add loras/*.safetensors
      adapt add ./share/legal-qa/1.0.0-r4
    """
    from adapterhub.core.specs import parse_name, parse_released
    from adapterhub.library.intake.clashes import check_naming

    check_naming(bump, variant=variant, version=version)
    if base is not None and no_base:
        raise UsageProblem("`--base` and `--no-base` exclude each other")
    if name is not None and len(folders) > 1:
        raise UsageProblem(f"`--name` names one adapter, and there are {len(folders)} folders")
    warn_of_backslashes(session, form)
    library = session.library
    record = library.bases.find(base) if base is not None else None
    named = None if name is None else parse_name(name)
    number = parse_released(version or "1.0.0")
    is_undescribed = not any((named, task, version, description, examples, licence, bump, variant, no_base, form))

    def add_one(folder: Path, progress: Progress) -> Added:
        from adapterhub.api.steps.installing import add_described, describe_folder
        from adapterhub.library.intake.foreign import peft_folder

        if is_undescribed and folder.is_dir():
            taken = add_described(session, folder, base, progress=progress)
            if taken is not None:
                return taken
        with peft_folder(library.store, folder, record, progress) as ready:
            found = describe_folder(
                library,
                ready.folder,
                name=named,
                version=number,
                record=record,
                guess=not no_base,
                prompt=form,
                task=task,
                description=description,
                examples=examples,
                license=licence,
                named_after=ready.named_after,
                base_sha256=ready.header.base_sha256,
            )
            own, about = found.about.name, ready.described(found.about)
            added = library.add(
                ready.folder,
                about,
                base=found.record,
                bump=bump,
                variant=variant,
                guess_base=not no_base,
                progress=progress,
            )
        for note in (*ready.notes, *found.notes) if added.created else ():
            session.out.note(note)
        if added.created and no_base:
            session.out.note(f"the base is unknown; record it with `adapt base pin {own} BASE`")
        return added

    if len(folders) == 1:
        with session.out.progress(f"add {folders[0].name}", size_given(folders[0])) as progress:
            added = add_one(folders[0], progress)
        say_added(session, added, "added")
        return
    add_several(session, folders, add_one)

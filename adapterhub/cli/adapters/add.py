"""`adapt add`: add PEFT output folders, and LoRA files of other programs, to the library as releases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.cli.options.making import naming_options
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.options.prompting import prompt_options, warn_of_backslashes
from adapterhub.cli.output import failure_facts, report_failure, size_text
from adapterhub.core.errors import EXIT_SOME_FAILED, AdapterHubError, UsageProblem, reworded, shown
from adapterhub.core.specs import parse_name, parse_released
from adapterhub.formats.manifest import CONFIG_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adapterhub.core.digests import Progress
    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.library.installed import Added

_WEIGHTS: Final = ".safetensors"


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE|FOLDER...")
@click.option("--name", metavar="NAME", help="Name of the adapter [default: the folder's or file's, in lower case].")
@click.option("--base", type=BASE, help="Record this base and check the shapes [default: the only one that fits].")
@click.option("--dialect", default="", metavar="NAME", help="Read stacked experts as peft, peft@0.18 or unsloth do.")
@click.option("--no-base", "guess_base", flag_value=False, type=bool, default=True, help="Leave the base unknown.")
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
@click.option("--license", metavar="SPDX", help="Licence [default: the one in the folder's README].")
@prompt_options
@common
def add(
    session: Session,
    folders: tuple[Path, ...],
    name: str | None,
    version: str | None,
    form: PromptForm | None,
    **options: Any,
) -> None:
    """Check PEFT output folders and LoRA files of other programs, and add them to the library.

    A file or folder of diffusers, kohya, ComfyUI, XLabs, MLX or llama.cpp is recognised by the names in it and becomes
    a PEFT folder: every tensor gets its place and its scale, or the file is refused by name.

    Refuses pickles, damaged or hostile files, NaN, and tensors that do not pair or do not fit the base. A refused
    folder leaves nothing behind. Another folder under a name, version and base that exist is also refused: --bump takes
    the next version, --variant adds a build of another rank.

    Without --base, the adapter gets the registered base that it fits, if it fits exactly one. Of several folders, those
    that hold no adapter are passed over; the exit code is 3 if one was refused.

    A folder with an `adapterhub.json`, such as a published build or one in the Hugging Face cache, is added as that
    file describes it, unless you describe it differently.

    Record with --prompt the form of its prompts: `adapt run`, `serve` and `export` use that form.

    A search finds the adapter by its name, --task, --description and --example, by the prompts of its contract, and
    without a description by the text of its README.

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
    if name is not None and len(folders) > 1:
        raise UsageProblem(
            f"`--name` names one adapter, and there are {len(folders)} folders", hint="run the command once per folder"
        )
    warn_of_backslashes(session, form)
    options |= {
        "name": name and parse_name(name),
        "version": version and parse_released(version),
        "prompt": form,
    }
    library = session.opened
    if len(folders) == 1:
        added = library.add(folders[0], **options)
        session.out.result(added.to_json(), lambda: session.out.line(_line(added)))
        return
    _add_several(session, folders, lambda folder, progress: library.add(folder, progress=progress, **options))


def _add_several(session: Session, folders: Sequence[Path], add_one: Callable[[Path, Progress], Added]) -> None:
    """Add each folder and print its result at once; what holds no adapter is passed over, and refusals are counted.

    One bar shows the progress over all.

    Raises:
        UsageProblem: no folder holds an adapter.
        SystemExit: some were refused; the others were added.
    """
    from adapterhub.api.installing import size_given

    out = session.out
    added: list[Added] = []
    skipped: list[dict[str, str]] = []
    failed: list[dict[str, Any]] = []
    sizes = [size_given(folder) or 0 for folder in folders]
    with out.progress(f"add {len(folders)}", sum(sizes) or None) as progress:
        for folder, size in zip(folders, sizes, strict=True):
            place = shown(str(folder), 200)
            reason = _no_adapter(folder)
            meter = Meter(progress, size)
            if reason:
                skipped.append({"path": str(folder), "reason": reason})
                out.note(f"passed over `{place}`: {reason}")
                continue
            try:
                one = add_one(folder, meter)
            except AdapterHubError as error:
                failed.append({"path": str(folder), "error": failure_facts(error)})
                if not out.as_json:
                    report_failure(reworded(error, f"`{place}`: {error.message}"), as_json=False)
                continue
            finally:
                meter.end()
            added.append(one)
            if not out.as_json:
                out.line(_line(one))
    if not added and not failed:
        raise UsageProblem(
            f"none of the {len(folders)} holds an adapter", hint="give folders that PEFT's `save_pretrained` wrote"
        )
    new = sum(one.created for one in added)
    counts = ((new, "added"), (len(added) - new, "already installed"), (len(skipped), "passed over"))
    total = ", ".join(f"{count} {what}" for count, what in (*counts, (len(failed), "refused")) if count)
    document = {"added": [one.to_json() for one in added], "skipped": skipped, "failed": failed}
    out.result(document, lambda: out.line(f"{len(folders)} given: {total}"))
    if failed:
        raise SystemExit(EXIT_SOME_FAILED)


class Meter:
    """Counts one part of a whole, which is over at `end`, whatever of it was done: a refused file is not read whole."""

    def __init__(self, progress: Progress, expected: int) -> None:
        self._progress, self._left = progress, expected

    def __call__(self, done: int) -> None:
        """Count bytes, at most as many as are left of the part."""
        self._progress(min(done, self._left))
        self._left -= min(done, self._left)

    def end(self) -> None:
        """Count the rest."""
        self(self._left)


def _no_adapter(path: Path) -> str:
    """Return why a path that a pattern may have matched holds no adapter; "" if it holds one, or parts of one."""
    if not path.exists() or any(path.glob("adapter_*")):
        return ""
    if not path.is_dir():
        return "" if path.name.endswith(_WEIGHTS) else "is a file, not an adapter's folder"
    if any(path.glob(f"*{_WEIGHTS}")) and not (path / "config.json").exists():  # which makes it a model's
        return ""
    inside = sorted((one.parent.name for one in path.glob(f"*/{CONFIG_FILE}")), key=lambda name: (len(name), name))
    if not inside:
        return f"holds no `{CONFIG_FILE}`"
    more = f" and {len(inside) - 1} more" if len(inside) > 1 else ""
    return f"holds no `{CONFIG_FILE}`, but `{shown(inside[-1])}`{more} in it does"


def _line(added: Added) -> str:
    """Return the added build in one line."""
    build, manifest = added.build, added.build.manifest
    state = "added" if added.created else "already installed:"
    base, size = build.base_name or "an unknown base", size_text(manifest.size_bytes)
    return f"{state} {build.full_name} {manifest.label} for {base}  {size}  {manifest.digest}"

"""`adapt add`: add a PEFT output folder to the library as a release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.reporting import report_card, report_warnings
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.output import size_text
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.library import Added


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Name of the adapter: lower case, digits, `.`, `-`, `_`.")
@click.option("--base", type=BASE, help="Record this base and check the shapes against it.")
@click.option("--task", metavar="TASK", help="Record the task, such as `legal-qa`.")
@click.option("--version", metavar="VERSION", help="PEP 440 version [default: 1.0.0].")
@click.option("--description", default="", metavar="TEXT", help="Describe the adapter in one sentence.")
@click.option("--license", "licence", metavar="SPDX", help="Licence [default: the one in the folder's README].")
@common
def add(
    session: Session,
    folder: Path,
    name: str | None,
    base: BaseSpec | None,
    task: str | None,
    version: str | None,
    description: str,
    licence: str | None,
) -> None:
    """Check a PEFT output FOLDER and add it to the library.

    Refuses pickles, damaged or hostile files, NaN, tensors that do not pair or do not fit the base, and a name and
    version that exist with other bytes. A refused folder leaves nothing behind. Without --base, the adapter's base
    stays unknown.

    A folder with an `adapterhub.json`, such as a published build or one in the Hugging Face cache, is taken in as that
    file describes it, unless you describe it otherwise.

    \b
    Examples:
      adapt add ./out/legal-qa --name legal-qa --base base-7b --task legal-qa
      adapt add ./share/legal-qa/1.0.0-r4
    """
    from adapterhub.core.specs import parse_name, parse_version
    from adapterhub.library.intake.description import Description

    library = session.library
    if not any((name, task, version, description, licence)) and folder.is_dir():
        from adapterhub.api.steps.installing import add_described

        with session.out.progress("add", None) as progress:
            taken = add_described(session, folder, base, progress=progress)
        if taken is not None:
            say_added(session, taken, "added")
            return
    if name is None:
        raise UsageProblem("the adapter needs a name", hint="give one with `--name NAME`")
    about = Description(
        name=parse_name(name),
        version=parse_version(version or "1.0.0"),
        task=task,
        description=description,
        license=licence,
    )
    record = library.bases.find(base) if base is not None else None
    size = sum(p.stat().st_size for p in folder.glob("adapter_*") if p.is_file()) if folder.is_dir() else None
    with session.out.progress("add", size) as progress:
        added = library.add(folder, about, base=record, progress=progress)
    say_added(session, added, "added")
    if record is None and added.created:
        session.out.note(f"the base is unknown; record it with `adapt base pin {name} BASE`")


def say_added(session: Session, added: Added, verb: str) -> None:
    """Print the added build and the warnings of its checks."""
    build, manifest = added.build, added.build.manifest
    report_warnings(session, added)
    report_card(session, added)
    base = session.library.base_label(build.base) or "an unknown base"
    size = size_text(manifest.size_bytes)
    state = verb if added.created else "already installed:"
    session.out.result(
        added_document(added),
        lambda: session.out.line(f"{state} {build.full_name} {manifest.label} for {base}  {size}  {manifest.digest}"),
    )


def added_document(added: Added) -> dict[str, Any]:
    """The JSON document of an added build."""
    build, manifest = added.build, added.build.manifest
    return {
        "name": build.full_name,
        "version": manifest.version,
        "digest": manifest.digest,
        "created": added.created,
        "rank": manifest.rank,
        "size_bytes": manifest.size_bytes,
        "path": str(build.folder),
        "warnings": [f.to_json() for f in added.report.warnings],
    }

"""`adapt pull`: write a build's files to a plain folder, for any tool that reads PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.params import (
    BASE,
    SPEC,
    Session,
    common,
    exclude_newer_option,
    rank_option,
    remote_options,
    signatures_option,
)

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec


@click.command()
@click.argument("spec", type=SPEC)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--base", type=BASE, help="Use this base if the spec names none.")
@rank_option
@exclude_newer_option
@signatures_option
@remote_options
@common
def pull(session: Session, spec: AdapterSpec, folder: Path, **options: Any) -> None:
    """Write a build's files to a new folder, checked as on installation. The library does not change.

    Looks in the library first, then on the servers that `adapt install` would ask; with --remote, only on that server.
    Inside a project, the project's policy applies.

    \b
    Examples:
      adapt pull legal-qa@base-7b ./legal-qa
      adapt pull acme/legal-qa@base-7b==1.0 ./legal-qa --remote ours
    """
    pulled = session.opened.pull(spec, folder, **options)
    release = pulled.release
    there = "" if pulled.copied.sent_files else "  (already there)"
    text = f"{release.full_name} {release.manifest.label} from {release.origin}  {folder}{there}"
    session.out.result(pulled.to_json(), lambda: session.out.line(text))

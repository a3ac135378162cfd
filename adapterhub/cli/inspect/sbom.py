"""`adapt sbom`: the bill of materials of adapters, as CycloneDX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_spec
from adapterhub.cli.options.params import Session, common, project_option

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@click.command()
@click.argument("adapters", nargs=-1, metavar="[SPEC...]", shell_complete=complete_spec)
@click.option("--locked", is_flag=True, help="List what the project's lock file names.")
@project_option
@common
def sbom(session: Session, adapters: tuple[str, ...], locked: bool) -> None:
    """List what adapters are made of: bases, parents, data sets and licences; with --json, as CycloneDX 1.6.

    Without SPEC, every installed adapter. The document of --json is a bill of materials for machine learning (ML-BOM),
    which other programs read. It tells what manifests, cards and bases state; what they do not state is left out.

    \b
    Examples:
      adapt sbom legal-qa@base-7b
      adapt sbom legal-qa@base-7b --json > legal-qa.cdx.json
      adapt sbom --locked --json > bom.json
    """
    bill = session.opened.sbom(*adapters, locked=locked)
    columns = ("part", "name", "version", "licence")
    session.out.result(bill, lambda: session.out.table(columns, list(_rows(bill))))


def _rows(bill: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    subject = bill["metadata"]["component"]
    for one in ([subject] if subject["type"] != "application" else []) + bill["components"]:
        said = one.get("licenses", [{}])[0]
        licence = said.get("expression") or said.get("license", {}).get("name", "")
        name = f"{one['group']}/{one['name']}" if "group" in one else one["name"]
        kind = one["bom-ref"].partition(":")[0]
        yield kind if kind in ("base", "dataset") else "adapter", name, one.get("version", ""), licence

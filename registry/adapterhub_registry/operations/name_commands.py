"""The command `adapt registry names`: which repositories hold the names of a namespace, here or from afar."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar
from urllib.parse import quote

import click
from sqlalchemy import true

from adapterhub.core.errors import UsageProblem
from adapterhub.core.specs import parse_name
from adapterhub_registry.access.adapter_names import Held, held_in, move
from adapterhub_registry.operations.far import FarRegistry
from adapterhub_registry.operations.far_options import far_registry, local_database, show_rows, where_options
from adapterhub_registry.operations.options import JSON


class FarNames(FarRegistry):
    """The names of namespaces on the registry at `url`; to move one takes a token that may write the namespace."""

    needs: ClassVar[str] = "a token that may write the whole namespace"

    def held(self, namespace: str) -> list[Held]:
        """The names of a namespace."""
        answer = self.send("GET", f"namespaces/{quote(namespace, safe='')}/names")
        return self.records_in(Held, answer, "names")

    def move(self, namespace: str, name: str, repo: str) -> list[Held]:
        """Move a name; see `adapter_names.move`."""
        answer = self.send("POST", f"namespaces/{quote(namespace, safe='')}/names", {"name": name, "repo": repo})
        return self.records_in(Held, answer, "names")


@click.command()
@click.argument("namespace")
@click.argument("name", required=False)
@click.option("--to", "repo", metavar="ORG/REPO", help="Give NAME to this repository alone.")
@where_options("Namespace owner's")
@JSON
def names(namespace: str, name: str | None, repo: str | None, *, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - options
    """Show which repositories may release the adapter names of NAMESPACE, or move NAME to one of them.

    Who may write the repository NAMESPACE/NAME may release NAME anywhere in NAMESPACE. Anyone else may release it only
    in a repository that has the name already.

    \b
    Examples:
      adapt registry names acme --url https://registry.example.org
      adapt registry names acme legal-qa --to acme/legal-qa-base-7b --root ./registry-data
    """
    if (name is None) != (repo is None):
        raise UsageProblem(
            "NAME and `--to` belong together", hint="`adapt registry names acme legal-qa --to acme/legal-qa`"
        )
    far = far_registry(given, FarNames)
    if far is not None:
        held = far.held(namespace) if name is None or repo is None else far.move(namespace, parse_name(name), repo)
    else:
        with local_database(given).begin() as connection:
            if name is not None and repo is not None:
                move(connection, namespace, parse_name(name), repo)
            held = held_in(connection, namespace, true())
    show_rows([asdict(one) for one in held], ("name", "repo"), as_json=as_json)

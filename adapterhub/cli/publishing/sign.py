"""`adapt sign`: sign an installed build and store the signature beside its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.keys import sign_build, sign_made, signing_key
from adapterhub.cli.completion.completing import complete_own_key
from adapterhub.cli.options.params import SPEC, Session, common, rank_options

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.library.store.catalog import Installed


@click.command()
@click.argument("spec", type=SPEC)
@click.option(
    "--key",
    metavar="NAME",
    shell_complete=complete_own_key,
    help="Sign with this key [default: ADAPTERHUB_KEY, else your only key].",
)
@click.option("--namespace", metavar="NAMESPACE", help="Sign for this namespace [default: the adapter's own].")
@click.option("--statement", is_flag=True, help="Also sign how it was merged: parents, weights, base and recipe.")
@rank_options
@common
def sign(
    session: Session,
    spec: AdapterSpec,
    key: str | None,
    namespace: str | None,
    statement: bool,
    rank: int | None,
    min_rank: int | None,
    max_rank: int | None,
) -> None:
    """Sign an installed adapter: write `model.sig` for its name, version, base, rank, parents and files.

    Checks every file first. `push`, `mirror` and `pull` copy the signature along, and `model_signing` can verify it.
    The statement of --statement is in-toto's, SLSA provenance; `push` sends it to directories and OCI registries.

    \b
    Examples:
      adapt sign legal-qa@base-7b
      adapt sign legal-qa@base-7b==1.0.0 --key ana --namespace acme
      adapt sign all-in-one --statement
    """
    from adapterhub.api.steps.finding import find_build
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import parse_namespace

    library = session.library
    bounds = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    build = find_build(session, spec, bounds, to="send")
    if namespace is not None:
        parse_namespace(namespace)
    signer = signing_key(session, key)
    made = {"statement": str(sign_made(library, build, signer))} if statement else {}
    document = sign_build(library, build, namespace or build.namespace, signer) | made
    session.out.result(document, lambda: session.out.line(_text(build, document)))


def _text(build: Installed, document: dict[str, Any]) -> str:
    done = "signed" if document["created"] else "already signed:"
    where = f" for `{document['namespace']}`" if document["namespace"] else ""
    made = f"\nstated how it was made  {document['statement']}" if "statement" in document else ""
    return f"{done} {build.full_name} {build.manifest.label}{where} with {document['key']}  {document['path']}{made}"

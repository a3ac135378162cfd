"""`adapt sign`: sign an installed build and store the signature beside its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_own_key
from adapterhub.cli.options.params import SPEC, Session, common, rank_option

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec


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
@rank_option
@common
def sign(session: Session, spec: AdapterSpec, **options: Any) -> None:
    """Sign an installed adapter: write `model.sig` for its name, version, base, rank, parents and files.

    Checks every file first. `push`, `mirror` and `pull` copy the signature along, and `model_signing` can verify it.
    The statement of --statement is in-toto's, SLSA provenance; `push` sends it to directories and OCI registries.

    \b
    Examples:
      adapt sign legal-qa@base-7b
      adapt sign legal-qa@base-7b==1.0.0 --key ana --namespace acme
      adapt sign all-in-one --statement
    """
    signed = session.opened.sign(spec, **options)
    done = "signed" if signed.created else "already signed:"
    what = f"{signed.build.full_name} {signed.build.manifest.label}"
    where = f" for `{signed.namespace}`" if signed.namespace else ""
    made = f"\nstated how it was made  {signed.statement}" if signed.statement else ""
    text = f"{done} {what}{where} with {signed.key}  {signed.path}{made}"
    session.out.result(signed.to_json(), lambda: session.out.line(text))

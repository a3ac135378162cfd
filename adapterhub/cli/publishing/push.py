"""`adapt push`: publish a build to the Hugging Face Hub, a registry, an OCI registry or a directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_own_key
from adapterhub.cli.options.params import SPEC, Session, common, rank_option, remote_option
from adapterhub.cli.options.testing import test_option
from adapterhub.cli.output import size_text

if TYPE_CHECKING:
    from adapterhub.api.publishing import PushPlan, Sent
    from adapterhub.core.specs import AdapterSpec


@click.command()
@click.argument("spec", type=SPEC)
@click.option(
    "--to",
    required=True,
    metavar="ORG/REPO|OCI|DIR",
    help="Publish to this repository, image (`oci://host/repo[:tag]`) or directory (`./dir`).",
)
@rank_option
@click.option("--sign", is_flag=True, help="Sign the adapter first, as `adapt key sign` does.")
@click.option(
    "--key",
    metavar="NAME",
    shell_complete=complete_own_key,
    help="With --sign: use this key [default: ADAPTERHUB_KEY, or your only key].",
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@test_option("Send it only if it answers as its contract records")
@click.option("--results", is_flag=True, help="Send only the signed results of its tests, to a published version.")
@click.option("--dry-run", is_flag=True, help="Show exactly what would be sent; send nothing.")
@remote_option
@common
def push(session: Session, spec: AdapterSpec, **options: Any) -> None:
    """Publish an adapter: its files, `adapterhub.json`, a model card with searchable tags, and a tag for the version.

    With --test, an adapter that no longer answers as its contract records is refused before the first byte. A registry
    or a directory also gets the signed results of its tests.

    \b
    Examples:
      adapt push legal-qa@base-7b --to acme/legal-qa-base-7b --dry-run
      adapt push legal-qa@base-7b --to acme/legal-qa-base-7b --remote ours
      adapt push legal-qa@base-7b --to oci://registry.example.org/acme/legal-qa
      adapt push legal-qa@base-7b --to ./published --sign --test
      adapt push acme/legal-qa@base-7b --to acme/legal-qa-base-7b --results
    """
    sent = session.opened.push(spec, **options)
    session.out.result(sent.to_json(), lambda: session.out.line("\n".join(_lines(sent))))


def _lines(sent: Sent) -> list[str]:
    from adapterhub.api.publishing import PushPlan, SentResults

    if isinstance(sent, PushPlan):
        return _planned(sent)
    what = f"{sent.build.full_name} {sent.build.manifest.label}"
    if isinstance(sent, SentResults):
        return [f"sent {sent.sent_results} signed results of {what} to {sent.to}"]
    mount = [f"to mount: {sent.mount}"] if sent.sent_mount else []
    if sent.created:
        return [f"pushed {what} to {sent.place}  {sent.url or ''}".rstrip(), *mount]
    if sent.sent_signature:
        return [f"sent the signature of {what} to {sent.place}", *mount]
    if mount:
        return [f"{what} is already in {sent.place}; sent its image to mount", *mount]
    return [f"{what} is already in {sent.place}; nothing was sent"]


def _planned(plan: PushPlan) -> list[str]:
    return [
        f'would send to {plan.kind} {plan.to}, commit "{plan.commit_message}", tag {plan.tag}:',
        *([f"  once more in one archive, to mount: {plan.mount}"] if plan.mount else []),
        *(["  model.sig, the signature"] if plan.is_signed else []),
        *(f"  {f.path}  {size_text(f.size_bytes)} ({f.size_bytes:,} bytes)  {f.sha256}" for f in plan.files),
        "tags:",
        *(f"  {tag}" for tag in plan.tags),
        "card README.md:",
        *(f"  {line}" for line in plan.card.splitlines()),
    ]

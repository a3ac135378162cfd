"""`adapt pull`: write a build's files to a plain folder, for any tool that reads PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.options.params import BASE, SPEC, Session, common, rank_options, remote_options, signatures_option
from adapterhub.cli.options.project_policy import exclude_newer_option
from adapterhub.projects.places import objection_from

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.trust.signing.policy import SignaturePolicy


@click.command()
@click.argument("spec", type=SPEC)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--base", type=BASE, help="Use this base if the spec names none.")
@rank_options
@exclude_newer_option
@signatures_option
@remote_options
@common
def pull(
    session: Session,
    spec: AdapterSpec,
    folder: Path,
    base: BaseSpec | None,
    rank: int | None,
    min_rank: int | None,
    max_rank: int | None,
    exclude_newer: str | None,
    signatures: SignaturePolicy | None,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Write a build's files to a new folder, checked as on installation. The library does not change.

    Looks in the library first, then on the servers that `adapt install` would ask; with --remote, only on that server.
    Inside a project, the project's policy applies.

    \b
    Examples:
      adapt pull legal-qa@base-7b ./legal-qa
      adapt pull acme/legal-qa@base-7b==1.0 ./legal-qa --remote ours
    """
    from adapterhub.api.steps.publishing import pull_release
    from adapterhub.core.ranks import RankRange

    pulled = pull_release(
        session,
        spec,
        folder,
        base=base,
        bounds=RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank),
        objection=objection_from(session, exclude_newer),
        signatures=signatures,
        remote=remote,
        token=token,
        offline=offline,
        bars=session.out,
    )
    release, copied = pulled.release, pulled.copied
    manifest = release.manifest
    session.out.result(
        {
            "name": release.full_name,
            "version": manifest.version,
            "digest": release.digest,
            "source": release.origin,
            "path": str(folder),
            "sent_files": copied.sent_files,
            "sent_bytes": copied.sent_bytes,
        },
        lambda: session.out.line(
            f"{release.full_name} {manifest.label} from {release.origin}  {folder}"
            + ("" if copied.sent_files else "  (already there)")
        ),
    )

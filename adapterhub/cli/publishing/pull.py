"""`adapt pull`: a build's plain files in a folder, for any tool that reads PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.options.params import BASE, SPEC, Session, common, rank_options, remote_options, signatures_option
from adapterhub.cli.options.project_policy import exclude_newer_option
from adapterhub.projects.places import SpecSources, objection_from
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.trust.signing.policy import SignaturePolicy


@click.command()
@click.argument("spec", type=SPEC)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--base", type=BASE, help="The base, where the spec names none.")
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
    """Write a build's plain files to a new folder, checked as an install is; the library is not changed.

    The library is asked first, then the servers, as `adapt install` does; with --remote only that server. Inside
    a project its policy holds, as it does for `adapt install`.

    \b
    Examples:
      adapt pull legal-qa@base-7b ./legal-qa
      adapt pull acme/legal-qa@base-7b==1.0 ./legal-qa --remote ours
    """
    from adapterhub.cli.options.choice import choose_release
    from adapterhub.core.ranks import RankRange
    from adapterhub.distribution.install import admit, asked_of
    from adapterhub.library.admission.installed import Admission
    from adapterhub.library.directory import BuildFolder
    from adapterhub.library.transfer import Source, copy

    objection = objection_from(session, exclude_newer)
    library = session.library
    sources: list[Source] = [] if remote else [library]
    if not offline:
        sources += session.sources_of(spec, remote, token=token)
    wanted, bounds = wanted_from(library, spec, base), RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    release, source, _ = choose_release(
        session,
        library,
        spec,
        sources,
        wanted=wanted,
        bounds=bounds,
        objection=objection,
    )
    if source is library:
        Admission(library).refuse(
            library.read_build(library.folder_for(release.manifest, release.namespace)), signatures
        )
        signature = library.provenance(release).signature
    else:
        asked = asked_of(library, spec, release, wanted, bounds)
        policy = signatures or SpecSources(session, (), remote=remote, token=token, offline=offline).policy_of(source)
        signature, finding = admit(library, release, source, asked, policy)
        if finding.severity == "warning":
            session.out.warn(f"[{finding.code}] {finding.message}")
    with session.out.progress(f"pull {release.full_name}", release.manifest.size_bytes) as progress:
        copied = copy(release, source, BuildFolder(folder), progress, signature=signature)
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
            + ("" if copied.sent_files else "  (there already)")
        ),
    )

"""`adapt push`: publish a build to the Hugging Face Hub, a server that speaks its protocol, or a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_own_key
from adapterhub.cli.options.params import SPEC, Session, common, rank_options, remote_options
from adapterhub.cli.output import size_text
from adapterhub.cli.publishing.sign import sign_build, signing_key
from adapterhub.core.errors import UsageProblem
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.hub import Hub
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.transfer import Destination


@click.command()
@click.argument("spec", type=SPEC)
@click.option("--to", required=True, metavar="ORG/REPO|DIR", help="A model repository, or a directory (`./published`).")
@rank_options
@click.option("--sign", "sign_it", is_flag=True, help="Sign it first, as `adapt sign` does.")
@click.option(
    "--key",
    metavar="NAME",
    shell_complete=complete_own_key,
    help="The key to sign with [default: ADAPTERHUB_KEY, else your only key].",
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--dry-run", is_flag=True, help="Print exactly what would be sent; send nothing.")
@remote_options
@common
def push(
    session: Session,
    spec: AdapterSpec,
    to: str,
    rank: int | None,
    min_rank: int | None,
    max_rank: int | None,
    sign_it: bool,
    key: str | None,
    private: bool,
    dry_run: bool,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Publish an adapter: its files, `adapterhub.json`, a card with searchable tags, and a tag for the version.

    \b
    Examples:
      adapt push legal-qa@base-7b --to acme/legal-qa-base-7b --dry-run
      adapt push legal-qa@base-7b --to acme/legal-qa-base-7b --remote ours
      adapt push legal-qa@base-7b --to ./published --sign
    """
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import names_folder
    from adapterhub.distribution.choosing import look_up
    from adapterhub.formats.release import Release
    from adapterhub.library.admission.installed import Admission
    from adapterhub.library.directory import PublishedDirectory
    from adapterhub.library.transfer import copy

    if key and not sign_it:
        raise UsageProblem("`--key` names the key to sign with", hint="add `--sign`")
    library = session.library
    bounds = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    build, _ = look_up(library, spec, wanted=wanted_from(library, spec, None), bounds=bounds)
    release = Release(manifest=build.manifest, namespace=build.namespace, origin=library.label)
    to_directory = names_folder(to)
    if sign_it and not dry_run:
        signer = signing_key(session, key)
        namespace = build.namespace or (None if to_directory else to.partition("/")[0])
        sign_build(library, build, namespace, signer)
    if not (sign_it and dry_run):  # then it is not signed yet
        Admission(library).refuse(build)
    signature = library.provenance(release).signature
    if dry_run:
        document = _dry_document(build, to, to_directory=to_directory, is_signed=sign_it or signature is not None)
        session.out.result(document, lambda: _say_dry(session, document))
        return
    place: Destination
    if to_directory:
        place = PublishedDirectory(Path(to).expanduser())
    else:
        place = _server_for(session, to, remote, token=token, offline=offline).to(to, private=private)
    with session.out.progress(f"push {build.full_name}", build.manifest.size_bytes) as progress:
        copied = copy(release, library, place, progress, signature=signature)
    url = getattr(place, "commit_url", "")
    is_new = copied.sent_files > 0
    session.out.result(
        {
            "name": build.full_name,
            "version": build.manifest.version,
            "digest": release.digest,
            "to": to,
            "sent_files": copied.sent_files,
            "sent_bytes": copied.sent_bytes,
            "created": is_new,
            "signed": signature is not None,
            "url": url or None,
        },
        lambda: session.out.line(
            f"pushed {build.full_name} {build.manifest.label} to {place.label}  {url}".rstrip()
            if is_new
            else f"sent the signature of {build.full_name} {build.manifest.label} to {place.label}"
            if copied.sent_signature
            else f"{build.full_name} {build.manifest.label} is in {place.label} already; nothing was sent"
        ),
    )


def _server_for(session: Session, to: str, remote: str | None, *, token: str | None, offline: bool) -> Hub:
    """The server of `--remote`, else the one that has the namespace, else the default."""
    owners = [] if remote else session.remotes.of_namespace(to.partition("/")[0])
    return session.named_hub(remote or (owners[0].name if owners else None), token=token, offline=offline)


def _dry_document(build: Installed, to: str, *, to_directory: bool, is_signed: bool) -> dict[str, Any]:
    from adapterhub.core.digests import digest_of
    from adapterhub.formats.card import card_for, tags_for
    from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE

    manifest = build.manifest
    texts = {MANIFEST_FILE: manifest.to_bytes(), CARD_FILE: card_for(manifest).encode()}
    files = [{"path": e.path, "size_bytes": e.size_bytes, "sha256": e.sha256} for e in manifest.files]
    files += [{"path": n, "size_bytes": len(data), "sha256": digest_of(data)} for n, data in texts.items()]
    return {
        "dry_run": True,
        "to": to,
        "kind": "directory" if to_directory else "repository",
        "commit_message": f"{manifest.name} {manifest.version}",
        "tag": f"v{manifest.version}",
        "digest": manifest.digest,
        "signed": is_signed,
        "files": sorted(files, key=lambda f: str(f["path"])),
        "tags": tags_for(manifest),
        "card": card_for(manifest),
    }


def _say_dry(session: Session, document: dict[str, Any]) -> None:
    out = session.out
    out.line(
        f'would send to {document["kind"]} {document["to"]}, commit "{document["commit_message"]}", '
        f"tag {document['tag']}:"
    )
    if document["signed"]:
        out.line("  model.sig, the signature")
    for entry in document["files"]:
        out.line(
            f"  {entry['path']}  {size_text(entry['size_bytes'])} ({entry['size_bytes']:,} bytes)  {entry['sha256']}"
        )
    out.line("tags:")
    for tag in document["tags"]:
        out.line(f"  {tag}")
    out.line("card README.md:")
    for line in document["card"].splitlines():
        out.line(f"  {line}")

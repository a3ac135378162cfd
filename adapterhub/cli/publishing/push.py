"""`adapt push`: publish a build to the Hugging Face Hub, a registry, an OCI registry or a directory."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_own_key
from adapterhub.cli.options.params import SPEC, Session, common, rank_options, remote_options
from adapterhub.cli.options.testing import gate_from, test_options
from adapterhub.cli.output import size_text
from adapterhub.cli.publishing.sign import ask_password
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.transfer import Destination


@click.command()
@click.argument("spec", type=SPEC)
@click.option(
    "--to",
    required=True,
    metavar="ORG/REPO|OCI|DIR",
    help="Publish to this repository, image (`oci://host/repo[:tag]`) or directory (`./dir`).",
)
@rank_options
@click.option("--sign", "sign_it", is_flag=True, help="Sign the adapter first, as `adapt sign` does.")
@click.option(
    "--key",
    metavar="NAME",
    shell_complete=complete_own_key,
    help="With --sign: use this key [default: ADAPTERHUB_KEY, else your only key].",
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@test_options("Send it")
@click.option("--results", is_flag=True, help="Send only the signed results of its tests, to a version that is there.")
@click.option("--dry-run", is_flag=True, help="Show exactly what would be sent; send nothing.")
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
    test: bool,
    test_warn: bool,
    results: bool,
    dry_run: bool,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Publish an adapter: its files, `adapterhub.json`, a model card with searchable tags, and a tag for the version.

    With --test, an adapter that no longer answers as its contract records is refused before the first byte. The signed
    results of its tests go along to a registry or a directory.

    \b
    Examples:
      adapt push legal-qa@base-7b --to acme/legal-qa-base-7b --dry-run
      adapt push legal-qa@base-7b --to acme/legal-qa-base-7b --remote ours
      adapt push legal-qa@base-7b --to oci://registry.example.org/acme/legal-qa
      adapt push legal-qa@base-7b --to ./published --sign --test
      adapt push acme/legal-qa@base-7b --to acme/legal-qa-base-7b --results
    """
    from adapterhub.api.steps.finding import find_build
    from adapterhub.api.steps.keys import signing_key
    from adapterhub.api.steps.publishing import place_for, push_build, push_results
    from adapterhub.core.ranks import RankRange

    if key and not sign_it:
        raise UsageProblem("`--key` needs `--sign`", hint="add `--sign`")
    if results and (dry_run or sign_it or test or test_warn):
        raise UsageProblem("`--results` sends results alone", hint="leave out `--sign`, `--test` and `--dry-run`")
    gate = gate_from(session, test=test, test_warn=test_warn)
    library = session.library
    bounds = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    build = find_build(session, spec, bounds, to="send")
    if results:
        count = push_results(session, build, to, remote=remote, token=token, offline=offline)
        named = {"name": build.full_name, "version": build.manifest.version, "digest": build.manifest.digest}
        session.out.result(
            named | {"to": to, "sent_results": count},
            lambda: session.out.line(
                f"sent {count} signed results of {build.full_name} {build.manifest.label} to {to}"
            ),
        )
        return
    if dry_run:
        place = place_for(session, to, remote=remote, token=token, offline=offline)
        document = _dry_document(library, build, to, place, sign_it=sign_it)
        if gate is not None:
            gate.before_sending(build)
            document["tests"] = [one.to_json() for one in gate.results]
        session.out.result(document, lambda: _say_dry(session, document))
        return
    ask = ask_password if sys.stdin.isatty() else None
    pushed = push_build(
        session,
        build,
        to,
        signer=signing_key(session, key, ask=ask) if sign_it else None,
        private=private,
        remote=remote,
        token=token,
        offline=offline,
        gate=gate,
        bars=session.out,
    )
    place, copied, url = pushed.place, pushed.copied, pushed.url
    is_new = copied.sent_files > 0
    session.out.result(
        {
            "name": build.full_name,
            "version": build.manifest.version,
            "digest": build.manifest.digest,
            "to": to,
            "sent_files": copied.sent_files,
            "sent_bytes": copied.sent_bytes,
            "created": is_new,
            "signed": pushed.is_signed,
            "url": url or None,
        }
        | ({"tests": [one.to_json() for one in gate.results]} if gate else {}),
        lambda: session.out.line(
            f"pushed {build.full_name} {build.manifest.label} to {place.label}  {url}".rstrip()
            if is_new
            else f"sent the signature of {build.full_name} {build.manifest.label} to {place.label}"
            if copied.sent_signature
            else f"{build.full_name} {build.manifest.label} is already in {place.label}; nothing was sent"
        ),
    )


def _dry_document(library: Library, build: Installed, to: str, place: Destination, *, sign_it: bool) -> dict[str, Any]:
    from adapterhub.api.steps.publishing import card_at, release_of, tag_at
    from adapterhub.core.digests import digest_of
    from adapterhub.formats.cards.card import tags_for
    from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, SIGNATURE_FILE
    from adapterhub.library.admission.admission import Admission
    from adapterhub.library.directory import PublishedDirectory
    from adapterhub.trust.signing.provenance import read_signature

    if not sign_it:  # else it is not signed yet
        Admission(library).ensure_usable(build)
    manifest, release = build.manifest, release_of(library, build)
    card = card_at(place, release, build.folder)
    texts = {MANIFEST_FILE: manifest.to_bytes(), CARD_FILE: card.text.encode()}
    files = [{"path": e.path, "size_bytes": e.size_bytes, "sha256": e.sha256} for e in manifest.files]
    files += [{"path": n, "size_bytes": len(data), "sha256": digest_of(data)} for n, data in texts.items()]
    return {
        "dry_run": True,
        "to": to,
        "kind": "directory" if isinstance(place, PublishedDirectory) else "repository",
        "commit_message": f"{manifest.name} {manifest.version}",
        "tag": tag_at(place, manifest),
        "digest": manifest.digest,
        "signed": sign_it or read_signature(build.folder / SIGNATURE_FILE) is not None,
        "files": sorted(files, key=lambda f: str(f["path"])),
        "tags": tags_for(manifest, release.base_hub_id),
        "card": card.text,
        "card_notes": list(card.notes),
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
    for note in document["card_notes"]:
        out.note(note)

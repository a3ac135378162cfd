"""`adapt mirror`: copy builds from one server to another, with the same digests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_remote
from adapterhub.cli.options.params import BASE, SPEC, Session, common, rank_options
from adapterhub.core.errors import UsageProblem
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.library.library import Library
    from adapterhub.library.transfer import Source


@click.command()
@click.argument("specs", nargs=-1, required=True, type=SPEC, metavar="SPEC...")
@click.option(
    "--from",
    "origin",
    required=True,
    metavar="NAME|URL",
    shell_complete=complete_remote,
    help="The server to copy from.",
)
@click.option(
    "--to", "target", required=True, metavar="NAME|URL", shell_complete=complete_remote, help="The server to copy to."
)
@click.option("--namespace", metavar="NAMESPACE", help="Publish under this namespace [default: the same].")
@click.option("--base", type=BASE, help="The base, where the spec names none.")
@rank_options
@click.option("--private", is_flag=True, help="Make new repositories private.")
@click.option("--dry-run", is_flag=True, help="Say what would be copied; send nothing.")
@click.option(
    "--ignore-bindings", is_flag=True, help="Copy although one of your remotes has the namespace, and is not this end."
)
@common
def mirror(
    session: Session,
    specs: tuple[AdapterSpec, ...],
    origin: str,
    target: str,
    namespace: str | None,
    base: BaseSpec | None,
    rank: int | None,
    min_rank: int | None,
    max_rank: int | None,
    private: bool,
    dry_run: bool,
    ignore_bindings: bool,
) -> None:
    """Copy builds between two servers, each with the token that `adapt remote login` kept for it.

    The repository keeps its name. What is there already is not sent again. A plain PEFT repository gets its manifest.
    A signature is passed on as it is; whoever installs judges it. So it is with the policy of a project: nothing comes
    into one here, and it is not asked. A namespace that you gave to a remote (`adapt remote add --namespaces`) is read
    from that remote only, and --namespace puts nothing under it elsewhere, unless --ignore-bindings says otherwise.

    \b
    Example:
      adapt mirror acme/legal-qa@base-7b acme/summarize@base-7b --from hub --to ours
    """
    from adapterhub.cli.options.choice import choose_release
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import parse_namespace
    from adapterhub.library.transfer import copy

    there, here = session.remote(origin), session.remote(target)
    if there.url == here.url:
        raise UsageProblem(f"`--from` and `--to` are both {there.url}")
    if namespace is not None:
        parse_namespace(namespace)
    library = session.library
    if not ignore_bindings:
        _refuse_bound(library, specs, namespace, there.url, here.url)
    source_hub, target_hub = session.hub(there), session.hub(here)
    bounds = RankRange(rank=rank, min_rank=min_rank, max_rank=max_rank)
    documents: list[dict[str, Any]] = []
    for spec in specs:
        sources: list[Source] = [source_hub] if spec.namespace else [source_hub.within(n) for n in there.namespaces]
        wanted = wanted_from(library, spec, base)
        release, source, _ = choose_release(
            session, library, spec, sources, wanted=wanted, bounds=bounds, ignore_bindings=ignore_bindings
        )
        repo, commit = source_hub.repository_of(release)
        to = f"{namespace}/{repo.partition('/')[2]}" if namespace else repo
        document = {
            "name": release.full_name,
            "version": release.manifest.version,
            "digest": release.digest,
            "from": f"{there.url}/{repo}",
            "commit": commit,
            "to": f"{here.url}/{to}",
            "size_bytes": release.manifest.size_bytes,
        }
        if not dry_run:
            with session.out.progress(f"mirror {release.full_name}", release.manifest.size_bytes) as progress:
                signature = source.provenance(release).signature
                copied = copy(release, source, target_hub.to(to, private=private), progress, signature=signature)
            document |= {"created": copied.sent_files > 0, "sent_bytes": copied.sent_bytes}
        documents.append(document)
    session.out.result(documents, lambda: _say(session, documents, dry_run=dry_run))


def _refuse_bound(library: Library, specs: Sequence[AdapterSpec], namespace: str | None, there: str, here: str) -> None:
    """Refuse to read a namespace, or to put others' builds under it, elsewhere than where the user gave it.

    Raises:
        NamespaceBound: with both sides, before anything is asked.
    """
    from adapterhub.library.admission.installed import Admission

    admission = Admission(library)
    hint = "`--ignore-bindings` copies it all the same"
    for spec in specs:
        admission.ensure_place_allowed(there, spec.namespace, hint=hint)
    admission.ensure_place_allowed(here, namespace, hint=hint)


def _say(session: Session, documents: list[dict[str, Any]], *, dry_run: bool) -> None:
    for d in documents:
        done = "would copy" if dry_run else "copied" if d["created"] else "there already:"
        session.out.line(f"{done} {d['name']} {d['version']} to {d['to']}  {d['digest']}")

"""`adapt install`: choose a build that fits, show it and install it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.params import (
    BASE,
    SPEC,
    Session,
    common,
    places_option,
    project_option,
    rank_option,
    remote_options,
    signatures_option,
    trust_option,
)
from adapterhub.cli.options.project_policy import exclude_newer_option
from adapterhub.cli.options.saving import project_to_save_in, save_options
from adapterhub.cli.options.testing import gate_from, install_test_options
from adapterhub.cli.output import size_text
from adapterhub.core.errors import UsageProblem
from adapterhub.distribution.requirements import read_requirements
from adapterhub.projects.places import SpecSources, objection_from, project_base

if TYPE_CHECKING:
    from adapterhub.api.steps.projects import Synced
    from adapterhub.core.arguments import Testing
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.distribution.install import InstallPlan
    from adapterhub.library.library import Added
    from adapterhub.projects.locking import LockOutcome
    from adapterhub.projects.values import Project
    from adapterhub.trust.signing.policy import SignaturePolicy


@click.command()
@click.argument("specs", nargs=-1, type=SPEC, metavar="[SPEC...]")
@click.option(
    "--requirements",
    "-r",
    "lists",
    multiple=True,
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Also install every spec in FILE, as `adapt export --requirements` writes it; `-` reads stdin.",
)
@places_option(
    "Also look in this library, directory of published builds or PEFT folder; may be repeated "
    "[default: ADAPTERHUB_SOURCES]."
)
@click.option("--base", type=BASE, help="Use this base for specs that name none.")
@rank_option
@click.option("--dry-run", is_flag=True, help="Show what would be installed, from where, and its size; change nothing.")
@click.option(
    "--allow-base-mismatch",
    is_flag=True,
    help="Accept a build made for other weights of the same shapes (a fine-tune), and record that.",
)
@click.option(
    "--accept-repository",
    "accepted",
    multiple=True,
    metavar="ORG/REPO",
    help="Let this repository supply an adapter whose name came from another one; may be repeated.",
)
@exclude_newer_option
@install_test_options
@save_options
@project_option
@trust_option
@signatures_option
@remote_options
@common
def install(
    session: Session,
    specs: tuple[AdapterSpec, ...],
    lists: tuple[Path, ...],
    places: tuple[Path, ...],
    base: BaseSpec | None,
    rank: RankRange | None,
    dry_run: bool,
    allow_base_mismatch: bool,
    accepted: tuple[str, ...],
    exclude_newer: str | None,
    test: Testing | None,
    dtype: str | None,
    load_in: str | None,
    save: bool,
    no_sync: bool,
    group: str | None,
    signatures: SignaturePolicy | None,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Install an adapter that fits a base.

    `legal-qa@base-7b` is looked up in the library, then in the places of --from, then in the namespaces of the remotes.
    `acme/legal-qa@base-7b` comes from the remote of namespace `acme`, else from the default remote. A version is
    `==1.2`, `>=1.2,<2` or `~=1.4`. An installed build is not downloaded again.

    Inside a project, the project's base applies where a spec names none, its remotes come first, and its policy
    applies. --save adds the adapter to the project: to `adapters.toml`, to the lock file and, as `adapt sync` does, to
    `adapters/`.

    \b
    Examples:
      adapt install legal-qa@base-7b --from ./published
      adapt install 'acme/legal-qa@base-7b>=1.2,<2' --rank -16 --dry-run
      adapt install acme/legal-qa@base-7b --remote ours --signatures require
      adapt install acme/legal-qa@base-7b --exclude-newer 7d
      adapt install 'acme/legal-qa~=1.2' --save
      adapt install acme/legal-qa@base-7b --test
      adapt install -r adapters.txt
    """
    from functools import partial

    from adapterhub.api.steps.installing import install_all, plan_all, plan_one
    from adapterhub.core.ranks import RankRange

    specs = (*specs, *(spec for path in lists for spec in read_requirements(path)))
    if not specs:
        hint = "run `adapt install NAME@BASE`; in a project, `adapt sync` installs the locked adapters"
        raise UsageProblem(
            "nothing to install: the list is empty" if lists else "give at least one adapter to install", hint=hint
        )
    session.library.accepted = frozenset(accepted)
    objection = objection_from(session, exclude_newer)
    to_save_in = project_to_save_in(
        session, save=save, no_sync=no_sync, group=group, dry_run=dry_run, allow_base_mismatch=allow_base_mismatch
    )
    sources_of = SpecSources(session, places, remote=remote, token=token, offline=offline)
    base_is_typed = base is not None
    base = base or project_base(session)
    bounds = RankRange.of(rank)
    gate = gate_from(session, test=test, dtype=dtype, load_in=load_in)
    documents: list[dict[str, Any]] = []
    plan_it = partial(
        plan_one,
        base=base,
        base_is_typed=base_is_typed,
        bounds=bounds,
        allow_base_mismatch=allow_base_mismatch,
        objection=objection,
    )
    plans = plan_all(session, specs, sources_of, plan_it)
    if dry_run:
        documents += map(_plan_document, plans)
    else:
        what = specs[0].full_name if len(specs) == 1 else f"{len(specs)} adapters"
        done = install_all(session, plans, sources_of, signatures, bars=session.out, what=what, gate=gate)
        for plan, added in zip(plans, done, strict=True):
            documents.append(_done_document(plan, added) | ({"tests": [gate.results[-1].to_json()]} if gate else {}))
    if to_save_in is None:
        session.out.result(documents, lambda: _say(session, documents, dry_run=dry_run))
        return
    from adapterhub.api.steps.projects import save_installed  # what projects need costs a fifth of the start
    from adapterhub.cli.options.lock_changes import tell_only_here
    from adapterhub.projects.saving import Saved

    installed = [Saved(spec=plan.asked.spec, bounds=bounds, plan=plan) for plan in plans]
    outcome, synced = save_installed(
        session,
        to_save_in.folder,
        sources_of,
        installed,
        group=group,
        syncs=not no_sync,
        signatures=signatures,
        bars=session.out,
    )
    for document, saved in zip(documents, installed, strict=True):
        if synced is not None:
            document["linked"] = str(synced.plan.target.path / saved.spec.name)
    session.out.result(documents, lambda: _say_saved(session, to_save_in, documents, outcome, synced))
    tell_only_here(session, outcome.lock)


def _say_saved(
    session: Session, project: Project, documents: list[dict[str, Any]], outcome: LockOutcome, synced: Synced | None
) -> None:
    from adapterhub.cli.options.lock_changes import tell_changes
    from adapterhub.cli.projects.sync import document_of, say

    _say(session, documents, dry_run=False)
    tell_changes(session, outcome.changes)
    if synced is not None:
        say(session, document_of(project, synced.plan, synced.done, is_new=True))


def _say(session: Session, documents: list[dict[str, Any]], *, dry_run: bool) -> None:
    from adapterhub.formats.manifest import CONTRACT_FILE

    for d in documents:
        what = f"{d['name']} {d['version']}" + (f" (rank {d['rank']})" if d["rank"] else "")
        if d["present"]:
            session.out.line(f"{what} is already installed: {d['path']}")
        elif dry_run:
            session.out.line(
                f"would install {what} from {d['source']}: {size_text(d['copy_bytes'])} "
                f"({d['copy_bytes']:,} bytes) to fetch"
            )
            for entry in d["files"]:
                session.out.line(
                    f"  {entry['path']}  {entry['size_bytes']:,} bytes  {entry['sha256']}"
                    f"{'' if entry['fetch'] else '  (already in the store)'}"
                )
        else:
            session.out.line(f"installed {what} from {d['source']}  {d['path']}")
            if "tests" not in d and any(entry["path"] == CONTRACT_FILE for entry in d["files"]):
                from adapterhub.formats.contract.reading import has_contract

                if has_contract(Path(d["path"])):
                    session.out.hint(f"it has a contract; `adapt test {d['name']}` asks it on your base")


def _plan_document(plan: InstallPlan) -> dict[str, Any]:
    manifest, chosen = plan.release.manifest, plan.resolution.chosen
    fetch = {entry.path for entry in plan.missing}
    return {
        "name": plan.release.full_name,
        "version": manifest.version,
        "rank": manifest.rank,
        "digest": manifest.digest,
        "base_verdict": chosen.verdict.name,
        "source": plan.release.origin,
        "present": plan.present is not None,
        "path": str(plan.present.folder) if plan.present else None,
        "copy_bytes": plan.copy_bytes,
        "files": [
            {"path": e.path, "size_bytes": e.size_bytes, "sha256": e.sha256, "fetch": e.path in fetch}
            for e in manifest.files
        ],
        "refused": [{"release": release, "reason": reason} for release, reason in plan.resolution.refusals],
    }


def _done_document(plan: InstallPlan, added: Added | None) -> dict[str, Any]:
    document = _plan_document(plan)
    if added is not None:
        document |= {**added.to_json(), "present": not added.created}  # the list may name a build twice
    return document

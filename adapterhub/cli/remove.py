"""`adapt remove` and `adapt gc`: the two commands that take something away."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from adapterhub.cli.output import size_text
from adapterhub.cli.params import SPEC, Session, common, wanted_from

if TYPE_CHECKING:
    from adapterhub.specs import AdapterSpec


@click.command()
@click.argument("spec", type=SPEC)
@click.option("--all-versions", is_flag=True, help="Every build by that name.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@common
def remove(session: Session, spec: AdapterSpec, all_versions: bool, yes: bool) -> None:
    """Remove an installed adapter; its bytes stay in the store until `adapt gc`.

    \b
    Example:
      adapt remove legal-qa==1.0.0 --yes
    """
    from adapterhub.errors import UsageProblem
    from adapterhub.install import find_installed

    library = session.library
    if all_versions:
        builds = library.builds_named(spec.name, spec.namespace)
        if not builds:
            raise library.not_installed(spec.full_name)
    else:
        builds = [find_installed(library, spec, wanted=wanted_from(library, spec, None))[0]]
    names = ", ".join(f"{b.full_name} {b.manifest.label}" for b in builds)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageProblem(f"removing {names} needs `--yes` where nobody can be asked")
        click.confirm(f"Remove {names}?", abort=True, err=True)
    library.remove(builds)
    session.out.result(
        [{"name": b.full_name, "version": b.manifest.version, "digest": b.manifest.digest} for b in builds],
        lambda: session.out.line(f"removed {names}"),
    )
    session.out.hint("`adapt gc` frees the space")


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would go; delete nothing.")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Spare objects younger than this [default: 3600].",
)
@common
def gc(session: Session, dry_run: bool, grace_s: float | None) -> None:
    """Delete objects that no installed adapter uses.

    \b
    Example:
      adapt gc --dry-run
    """
    from adapterhub.store import GRACE_S

    swept = session.library.gc(grace_s=GRACE_S if grace_s is None else grace_s, dry_run=dry_run)
    gone, spared = sum(s for _, s in swept.gone), sum(s for _, s in swept.spared)

    def text() -> None:
        if dry_run:
            for path, size_bytes in swept.gone:
                session.out.line(f"{size_bytes}\t{path}")
        verb = "would free" if dry_run else "freed"
        session.out.line(f"{verb} {size_text(gone)} in {len(swept.gone)} objects")

    session.out.result(
        {
            "dry_run": dry_run,
            "freed_bytes": gone,
            "objects": [{"path": str(p), "size_bytes": s} for p, s in swept.gone],
            "spared_bytes": spared,
            "spared_objects": len(swept.spared),
            "in_use": [
                {"by": str(c.holder), "what": c.what, "host": c.holder.host, "pid": c.holder.pid, "file": str(c.path)}
                for c in swept.claims
            ],
        },
        text,
    )
    for claim in swept.claims:
        session.out.note(f"kept what `{claim.what}` needs: {claim.holder}")
        if not claim.holder.is_here:
            session.out.hint(f"if that is over, delete `{claim.path}`; it counts for a day")
    if swept.spared:
        session.out.hint(
            f"{len(swept.spared)} unused objects ({size_text(spared)}) are young and were kept; "
            "`adapt gc --grace 0` takes them, too"
        )

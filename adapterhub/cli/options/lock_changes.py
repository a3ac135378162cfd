"""Print what changed in a lock file."""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.cli.options.params import Session
from adapterhub.cli.output import listed
from adapterhub.projects.locking import Change
from adapterhub.projects.values import Lock


def tell_changes(session: Session, changes: Sequence[Change], *, short: bool = False) -> None:
    """Print a line for each difference; a `short` one has no digests and places."""
    for change in changes:
        session.out.line(change.short if short else change.line)


def tell_only_here(session: Session, lock: Lock) -> None:
    """Warn about adapters that only this library has: another machine cannot fetch them."""
    only_here = [f"`{entry.key}`" for entry in lock.adapters if entry.source.is_library]
    if only_here:
        session.out.warn(f"only this library has {listed(only_here, 5)}; `adapt sync` will fail on other machines")
        first = only_here[0].strip("`")
        session.out.hint(
            f"publish it with `adapt push {first} --to DIR` or `--to ORG/NAME`, name that place in `[remotes]`, "
            f"then run `adapt lock --upgrade {first}`"
        )

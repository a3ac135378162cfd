"""`adapt tree`: show adapters with the parents of each merge; with `--holders`, what holds each adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.steps.finding import lineage_of
from adapterhub.cli.options.params import SPEC, Session, common, project_option
from adapterhub.core.errors import NotFound, UsageProblem, shown

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.library.upkeep.lineage import Lineage, Node
    from adapterhub.projects.values import Lock, LockedAdapter, LockedMerge
    from adapterhub.weights.recipes.toml import Inner, Leaf, Step

_Branch = tuple[str, Sequence[Any]]
_LONGEST = 400
"""Characters in a line: a manifest may name a parent with any text."""


@click.command()
@click.argument("specs", nargs=-1, type=SPEC, metavar="[SPEC...]")
@click.option("--holders", is_flag=True, help="Show what each project and process holds, and what nothing holds.")
@click.option("--library", "is_library", is_flag=True, help="Show the library even inside a project.")
@project_option
@common
def tree(session: Session, specs: tuple[AdapterSpec, ...], holders: bool, is_library: bool) -> None:
    """Show the adapters of the project, else of the library, as a tree with the parents of each merge.

    The library's tree starts at adapters that no other installed adapter was made from. Give SPEC to start there
    instead; in a project, a bare name is the project's name for an adapter.

    \b
    Examples:
      adapt tree
      adapt tree legal-summary
      adapt tree --holders
    """
    if holders and specs:
        raise UsageProblem("`--holders` shows every adapter; give no names", hint="`adapt why NAME` shows one adapter")
    folder = None if is_library or holders else session.project_folder
    lineage = lineage_of(session)
    if holders:
        _show_holders(session, lineage)
    elif folder is not None and (keys := _keys(folder, specs)) is not None:
        _show_project(session, folder, lineage, keys)
    else:
        _show_library(session, lineage, specs)


# ---------------------------------------------------------------- library
def _show_library(session: Session, lineage: Lineage, specs: Sequence[AdapterSpec]) -> None:
    rows = [row for spec in specs for row in lineage.named(spec)] if specs else lineage.roots()
    nodes = [lineage.node_of(row) for row in rows]
    session.out.result(
        lambda: {"project": None, "adapters": [node.to_json() for node in nodes]}, lambda: _draw(session, nodes)
    )
    if not nodes:
        session.out.hint(
            "no adapter is installed; `adapt add FOLDER --name NAME` and `adapt install NAME@BASE` add adapters"
        )


def _draw(session: Session, nodes: Sequence[Node]) -> None:
    from adapterhub.library.upkeep.lineage import drawn

    for node in nodes:
        for line in drawn(*_branch(node), _branch):
            session.out.line(shown(line, _LONGEST))


def _branch(node: Node) -> _Branch:
    weight = f"{node.weight:g} x " if node.weight is not None else ""
    method = f" [{node.method}]" if node.method else ""
    state = {"stored": "  (removed)", "missing": "  (not here)"}.get(node.state, "")
    return f"{weight}{node.label}{method}{state}", node.parents


# ---------------------------------------------------------------- project
def _keys(folder: Path, specs: Sequence[AdapterSpec]) -> set[str] | None:
    """The project's names to show, empty for all of them; None if a spec is not a name of the project."""
    if not specs:
        return set()
    from adapterhub.projects.lock.lockfile import read_lock

    names = {str(spec) for spec in specs}
    try:
        return names if names <= read_lock(folder).entries.keys() else None
    except NotFound:
        return None


def _show_project(session: Session, folder: Path, lineage: Lineage, keys: set[str]) -> None:
    from adapterhub.library.upkeep.lineage import drawn
    from adapterhub.projects.lock.lockfile import read_lock

    lock = read_lock(folder)
    entries = sorted((e for e in lock.entries.values() if not keys or e.key in keys), key=lambda entry: entry.key)

    def text() -> None:
        for line in drawn(_title(folder, lock), entries, _locked(lock, lineage)):
            session.out.line(shown(line, _LONGEST))

    session.out.result(
        lambda: {"project": str(folder), "adapters": [_document(entry, lock, lineage) for entry in entries]}, text
    )


def _title(folder: Path, lock: Lock) -> str:
    return f"{folder}" + (f"  (base {lock.base.spec})" if lock.base else "")


def _locked(lock: Lock, lineage: Lineage) -> Any:
    """A function that draws an entry of the lock, an input of its recipe or an ancestor."""
    from adapterhub.projects.values import LockedAdapter, LockedMerge
    from adapterhub.weights.recipes.toml import Inner, Leaf

    by_digest = {entry.digest: entry for entry in lock.entries.values()}

    def draw(item: LockedAdapter | LockedMerge | Leaf | Inner | Node) -> _Branch:
        if isinstance(item, LockedAdapter):
            node = lineage.node(item.digest)
            rank = f" (rank {item.rank})" if item.rank else ""
            return f"{_called(item)}{item.name} {item.version}{rank}{_group(item)}{_absent(node)}", node.parents
        if isinstance(item, LockedMerge):
            state = _absent(lineage.node(item.digest))
            rank = f" (rank {item.rank})" if item.rank else ""
            return f"{item.key} {item.version}{rank} [{item.step.method}]{_group(item)}{state}", item.step.inputs
        if isinstance(item, Inner):
            return f"{item.weight:g} x [{item.step.method}]", item.step.inputs
        if isinstance(item, Leaf):
            entry = by_digest.get(item.digest) if item.digest else None
            if isinstance(entry, LockedMerge):
                return f"{item.weight:g} x {entry.key} {entry.version} [{entry.step.method}]", entry.step.inputs
            if entry is not None:
                return f"{item.weight:g} x {entry.key} {entry.version}", lineage.node(entry.digest).parents
            return f"{item.weight:g} x {item.spec}", ()
        return _branch(item)

    return draw


def _called(entry: LockedAdapter) -> str:
    return "" if entry.name == entry.key else f"{entry.key}: "


def _group(entry: LockedAdapter | LockedMerge) -> str:
    return f"  (group {entry.group})" if entry.group else ""


def _absent(node: Node) -> str:
    return "" if node.state == "installed" else "  (not installed)"


def _document(entry: LockedAdapter | LockedMerge, lock: Lock, lineage: Lineage) -> dict[str, Any]:
    from adapterhub.projects.values import LockedAdapter, LockedMerge

    node = lineage.node(entry.digest)
    document: dict[str, Any] = {
        "key": entry.key,
        "name": entry.name if isinstance(entry, LockedAdapter) else entry.key,
        "version": entry.version,
        "digest": entry.digest,
        "rank": entry.rank,
        "group": entry.group,
        "wanted": entry.wanted if isinstance(entry, LockedAdapter) else None,
        "state": node.state,
        "method": entry.step.method if isinstance(entry, LockedMerge) else node.method,
    }
    if isinstance(entry, LockedMerge):
        return document | {"parents": _inputs(entry.step, lock, lineage)}
    return document | {"parents": [one.to_json() for one in node.parents]}


def _inputs(step: Step, lock: Lock, lineage: Lineage) -> list[dict[str, Any]]:
    from adapterhub.weights.recipes.toml import Inner

    by_digest = {entry.digest: entry for entry in lock.entries.values()}
    found: list[dict[str, Any]] = []
    for item in step.inputs:
        if isinstance(item, Inner):
            inner = _inputs(item.step, lock, lineage)
            found.append({"weight": item.weight, "method": item.step.method, "parents": inner})
        elif item.digest and (entry := by_digest.get(item.digest)) is not None:
            found.append({"weight": item.weight, **_document(entry, lock, lineage)})
        else:
            found.append({"weight": item.weight, "name": item.spec, "digest": item.digest, "parents": []})
    return found


# ---------------------------------------------------------------- holders
def _show_holders(session: Session, lineage: Lineage) -> None:
    from adapterhub.library.upkeep.lineage import drawn
    from adapterhub.projects.uses import Uses

    uses_there = Uses(session.root, lineage)
    groups: list[dict[str, Any]] = []
    for holding in uses_there.projects:
        entries = sorted((holding.entries or {}).values(), key=lambda entry: entry.key)
        held = [{"key": e.key, "version": e.version, "digest": e.digest} for e in entries]
        groups.append({"kind": "project", "who": str(holding.project.folder), "adapters": held})
    for claim in uses_there.processes:
        rows = uses_there.needed_by(claim)
        held = [{"key": row.full_name, "version": row.version, "digest": row.digest} for row in rows]
        groups.append({"kind": "process", "who": f"{claim.holder}, {claim.what}", "adapters": held})
    unheld = [row for row in lineage.rows if not uses_there.of(row.digest)]
    rest = [{"key": row.full_name, "version": row.version, "digest": row.digest} for row in unheld]
    groups.append({"kind": "nobody", "who": None, "adapters": rest})

    def text() -> None:
        for group in groups:
            if group["adapters"] or group["kind"] == "project":
                title = "unused" if group["who"] is None else f"{group['kind']} {group['who'].removeprefix('process ')}"
                for line in drawn(title, group["adapters"], lambda one: (f"{one['key']} {one['version']}", ())):
                    session.out.line(shown(line, _LONGEST))

    session.out.result({"holders": groups}, text)

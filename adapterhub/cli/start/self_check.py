"""The installation looked at by itself: what it is made of, where it is found, and what its folders allow."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.errors import AdapterHubError
from adapterhub.core.extras import EXTRAS, missing

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from adapterhub.cli.options.params import Session

DISTRIBUTION = "adapterhub"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing looked at. `state` is ok, warning, failed or skipped."""

    what: str
    state: str
    fact: str
    hint: str = ""


def dependencies(distribution: str = DISTRIBUTION) -> Iterator[Line]:
    """Each declared dependency with the version that is there, against the declared bounds.

    Those of extras count when they are there; what is not is what the user left out.
    """
    from packaging.requirements import Requirement

    try:
        yield Line(distribution, "ok", metadata.version(distribution))
        declared = [Requirement(text) for text in metadata.requires(distribution) or ()]
    except metadata.PackageNotFoundError:
        yield Line(
            distribution, "warning", "runs from its sources, so its dependencies are not known", "`pip install -e .`"
        )
        return
    core, extra = _by_name(declared)
    for name, requirements in sorted({**extra, **core}.items()):
        line = _dependency(name, requirements, is_optional=name not in core)
        if line is not None:
            yield line


def _by_name(declared: list[Requirement]) -> tuple[dict[str, list[Requirement]], dict[str, list[Requirement]]]:
    """What holds here, by name: of the package itself, and of extras."""
    core: dict[str, list[Requirement]] = {}
    extra: dict[str, list[Requirement]] = {}
    for one in sorted(declared, key=lambda r: r.name.lower()):
        if one.name == DISTRIBUTION:
            continue
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            core.setdefault(one.name, []).append(one)
        elif "extra" in str(one.marker):
            extra.setdefault(one.name, []).append(one)
    return core, extra


def _dependency(name: str, requirements: list[Requirement], *, is_optional: bool) -> Line | None:
    bounds = requirements[0].specifier
    if not is_optional:
        for requirement in requirements[1:]:
            bounds &= requirement.specifier
    wanted = f"{name}{bounds}"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return (
            None
            if is_optional
            else Line(name, "failed", f"not installed, {bounds or 'any version'} needed", f"`pip install '{wanted}'`")
        )
    if bounds.contains(version, prereleases=True):
        return None if is_optional else Line(name, "ok", version)
    state = "warning" if is_optional else "failed"
    return Line(name, state, f"{version}, {bounds} needed", f"`pip install '{wanted}'`")


def extras() -> Iterator[Line]:
    """Each extra with whether it is installed; one that is not is what the user left out."""
    for extra in EXTRAS:
        if names := missing(extra):
            what = ", ".join(names)
            fact = f"without {what}; `pip install 'adapterhub[{extra}]'` brings {'it' if len(names) == 1 else 'them'}"
            yield Line(f"extra {extra}", "skipped", fact)
        else:
            yield Line(f"extra {extra}", "ok", "installed")


def entry_point(argv0: str) -> Iterator[Line]:
    """Whether `adapt` is found by the shell, and is this installation's."""
    found = shutil.which("adapt")
    scripts = Path(sysconfig.get_path("scripts"))
    mine = scripts / "adapt"
    if found is None:
        hint = f"add `{scripts}` to PATH" if mine.exists() else "`pip install adapterhub` makes it"
        yield Line("command", "warning", f"`adapt` is not on PATH (this is `{argv0}`)", hint)
    elif mine.exists() and not mine.samefile(found):
        yield Line(
            "command",
            "warning",
            f"`adapt` is {found}, this is {sys.prefix}",
            f"put `{scripts}` first on PATH, or call `{mine}`",
        )
    else:
        yield Line("command", "ok", found)


def folders(root: Path, project: Path | None) -> Iterator[Line]:
    """Whether the home can be written and its files linked, and what holds for the project's folder."""
    if not root.exists():
        yield Line("links", "skipped", "nothing is installed yet")
        return
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".doctor-") as name:
            yield _links(Path(name), Path(name), "links", "the library's folders", root)
            if project is not None:
                with tempfile.TemporaryDirectory(dir=project, prefix=".doctor-") as there:
                    yield _links(Path(name), Path(there), "project links", "`adapt sync`", project)
    except OSError as error:
        at = error.filename or root
        yield Line(
            "links", "failed", f"{at}: {error.strerror}", "choose another home with `--root DIR` or ADAPTERHUB_HOME"
        )


def _links(source: Path, target: Path, what: str, who: str, place: Path) -> Line:
    """Whether a file of one folder can be linked into the other."""
    (source / "file").write_bytes(b"")
    try:
        os.link(source / "file", target / "link")
    except OSError as error:
        fact = f"{place}: {error.strerror}; {who} will copy or clone instead"
        return Line(what, "warning", fact, "a home on the same file system, one with hard links, saves the space")
    return Line(what, "ok", f"hard links work in {place}")


def project_files(session: Session) -> Iterator[Line]:
    """Whether the project file and its lock can be read and go together; nothing outside a project."""
    from adapterhub.core.disk.home import LOCK_FILE, PROJECT_FILE
    from adapterhub.projects.lock.lockfile import read_lock
    from adapterhub.projects.lock.staleness import lock_problems
    from adapterhub.projects.project import read_project

    folder = session.project_folder
    if folder is None:
        return
    try:
        project = read_project(folder)
    except AdapterHubError as error:
        yield Line("project", "failed", error.message, error.hint)
        return
    wanted = len(project.adapters) + len(project.merges)
    yield Line("project", "ok", f"{folder / PROJECT_FILE}: {wanted} wanted")
    if not os.path.lexists(folder / LOCK_FILE):
        yield Line("lock", "warning" if wanted else "skipped", "not locked yet", "`adapt lock`" if wanted else "")
        return
    try:
        lock = read_lock(folder)
    except AdapterHubError as error:
        yield Line("lock", "failed", error.message, error.hint)
        return
    stale = lock_problems(project, lock)
    if stale:
        more = f", and {len(stale) - 1} more" if len(stale) > 1 else ""
        yield Line("lock", "warning", f"stale: {stale[0]}{more}", "`adapt lock` writes it anew")
    else:
        yield Line("lock", "ok", f"{len(lock.entries)} locked")

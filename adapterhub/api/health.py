"""Check the installation itself: its dependencies, its command, and what its folders allow."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapterhub.core.disk.files import OTHERS_MAY_WRITE
from adapterhub.core.disk.root import Root
from adapterhub.core.display import size_text
from adapterhub.core.errors import AdapterHubError, NotAllowed, RemoteUnreachable
from adapterhub.core.extras import EXTRAS, missing
from adapterhub.formats.documented import Documented

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import RowOf
    from adapterhub.projects.session import Session

DISTRIBUTION = "adapterhub"
_LOW_BYTES = 1_000_000_000


def health(
    session: Session,
    *,
    remote: str | None = None,
    token: str | None = None,
    offline: bool = False,
    argv0: str = "",
    jobs: int = 1,
) -> list[Line]:
    """Check the installation, one line each; `argv0` is the started command, if there was one.

    `jobs` processes read the builds.
    """
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [
        Line("python", "ok", python),
        *dependencies(),
        *extras(),
        *(entry_point(argv0) if argv0 else ()),
        *_home(session.root),
        *folders(session.root, session.project_folder),
        *_settings(session.root),
        *_index(session, jobs),
        *_records(session.root),
        *project_files(session),
        _remote(session, remote, token, offline=offline),
    ]


@dataclass(frozen=True, slots=True)
class Line(Documented, keys="check=what state fact hint", title="Check"):
    """One check of the installation."""

    what: Annotated[str, "what was checked"]
    state: Annotated[str, "`ok`, `warning`, `failed` or `skipped`"]
    fact: Annotated[str, "the result, as text"]
    hint: Annotated[str, "what to do; may be empty"] = ""


def dependencies(distribution: str = DISTRIBUTION) -> Iterator[Line]:
    """Compare the installed version of each declared dependency with its bounds.

    Dependencies of extras count only when they are installed; an extra is optional.
    """
    from packaging.requirements import Requirement

    try:
        yield Line(distribution, "ok", metadata.version(distribution))
        declared = [Requirement(text) for text in metadata.requires(distribution) or ()]
    except metadata.PackageNotFoundError:
        yield Line(
            distribution, "warning", "runs from its sources, so its dependencies are unknown", "`pip install -e .`"
        )
        return
    core, extra = _by_name(declared)
    for name, requirements in sorted({**extra, **core}.items()):
        line = _dependency(name, requirements, is_optional=name not in core)
        if line is not None:
            yield line


def _by_name(declared: list[Requirement]) -> tuple[dict[str, list[Requirement]], dict[str, list[Requirement]]]:
    """Return the requirements that apply here, by name: those of the package itself, and those of extras."""
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
            else Line(name, "failed", f"not installed, needs {bounds or 'any version'}", f"`pip install '{wanted}'`")
        )
    if bounds.contains(version, prereleases=True):
        return None if is_optional else Line(name, "ok", version)
    state = "warning" if is_optional else "failed"
    return Line(name, state, f"{version}, needs {bounds}", f"`pip install '{wanted}'`")


def extras() -> Iterator[Line]:
    """Each extra with whether it is installed; one that is not is what the user left out."""
    for extra in EXTRAS:
        if names := missing(extra):
            what = ", ".join(names)
            fact = f"without {what}; `pip install 'adapterhub[{extra}]'` installs {'it' if len(names) == 1 else 'them'}"
            yield Line(f"extra {extra}", "skipped", fact)
        else:
            yield Line(f"extra {extra}", "ok", "installed")


def entry_point(argv0: str) -> Iterator[Line]:
    """Check that the shell finds `adapt` and that it belongs to this installation."""
    found = shutil.which("adapt")
    scripts = Path(sysconfig.get_path("scripts"))
    mine = scripts / "adapt"
    if found is None:
        hint = f"add `{scripts}` to PATH" if mine.exists() else "`pip install adapterhub` installs it"
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
    """Check that the home is writable and its files can be linked, also into the project's folder."""
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
    """Check whether a file of one folder can be linked into the other."""
    (source / "file").write_bytes(b"")
    try:
        os.link(source / "file", target / "link")
    except OSError as error:
        fact = f"{place}: {error.strerror}; {who} will copy or clone instead"
        return Line(what, "warning", fact, "to save space, put the home on the same file system, one with hard links")
    return Line(what, "ok", f"hard links work in {place}")


def project_files(session: Session) -> Iterator[Line]:
    """Check that the project file and its lock are readable and agree; yields nothing outside a project."""
    from adapterhub.core.disk.home import LOCK_FILE, PROJECT_FILE
    from adapterhub.projects.lock.lockfile import lock_problems, read_lock
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
    yield Line("project", "ok", f"{folder / PROJECT_FILE}: {wanted} requested")
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
        yield Line("lock", "warning", f"stale: {stale[0]}{more}", "`adapt lock` updates it")
    else:
        yield Line("lock", "ok", f"{len(lock.entries)} locked")


def _home(root: Path) -> Iterator[Line]:
    there = next(p for p in (root, *root.absolute().parents) if p.exists())
    if not os.access(there, os.W_OK):
        yield Line("home", "failed", f"{root}: not writable", "set ADAPTERHUB_HOME or `--root` to a writable folder")
        return
    try:
        Root(root).ensure_real_folders()
    except NotAllowed as error:
        yield Line("home", "failed", error.message, error.hint)
        return
    yield Line("home", "ok", str(root) if root.exists() else f"{root} (the first `adapt add` creates it)")
    if root.exists() and root.stat().st_mode & OTHERS_MAY_WRITE:
        yield Line("permissions", "warning", f"others can write to `{root}`", f"`chmod -R go-w {root}`")
    free = shutil.disk_usage(there).free
    low = free < _LOW_BYTES
    yield Line(
        "disk",
        "warning" if low else "ok",
        f"{size_text(free)} free",
        "`adapt cache clean` frees unused objects" if low else "",
    )
    leftovers = list((root / "tmp").glob("*"))
    if leftovers:
        yield Line(
            "leftovers",
            "warning",
            f"{len(leftovers)} in `{root / 'tmp'}`",
            "`adapt cache clean` deletes them once they are old",
        )


def _settings(root: Path) -> Iterator[Line]:
    """Read every setting of the library; one that cannot be meant has the strictest meaning until it is mended."""
    from adapterhub.library.own_settings import OwnSettings
    from adapterhub.library.remotes import Remotes
    from adapterhub.trust.signing.trust import TrustFile

    trust, remotes, own = TrustFile(root), Remotes(root), OwnSettings(root)

    def policies() -> list[str]:
        return [f"`{trust.path}`: {problem}" for problem in trust.read().problems]

    def servers() -> list[str]:
        remotes.all()
        return remotes.problems()

    def tests() -> list[str]:
        own.read()
        return []

    lines = []
    for read, hint in (
        (policies, "`adapt key policy POLICY [--namespace NAMESPACE]` sets one"),
        (servers, "`adapt key policy POLICY --remote NAME` sets one"),
        (tests, ""),
    ):
        try:
            lines += [Line("settings", "failed", problem, hint) for problem in read()]
        except AdapterHubError as error:
            lines.append(Line("settings", "failed", error.message, error.hint))
    yield from lines or [Line("settings", "ok", "keys, servers and tests")]


def _index(session: Session, jobs: int) -> Iterator[Line]:
    from adapterhub.library.library import Library
    from adapterhub.library.store.index import IndexNewer

    if not session.root.exists():
        yield Line("index", "skipped", "nothing is installed yet")
        return
    library = Library(session.root).past_damage()
    index = library.catalog.index
    installed, broken, problems = _compared(session, library, jobs)
    for folder, why in sorted(broken):
        yield Line("builds", "failed", f"{folder}: {why}", "`adapt doctor --repair` repairs what it can")
    try:
        indexed = index.count() if index.path.exists() else 0
    except IndexNewer as error:
        yield Line("index", "warning", error.message, error.hint)
        return
    except AdapterHubError as error:
        yield Line("index", "failed", error.message, "`adapt doctor --rebuild-index` rebuilds it")
        return
    hint = "`adapt doctor --rebuild-index` rebuilds it"
    if not index.path.exists() and installed:
        yield Line("index", "failed", f"{indexed} builds indexed, {installed} installed", hint)
    elif problems:
        yield Line("index", "failed", "; ".join(problems), hint)
    else:
        yield Line("index", "ok", f"{indexed} builds")


def _compared(session: Session, library: Library, jobs: int) -> tuple[int, list[tuple[Path, str]], list[str]]:
    """Compare builds with the index: return their number, the broken ones with reasons, and the index's problems."""
    from adapterhub.library.store.catalog import build_folders
    from adapterhub.library.upkeep.checked import RowCheck, on_cores
    from adapterhub.library.upkeep.damage import damaged_index
    from adapterhub.library.upkeep.interrupted import Interrupted

    root, folders = session.root, build_folders(session.root)
    broken = [(path, "is a link") for path in build_folders(root, links=True)]
    installed, check, is_over = 0, RowCheck(root=root), False
    before = Interrupted(root, "doctor", check.header())
    if before.said:
        session.out.note(before.said)

    def rows() -> Iterator[RowOf]:
        nonlocal installed
        asked = ((folder, before.before(str(folder))) for folder in folders)
        with session.out.steps("check", unit="adapters") as steps:
            for at, one in enumerate(on_cores(check, asked, jobs)):
                steps(at + 1, len(folders))
                if one.broken:
                    broken.append((one.folder, one.broken))
                if one.row is not None:
                    installed += 1
                    if one.key:
                        before.keep(str(one.folder), one.key, one.row.row)
                    yield one.row

    every = rows()
    try:
        problems = [damage.message for damage in damaged_index(library, every)]
        for _ in every:  # there is no index to compare them with
            pass
        is_over = True
    finally:
        before.close(is_over=is_over)
    return installed, broken, problems


def _records(root: Path) -> Iterator[Line]:
    from adapterhub.api.checking import record_findings

    found = list(record_findings(root)) if root.exists() else []
    for one in found:
        yield Line("records", "failed", f"{root / one.where}: {one.message}", one.hint)
    if root.exists() and not found:
        yield Line("records", "ok", "aliases, bases, origins, projects, tests, trust and settings can be read")


def _remote(session: Session, remote: str | None, token: str | None, *, offline: bool) -> Line:
    if offline:
        return Line("hub", "skipped", "--offline")
    try:
        server: Any = session.named_source(session.remote(remote), remote, token=token, offline=False)
        who = server.who()
    except RemoteUnreachable as error:
        return Line(
            "hub", "warning", error.message, "local commands work without it; `--remote URL` names another server"
        )
    except AdapterHubError as error:
        return Line("hub", "warning", error.message, error.hint)
    return Line("hub", "ok", f"{server.place}: {who}")

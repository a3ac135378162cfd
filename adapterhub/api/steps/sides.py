"""The two sides of a difference: installed builds, folders, or versions that only a server has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from adapterhub.core.arguments import path_of
from adapterhub.core.errors import AdapterNotFound, NoCompatibleRelease, RemoteUnreachable, shown
from adapterhub.core.specs import AdapterSpec, names_folder
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.library import Library
    from adapterhub.projects.reporting import Bars
    from adapterhub.projects.session import Session
    from adapterhub.weights.compare.difference import Side


@contextmanager
def sides_of(
    session: Session,
    texts: Sequence[str],
    base: BaseSpec | None,
    *,
    library: Library | None = None,
    remote: str | None = None,
    token: str | None = None,
    offline: bool = False,
    bars: Bars,
) -> Iterator[list[Side]]:
    """The adapters to compare: folders, installed ones, and what only a server has, in folders of their own meanwhile.

    With `remote`, specs are read from that server alone. `library` resolves names; default: that of the session.

    Raises:
        AdapterNotFound, NoCompatibleRelease: neither here nor on a server.
    """
    from adapterhub.api.steps.publishing import pull_release
    from adapterhub.weights.compare.difference import Side

    library = library or session.library

    def side(text: str, folder: Path) -> Side:
        if names_folder(text) or not remote:
            try:
                return side_of(library, text, base)
            except (AdapterNotFound, NoCompatibleRelease):
                if names_folder(text) or offline or not session.sources_of(AdapterSpec.parse(text), None, token=token):
                    raise
        elif offline:
            raise RemoteUnreachable(
                "`--offline` forbids asking a server", hint="without `--remote`, it asks the library"
            )
        spec = AdapterSpec.parse(text)
        release = pull_release(session, spec, folder, base=base, remote=remote, token=token, bars=bars).release
        manifest, label = release.manifest, f"{release.full_name}=={release.manifest.version}"
        return Side(folder=folder, label=label, manifest=manifest, base=manifest.base, origin=release.origin)

    with TemporaryDirectory(prefix="adapt-diff-") as folder:
        yield [side(text, Path(folder) / str(number)) for number, text in enumerate(texts)]


def side_of(library: Library, text: str, base: BaseSpec | None) -> Side:
    """The adapter that `text` names, to be compared: a folder where it begins as a path does, else an installed one.

    Raises:
        AdapterNotFound: there is none; the hint tells how a folder is written.
    """
    from adapterhub.distribution.choosing import look_up
    from adapterhub.distribution.finding import ensure_folder
    from adapterhub.library.upkeep.damage import ensure_manifest_unchanged
    from adapterhub.weights.compare.difference import Side, side_of_folder

    if names_folder(text):
        folder = path_of(text)
        ensure_folder(folder)
        return side_of_folder(folder, text)
    spec = AdapterSpec.parse(text)
    try:
        build, _ = look_up(library, spec, wanted=wanted_from(library, spec, base))
    except AdapterNotFound as error:
        if not Path(text).is_dir():
            raise
        raise AdapterNotFound(error.message, hint=f"write `{shown(f'./{text}', 200)}` to name the folder") from None
    ensure_manifest_unchanged(library, build)
    label = f"{build.full_name}=={build.manifest.version}"
    return Side(folder=build.folder, label=label, manifest=build.manifest, base=build.base, is_installed=True)

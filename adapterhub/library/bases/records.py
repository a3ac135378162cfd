"""The registered bases, one JSON file for each alias, and the lookup of the base that a spec names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from adapterhub.core import arguments
from adapterhub.core.arguments import Count, path_of
from adapterhub.core.digests import Digest, Progress, canonical_json, hex_of, strict_json
from adapterhub.core.disk.files import read_plain
from adapterhub.core.disk.root import Root, absolute
from adapterhub.core.errors import (
    BaseMismatch,
    BaseNotFound,
    Conflict,
    Malformed,
    MalformedManifest,
    NotAllowed,
    SpecError,
    UsageProblem,
    shown,
)
from adapterhub.core.specs import BaseSpec, looks_like_revision, made_name
from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseHints, BaseVerdict, compare, fingerprint_tensors
from adapterhub.formats.diffusion.components import COMPONENTS, DENOISERS, stated_component
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import BaseRef, Manifest
from adapterhub.formats.safetensors.header import TensorFacts

if TYPE_CHECKING:
    from adapterhub.formats.base.folders import Looked

__all__ = ["BaseRecord", "Bases"]


class Bases:
    """Records under `folder`, facts of weight files under `cache_folder` (None: nothing is cached).

    Cheap to make; the first base that is added or fingerprinted makes the folder.
    """

    def __init__(self, folder: Path, cache_folder: Path | None) -> None:
        self.folder = folder
        self.cache_folder = cache_folder
        self._root = Root(folder.parent)
        self.passes_over_damage = False  # a check of everything goes on with the others
        self._read: dict[str, tuple[tuple[int, ...], BaseRecord]] = {}

    # ------------------------------------------------------------ read
    def list(self) -> tuple[BaseRecord, ...]:
        """Every registered base, by alias; after each pipeline its components, as bases of their own.

        Raises:
            Malformed: the file of one is damaged, and `passes_over_damage` is not set.
        """
        found: list[BaseRecord] = []
        for alias in self.aliases():
            try:
                whole = self._record_of(alias)
            except BaseNotFound:  # removed since it was listed
                continue
            except (Malformed, NotAllowed):
                if not self.passes_over_damage:
                    raise
                continue
            found += [whole, *whole.parts()]
        return tuple(found)

    def pipeline_of(self, record: BaseRecord) -> BaseRecord | None:
        """The pipeline that `record` is, or is a component of; None for any other model.

        A denoiser that is registered besides as one model counts as the component that it is.
        """
        if record.components:
            return record
        parts = (each for each in self.list() if each.component in DENOISERS)
        same = (each for each in parts if each.fingerprint.weights == record.fingerprint.weights)
        part = record if record.component and record.alias else next(same, None)
        return None if part is None else self.get(part.alias.partition("/")[0])

    def whole(self, record: BaseRecord) -> BaseRecord:
        """The pipeline that `record` is, or is a component of.

        Raises:
            UsageProblem: it is no part of a registered pipeline.
        """
        if (found := self.pipeline_of(record)) is None:
            raise UsageProblem(
                f"`{record.label}` is one model, expected a pipeline that draws images",
                hint="`adapt base add FOLDER --as NAME` registers the folder with its `model_index.json`",
            )
        return found

    def aliases(self) -> tuple[str, ...]:
        """The registered aliases, sorted; no record is read."""
        return tuple(sorted(path.stem for path in self.folder.glob("[!.]*.json")))

    @arguments.parsed
    def get(self, alias: str) -> BaseRecord:
        """The base registered as `alias`, or the component of a pipeline, as in `sdxl/unet`.

        Raises:
            BaseNotFound: the hint offers the nearest alias.
            Malformed: its file is damaged.
        """
        whole, slash, component = alias.partition("/")
        if slash and component in COMPONENTS:
            return self.get(whole).part(component)
        if alias not in self.aliases():
            raise self._not_found(alias)
        return self._record_of(alias)

    def _record_of(self, alias: str) -> BaseRecord:
        """The record of an alias that was listed. Its file is read once, and again when it has changed."""
        path = self._path(alias)
        try:
            with path.open("rb") as file:
                facts = os.fstat(file.fileno())
                key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
                if (known := self._read.get(alias)) is not None and known[0] == key:
                    return known[1]
                raw = file.read()
        except FileNotFoundError:  # removed since it was listed
            raise self._not_found(alias) from None
        except OSError as error:
            raise self._root.explain(error) from error
        record = parsed(raw, str(path))
        if record.alias != alias:
            raise Malformed(f"{path}: holds the base `{shown(record.alias)}`, expected `{alias}`")
        self._read[alias] = key, record
        return record

    def by_fingerprint(self, fingerprint: BaseFingerprint) -> BaseRecord | None:
        """The registered base that adapters made for `fingerprint` run on: equal weights before another precision."""
        other_precision: BaseRecord | None = None
        for record in self.list():
            verdict = compare(fingerprint, record.fingerprint).verdict
            if verdict is BaseVerdict.SAME_WEIGHTS:
                return record
            if verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION:
                other_precision = other_precision or record
        return other_precision

    def of(self, base: BaseRef) -> BaseRecord | None:
        """The registered base that an adapter for `base` runs on: by its weights, by its Hub id if it declares none."""
        if base.fingerprint is not None:
            return self.by_fingerprint(base.fingerprint)
        named = base.hints.hub_id
        return next((record for record in self.list() if named and record.hub == named), None)

    def hub_id_of(self, base: BaseRef) -> str:
        """The Hub id of a base: the one that it declares, else that of the registered base with its weights; or ""."""
        record = None if base.hints.hub_id else self.of(base)
        return base.hints.hub_id or (record.hub if record else None) or ""

    @arguments.parsed
    def find(
        self, base: BaseSpec | str, *, threads: Count | None = None, progress: Progress | None = None
    ) -> BaseRecord:
        """The base that `base` names: by alias, Hub id, start of its weights digest, or folder.

        A folder is fingerprinted again, at no cost while its files are unchanged. It counts as the registered base only
        while its weights are the registered ones; otherwise the record has no alias.

        Raises:
            BaseNotFound: no such base; the hint offers the nearest name.
            UsageProblem: several bases have that Hub id or digest; all are listed.
            Malformed, CouldNotTell: for a folder, as `fingerprint_folder`.
        """
        spec = base if isinstance(base, BaseSpec) else BaseSpec.parse(base)
        if spec.kind == "path":
            return self._at(self.look(path_of(spec.text), threads=threads, progress=progress))
        whole, _, component = spec.text.partition("/")
        if spec.kind == "alias" or (component in COMPONENTS and whole in self.aliases()):
            return self.get(spec.text)
        if spec.kind == "hub":
            wanted = spec.text.casefold()
            found = [r for r in self.list() if not r.component and (r.hub or "").casefold() == wanted]
        else:
            found = [record for record in self.list() if record.fingerprint.weights.startswith(spec.text)]
        if not found:
            raise self._not_found(spec.text)
        if len({record.fingerprint.weights for record in found}) > 1:
            listed = ", ".join(f"`{r.alias}` ({_short(r.fingerprint)})" for r in found)
            raise UsageProblem(
                f"`{shown(spec.text)}` names {len(found)} bases: {listed}", hint="use one alias of these"
            )
        return found[0]

    @arguments.parsed
    def look(
        self,
        path: Path,
        *,
        hub_id: str | None = None,
        commit: str | None = None,
        threads: Count | None = None,
        progress: Progress | None = None,
    ) -> BaseRecord:
        """The base in the folder or file `path` now, without registering it; see `look_at`."""
        from adapterhub.formats.base.folders import look_at

        place = Path(absolute(path))
        looked = look_at(
            place, cache_folder=self.cache_folder, threads=threads, progress=progress, hub_id=hub_id, commit=commit
        )
        return _record(place, looked)

    def look_again(self, record: BaseRecord, *, progress: Progress | None = None) -> BaseRecord:
        """What the place of a registered base holds now.

        Raises:
            BaseNotFound: the record names no place, or the pipeline there no longer has the component.
            Malformed, CouldNotTell: as `look`.
        """
        if record.path is None:
            raise BaseNotFound(
                f"`{record.label}` has no folder on this machine", hint="`adapt base add PATH` gives one"
            )
        is_folder = bool(record.component) and record.path.name == record.component
        now = self.look(record.path.parent if is_folder else record.path, progress=progress)
        return now.part(record.component) if record.component else now

    def current(self, record: BaseRecord, *, progress: Progress | None = None) -> BaseRecord:
        """The record of the current files of a base, under its registered names.

        Raises:
            BaseNotFound: the files are missing.
            BaseMismatch: the weights differ from the registered ones.
            Malformed, CouldNotTell: as `look`.
        """
        if record.path is None or not record.path.exists():
            raise BaseNotFound(
                f"the weights of base `{shown(record.label)}` are not on this machine",
                hint=f"`adapt base add PATH --as {record.alias or 'NAME'}` registers their folder",
            )
        now = self.look_again(record, progress=progress)
        if now.fingerprint.weights != record.fingerprint.weights:
            there, here = record.fingerprint.weights[7:19], now.fingerprint.weights[7:19]
            raise BaseMismatch(
                f"`{record.path}` holds weights {here}, but `{record.label}` was registered with {there}",
                hint=f"`adapt base add {record.path} --as NAME` registers the current weights",
            )
        hints = replace(now.hints, hub_id=record.hints.hub_id, commit=record.hints.commit)
        return replace(now, alias=record.alias, hub=record.hub, hints=hints)

    def state(self, record: BaseRecord) -> Digest:
        """The digest of all that decides what a base answers now; of a component, that of its whole pipeline.

        Raises:
            BaseNotFound, Malformed, CouldNotTell: as `state_digest`.
        """
        from adapterhub.formats.base.folders import state_digest

        whole = self.pipeline_of(record) or record
        assert whole.path is not None  # the caller found it
        return state_digest(whole.path, cache_folder=self.cache_folder)

    def _at(self, seen: BaseRecord) -> BaseRecord:
        """The registered base in the same folder with the same weights, else the given record."""
        place = os.path.realpath(seen.path or "")
        for record in self.list():
            is_here = record.path is not None and os.path.realpath(record.path) == place
            if is_here and record.fingerprint.weights == seen.fingerprint.weights:
                return record
        return seen

    # ------------------------------------------------------------ write
    @arguments.parsed
    def add(
        self,
        path: Path,
        alias: str | None = None,
        *,
        hub_id: str | None = None,
        commit: str | None = None,
        threads: Count | None = None,
        progress: Progress | None = None,
    ) -> BaseRecord:
        """Register the model or pipeline at `path`, by default under the name of its Hub repository or folder.

        Adding the same weights again is no error: the record then names the folder given last, and keeps its Hub id if
        neither `hub_id` nor the folder gives one.

        Raises:
            Conflict: the alias belongs to other weights; the message has both hashes.
            SpecError: the alias is not valid, or the folder's name gives none.
            BaseNotFound, Malformed, CouldNotTell: as `fingerprint_folder`.
        """
        if alias is not None:
            check_alias(alias)
        seen = self.look(path, hub_id=hub_id, commit=commit, threads=threads, progress=progress)
        if alias is None:
            alias = self._at(seen).alias or default_alias(seen)
        known = self.get(alias) if seen.hub is None and alias in self.aliases() else None
        named = replace(seen, alias=alias)
        return self.put(_with_hub_id(named, known.hub, known.hints.commit) if known and known.hub else named)

    @arguments.parsed
    def set_hub_id(self, alias: str, hub_id: str) -> BaseRecord:
        """Record under which id the Hub has the base `alias`. Nothing is downloaded to compare.

        Raises:
            BaseNotFound: the hint offers the nearest alias.
        """
        return self.put(_with_hub_id(self.get(alias), hub_id, None))

    @arguments.parsed
    def add_record(self, path: Path, alias: str | None = None) -> BaseRecord:
        """Register the base of an exported record, whose weights need not be on this machine.

        A base that is registered under the name with the same weights keeps its folder.

        Raises:
            Conflict, SpecError: as `add`.
            Malformed: the file is no record, or its fingerprint is not that of its tensors.
        """
        try:
            read = BaseRecord.parse(read_plain(path, LIMIT_BYTES), str(path))
            made = fingerprint_tensors(read.tensors, files=read.fingerprint.files)
        except (Malformed, OSError, ValueError) as error:
            reason = error.message if isinstance(error, Malformed) else f"{shown(str(path), 200)}: {error}"
            raise Malformed(
                reason, hint="`adapt base export-record BASE` writes a record; give the model's folder otherwise"
            ) from None
        if made != read.fingerprint:
            raise Malformed(
                f"{shown(str(path), 200)}: its fingerprint is not that of its tensors. Nothing was registered",
                hint="export the record again, on the machine that has the base",
            )
        name = alias or read.alias
        folder = self.get(name).path if name in self.aliases() else None
        return self.put(replace(read, alias=name, path=folder))

    def put(self, record: BaseRecord) -> BaseRecord:
        """Register `record` under its alias; see `add`."""
        check_alias(record.alias)
        with self._root.lock("bases", exclusive=True):
            taken = next((name for name in self.aliases() if name.casefold() == record.alias.casefold()), None)
            if taken is not None:
                self._ensure_same_weights(self.get(taken), record)
            self._root.write(self._path(record.alias), record.to_bytes())
        return record

    @arguments.parsed
    def remove(self, alias: str) -> None:
        """Delete the record of the base `alias`, even a damaged one; the folder of the base does not change.

        Raises:
            BaseNotFound: the hint offers the nearest alias.
        """
        with self._root.lock("bases", exclusive=True):
            if alias not in self.aliases():
                whole, _, component = alias.partition("/")
                if component in COMPONENTS and whole in self.aliases():
                    hint = f"`adapt base remove {whole}` removes the pipeline"
                    raise UsageProblem(f"`{alias}` is a component of `{whole}`; nothing was removed", hint=hint)
                raise self._not_found(alias)
            try:
                self._path(alias).unlink()
            except OSError as error:
                raise self._root.explain(error) from error

    def _ensure_same_weights(self, old: BaseRecord, new: BaseRecord) -> None:
        if old.alias != new.alias:
            raise Conflict(
                f"`{new.alias}` differs only in case from `{old.alias}`, which some file systems cannot tell apart",
                hint=f"use `{old.alias}`, or another name with `--as NAME`",
            )
        comparison = compare(old.fingerprint, new.fingerprint, hints=(old.hints, new.hints))
        if comparison.verdict is not BaseVerdict.SAME_WEIGHTS:
            differences = "; ".join(comparison.differences)
            raise Conflict(
                f"the alias `{old.alias}` belongs to other weights: {old.fingerprint.weights} there,"
                f" {new.fingerprint.weights} here" + (f" ({differences})" if differences else ""),
                hint=f"`adapt base add {new.path} --as NAME` gives it a name of its own;"
                f" `adapt base remove {old.alias}` frees this one",
            )

    def _path(self, alias: str) -> Path:
        return self.folder / f"{alias}.json"

    def _not_found(self, text: str) -> BaseNotFound:
        import difflib

        aliases = self.aliases()
        near = difflib.get_close_matches(text.rpartition("/")[2].lower(), aliases, n=1)
        if near:
            hint = f"did you mean `{near[0]}`? `adapt base list` lists all"
        elif not text.startswith("sha256:") and Path(text).is_dir():
            hint = f"a folder is written `./{shown(text)}`"
        else:
            hint = "`adapt base add PATH` registers one" + ("; `adapt base list` lists all" if aliases else "")
        return BaseNotFound(f"no base `{shown(text)}`", hint=hint)


def _record(place: Path, looked: Looked) -> BaseRecord:
    return BaseRecord(
        alias="",
        path=place,
        hub=looked.hints.hub_id,
        fingerprint=looked.fingerprint,
        hints=looked.hints,
        tensors=looked.tensors,
        components=looked.components,
    )


def _with_hub_id(record: BaseRecord, hub_id: str, commit: str | None) -> BaseRecord:
    return replace(record, hub=hub_id, hints=replace(record.hints, hub_id=hub_id, commit=commit))


def _short(fingerprint: BaseFingerprint) -> str:
    return fingerprint.weights[:19]


SCHEMA: Final = "adapterhub/base/1"
LIMIT_BYTES: Final = 512 << 20
_KEYS: Final = ("schema", "alias", "path", "hub", "fingerprint", "hints", "tensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests(Documented, keys="weights tensors structure files?", title="Fingerprint"):
    """The [fingerprint](fingerprint.md) of a base."""

    weights: Annotated[str, "digest of names and values"]
    tensors: Annotated[str, "digest of values"]
    structure: Annotated[str, "digest of names and shapes"]
    files: Annotated[str | None, "digest of its files, if known"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BaseRecord(Documented, keys="alias path fingerprint=digests hints=names parts?=by_component", title="Base"):
    """One base. `alias` is "" for a folder that is not registered; `tensors` are sorted by name, buffers too.

    `components`: for a pipeline of several models, the hints of each; its tensors are named `unet.conv_in.weight`.
    `component`: the one that this record is, of a pipeline; `path` is its folder, or the file of the whole pipeline.
    """

    alias: Annotated[str, "`sdxl`, or `sdxl/unet` for a component"]
    path: Annotated[Path | None, "its folder, or the file of the whole pipeline"]
    hub: str | None
    fingerprint: BaseFingerprint
    hints: BaseHints
    tensors: tuple[TensorFacts, ...]
    components: Mapping[str, BaseHints] = field(default_factory=dict, hash=False)
    component: str = ""

    @property
    def label(self) -> str:
        """Its name in messages: alias, else Hub id, else folder."""
        return self.alias or self.hub or str(self.path or self.fingerprint.weights)

    @property
    def digests(self) -> Digests:
        """Its fingerprint without the samples."""
        own = self.fingerprint
        return Digests(weights=own.weights, tensors=own.tensors, structure=own.structure, files=own.files or None)

    @property
    def names(self) -> Mapping[str, Any]:
        """Names for display, never proof, such as `hub_id`, `model_type` and `parameters`."""
        found: Mapping[str, Any] = self.hints.to_json()
        return found

    @property
    def by_component(self) -> Mapping[str, BaseRecord] | None:
        """Of a pipeline, each component by its name."""
        return {part.component: part for part in self.parts()} or None

    def __repr__(self) -> str:
        return f"<Base {self.label}, {len(self.tensors)} tensors, {self.fingerprint.weights[:19]}>"

    def to_bytes(self) -> bytes:
        """The record's file."""
        value: dict[str, Any] = {
            "schema": SCHEMA,
            "alias": self.alias,
            "path": str(self.path) if self.path else None,
            "hub": self.hub,
            "fingerprint": self.fingerprint.to_json(),
            "hints": self.hints.to_json(),
            "tensors": [fact.to_json() for fact in self.tensors],
        }
        if self.components:
            value["components"] = {name: hints.to_json() for name, hints in self.components.items()}
        return canonical_json(value)

    def part(self, component: str) -> BaseRecord:
        """One component of a pipeline as a base of its own, under the names that the model itself has.

        Raises:
            BaseNotFound: the pipeline has no such component.
        """
        if component not in self.components:
            listed = ", ".join(f"`{self.label}/{name}`" for name in self.components) or "it is one model"
            raise BaseNotFound(f"no component `{shown(component)}` in `{self.label}`", hint=f"expected {listed}")
        fingerprint, tensors = _part(self.tensors, component)
        return replace(
            self,
            alias=f"{self.alias}/{component}" if self.alias else "",
            path=self.path / component if self.path and self.path.suffix != ".safetensors" else self.path,
            fingerprint=fingerprint,
            hints=replace(self.components[component], hub_id=self.hints.hub_id, commit=self.hints.commit),
            tensors=tensors,
            components={},
            component=component,
        )

    def parts(self) -> tuple[BaseRecord, ...]:
        """Every component of a pipeline; nothing for a base that is one model."""
        return tuple(self.part(component) for component in self.components)

    def narrowed(
        self,
        modules: Iterable[str] = (),
        annotations: Mapping[str, Any] | None = None,
        *,
        declared: BaseFingerprint | None = None,
    ) -> BaseRecord:
        """The component of a pipeline that an adapter is for.

        It is the one that the adapter has `declared` as its base, else as its `annotations` state, else by its
        `modules`. The record itself where several components, or none, have all of them.
        """
        for part in self.parts():
            if declared is not None and part.fingerprint.weights == declared.weights:
                return part
        stated = stated_component(annotations or {})
        if stated in self.components:
            return self.part(stated)
        wanted = list(modules)
        fitting = [part for part in self.parts() if wanted and part.has(wanted)]
        return fitting[0] if len(fitting) == 1 else self

    def has(self, modules: list[str]) -> bool:
        """Whether the base has all of an adapter's modules, under the names of either release of transformers."""
        from adapterhub.formats.modules import find_names

        own = frozenset(fact.name.rpartition(".")[0] for fact in self.tensors)
        names = find_names(modules, own)
        return all(names.here(module) in own for module in modules)

    def exported(self) -> BaseRecord:
        """The record for another machine: without the folder of this one."""
        return replace(self, alias=self.alias or default_alias(self), path=None)

    @classmethod
    def parse(cls, raw: bytes, where: str) -> BaseRecord:
        """Read what `to_bytes` writes, strictly.

        Raises:
            Malformed: the message names the file, the place in it, and the problem.
        """
        try:
            return cls._read(strict_json(raw, limit_bytes=LIMIT_BYTES))
        except ValueError as error:
            raise Malformed(
                f"{shown(where, 200)}: not a usable base record: {error}",
                hint="delete the file and add the base again with `adapt base add PATH --as NAME`",
            ) from None

    @classmethod
    def _read(cls, value: object) -> BaseRecord:
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}")
        absent = [key for key in _KEYS if key not in value]
        if absent:
            raise ValueError(f"{absent[0]}: missing")
        for key, kinds in (("alias", (str,)), ("path", (str, type(None))), ("hub", (str, type(None)))):
            if not isinstance(value[key], kinds):
                raise ValueError(f"{key}: expected text, got {shown(value[key])}")
        if not isinstance(value["tensors"], list):
            raise ValueError("tensors: expected a list")
        tensors = tuple(TensorFacts.from_json(t, f"tensors[{i}]") for i, t in enumerate(value["tensors"]))
        return cls(
            alias=value["alias"],
            path=Path(value["path"]) if value["path"] else None,
            hub=value["hub"],
            fingerprint=BaseFingerprint.from_json(value["fingerprint"], "fingerprint"),
            hints=BaseHints.from_json(value["hints"], "hints"),
            tensors=tensors,
            components=_components(value.get("components", {}), tensors),
        )


def _components(value: object, tensors: Iterable[TensorFacts]) -> dict[str, BaseHints]:
    """The components of a record, which must be those of its tensors."""
    if not isinstance(value, dict) or not value.keys() <= set(COMPONENTS):
        raise ValueError(f"components: expected an object by {', '.join(COMPONENTS)}, got {shown(value)}")
    if value and {fact.name.partition(".")[0] for fact in tensors} != value.keys():
        raise ValueError("components: expected the first part of every tensor's name, and no other")
    return {name: BaseHints.from_json(value[name], f"components.{name}") for name in COMPONENTS if name in value}


@lru_cache(maxsize=32)
def _part(tensors: tuple[TensorFacts, ...], component: str) -> tuple[BaseFingerprint, tuple[TensorFacts, ...]]:
    """Fingerprint and tensors of one component, without its name in front."""
    prefix = f"{component}."
    own = tuple(replace(t, name=t.name[len(prefix) :]) for t in tensors if t.name.startswith(prefix))
    return fingerprint_tensors(own), own


@lru_cache(maxsize=8)
def parsed(raw: bytes, where: str) -> BaseRecord:
    """As `BaseRecord.parse`, cached: every look at an adapter needs its base, whose record takes 15 ms to read."""
    return BaseRecord.parse(raw, where)


def check_alias(alias: str) -> None:
    """Raise unless `alias` is one word, which names a base everywhere.

    Raises:
        SpecError: it is a path, a Hub id or a digest.
    """
    if BaseSpec.parse(alias).kind != "alias":
        raise SpecError(alias, "not an alias, expected one word such as `base-7b`")


def default_alias(record: BaseRecord) -> str:
    """The name of the repository or folder in lower case; a dash replaces each character that aliases forbid."""
    name = record.hub.rpartition("/")[2] if record.hub else record.path.name if record.path else ""
    alias = made_name(name)
    hint = f"`adapt base add {record.path} --as NAME` gives it one"
    if not alias or looks_like_revision(alias):
        raise SpecError(name, "no alias can be made of this folder's name", hint=hint)
    try:
        check_alias(alias)
    except SpecError as error:
        raise SpecError(name, f"no alias can be made of this folder's name: {error.reason}", hint=hint) from None
    return alias


_LIMIT_BYTES = 64 << 20


class Pins:
    """The records of the library under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = Root(root)

    def pin(self, manifest: Manifest, base: BaseRecord) -> None:
        """Record `base` as the base of a build that declares none."""
        self._root.write(self._pin_path(manifest), canonical_json(base.fingerprint.to_json()))

    def base_of(self, manifest: Manifest) -> BaseRef:
        """The base that a manifest declares, or the one pinned for it.

        Raises:
            MalformedManifest: the pin is damaged.
        """
        if manifest.base.fingerprint is not None:
            return manifest.base
        path = self._pin_path(manifest)
        try:
            value = strict_json(read_plain(path, _LIMIT_BYTES), limit_bytes=_LIMIT_BYTES)
            fingerprint = BaseFingerprint.from_json(value, "pin")
        except FileNotFoundError:
            return manifest.base
        except ValueError as error:
            raise MalformedManifest(str(path), [str(error)], hint="delete it and pin the base again") from None
        return BaseRef(fingerprint=fingerprint, hints=manifest.base.hints)

    def allow_mismatch(self, manifest: Manifest, base: BaseRecord) -> None:
        """Record that the user chose to run a build on a base with other weights of the same shapes."""
        note = {"adapter": manifest.digest, "base": base.fingerprint.weights, "named": base.label}
        self._root.write(self._mismatch_path(manifest, base.fingerprint), canonical_json(note))

    def mismatch_allowed(self, manifest: Manifest, base: BaseFingerprint) -> bool:
        """Whether `allow_mismatch` was called for this build and these weights."""
        return self._mismatch_path(manifest, base).is_file()

    def _pin_path(self, manifest: Manifest) -> Path:
        return self._root.root / "pins" / f"{hex_of(manifest.digest)}.json"

    def _mismatch_path(self, manifest: Manifest, base: BaseFingerprint) -> Path:
        return self._root.root / "mismatches" / f"{hex_of(manifest.digest)}-{hex_of(base.weights)[:12]}.json"

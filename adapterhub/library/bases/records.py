"""The registered bases, one JSON file for each alias, and the lookup of the base that a spec names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core import arguments
from adapterhub.core.arguments import Count, path_of
from adapterhub.core.digests import Digest, Progress, canonical_json, hex_of, strict_json
from adapterhub.core.disk.files import read_plain
from adapterhub.core.disk.root import Root, absolute
from adapterhub.core.errors import (
    BaseMismatch,
    BaseNotFound,
    Conflict,
    CouldNotTell,
    Malformed,
    MalformedManifest,
    NotAllowed,
    UsageProblem,
    shown,
)
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import (
    BaseComparison,
    BaseFingerprint,
    BaseHints,
    BaseVerdict,
)
from adapterhub.formats.diffusion.components import COMPONENTS, DENOISERS
from adapterhub.formats.manifest import BaseRef, Manifest
from adapterhub.library.bases.families import Families
from adapterhub.library.bases.links import SIDES, Prove, accepting, copy_with_link, linked, related, rivals
from adapterhub.library.bases.record import (
    ACCEPTS,
    LIMIT_BYTES,
    BaseRecord,
    check_alias,
    default_alias,
    fingerprinted_again,
    parsed,
)

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
        """Every registered base, by name; after each pipeline its components, as bases of their own.

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
        """Return the pipeline that `record` is, or is a component of; None for any other model.

        A denoiser that is registered besides as one model counts as the component that it is.
        """
        if record.components:
            return record
        parts = (each for each in self.list() if each.component in DENOISERS)
        same = (each for each in parts if each.fingerprint.weights == record.fingerprint.weights)
        part = record if record.component and record.alias else next(same, None)
        return None if part is None else self.get(part.alias.partition("/")[0])

    def whole(self, record: BaseRecord) -> BaseRecord:
        """Return the pipeline that `record` is, or is a component of.

        Raises:
            UsageProblem: it is not part of a registered pipeline.
        """
        if (found := self.pipeline_of(record)) is None:
            raise UsageProblem(
                f"`{record.label}` is one model, expected a pipeline that draws images",
                hint="`adapt base add FOLDER --as NAME` registers the folder with its `model_index.json`",
            )
        return found

    def aliases(self) -> tuple[str, ...]:
        """Return the names of the registered bases, sorted; no record is read."""
        return tuple(sorted(map(attrgetter("stem"), self.folder.glob("[!.]*.json"))))

    @arguments.parsed
    def get(self, alias: str) -> BaseRecord:
        """Return the base registered as `alias`, or the component of a pipeline, as in `sdxl/unet`.

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
        """Return the record of an alias that was listed. Its file is read once, and again when it has changed."""
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

    def by_fingerprint(self, fingerprint: BaseFingerprint | None) -> BaseRecord | None:
        """Return the registered base that adapters made for `fingerprint` run on; None if they declare none.

        Equal weights go before another precision, this before a quantised copy, and a proven copy before an accepted.
        """
        if fingerprint is None:
            return None
        records = self.list()
        if (
            exact := next((one for one in records if one.fingerprint.weights == fingerprint.weights), None)
        ) is not None:
            return exact
        found: dict[BaseVerdict, BaseRecord] = {}
        for record in records:
            verdict = related(fingerprint, record.fingerprint, records).verdict
            if verdict is BaseVerdict.SAME_WEIGHTS:
                return record
            found.setdefault(verdict, record)
        return next((found[verdict] for verdict in _PREFERRED if verdict in found), None)

    def copies_of(self, weights: Digest) -> tuple[BaseRecord, ...]:
        """Return the registered copies with a link to the base with these weights."""
        return tuple(each for each in self._readable() if any(link.source == weights for link in each.links))

    def by_weights(self, weights: Digest | None) -> BaseRecord | None:
        """Return the registered base with exactly these weights, under any name."""
        return next((record for record in self.list() if record.fingerprint.weights == weights), None)

    def standing_for(self, weights: Digest | None) -> BaseRecord | None:
        """Return the registered base with these weights, or a copy of it that was proven or accepted here.

        For what runs a base of which only the digest is known. A caller that needs exact weights uses `by_weights`.
        """
        if weights is None or (exact := self.by_weights(weights)) is not None:
            return None if weights is None else exact
        return copy_with_link(self.list(), weights)

    def sources_here(self, base: BaseRecord) -> Iterator[BaseRecord]:
        """Yield the bases in floats with the weights of `base`, itself included, whose files are on this machine."""
        for one in (base, *self.list()):
            is_model = not (one.components or one.component or one.fingerprint.copy)
            is_here = one.path is not None and one.path.exists()
            if (
                is_model
                and is_here
                and (one == base or self.judged(one.fingerprint, base.fingerprint).verdict.stands_for)
            ):
                yield one

    def with_settings(self, base: BaseRecord) -> BaseRecord:
        """Return the base whose settings define adapters of `base`: for a GGUF file its source, if that is here."""
        is_file = base.path is not None and base.path.suffix == ".gguf"
        return next(self.sources_here(base), base) if is_file else base

    def stands_for(self, weights: object, base: BaseRecord) -> bool:
        """Return whether adapters of the base with these weights run on `base`, as the links say."""
        known = next((one for one in self.list() if one.fingerprint.weights == weights), None)
        if known is not None:
            return self.judged(known.fingerprint, base.fingerprint).verdict.stands_for
        return any(link.source == weights and link.comparison("").verdict.stands_for for link in base.links)

    def judged(
        self,
        one: BaseFingerprint | None,
        other: BaseFingerprint | None,
        *,
        hints: tuple[BaseHints, BaseHints] | None = None,
    ) -> BaseComparison:
        """Return how two bases relate in this library: by content, proven and accepted copies, and declared families.

        Everything that asks whether an adapter runs on a base asks here. None: a base without a fingerprint.
        """
        known = tuple(self._readable())  # a damaged record says nothing, and the others count
        return Families(self).judged(related(one, other, known, hints), one, other)

    def forms_of(self, base: BaseFingerprint) -> tuple[tuple[BaseRecord, BaseComparison], ...]:
        """Return the registered bases that are the same model as `base` with other weights, each with its relation."""
        others = (each for each in self.list() if not each.component and each.fingerprint.weights != base.weights)
        found = ((each, self.judged(base, each.fingerprint)) for each in others)
        return tuple((each, told) for each, told in found if told.verdict.stands_for)

    def of(self, base: BaseRef) -> BaseRecord | None:
        """Return the registered base that runs an adapter for `base`: by its weights, or by its Hub id without any."""
        if base.fingerprint is not None:
            return self.by_fingerprint(base.fingerprint)
        named = base.hints.hub_id
        return next((record for record in self.list() if named and record.hub == named), None)

    def hub_id_of(self, base: BaseRef) -> str:
        """Return the Hub id of a base: the one that it declares, or that of the registered base with its weights.

        Or "".
        """
        record = None if base.hints.hub_id else self.of(base)
        return base.hints.hub_id or (record.hub if record else None) or ""

    @arguments.parsed
    def find(
        self, base: BaseSpec | str, *, threads: Count | None = None, progress: Progress | None = None
    ) -> BaseRecord:
        """Return the base that `base` names: by its name, a Hub id, start of its weights digest, or folder.

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
            raise UsageProblem(f"`{shown(spec.text)}` names {len(found)} bases: {listed}", hint="name one of these")
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
        """Return the base in the folder or file `path` now, without registering it; see `look_at`."""
        from adapterhub.formats.base.folders import look_at

        place = Path(absolute(path))
        looked = look_at(
            place, cache_folder=self.cache_folder, threads=threads, progress=progress, hub_id=hub_id, commit=commit
        )
        return _record(place, looked)

    def look_again(self, record: BaseRecord, *, progress: Progress | None = None) -> BaseRecord:
        """Return the state of a registered base's place.

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
        """Return the record of the current files of a base, under its registered names.

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
        named = replace(now, alias=record.alias, hub=record.hub, hints=hints)
        return replace(named, links=record.links, accepts=record.accepts)

    def state(self, record: BaseRecord) -> Digest:
        """Return the digest of all that decides what a base answers now; of a component, that of its whole pipeline.

        Raises:
            BaseNotFound, Malformed, CouldNotTell: as `state_digest`.
        """
        from adapterhub.formats.base.folders import state_digest

        whole = self.pipeline_of(record) or record
        assert whole.path is not None  # the caller found it
        return state_digest(whole.path, cache_folder=self.cache_folder)

    def _at(self, seen: BaseRecord) -> BaseRecord:
        """Return the registered base in the same folder with the same weights, or the given record."""
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
        accept: str = "",
        threads: Count | None = None,
        progress: Progress | None = None,
    ) -> BaseRecord:
        """Register the model or pipeline at `path`, by default under the name of its Hub repository or folder.

        Adding the same weights again is allowed: the record then names the folder given last, and keeps its Hub id if
        neither `hub_id` nor the folder gives one. `accept="likely"` lets a quantised copy stand for its source where
        its format proves no more than a likeness.

        Raises:
            UsageProblem: `accept` is another word, the base is not such a copy, or likely one of several bases.
            Conflict: the alias belongs to other weights; the message has both hashes.
            SpecError: the name is not valid, or the folder's name gives none.
            BaseNotFound, Malformed, CouldNotTell: as `fingerprint_folder`.
        """
        if alias is not None:
            check_alias(alias)
        seen = self.look(path, hub_id=hub_id, commit=commit, threads=threads, progress=progress)
        if alias is None:
            alias = self._at(seen).alias or default_alias(seen)
        known = self.get(alias) if seen.hub is None and alias in self.aliases() else None
        _check_accept(accept, seen, alias)
        named = replace(seen, alias=alias, accepts=accept)
        return self.put(_with_hub_id(named, known.hub, known.hints.commit) if known and known.hub else named)

    @arguments.parsed
    def set_hub_id(self, alias: str, hub_id: str) -> BaseRecord:
        """Record under which id the Hub has the base `alias`. Nothing is downloaded to compare.

        Raises:
            BaseNotFound: the hint offers the nearest alias.
        """
        return self.put(_with_hub_id(self.get(alias), hub_id, None), links=False)

    @arguments.parsed
    def add_record(self, path: Path, alias: str | None = None, *, accept: str = "") -> BaseRecord:
        """Register the base of an exported record, whose weights need not be on this machine.

        A base that is registered under the name with the same weights keeps its folder. `accept` as for `add`.

        Raises:
            Conflict, SpecError, UsageProblem: as `add`.
            Malformed: the file is not a record, or its fingerprint is not that of its tensors.
        """
        try:
            read = BaseRecord.parse(read_plain(path, LIMIT_BYTES), str(path))
            made = fingerprinted_again(read)
        except (Malformed, OSError, ValueError) as error:
            reason = error.message if isinstance(error, Malformed) else f"{shown(str(path), 200)}: {error}"
            raise Malformed(
                reason, hint="`adapt base show BASE --record` writes a record; give the model's folder otherwise"
            ) from None
        if made != read.fingerprint:
            raise Malformed(
                f"{shown(str(path), 200)}: its fingerprint is not that of its tensors. Nothing was registered",
                hint="export the record again, on the machine that has the base",
            )
        name = alias or read.alias
        folder = self.get(name).path if name in self.aliases() else None
        _check_accept(accept, read, name)
        # a file gives itself no right: links are proven here, and what is accepted here counts
        return self.put(replace(read, alias=name, path=folder, links=(), accepts=accept))

    def put(self, record: BaseRecord, *, links: bool = True) -> BaseRecord:
        """Register `record` under its name; see `add`. `links`: make those between it and what is there."""
        check_alias(record.alias)
        proofs: dict[tuple[Digest, Digest], BaseComparison | None] = {}

        def prove(source: BaseRecord, copy: BaseRecord) -> BaseComparison | None:
            key = source.fingerprint.weights, copy.fingerprint.weights
            if key not in proofs:
                proofs[key] = self._proven(source, copy)
            return proofs[key]

        if links:
            self._linked(record, prove)  # reads files, while no other process waits for the lock
        with self._root.lock("bases", exclusive=True):
            taken = next((name for name in self.aliases() if name.casefold() == record.alias.casefold()), None)
            if taken is not None:
                self._ensure_same_weights(self.get(taken), record)
            changed = self._linked(record, prove) if links else [record]
            for each in changed:
                self._root.write(self._path(each.alias), each.to_bytes())
        return changed[0]

    def _linked(self, record: BaseRecord, prove: Prove) -> Sequence[BaseRecord]:
        """Return the record with its links, and the copies that now have a link to it.

        Raises:
            UsageProblem: it accepts a likely source, and several models are.
        """
        old = next((each for each in self._readable() if each.alias == record.alias), None)
        if old is not None and old.fingerprint.weights == record.fingerprint.weights:
            record = replace(record, links=old.links, accepts=record.accepts or old.accepts)
        others = [each for each in self._readable() if each.alias != record.alias]
        if record.is_copy:
            found = accepting(linked(record, others, prove), others)
            _ensure_one_source(found, others)
            return [found]
        copies = [each for each in others if each.is_copy and not record.components]
        everything = [record, *others]
        now = [accepting(linked(each, [record], prove), everything) for each in copies]
        return [record, *(new for new, each in zip(now, copies, strict=True) if new.links != each.links)]

    def _readable(self) -> Iterator[BaseRecord]:
        """Every registered base whose record can be read, without the components of pipelines."""
        for alias in self.aliases():
            with contextlib.suppress(BaseNotFound, Malformed, NotAllowed):  # its own reader reports a damaged one
                yield self._record_of(alias)

    def _proven(self, source: BaseRecord, copy: BaseRecord) -> BaseComparison | None:
        """Compare the files of two bases; None if they are not both here as they were registered."""
        try:
            from adapterhub.formats.base.quantised.deep import compare_models
            from adapterhub.formats.base.quantised.opening import opened

            places = [self.current(each).path for each in (source, copy)]
            a, b = (opened(place) for place in places if place is not None)
            return compare_models(a, b, named=SIDES)
        except (BaseNotFound, BaseMismatch, Malformed, CouldNotTell, ImportError):
            return None

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
                f"the name `{old.alias}` belongs to another base: {old.fingerprint.weights} there,"
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


_PREFERRED: Final = (
    BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION,
    BaseVerdict.SAME_WEIGHTS_QUANTISED,
    BaseVerdict.ACCEPTED_QUANTISED,
)


def _ensure_one_source(copy: BaseRecord, others: Sequence[BaseRecord]) -> None:
    if copy.accepts and not any(link.accepted for link in copy.links) and (names := rivals(copy, others)):
        listed = " and of ".join(f"`{name}`" for name in names)
        raise UsageProblem(
            f"`{copy.alias}` is likely a copy of {listed}, which are several models. Nothing was changed",
            hint="`adapt base remove` takes out those that it was not made from; then add it again",
        )


def _check_accept(accept: str, record: BaseRecord, name: str) -> None:
    if accept not in ("", ACCEPTS):
        raise UsageProblem(f"`{shown(accept)}` cannot be accepted, expected `{ACCEPTS}`")
    if accept and not record.is_copy:
        raise UsageProblem(
            f"`{shown(name)}` is not a quantised copy, so there is nothing to accept of it",
            hint="`adapt base show` shows what is known about a base",
        )


def _with_hub_id(record: BaseRecord, hub_id: str, commit: str | None) -> BaseRecord:
    return replace(record, hub=hub_id, hints=replace(record.hints, hub_id=hub_id, commit=commit))


def _short(fingerprint: BaseFingerprint) -> str:
    return fingerprint.weights[:19]


_LIMIT_BYTES = 64 << 20


class Pins:
    """The records of the library under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = Root(root)

    def pin(self, manifest: Manifest, base: BaseRecord) -> None:
        """Record `base` as the base of a build that declares none."""
        self._root.write(self._pin_path(manifest), canonical_json(base.fingerprint.to_json()))

    def base_of(self, manifest: Manifest) -> BaseRef:
        """Return the base that a manifest declares, or the one pinned for it.

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
        """Return whether `allow_mismatch` was called for this build and these weights."""
        return self._mismatch_path(manifest, base).is_file()

    def _pin_path(self, manifest: Manifest) -> Path:
        return self._root.root / "pins" / f"{hex_of(manifest.digest)}.json"

    def _mismatch_path(self, manifest: Manifest, base: BaseFingerprint) -> Path:
        return self._root.root / "mismatches" / f"{hex_of(manifest.digest)}-{hex_of(base.weights)[:12]}.json"

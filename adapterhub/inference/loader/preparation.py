"""Everything that happens between the name of an adapter and a model: find, compare the base, read, set up.

`attach` and `AdapterBank` both go through `Preparation`, so a check that is added here holds for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import Check, Finder, FoundAdapter, check_folder
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.base_check import BaseCheck, BaseCheckResult, pin
from adapterhub.inference.loader.components import component_for
from adapterhub.inference.loader.facts import AttachedAdapter, facts
from adapterhub.inference.loader.identity import identify, sample_base
from adapterhub.inference.loader.injection import ReadyAdapter, peft_names
from adapterhub.inference.loader.methods import set_up
from adapterhub.inference.loader.mixture import check_copies, check_mixture, without_repeats
from adapterhub.inference.loader.reading.placing import read_contents
from adapterhub.inference.loader.replacing import check_replacements
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import AdapterLike
from adapterhub.trust.verify import Subject


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An adapter that passed every check against the model.

    `files` holds the bytes that were checked, `base` the comparison with the adapter's base.
    """

    found: FoundAdapter
    files: Subject
    base: BaseCheckResult
    ready: ReadyAdapter


class Preparation:
    """Prepares adapters for one model. Samples the model once, and reads the library's bases only when needed.

    `base` names the base for all adapters. `check` verifies the files of a folder; a check that returns no files for
    those that it verified before needs `reopen`, which opens them again.
    """

    def __init__(
        self,
        model: BaseModel,
        library: Library,
        *,
        base: BaseSpec | str | None,
        allow_base_mismatch: bool,
        check: Check | None = None,
        reopen: Callable[[Path], Subject] | None = None,
    ) -> None:
        self.loaded = sample_base(model)
        self._model = model
        self._library = library
        self._reopen = reopen
        self._known_base = cache(lambda: identify(self.loaded, library.bases))  # reads every record of the library
        check = check or partial(check_folder, to_attach=True)
        self._finder = Finder(library, base, self._known_base, allow_base_mismatch=allow_base_mismatch, check=check)
        self._allow_base_mismatch = allow_base_mismatch
        self._check_of = cache(self._make_check)

    def find(self, adapter: AdapterLike, weight: float = 1.0) -> FoundAdapter:
        """The adapter, its files checked; raises as `Finder.find`."""
        return self._finder.find(adapter, weight)

    def prepare(self, adapters: Sequence[FoundAdapter]) -> list[Prepared]:
        """The adapters, ready to be put on the model together.

        Raises:
            BaseMismatch: the model is not the base of one of them, or lacks modules that one is for.
            UnsupportedAdapter: a method or a feature cannot be attached.
            MergeRefused: the adapters cannot be added up.
            RefusedAdapter: tensors have no place in the base, or are missing.
        """
        files = [self._files_of(found) for found in adapters]
        rooms = [self._component_of(found, subject) for found, subject in zip(adapters, files, strict=True)]
        bases = [self._check_of(component).run(found) for found, component in zip(adapters, rooms, strict=True)]
        rows = zip(adapters, files, bases, self.ready(adapters, files), strict=True)
        return [Prepared(found=found, files=subject, base=base, ready=ready) for found, subject, base, ready in rows]

    def ready(self, adapters: Sequence[FoundAdapter], files: Sequence[Subject]) -> list[ReadyAdapter]:
        """The adapters, read and set up, but not compared with their bases.

        Raises as `prepare`.
        """
        read = [
            read_contents(subject, found.label, self._model, self._component_of(found, subject))
            for found, subject in zip(adapters, files, strict=True)
        ]
        contents = without_repeats(read)
        for each in contents:
            check_copies(each, self._model)
            check_replacements(each, self._model)
        setups = [set_up(each, self._model) for each in contents]
        names = peft_names([found.label for found in adapters])
        ready = [
            ReadyAdapter(name=name, contents=each, setup=setup, weight=found.weight)
            for name, each, setup, found in zip(names, contents, setups, adapters, strict=True)
        ]
        check_mixture(ready)
        return ready

    def record(self, adapter: Prepared) -> AttachedAdapter:
        """The facts about an adapter that the model has now. Pins a build that declares no base to this one."""
        pinned = pin(self._library, adapter.found, self._known_base)
        return facts(adapter.found, adapter.ready, adapter.base, pinned)

    def _component_of(self, found: FoundAdapter, files: Subject) -> str:
        """The component of a pipeline whose own names the adapter uses; "" for the whole model."""

        def fits(component: str) -> bool:
            return self._check_of(component).allows(found)

        return component_for(found, files, self._model, fits)

    def _make_check(self, component: str) -> BaseCheck:
        loaded = self.loaded.part(component) if component else self.loaded
        known = cache(lambda: identify(loaded, self._library.bases)) if component else self._known_base
        allowed = self._allow_base_mismatch
        return BaseCheck(self._library, loaded, known, allow_base_mismatch=allowed, component=component)

    def _files_of(self, found: FoundAdapter) -> Subject:
        if found.subject is not None:
            return found.subject
        assert self._reopen is not None  # only a check that comes with it returns no files
        return self._reopen(found.folder)

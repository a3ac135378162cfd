"""The job of a format: its options, and the adapter opened for it, checked and under the names of its base."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from adapterhub.core.errors import (
    BaseMismatch,
    BaseNotFound,
    UnsupportedAdapter,
    shown,
)
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import Finder, FoundAdapter, ensure_sound
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.documented import Documented
from adapterhub.formats.engines import SETTINGS, BaseFacts, Verdict, judge
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.naming.files import find_in_files
from adapterhub.formats.naming.finding import BaseNames
from adapterhub.formats.peft.config import owner
from adapterhub.formats.prompts.form import PromptForm
from adapterhub.inference.engine_bases import base_config, base_facts
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.bases.requested import beside, part_for
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import AdapterLike
from adapterhub.trust.verify import Report, Subject, open_subject, verify
from adapterhub.weights.fuse import WrittenCheck
from adapterhub.weights.lowrank.factors import AdapterFactors

Steps = Callable[[int, int], None]
"""Called with the number of finished modules and the number of all modules."""

_NOT_MERGED: Final = frozenset({"method", "lora_bias", "others", *SETTINGS})
"""Features that `adapt fuse` refuses. (It accepts a bias of B if the base's layer has a bias, which is rare.)"""

_HINT_BASE: Final = "register a local copy with `adapt base add PATH --as NAME`, and pass `--base NAME`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported(Documented, keys="format adapter=label paths size_bytes notes flags tests?"):
    """The written paths, and notes about them. `flags` are the options that the engine needs, as typed."""

    paths: Annotated[tuple[Path, ...], "every written file"]
    label: Annotated[str, "name and version, or the folder"]
    size_bytes: Annotated[int, "bytes"]
    notes: tuple[str, ...] = ()
    flags: Annotated[tuple[str, ...], "options that the engine needs, as words of a command line"] = ()
    format: str = ""
    tests: Annotated[tuple[Tested, ...] | None, "with --test: how it does by its contract"] = None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter that is ready to be written: open files, its base if it is known, and the engine's verdict.

    `names` gives the base's name for a module of the adapter. `base_config` is the base's `config.json`; empty if
    unknown. `prompt` is the form that the adapter's manifest states.
    """

    label: str
    found: FoundAdapter
    factors: AdapterFactors
    manifest: Manifest | None
    record: BaseRecord | None
    base_config: Mapping[str, Any]
    facts: BaseFacts
    names: BaseNames | None
    verdict: Verdict
    prompt: PromptForm | None = None
    warnings: tuple[str, ...] = ()

    def base_name(self, module: str) -> str:
        """Return the base's name for a module of the adapter."""
        return self.names.here(module) if self.names is not None else module

    def exported(self, *paths: Path, notes: Iterable[str] = (), flags: tuple[str, ...] = ()) -> Exported:
        """Return the result of an export that wrote these files.

        The warnings about the adapter come before its notes.
        """
        size = sum(path.stat().st_size for path in paths)
        told = (*self.warnings, *notes)
        return Exported(paths=paths, label=self.label, size_bytes=size, notes=told, flags=flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The request for one export; see `export` for the fields."""

    what: AdapterLike
    library: Library
    base: BaseSpec | None = None
    dtype: str | None = None
    ollama_base: str | None = None
    allow_base_mismatch: bool = False
    test: WrittenCheck | None = None
    progress: Steps | None = None
    _no_progress: Steps = field(default=lambda _done, _total: None, repr=False, compare=False)

    def check(self, folder: Path, adapter: Adapter) -> None:
        """Let the test look at what was written, before it gets its name."""
        if self.test is not None:
            self.test(folder, [adapter.found])

    def step(self, done: int, total: int) -> None:
        """Report progress."""
        (self.progress or self._no_progress)(done, total)

    @contextlib.contextmanager
    def opened(self, target: str, *, needs_base: bool, guesses_base: bool = True) -> Iterator[Adapter]:
        """Provide the adapter, open. Raises if the engine `target` would not read it, or would misread it.

        `needs_base`: the base's `config.json` must be on this machine. `guesses_base`: an adapter that declares no base
        is for the only registered one.
        """
        finder = Finder(
            self.library,
            self.base,
            self._only_base if guesses_base else lambda: None,
            allow_base_mismatch=self.allow_base_mismatch,
            check=lambda *_: (None, ()),  # checked below, with the base
        )
        found = finder.find(self.what, 1.0)
        record = self._record(found, needed=needs_base, guesses=guesses_base)
        record = record and self.library.bases.with_settings(record)
        subject, record, warnings = self._checked(found, record)
        config = base_config(record)
        if config is None and needs_base:
            what = f"`config.json` of base `{shown(record.label if record else '')}`"
            raise BaseNotFound(f"{what} is not on this machine", hint=_HINT_BASE)
        facts = base_facts(record)
        with AdapterFactors(found.folder, subject=subject) as factors:
            verdict = judge(target, factors.config, factors.header, base=facts)
            ensure_readable(found.label, verdict, facts, factors.unclear)
            names = None
            if record is not None:
                shapes = {fact.name: fact.shape for fact in record.weights}
                modules = dict.fromkeys(sorted({owner(module) for module in factors.modules}))
                names = find_in_files(modules, shapes, record.hints.model_type)
            yield Adapter(
                label=found.label,
                found=found,
                factors=factors,
                manifest=found.build.manifest if found.build else None,
                record=record,
                base_config=config or {},
                facts=facts,
                names=names,
                verdict=verdict,
                prompt=found.manifest.prompt if found.manifest else None,
                warnings=warnings,
            )

    def _only_base(self) -> BaseRecord | None:
        records = self.library.bases.list()
        return records[0] if len(records) == 1 else None

    def _record(self, found: FoundAdapter, *, needed: bool, guesses: bool) -> BaseRecord | None:
        """Return the base that the caller named, or the one that the adapter declares, or the only registered one."""
        if found.wanted is not None:
            if found.wanted.record is None and needed:
                text = shown(found.wanted.text)
                raise BaseNotFound(f"the files of base `{text}` are not on this machine", hint=_HINT_BASE)
            return found.wanted.record
        if found.base.fingerprint is not None:
            record = self.library.bases.by_fingerprint(found.base.fingerprint)
            if record is None and needed:
                base = shown(found.base.label)
                raise BaseNotFound(
                    f"the base of `{shown(found.label, 200)}` ({base}) is not registered here", hint=_HINT_BASE
                )
            return record
        record = self._only_base() if guesses else None
        if record is None and needed:
            hint = "name its base with `--base BASE|PATH`"
            raise BaseNotFound(f"`{shown(found.label, 200)}` does not declare its base", hint=hint)
        return record

    def _checked(
        self, found: FoundAdapter, record: BaseRecord | None
    ) -> tuple[Subject, BaseRecord | None, tuple[str, ...]]:
        """Verify the files, with the base if it is known; returns the verified files, their base and the warnings."""
        manifest = found.build.manifest if found.build else None
        subject, findings = open_subject(found.folder, manifest=manifest, base_named=True)
        if subject is not None and record is not None:
            subject, record = beside(subject, record, self.library.bases), part_for(subject, record)
        report = verify(subject, seen=findings) if subject is not None else Report.of(findings)
        label = shown(found.label, 200)
        other = next((f for f in report.errors if f.code == "E_BASE_MISMATCH"), None)
        errors = [f for f in report.errors if f is not other]
        ensure_sound(errors, f"`{label}` was not exported", f"{found.folder}/")
        if other is not None and not self._is_overridden(found, record):
            raise BaseMismatch(f"`{label}` {other.message}. Nothing was written", hint=other.hint)
        allowed = "exported anyway, because a base mismatch is allowed"
        overridden = (f"`{label}` {other.message}: {allowed}",) if other is not None else ()
        assert subject is not None  # else there is an error
        return subject, record, (*overridden, *(f.text for f in report.warnings))

    def _is_overridden(self, found: FoundAdapter, record: BaseRecord | None) -> bool:
        if self.allow_base_mismatch:
            return True
        known = found.build is not None and record is not None
        return known and self.library.mismatch_allowed(found.build, record.fingerprint)  # type: ignore[arg-type, union-attr]


def other_way(features: Collection[str], facts: BaseFacts) -> str:
    """Return the hint of a refusal: another way to use an adapter with these features."""
    if "start" in features:
        return "convert it to plain LoRA with PEFT: `save_pretrained(…, path_initial_model_for_weight_conversion=…)`"
    if "method" in features:
        return "`adapt resize NAME --to lora` makes a LoRA of it if it is linear"
    if not _NOT_MERGED.isdisjoint(features) or (facts.is_tied and "embedding" in features):
        return "use it with PEFT on its base; `adapt pull` writes the original files"
    return "`adapt export … --format merged` writes base and adapter as one model"


def ensure_readable(label: str, verdict: Verdict, facts: BaseFacts, unclear: Mapping[str, str] | None = None) -> None:
    """Raise unless the engine reads the adapter correctly, and every pair in its file has a clear meaning.

    Raises:
        UnsupportedAdapter: with every reason.
    """
    reasons = [reason.text for reason in verdict.reasons]
    reasons += [f"`{shown(module)}`: {reason}" for module, reason in (unclear or {}).items()]
    if reasons:
        raise UnsupportedAdapter(
            f"`{shown(label, 200)}` cannot be exported for {verdict.engine}; nothing was written",
            reasons,
            hint=other_way({reason.feature for reason in verdict.reasons}, facts),
        )

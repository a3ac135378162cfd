"""Compares the adapters of a running engine with those in the file, and loads and unloads until both are equal.

A new build is first loaded under a name that no client knows, and its effect is tested. Only then the name that
the file gives is moved to it: the engine forgets the name, and gets it again with the new folder. Requests that have
begun end with the build they began with; one that comes between the two, some milliseconds, is refused by the engine.

Engines read a folder again after they have put an adapter out of memory, and SGLang does so even for a name that was
unloaded, when a request has it. So each name gets a link of its own to the leased folder, which is gone before the name
is unloaded: then nothing can come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from adapterhub.core.digests import hex_of
from adapterhub.core.errors import AdapterHubError, BaseMismatch, EngineFailed, WithoutEffect, shown
from adapterhub.core.specs import AdapterSpec, BaseSpec
from adapterhub.inference.serving.access.gate import stamp
from adapterhub.inference.serving.access.watched import WatchedFile
from adapterhub.inference.serving.effects import Effects, Told
from adapterhub.inference.serving.metrics import ServingMetrics, SyncMetrics
from adapterhub.inference.serving.provider import AdapterProvider, LeasedAdapter
from adapterhub.inference.serving.refusal import NO_EFFECT, RequestRefused, ensure_unlike_base
from adapterhub.inference.serving.sync.engines import EngineAbout, EngineAway, EngineModels, RunningEngine
from adapterhub.inference.serving.sync.wanted import WantedAdapter, WantedAdapters
from adapterhub.library.bases.requested import requested_base

FIRST_RETRY_S: Final = 2.0
LONGEST_RETRY_S: Final = 60.0
"""After how long a refused entry is tried again; the time doubles. A changed file or deny list counts at once."""

TRIAL: Final = "adapterhub-trial-"
"""How the names begin under which builds are tried."""

_log = logging.getLogger("vllm.adapterhub")
Action = Literal["load", "unload", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncChange:
    """One thing that was done to the engine, or refused: a line of the audit log. `name` is the id in the file."""

    action: Action
    name: str
    source: str = ""
    adapter: str = ""
    digest: str = ""
    base: str = ""
    reason: str = ""
    duration_s: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return the line, with the time of now."""
        texts = {key: getattr(self, key) or None for key in ("source", "adapter", "digest", "base", "reason")}
        return {
            "time": stamp(time.time()),
            "action": self.action,
            "name": shown(self.name),
            **texts,
            "duration_s": round(self.duration_s, 3),
        }


@dataclass(frozen=True, slots=True)
class _Held:
    """The adapter of a name in the engine, and the link that the engine reads it by."""

    leased: LeasedAdapter
    link: Path


class Reconciler:
    """Keeps one engine equal to `file`; `turn` does what there is to do, and is called again and again.

    `engine_at` gives the engine at an address. `told` gets every change. `folder` is empty and of this program only;
    the engine must be able to read it at the same path. Within one thread.
    """

    def __init__(
        self,
        file: WatchedFile[WantedAdapters],
        provider: AdapterProvider,
        folder: Path,
        engine_at: Callable[[str], RunningEngine],
        metrics: ServingMetrics,
        counts: SyncMetrics,
        told: Callable[[SyncChange], None],
    ) -> None:
        self._file, self._provider, self._folder, self._engine_at = file, provider, folder, engine_at
        self._metrics, self._counts, self._told = metrics, counts, told
        self._has: dict[str, _Held] = {}
        """By name, what this program has loaded."""
        self._late: dict[str, tuple[float, float, str]] = {}
        """By name, when a refused entry is due again, how long it waits for that, and why."""
        self._numbers = itertools.count(1)
        """Of links: no path means two things, as vLLM keeps prompts in memory by names and paths."""
        self._known: EngineAbout | None = None
        self._url = ""
        self._effects = Effects(metrics)
        self._state: object = None
        self.is_away = True
        """Whether the engine did not answer in the last turn, or there was none."""
        self._is_absence_told = False

    @property
    def loaded(self) -> Mapping[str, LeasedAdapter]:
        """By name, what the engine has from this program."""
        return {name: held.leased for name, held in dict(self._has).items()}  # `/health` asks from its own thread

    def turn(self) -> None:
        """Make the engine equal to the file. Refusals of entries are logged, and so is an engine that is away.

        Raises:
            EngineFailed, BaseMismatch: another engine or base runs than at the start.
        """
        changed = self._file.refresh()
        wanted = self._file.value
        state = wanted.url, self._provider.denied.edition
        if changed or state != self._state:
            self._state = state
            self._late.clear()
        engine = self._engine_at(wanted.url)
        try:
            models = engine.models()
            if wanted.url != self._url or self._known is None or not self._has.keys() <= models.adapters.keys():
                self._meet(engine, models)
            self._is_absence_told = False
            self._clear(engine, wanted, models)
            for one in wanted.adapters:
                self._settle(engine, models, one)
        except EngineAway as error:
            self._note_absence(error)
        else:
            self.is_away = False
            self._release_unused()

    # ------------------------------------------------------------ the engine
    def _meet(self, engine: RunningEngine, models: EngineModels) -> None:
        """Look who answers: at the first time, and after the engine has lost what it had."""
        about = engine.about()
        if self._known is not None and about.version != self._known.version:
            before, now = shown(self._known.version), shown(about.version)
            hint = "start this command again: each version has rules of its own"
            raise EngineFailed(f"the engine was {before} and now is {now}", hint=hint)
        self._ensure_base(about)
        if self._has:
            _log.info("the engine at %s has lost adapters, and gets them again", engine.url)
        self._known, self._url = about, engine.url
        for name in [name for name, held in self._has.items() if models.adapters.get(name) != str(held.link)]:
            self._let_go(name)
        self._effects = Effects(self._metrics)

    def _ensure_base(self, about: EngineAbout) -> None:
        base, library = self._provider.base, self._provider.library
        if not Path(about.model).is_dir():
            if self._known is None:
                _log.warning(
                    "the engine's base is `%s`, which is no folder here: it cannot be compared with base `%s`",
                    *(shown(about.model), base.label),
                )
            return
        theirs = library.bases.find(BaseSpec(kind="path", text=str(Path(about.model).absolute())))
        if not library.bases.judged(base.fingerprint, theirs.fingerprint).verdict.stands_for:
            raise BaseMismatch(
                f"the engine runs `{shown(about.model, 200)}`, whose weights are not those of base `{base.label}`",
                hint="`--base` or `defaultBaseModel` names the base that the engine runs",
            )

    def _note_absence(self, error: EngineAway) -> None:
        self.is_away = True
        if not self._is_absence_told:
            self._is_absence_told = True
            _log.warning("%s; trying again", error.message)
        for one in self._file.value.adapters:
            self._counts.has(one.id, is_loaded=False)

    # ------------------------------------------------------------ what goes
    def _clear(self, engine: RunningEngine, wanted: WantedAdapters, models: EngineModels) -> None:
        ids = {one.id for one in wanted.adapters}
        for name, root in list(models.adapters.items()):
            held = self._has.get(name)
            reason = held and self._provider.denied.reason(held.leased.label, held.leased.digest)
            if reason is not None:
                self._unload(engine, models, name, f"not served any more: {reason}")
            elif name in wanted.unwanted:
                self._unload(engine, models, name, "in `ensureNotExist`")
            elif name not in ids and name not in wanted.kept and (held is not None or self._is_ours(root)):
                self._unload(engine, models, name, "not in the file")

    def _is_ours(self, root: str) -> bool:
        """Return whether an earlier run of this program gave the engine that folder."""
        return Path(root).is_relative_to(self._provider.library.root.absolute())

    def _unload(self, engine: RunningEngine, models: EngineModels, name: str, why: str) -> None:
        began = time.monotonic()
        held = self._let_go(name)
        try:
            engine.unload(name)
        except EngineAway:
            raise
        except EngineFailed as error:
            _log.error("%s", error.message)  # the next turn tries again
            return
        del models.adapters[name]
        self._counts.forget(name)
        self._tell("unload", name, held, reason=why, began=began)

    def _let_go(self, name: str) -> LeasedAdapter | None:
        """Take from the engine what it reads `name` by."""
        held = self._has.pop(name, None)
        if held is None:
            return None
        held.link.unlink(missing_ok=True)
        return held.leased

    def _release_unused(self) -> None:
        used = {held.leased.digest for held in self._has.values()}
        for digest in self._provider.leased():
            if digest not in used:
                self._provider.release(digest)

    # ------------------------------------------------------------ what comes
    def _settle(self, engine: RunningEngine, models: EngineModels, one: WantedAdapter) -> None:
        due, _, _ = self._late.get(one.id, (0.0, 0.0, ""))
        if due > time.monotonic():
            return
        try:
            leased, held = self._found(models, one), self._has.get(one.id)
            is_there = held is not None and models.adapters.get(one.id) == str(held.link)
            if held is None or not is_there or held.leased.digest != leased.digest:
                self._move(engine, models, one, leased)
            self._late.pop(one.id, None)
            self._counts.has(one.id, is_loaded=True)
        except EngineAway:
            raise
        except (AdapterHubError, RequestRefused) as error:
            self._refuse(engine, models, one, error)

    def _found(self, models: EngineModels, one: WantedAdapter) -> LeasedAdapter:
        """Return the adapter of an entry, checked and leased."""
        spec = AdapterSpec.parse(one.source)
        self._ensure_names_base(models, one.base)
        leased = self._provider.find(one.source)
        ensure_unlike_base(models.base, one.id, leased.label)
        targets = self._provider.aliases.specs(one.source) if spec.base is not None else []
        if len(targets) > 1 and one.id not in self._has:
            _log.warning("%s has %d targets; a running engine gets the largest one", shown(one.source), len(targets))
        return leased

    def _ensure_names_base(self, models: EngineModels, name: str) -> None:
        """Refuse an entry for another base; the engine's own name of its base is also right."""
        if name in {"", models.base}:
            return
        base, bases = self._provider.base, self._provider.library.bases
        named = requested_base(BaseSpec.parse(name), bases)
        if named is None or named.record is None:
            raise BaseMismatch(f"`base-model: {shown(name)}` is neither a base of the library nor `{models.base}`")
        if not bases.judged(named.record.fingerprint, base.fingerprint).verdict.stands_for:
            raise BaseMismatch(f"`base-model: {shown(name)}` is another base than `{base.label}`")

    def _move(self, engine: RunningEngine, models: EngineModels, one: WantedAdapter, leased: LeasedAdapter) -> None:
        began = time.monotonic()
        self._try(engine, models, leased)
        self._let_go(one.id)
        if one.id in models.adapters:
            engine.unload(one.id)
            del models.adapters[one.id]
        link = self._folder / f"{next(self._numbers)}-sha256-{hex_of(leased.digest)}"
        link.symlink_to(leased.folder)
        self._has[one.id] = _Held(leased, link)
        try:
            engine.load(one.id, link)
        except EngineFailed:
            self._let_go(one.id)
            raise
        models.adapters[one.id] = str(link)
        for warning in leased.warnings:
            _log.warning("%s: %s", leased.label, warning)
        self._tell("load", one.id, leased, source=one.source, began=began)

    def _try(self, engine: RunningEngine, models: EngineModels, leased: LeasedAdapter) -> None:
        """Load a build under a name of its own, and refuse it if it has no effect; once while the engine runs."""
        name = f"{TRIAL}{hex_of(leased.digest)[:12]}"

        async def ask(is_adapted: bool) -> Told | None:  # noqa: FBT001 - see `Ask`
            return engine.ask(models.base, name if is_adapted else None)

        refusal = self._effects.refusal(leased.label, leased.digest)
        if refusal is not None:
            raise refusal
        if self._effects.knows(leased.digest):
            return
        engine.load(name, leased.folder)
        try:
            asyncio.run(self._effects.ensure(leased.label, leased.digest, None, leased.asleep, ask))
        finally:
            with contextlib.suppress(EngineFailed):  # the next turn takes it out
                engine.unload(name)
        if not self._effects.knows(leased.digest):
            _log.warning("%s: the engine refuses the question of its effect, which stays unknown", leased.label)

    def _refuse(
        self, engine: RunningEngine, models: EngineModels, one: WantedAdapter, error: AdapterHubError | RequestRefused
    ) -> None:
        """Note a refusal; what the name had from this program stays, and nothing else stays under it."""
        _, waited_s, before = self._late.get(one.id, (0.0, 0.0, ""))
        pause_s = min(2 * waited_s or FIRST_RETRY_S, LONGEST_RETRY_S)
        self._late[one.id] = time.monotonic() + pause_s, pause_s, error.message
        held = self._has.get(one.id)
        if held is None and one.id in models.adapters:
            self._unload(engine, models, one.id, "its source is refused, and what it had is not known here")
        self._counts.has(one.id, is_loaded=held is not None)
        if error.message != before:
            kind = NO_EFFECT if isinstance(error, WithoutEffect) else getattr(error, "kind", type(error).__name__)
            hint = getattr(error, "hint", "")
            stays = f"; the engine keeps {held.leased.label}" if held else ""
            _log.error("%s: %s%s%s", shown(one.id), error.message, f" ({hint})" if hint else "", stays)
            self._tell("refuse", one.id, None, source=one.source, reason=f"{kind}: {error.message}")

    def _tell(
        self,
        action: Action,
        name: str,
        leased: LeasedAdapter | None,
        *,
        source: str = "",
        reason: str = "",
        began: float | None = None,
    ) -> None:
        self._counts.changed(action)
        made = SyncChange(
            action=action,
            name=name,
            source=source,
            adapter=leased.label if leased else "",
            digest=leased.digest if leased else "",
            base=self._provider.base.fingerprint.weights,
            reason=reason,
            duration_s=0.0 if began is None else time.monotonic() - began,
        )
        if action != "refuse":
            _log.info("%sed %s: %s%s", action, shown(name), made.adapter, f", {reason}" if reason else "")
        self._told(made)

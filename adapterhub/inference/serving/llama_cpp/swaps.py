"""Follows what the served names mean: engines with other adapters start beside those that answer, and take over.

`llama-server` loads adapters only when it starts; its route `/lora-adapters` sets scales. So a moved alias or a newer
version needs a new generation of engines. The kernel shares the mapped file of the base among all of them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import (
    AdapterHubError,
    EngineFailed,
    RemoteUnreachable,
    StoreLocked,
    WithoutEffect,
    reworded,
)
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.alias import Alias
from adapterhub.inference.serving.access.gate import Gate
from adapterhub.inference.serving.access.watched import stamp_of
from adapterhub.inference.serving.aliases import REFRESH_S, specs_of
from adapterhub.inference.serving.llama_cpp.engine import Address
from adapterhub.inference.serving.llama_cpp.generation import Generation
from adapterhub.inference.serving.llama_cpp.names import Served
from adapterhub.inference.serving.llama_cpp.server import Front
from adapterhub.inference.serving.process import EngineProcess
from adapterhub.inference.serving.provider import AdapterProvider, LeasedAdapter

LOOK_S: Final = 0.5
"""How often to look whether the library changed, or an alias in it."""

DRAIN_S: Final = 600.0
"""How long the answers that run may keep engines that get no new requests."""

MOST_OLD: Final = 1
"""How many generations may still answer what they began when another one starts."""

_IDLE_S: Final = 1.0
_REMEMBERED: Final = 1024
_log = logging.getLogger("adapterhub.serving")

Meaning = Mapping[str, tuple[LeasedAdapter, ...]]
"""The adapters of each followed name: of an alias all targets, the largest weight first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Engines that have loaded the same adapters, where they answer, and what ends them."""

    where: Sequence[Address]
    processes: Sequence[EngineProcess]
    close: Callable[[], None]


Start = Callable[[Sequence[LeasedAdapter], Callable[[], None]], Running]
"""Starts engines that load these adapters in this order, and waits until they answer; meanwhile it calls a function."""


@dataclass(kw_only=True)
class Swaps:
    """Keeps a front at what its names mean, in a thread of its own.

    `means` is what the present engines, `running`, were started for; `processes` lists these for others. `served`
    returns how the front shows an adapter under a name. A name whose new meaning cannot be served keeps the one before,
    and is tried again when something has changed.
    """

    front: Front
    provider: AdapterProvider
    gate: Gate
    means: Meaning
    running: Running
    start: Start
    served: Callable[[str, LeasedAdapter], Served]
    program: str
    note: Callable[[str], None]
    warn: Callable[[str], None]
    start_timeout_s: float = 600.0
    processes: list[EngineProcess] = field(init=False)

    def __post_init__(self) -> None:
        self.processes = list(self.running.processes)
        self._stamp = stamp_of(Path(self.program))
        self._refused: dict[str, tuple[object, AdapterHubError]] = {}
        self._blamed: dict[str, tuple[list[Digest], AdapterHubError]] = {}
        """By name, the adapters with which engines did not start or answered like the base, and the error."""
        self._alone = False
        """Whether one name at a time is tried, since of several it is unknown whose adapter is bad."""
        self._said: dict[str, str] = {}
        self._old: list[threading.Thread] = []
        self._starting: Callable[[], None] = lambda: None
        """Ends the engines that are being asked."""
        self._turn = threading.Condition()
        self._asked = self._looked = 0
        self._wakes, self._ends = threading.Event(), threading.Event()

    # ------------------------------------------------------------ the thread
    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Look again and again while the block runs. The engines live on, until `close`."""
        thread = threading.Thread(target=self._run, name="adapterhub-swaps", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ends.set()
            self._wakes.set()
            self._starting()
            thread.join()
            for one in [*self._old]:
                one.join()

    def close(self) -> None:
        """End the engines."""
        self.running.close()

    def refresh(self) -> bool:
        """Look now what each name means, and wait for what follows; whether it was done in time."""
        with self._turn:
            self._asked += 1
            turn = self._asked
            self._wakes.set()
            return self._turn.wait_for(lambda: self._looked >= turn, REFRESH_S)

    def _run(self) -> None:
        while not self._ends.is_set():
            with self._turn:
                turn = self._asked
            if turn > self._looked:  # here, where no look-up from before can undo it
                self.provider.aliases.forget()
            try:
                self.look()
            except Exception:  # noqa: BLE001 - the front goes on with what it has, and the next look may succeed
                _log.exception("what the served names mean could not be looked up")
            with self._turn:
                self._looked = turn
                self._turn.notify_all()
            self._wakes.wait(LOOK_S)
            self._wakes.clear()

    # ------------------------------------------------------------ what names mean
    def look(self) -> None:
        """Look what the names mean, and bring the front there."""
        for name in self.provider.aliases.moved():
            self.provider.aliases.forget(name)
        self._take_in()
        aliases: dict[str, Alias | None] = {}
        found = {name: self._meant(name, aliases) for name in self.means}
        loaded = self.front.now.names.served
        lacking = [name for name, ones in found.items() if any(one.digest not in loaded for one in ones)]
        if lacking and len(self._old) > MOST_OLD:
            return  # until one of the old generations has ended
        tried = lacking[:1] if self._alone else lacking
        for name in lacking[len(tried) :]:
            found[name] = self.means[name]
            aliases.pop(name, None)
        if tried:
            self._swap(found, aliases, tried)
            self._wakes.set()  # for what is left, or came meanwhile
            return
        self._alone = False
        if found != self.means:
            self.front.rename(self.front.now.names.naming(self._rows(found), is_new=False))
            self.means = found
        self._adopt(aliases)

    def _take_in(self) -> None:
        """Follow the aliases that requests name, once what they mean is loaded; look the others up."""
        aliases, loaded = self.provider.aliases, self.front.now.names.served
        for name in aliases.names():
            if name in self.means:
                continue
            specs = aliases.specs(name)
            if all(AdapterSpec.parse(spec).digest_prefix in loaded for spec in specs):
                with contextlib.suppress(AdapterHubError):
                    self.means = {**self.means, name: tuple(map(self._usable, specs))}
            elif aliases.is_due(name):
                aliases.look_up(name)

    def _meant(self, name: str, aliases: dict[str, Alias | None]) -> tuple[LeasedAdapter, ...]:
        """Return the meaning of a name now, or its last if that cannot be served; a found alias joins `aliases`."""
        specs: Sequence[str] = (name,)
        try:
            if is_alias := "@" in name:
                if not self.provider.aliases.is_due(name):
                    return self.means[name]
                alias = self.provider.aliases.now(name)
                specs = [] if alias is None else [*specs_of(name, alias).values()]
            found = tuple(map(self._usable, specs))
            self._ensure_blameless(name, found)
        except AdapterHubError as error:
            if is_alias:
                self.provider.aliases.keep(name, error)
            self._say(name, error.message)
            return self.means[name]
        if is_alias:
            aliases[name] = alias
        self._said.pop(name, None)
        return found

    def _usable(self, spec: str) -> LeasedAdapter:
        """Return the adapter for a spec, checked and leased.

        Raises:
            AdapterHubError: it cannot be served; at once, if nothing has changed since that was found.
        """
        state, error = self._refused.get(spec, (None, None))
        if error is not None and state == self.provider.state():
            raise reworded(error)
        try:
            found = self.provider.find_installed(spec) or self.provider.fetch(spec)
        except (RemoteUnreachable, StoreLocked):
            raise
        except AdapterHubError as refused:
            if len(self._refused) >= _REMEMBERED:
                self._refused.clear()
            self._refused[spec] = self.provider.state(), reworded(refused)
            raise
        return found

    def _ensure_blameless(self, name: str, found: Sequence[LeasedAdapter]) -> None:
        digests, error = self._blamed.get(name, ([], None))
        if error is not None and digests == [one.digest for one in found]:
            raise reworded(error)
        self._blamed.pop(name, None)

    def _adopt(self, aliases: Mapping[str, Alias | None]) -> None:
        for name, alias in aliases.items():
            self.provider.aliases.adopt(name, alias)

    def _rows(self, meaning: Meaning) -> list[Served]:
        return [self.served(name, one) for name, ones in meaning.items() for one in ones]

    def _say(self, name: str, reason: str) -> None:
        """Say once in the log and in the audit log why a name keeps its meaning."""
        if self._said.get(name) != reason:
            self._said[name] = reason
            served = ", ".join(one.label for one in self.means[name])
            self.warn(f"{name} stays {served}: {reason}")
            self.gate.note("kept", name=name, adapters=[one.label for one in self.means[name]], reason=reason)

    # ------------------------------------------------------------ generations
    def _swap(self, found: Meaning, aliases: Mapping[str, Alias | None], tried: Sequence[str]) -> None:
        """Start engines for the adapters found, and let them take over, or blame the names that were tried."""
        began = time.monotonic()
        wanted = {one.digest: one for ones in found.values() for one in ones}
        before = self.front.now.names.served
        guilty: Mapping[str, AdapterHubError] = {}
        try:
            useless = self._taken_over(found, wanted, aliases)
        except _Ended:
            return
        except (AdapterHubError, OSError) as failed:
            if self._ends.is_set():  # they were ended while they were asked
                return
            error = failed if isinstance(failed, AdapterHubError) else EngineFailed(str(failed))
            self._alone = len(tried) > 1
            guilty = {} if self._alone else dict.fromkeys(tried, error)
        else:
            reasons = {name: [useless[one.digest] for one in found[name] if one.digest in useless] for name in tried}
            guilty = {name: WithoutEffect(told[0]) for name, told in reasons.items() if told}
            if not useless:
                seconds, labels = round(time.monotonic() - began, 3), [one.label for one in wanted.values()]
                self.note(f"new engines answer after {seconds:.1f} s: {', '.join(labels)}")
                self.gate.note(
                    "swap", adapters=labels, before=[one.label for one in before.values()], duration_s=seconds
                )
        for name, error in guilty.items():
            self._blamed[name] = [one.digest for one in found[name]], error

    def _taken_over(
        self, found: Meaning, wanted: Mapping[Digest, LeasedAdapter], aliases: Mapping[str, Alias | None]
    ) -> Mapping[Digest, str]:
        """Start engines, test them, and send requests to them; return why new adapters have no effect."""
        stamp, loaded = stamp_of(Path(self.program)), self.front.now.names.served
        names = self.front.now.names.naming(self._rows(found), is_new=True)
        running = self.start([*wanted.values()], self._ensure_goes_on)
        with contextlib.ExitStack() as undo:
            undo.callback(running.close)
            self._starting = running.close
            self._ensure_goes_on()
            pids = [one.pid for one in running.processes]
            is_same = stamp == self._stamp
            to = self.front.prepared(running.where, names, pids, is_same=is_same, within_s=self.start_timeout_s)
            useless = {digest: reason for digest, reason in to.without_effect.items() if digest not in loaded}
            self._ensure_goes_on()
            if useless:
                return useless
            before = self.front.switch(to, lambda: self._adopt(aliases))
            self._starting = lambda: None
            undo.pop_all()
        old, self.running, self.means, self._stamp = self.running, running, found, stamp
        self.processes[:] = running.processes
        thread = threading.Thread(target=self._retire, args=(before, old), name="adapterhub-retire", daemon=True)
        self._old.append(thread)
        thread.start()
        for digest in self.provider.leased().keys() - wanted.keys():
            self.provider.release(digest)
        return {}

    def _ensure_goes_on(self) -> None:
        if self._ends.is_set():
            raise _Ended

    def _retire(self, generation: Generation, running: Running) -> None:
        """End engines that get no new requests, once those that run have ended."""
        end = time.monotonic() + DRAIN_S
        try:
            while not self._ends.is_set() and not self.front.is_idle(generation, _IDLE_S):
                if time.monotonic() > end:
                    self.warn(f"some answers of adapters that were replaced still ran after {DRAIN_S:g} s, and ended")
                    break
            self.front.end(generation)
        finally:
            running.close()
            self._old.remove(threading.current_thread())
            self._wakes.set()


class _Ended(Exception):
    """The server stops."""

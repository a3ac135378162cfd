"""What aliases mean while an engine runs: looked up again after a time or a signal, and moved only to usable builds.

A request that has begun keeps its adapter, because the engine knows it by a name with the digest.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    NoCompatibleRelease,
    NotAllowed,
    RemoteUnreachable,
    SpecError,
)
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import first_alias, follow
from adapterhub.formats.alias import Alias, targets_text
from adapterhub.library.aliasing import alias_of, exact
from adapterhub.library.library import Library
from adapterhub.library.transfer import Source

TTL_S: Final = 10.0
"""How long an alias keeps its meaning before it is looked up again."""

LOOKS: Final = 5
"""How often a look-up begins again because the alias moved meanwhile, and what it had meant is gone."""

REFRESH_S: Final = 30.0
"""How long a thread waits until every alias is looked up again."""

KEY_HEADER: Final = "x-request-key"

_REMEMBERED: Final = 1024
_log = logging.getLogger("adapterhub.aliases")


@dataclass(frozen=True, slots=True)
class _Known:
    """The meaning of a name, None if it is not an alias, and the time (in seconds of the clock) to look it up again.

    `specs` are the exact specs by digest, the largest weight first. `stamp` is that of the library's file before the
    look-up.
    """

    alias: Alias | None
    until: float
    specs: Mapping[Digest, str] = field(default_factory=dict)
    stamp: object = None


class ServedAliases:
    """The aliases that requests have named. Thread-safe. `clock` gives seconds that only grow.

    A look-up has two halves, so that a library never waits for a server: `here`, then `there`. `adopt` then moves the
    alias; `keep` leaves it for another `ttl_s` seconds, for example because its new target cannot be used.
    """

    def __init__(
        self,
        library: Library,
        sources: Callable[[AdapterSpec], Sequence[Source]] = lambda _: (),
        *,
        ttl_s: float = TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._library, self._sources = library, sources
        self._ttl_s, self._clock = ttl_s, clock
        self._known: dict[str, _Known] = {}
        self._seen: dict[str, object] = {}
        """The stamps of the files that look-ups began with, which are not over."""
        self._told: dict[str, object] = {}
        """The stamps at the last call of `moved`."""
        self._lock = Lock()

    # ------------------------------------------------------------ what is known
    def chosen(self, name: str, key: str | None = None) -> str | None:
        """Return the exact spec that `name` means for a request key, by the last look-up; None without a known alias.

        A request without a key gets a target by chance, in proportion to the weights.
        """
        known = self._known.get(name)
        if known is None or known.alias is None:
            return None
        alias = known.alias
        target = alias.main if len(alias.targets) == 1 else alias.for_key(key or secrets.token_hex(8))
        return known.specs[target.digest]

    def specs(self, name: str) -> list[str]:
        """Return the exact specs of all targets of `name`, the largest weight first; none without a known alias."""
        known = self._known.get(name)
        return [] if known is None else list(known.specs.values())

    def is_due(self, name: str) -> bool:
        """Return whether `name` has to be looked up: it never was, or too long ago."""
        known = self._known.get(name)
        return known is None or known.until <= self._clock()

    def names(self) -> list[str]:
        """Return the names that were looked up and are aliases."""
        with self._lock:
            return [name for name, known in self._known.items() if known.alias is not None]

    def moved(self) -> list[str]:
        """Return the names whose file in the library changed since the last look-up, each change once.

        Two opens for each.
        """
        with self._lock:
            known = {name: (one.alias, one.stamp) for name, one in self._known.items() if one.alias is not None}
        found = {name: (self._stamp(alias), seen) for name, (alias, seen) in known.items()}
        moved = [name for name, (now, seen) in found.items() if now not in (seen, self._told.get(name))]
        self._told = {name: now for name, (now, _) in found.items()}
        return moved

    def has_moved(self, name: str) -> bool:
        """Return whether the file of the alias `name` changed since its look-up began; two opens."""
        known = self._known.get(name)
        if known is None or known.alias is None:
            return False
        return self._stamp(known.alias) != self._seen.get(name, known.stamp)

    def meant(self) -> set[Digest]:
        """Return the digests of all targets of all aliases that requests have named."""
        with self._lock:
            return {digest for known in self._known.values() for digest in known.specs}

    def _stamp(self, alias: Alias) -> object:
        return self._library.aliases.stamp(alias.adapter, alias.name)

    def forget(self, name: str | None = None) -> None:
        """Look `name` up again at its next request, or every alias. Until then it keeps its meaning."""
        with self._lock:
            for one in [*self._known] if name is None else [name] if name in self._known else []:
                self._known[one] = replace(self._known[one], until=0.0)

    # ------------------------------------------------------------ look up
    def look_up(self, name: str) -> None:
        """Look `name` up, in the library and then on servers; a known alias stays where neither can say.

        Raises:
            AdapterHubError: it could be an alias, and neither can say.
        """
        is_known = self.chosen(name) is not None
        try:
            alias = self.now(name)
        except AdapterHubError as error:
            if not is_known:
                raise
            self.keep(name, error)
        else:
            self.adopt(name, alias)

    def now(self, name: str) -> Alias | None:
        """Look up `name` in the library, and then on servers; None if it is not an alias.

        Raises:
            AdapterHubError: it could be an alias, and neither can say.
        """
        alias, is_final = self.here(name)
        return alias if is_final else self.there(name, alias)

    def may_be(self, name: str) -> bool:
        """Return True if `name` has the form of an alias, and its `@word` is not a registered base."""
        try:
            base = AdapterSpec.parse(name).base
        except SpecError:
            return False
        return base is not None and base.kind == "alias" and base.text not in self._library.bases.aliases()

    def here(self, name: str) -> tuple[Alias | None, bool]:
        """Look up `name` in the library, and whether it needs no server.

        Raises:
            AmbiguousSpec, Malformed: the alias is ambiguous, or its file is damaged.
        """
        if not self.may_be(name):
            return None, True
        spec, before = AdapterSpec.parse(name), self._known.get(name)
        adapter = before.alias.adapter if before and before.alias else spec.full_name
        stamp = self._library.aliases.stamp(adapter, spec.base.text if spec.base else "")
        alias = alias_of(self._library, spec)
        self._seen[name] = stamp if alias is None or alias.adapter == adapter else self._stamp(alias)
        return alias, alias is not None and not alias.place

    def there(self, name: str, before: Alias | None) -> Alias | None:
        """Return the target from the first server that has the alias, or `before` if none answers.

        The library notes the server's answer, and so knows it when the server is away.

        Raises:
            RemoteUnreachable, NotAllowed: no server answers, and nothing is known from before.
        """
        spec = AdapterSpec.parse(name)
        try:
            found = first_alias(self._library, spec, self._sources(spec))
        except (RemoteUnreachable, NotAllowed) as error:
            if before is None:
                raise
            _log.warning("%s stays %s: %s", before, before.text(), error.message)
            return before
        if alias := found or (before and replace(before, moves=())):
            follow(self._library, alias)
        return found

    def adopt(self, name: str, alias: Alias | None) -> set[Digest]:
        """`name` means this from now on; the builds that no known alias means any more."""
        with self._lock:
            before = self._known.get(name)
            if len(self._known) >= _REMEMBERED and before is None:
                self._known = {one: known for one, known in self._known.items() if known.alias is not None}
            specs = specs_of(name, alias) if alias else {}
            self._known[name] = _Known(alias, self._clock() + self._ttl_s, specs, self._seen.pop(name, None))
        was = before.alias.targets if before and before.alias else ()
        now = alias.targets if alias else ()
        if was != now and was:
            _log.info("%s moved from %s to %s", name, targets_text(was), targets_text(now))
        return {target.digest for target in was} - self.meant()

    def keep(self, name: str, error: Exception) -> None:
        """`name` keeps its meaning until the next look-up, because of `error`."""
        with self._lock:
            known = self._known.get(name, _Known(None, 0.0))
            stamp = self._seen.pop(name, known.stamp)
            self._known[name] = replace(known, until=self._clock() + self._ttl_s, stamp=stamp)
        fault = None if isinstance(error, AdapterHubError) else error
        _log.warning("%s keeps its target: %s", name, getattr(error, "message", error), exc_info=fault)


def request_key(header: str, body: Mapping[str, Any]) -> str | None:
    """Return the key between the targets of an alias: the header `x-request-key`, or the field `user`, or nothing."""
    user = body.get("user")
    return header or (user if isinstance(user, str) and user else None)


def specs_of(name: str, alias: Alias) -> dict[Digest, str]:
    """By digest, the exact specs of the targets under `name`, the largest weight first."""
    spec = AdapterSpec.parse(name)
    ordered = sorted(alias.targets, key=lambda target: -target.weight)
    return {target.digest: str(exact(spec, alias, target)) for target in ordered}


class MovingNames:
    """Aliases on one event loop: requests for one share its look-up, and do not wait where it has an old meaning.

    `aliases` gives what is known of them. `ensure` raises if exact specs cannot be served, and the alias stays. The
    halves of a look-up run in `local` and `remote`. `passed` gets the digests that an alias meant before it moved.
    """

    def __init__(
        self,
        aliases: Callable[[], Awaitable[ServedAliases]],
        ensure: Callable[[Sequence[str]], Awaitable[object]],
        local: Executor,
        remote: Executor,
        passed: Callable[[Collection[Digest]], object] = lambda _: None,
    ) -> None:
        self._aliases, self._ensure, self._passed = aliases, ensure, passed
        self._local, self._remote = local, remote
        self._pending: dict[str, asyncio.Future[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def exact(self, name: str, key: str | None = None) -> str:
        """Return the exact spec that `name` means for a request key, if it is an alias, otherwise `name`.

        Raises:
            AdapterHubError: it could be an alias, and what it means is unknown.
        """
        if "@" not in name:
            return name
        self._loop = asyncio.get_running_loop()
        aliases = await self._aliases()
        if aliases.is_due(name) and not aliases.may_be(name):
            aliases.adopt(name, None)
        if aliases.is_due(name):
            look_up = self._looked_up(name)
            if aliases.chosen(name) is None:
                await asyncio.shield(look_up)
        return aliases.chosen(name, key) or name

    async def left(self, name: str, exact: str) -> bool:
        """Return whether the alias `name` does not mean `exact` any more, looked up again where the library moved it.

        Its earlier build may be gone with the move, before a request could take a lease on it.
        """
        aliases = await self._aliases()
        if name in self._pending or aliases.has_moved(name):
            await self.refresh([name])
        return exact not in aliases.specs(name)

    async def targets(self, name: str) -> list[str]:
        """Return the exact specs of all targets of an alias; for any other name, that name.

        Raises:
            AdapterHubError: as `exact`.
        """
        return [name] if await self.exact(name) == name else (await self._aliases()).specs(name)

    async def refresh(self, names: Sequence[str] | None = None) -> list[str]:
        """Look up now every alias that requests have named, or `names`; return them. Requests go on meanwhile."""
        if self._loop is None:
            return []
        if names is None:
            names = (await self._aliases()).names()
        await asyncio.gather(*map(self._looked_up_afresh, names), return_exceptions=True)
        return [*names]

    def refresh_from_thread(self, names: Sequence[str] | None = None) -> bool:
        """As `refresh`, from another thread than that of the loop; whether it was done in time."""
        if self._loop is None:
            return False
        try:
            asyncio.run_coroutine_threadsafe(self.refresh(names), self._loop).result(REFRESH_S)
        except (TimeoutError, concurrent.futures.TimeoutError):  # two names before Python 3.11
            return False
        return True

    async def _looked_up_afresh(self, name: str) -> None:
        """Look an alias up after the look-up that runs, which may have begun before the alias moved."""
        if name in self._pending:
            await asyncio.wait([self._pending[name]])
        await asyncio.shield(self._looked_up(name))

    def _looked_up(self, name: str) -> asyncio.Future[None]:
        if name not in self._pending:
            self._pending[name] = asyncio.ensure_future(self._look_up(name))
            self._pending[name].add_done_callback(lambda done: self._done(name, done))
        return self._pending[name]

    def _done(self, name: str, done: asyncio.Future[None]) -> None:
        self._pending.pop(name)
        if not done.cancelled():
            done.exception()  # read, or asyncio complains about one that no request waited for

    async def _look_up(self, name: str) -> None:
        aliases, loop = await self._aliases(), asyncio.get_running_loop()
        is_known = aliases.chosen(name) is not None
        try:
            for left in reversed(range(LOOKS)):
                alias, is_final = await loop.run_in_executor(self._local, aliases.here, name)
                if not is_final:
                    alias = await loop.run_in_executor(self._remote, aliases.there, name, alias)
                if not is_known or alias is None:
                    break
                try:
                    await self._ensure([*specs_of(name, alias).values()])  # it moves only to what can be served
                    break
                except (AdapterNotFound, NoCompatibleRelease):
                    if not left or not aliases.has_moved(name):
                        raise
        except Exception as error:  # after any failure, requests go on under what it meant
            if not is_known:
                raise
            aliases.keep(name, error)
        else:
            if gone := aliases.adopt(name, alias):
                self._passed(gone)

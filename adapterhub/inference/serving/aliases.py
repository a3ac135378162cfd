"""What aliases mean while an engine runs: looked up again after a time or a signal, and moved only to usable builds.

A request that has begun keeps its adapter, because the engine knows it by a name with the digest.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Final

from adapterhub.core.errors import AdapterHubError, NotAllowed, RemoteUnreachable, SpecError
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import first_alias
from adapterhub.formats.alias import Alias, targets_text
from adapterhub.library.aliasing import alias_of, exact
from adapterhub.library.library import Library
from adapterhub.library.transfer import Source

TTL_S: Final = 10.0
"""How long an alias keeps its meaning before it is looked up again."""

KEY_HEADER: Final = "x-request-key"

_REMEMBERED: Final = 1024
_log = logging.getLogger("adapterhub.aliases")


@dataclass(frozen=True, slots=True)
class _Known:
    """What a name means, None if it is no alias, and until when (in seconds of the clock) it need not be looked up.

    `specs` are the exact specs by digest, the largest weight first.
    """

    alias: Alias | None
    until: float
    specs: Mapping[str, str] = field(default_factory=dict)


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
        self._lock = Lock()

    # ------------------------------------------------------------ what is known
    def chosen(self, name: str, key: str | None = None) -> str | None:
        """The exact spec that `name` means for a request key, by the last look-up; None if it is no known alias.

        A request without a key gets a target by chance, in proportion to the weights.
        """
        known = self._known.get(name)
        if known is None or known.alias is None:
            return None
        alias = known.alias
        target = alias.main if len(alias.targets) == 1 else alias.for_key(key or secrets.token_hex(8))
        return known.specs[target.digest]

    def specs(self, name: str) -> list[str]:
        """The exact specs of all targets of `name`, the largest weight first; none if it is no known alias."""
        known = self._known.get(name)
        return [] if known is None else list(known.specs.values())

    def is_due(self, name: str) -> bool:
        """Whether `name` has to be looked up: it never was, or too long ago."""
        known = self._known.get(name)
        return known is None or known.until <= self._clock()

    def names(self) -> list[str]:
        """The names that were looked up and are aliases."""
        with self._lock:
            return [name for name, known in self._known.items() if known.alias is not None]

    def forget(self, name: str | None = None) -> None:
        """Look `name` up again at its next request, or every alias. Until then it keeps its meaning."""
        with self._lock:
            for one in [*self._known] if name is None else [name] if name in self._known else []:
                self._known[one] = replace(self._known[one], until=0.0)

    # ------------------------------------------------------------ look up
    def look_up(self, name: str, ensure: Callable[[Sequence[str]], None] = lambda _: None) -> None:
        """Look `name` up, in the library and then on servers.

        `ensure` gets the exact specs of the targets, and raises where they cannot be served; a known alias then stays.

        Raises:
            AdapterHubError: it could be an alias, and neither can say.
        """
        is_known = self.chosen(name) is not None
        try:
            alias, is_final = self.here(name)
            alias = alias if is_final else self.there(name, alias)
            ensure(list(specs_of(name, alias).values()) if alias else [])
        except AdapterHubError as error:
            if not is_known:
                raise
            self.keep(name, error)
        else:
            self.adopt(name, alias)

    def may_be(self, name: str) -> bool:
        """Whether `name` has the form of an alias, and its `@word` is no registered base."""
        try:
            base = AdapterSpec.parse(name).base
        except SpecError:
            return False
        return base is not None and base.kind == "alias" and base.text not in self._library.bases.aliases()

    def here(self, name: str) -> tuple[Alias | None, bool]:
        """What the library says of `name`, and whether no server has to be asked.

        Raises:
            AmbiguousSpec, Malformed: the alias is ambiguous, or its file is damaged.
        """
        if not self.may_be(name):
            return None, True
        alias = alias_of(self._library, AdapterSpec.parse(name))
        return alias, alias is not None and not alias.place

    def there(self, name: str, before: Alias | None) -> Alias | None:
        """What the first server says that has the alias; `before`, which the library followed, if none answers.

        The library notes what the server says, and so knows it when the server is away.

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
        self._note(found, before)
        return found

    def _note(self, found: Alias | None, before: Alias | None) -> None:
        alias = found or before
        if alias is None:
            return
        with contextlib.suppress(AdapterHubError):  # a library that cannot be written is still good to read
            targets = found.targets if found else ()
            self._library.aliases.move(alias.adapter, alias.name, targets, action="follow", place=alias.place)

    def adopt(self, name: str, alias: Alias | None) -> None:
        """`name` means this from now on."""
        with self._lock:
            before = self._known.get(name)
            if len(self._known) >= _REMEMBERED and before is None:
                self._known = {one: known for one, known in self._known.items() if known.alias is not None}
            specs = specs_of(name, alias) if alias else {}
            self._known[name] = _Known(alias, self._clock() + self._ttl_s, specs)
        was = before.alias.targets if before and before.alias else ()
        now = alias.targets if alias else ()
        if was != now and was:
            _log.info("%s moved from %s to %s", name, targets_text(was), targets_text(now))

    def keep(self, name: str, error: Exception) -> None:
        """`name` keeps its meaning until the next look-up, because of `error`."""
        with self._lock:
            known = self._known.get(name, _Known(None, 0.0))
            self._known[name] = replace(known, until=self._clock() + self._ttl_s)
        fault = None if isinstance(error, AdapterHubError) else error
        _log.warning("%s keeps its target: %s", name, getattr(error, "message", error), exc_info=fault)


def request_key(header: str, body: Mapping[str, Any]) -> str | None:
    """What decides between the targets of an alias: the header `x-request-key`, else the field `user`, else nothing."""
    user = body.get("user")
    return header or (user if isinstance(user, str) and user else None)


def specs_of(name: str, alias: Alias) -> dict[str, str]:
    """By digest, the exact specs of the targets under `name`, the largest weight first."""
    spec = AdapterSpec.parse(name)
    ordered = sorted(alias.targets, key=lambda target: -target.weight)
    return {target.digest: str(exact(spec, alias, target)) for target in ordered}

"""Aliases in requests: looked up again after a time or a signal, while requests go on under what they meant before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapterhub.vllm_plugin.resolver import AdapterHubResolver


class MovingNames:
    """The aliases of one resolver, on its event loop; `AdapterProvider.aliases` knows what they mean."""

    def __init__(self, resolver: AdapterHubResolver) -> None:
        self._resolver = resolver
        self._pending: dict[str, asyncio.Future[None]] = {}
        self._base_model_name = ""

    async def exact(self, base_model_name: str, name: str, key: str | None = None) -> str:
        """The exact spec that `name` means for a request key, if it is an alias; else `name`.

        An alias that was looked up long ago is looked up again meanwhile, and the request does not wait for that.

        Raises:
            AdapterHubError: it could be an alias, and what it means is unknown.
        """
        if "@" not in name:
            return name
        self._base_model_name = base_model_name
        aliases = (await self._resolver.provider(base_model_name)).aliases
        if aliases.is_due(name) and not aliases.may_be(name):
            aliases.adopt(name, None)
        if aliases.is_due(name):
            look_up = self._looked_up(name)
            if aliases.chosen(name) is None:
                await asyncio.shield(look_up)
        return aliases.chosen(name, key) or name

    async def targets(self, base_model_name: str, name: str) -> list[str]:
        """The exact specs of all targets of an alias; for any other name, that name.

        Raises:
            AdapterHubError: as `exact`.
        """
        if await self.exact(base_model_name, name) == name:
            return [name]
        return (await self._resolver.provider(base_model_name)).aliases.specs(name)

    async def refresh(self, name: str | None = None) -> list[str]:
        """Look up now every alias that requests have named, or one; return their names. Requests go on meanwhile."""
        if not self._base_model_name:
            return []
        aliases = (await self._resolver.provider(self._base_model_name)).aliases
        names = [one for one in aliases.names() if name in (None, one)]
        await asyncio.gather(*(self._looked_up_afresh(one) for one in names), return_exceptions=True)
        return names

    async def _looked_up_afresh(self, name: str) -> None:
        """Look an alias up after the look-up that runs, which may have begun before the alias moved."""
        if name in self._pending:
            await asyncio.wait([self._pending[name]])
        await asyncio.shield(self._looked_up(name))

    def _looked_up(self, name: str) -> asyncio.Future[None]:
        """The look-up of an alias, which simultaneous requests share."""
        if name not in self._pending:
            self._pending[name] = asyncio.ensure_future(self._look_up(name))
            self._pending[name].add_done_callback(lambda done: self._done(name, done))
        return self._pending[name]

    def _done(self, name: str, done: asyncio.Future[None]) -> None:
        self._pending.pop(name)
        if not done.cancelled():
            done.exception()  # read, or asyncio complains about one that no request waited for

    async def _look_up(self, name: str) -> None:
        from adapterhub.inference.serving.aliases import specs_of

        resolver, loop = self._resolver, asyncio.get_running_loop()
        aliases = (await resolver.provider(self._base_model_name)).aliases
        is_known = aliases.chosen(name) is not None
        try:
            alias, is_final = await loop.run_in_executor(resolver.local, aliases.here, name)
            if not is_final:
                alias = await loop.run_in_executor(resolver.remote, aliases.there, name, alias)
            if is_known and alias is not None:  # fetched and checked first: it moves only to what can be served
                targets = specs_of(name, alias).values()
                await asyncio.gather(*(resolver.leased(self._base_model_name, spec) for spec in targets))
        except Exception as error:  # after any failure, requests go on under what it meant
            if not is_known:
                raise
            aliases.keep(name, error)
        else:
            aliases.adopt(name, alias)

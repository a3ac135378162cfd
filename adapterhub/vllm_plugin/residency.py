"""Which adapters vLLM has loaded, under our names, and which one is unloaded so that another can take its place.

vLLM keeps `--max-cpu-loras` adapters in memory and evicts the least recently used one, of any tenant. With tenants or
pinned adapters, the choice is made here, before vLLM has to make it: each tenant has a share of that memory, and a new
adapter of a tenant takes the place of one of its own. An adapter is unloaded, and its lease ends, when no request runs
on it.

vLLM's own `pin_lora` is of no use: it also pins the slot of a batch, and its scheduler goes on filling all slots.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import EngineFailed
from adapterhub.inference.serving.refusal import RequestRefused

if TYPE_CHECKING:
    from adapterhub.core.digests import Digest
    from adapterhub.inference.serving import LeasedAdapter
    from adapterhub.inference.serving.access.gate import Gate
    from adapterhub.inference.serving.access.tenants import Tenant
    from adapterhub.vllm_plugin.resolver import AdapterHubResolver

MOST_LOADED: Final = 1000
"""How many adapters vLLM may know; the one that was used least recently is unloaded."""

SETTLE_S: Final = 0.05
"""How often to look whether the engine has ended a request that its client left."""

Models = Any
"""vLLM's OpenAIServingModels."""


@dataclass(slots=True)
class Resident:
    """An adapter that vLLM has or loads. `running` counts the requests on it, `holders` those of each tenant."""

    leased: LeasedAdapter
    running: int = 0
    holders: dict[str, int] = field(default_factory=dict)
    is_pinned: bool = False
    lora_id: int | None = None


class VllmResidency:
    """The adapters of one server. All methods run on its event loop.

    `room` is the number of adapters that vLLM keeps in memory; None if vLLM may choose what it evicts, since there
    are neither tenants nor pinned adapters.
    """

    def __init__(self, resolver: AdapterHubResolver, gate: Gate, room: int | None) -> None:
        self._resolver = resolver
        self._gate = gate
        self._room = room
        self._residents: dict[str, Resident] = {}
        """By model name, the least recently used first."""
        self._edition = 0
        self._making_room = asyncio.Lock()
        self._claims: Counter[Digest] = Counter()
        self._passed: set[Digest] = set()
        """What an alias meant before it moved, and vLLM may still have."""

    def find(self, name: str) -> LeasedAdapter | None:
        """Return the adapter of that model name."""
        resident = self._residents.get(name)
        return resident.leased if resident else None

    async def load(self, leased: LeasedAdapter, models: Models, *, pin: bool) -> None:
        """Let vLLM load an adapter before any request does; with `pin`, for as long as the server runs.

        Raises:
            EngineFailed: vLLM cannot load it.
        """
        resident = self._residents.setdefault(leased.model, Resident(leased))
        resident.is_pinned = resident.is_pinned or pin
        found = await models.resolve_lora(leased.model)
        if leased.model not in models.lora_requests:
            reason = getattr(getattr(found, "error", None), "message", "it gives no reason")
            raise EngineFailed(f"vLLM did not load `{leased.label}`: {reason}", hint="read vLLM's log above this line")

    # ------------------------------------------------------------ requests
    async def enter(self, leased: LeasedAdapter, tenant: Tenant | None, models: Models) -> None:
        """Count a request that begins on an adapter, and make room for the adapter if the tenant does not have it yet.

        Raises:
            RequestRefused: 429, all adapters of the tenant are in use.
        """
        name = tenant.name if tenant else ""
        resident = self._residents.get(leased.model)
        counts = self._room is not None and (tenant is not None or self._gate.tenants is None)  # else an administrator
        if counts and not _is_held(resident, name):
            async with self._making_room:
                if not _is_held(self._residents.get(leased.model), name):  # by another request, meanwhile
                    await self._make_room(name, models)
                resident = self._residents.setdefault(leased.model, Resident(leased))
                if not resident.is_pinned:
                    resident.holders.setdefault(name, 0)
        resident = resident or Resident(leased)
        self._residents.pop(leased.model, None)
        self._residents[leased.model] = resident
        resident.running += 1
        if name in resident.holders:
            resident.holders[name] += 1

    async def leave(self, leased: LeasedAdapter, tenant: Tenant | None, models: Models) -> None:
        """Count the end of a request. Unloads the adapter if it is gone or denied, and the oldest beyond the bound."""
        name = tenant.name if tenant else ""
        resident = self._residents[leased.model]
        resident.running -= 1
        if name in resident.holders:
            resident.holders[name] -= 1
        request = models.lora_requests.get(leased.model)
        if request is not None:
            resident.lora_id = request.lora_int_id
        if not resident.running and (request is None or self._resolver.denied.reason(leased.label, leased.digest)):
            await self.unload(resident, models)
        await self._retire(leased.digest, models)
        while len(self._residents) > MOST_LOADED:
            idle = next((one for one in self._residents.values() if not one.running), None)
            if idle is None:
                return
            await self.unload(idle, models)

    # ------------------------------------------------------------ aliases that move
    def claim(self, digest: Digest) -> None:
        """Count a request that got a build by an alias, so that the build stays until the request has ended."""
        self._claims[digest] += 1

    async def disclaim(self, digest: Digest, models: Models) -> None:
        """Count the end of such a request."""
        self._claims[digest] -= 1
        if not self._claims[digest]:
            del self._claims[digest]
        await self._retire(digest, models)

    async def pass_over(self, digests: Collection[Digest], models: Models) -> None:
        """Unload what no alias means any more, each with its last request; a later request for it loads it again."""
        self._passed.update(digests)
        for digest in digests:
            await self._retire(digest, models)

    async def _retire(self, digest: Digest, models: Models) -> None:
        found = [one for one in self._residents.values() if one.leased.digest == digest]
        is_used = digest in self._claims or any(one.running or one.is_pinned for one in found)
        if digest not in self._passed or is_used:
            return
        self._passed.discard(digest)
        if self._resolver.is_meant(digest):  # the alias has moved back
            return
        for one in found:
            await self.unload(one, models)
        if not found:
            self._resolver.release_digest(digest)

    # ------------------------------------------------------------ room
    async def _make_room(self, name: str, models: Models) -> None:
        """Unload adapters of tenant `name`, or that no tenant has, until it may load one more."""
        tenants, room = self._gate.tenants, self._room or 0
        pinned = sum(one.is_pinned for one in self._residents.values())
        shares = {one.name: one.max_loaded for one in tenants.by_name.values()} if tenants else {"": room - pinned}
        for other in {holder for one in self._residents.values() for holder in one.holders} - {name}:
            await self._shrink(other, shares.get(other, 0), models)  # the file may have changed
        if not await self._shrink(name, shares.get(name, 0) - 1, models):
            most = shares.get(name, 0)
            raise RequestRefused(429, f"all {most} adapters that this key may have in memory are in use", 1)
        others = sum(model not in self._residents for model in models.lora_requests)
        unheld = [one for one in self._residents.values() if not (one.holders or one.is_pinned or one.running)]
        while unheld and len(self._residents) + others >= room:
            await self.unload(unheld.pop(0), models)

    async def _shrink(self, name: str, most: int, models: Models) -> bool:
        """Take idle adapters from a tenant until it has at most `most`; whether that was possible."""
        held = [one for one in self._residents.values() if name in one.holders and not one.is_pinned]
        for one in list(held):
            if len(held) <= most:
                break
            if not one.holders[name]:
                held.remove(one)
                del one.holders[name]
                if not one.holders and not one.running:
                    await self.unload(one, models)
        return len(held) <= most

    async def drop_denied(self, models: Models) -> None:
        """Unload what must not be served any more; an adapter that is in use goes with its last request."""
        denied = self._resolver.denied
        if denied.edition == self._edition:
            return
        self._edition = denied.edition
        for resident in list(self._residents.values()):
            if denied.reason(resident.leased.label, resident.leased.digest) is not None:
                _forget(resident, models)
                if not resident.running:
                    await self.unload(resident, models)

    async def unload(self, resident: Resident, models: Models) -> None:
        """Let vLLM forget an adapter on which no request runs, free its memory, and end its lease."""
        name, leased = resident.leased.model, resident.leased
        self._residents.pop(name, None)
        _forget(resident, models)
        await _ended(models, name)
        if resident.lora_id is not None:
            await models.engine_client.remove_lora(resident.lora_id)
        is_read = any(request.lora_path == str(leased.folder) for request in models.lora_requests.values())
        if name not in self._residents and not is_read:  # else a request came meanwhile
            self._resolver.release(leased)


def _is_held(resident: Resident | None, name: str) -> bool:
    return resident is not None and (resident.is_pinned or name in resident.holders)


def _forget(resident: Resident, models: Models) -> None:
    """Let vLLM look the name up again, at the next request for it."""
    request = models.lora_requests.pop(resident.leased.model, None)
    if request is not None:
        resident.lora_id = request.lora_int_id


async def _ended(models: Models, name: str) -> None:
    """Wait until the engine has no request of an adapter: it would read the files again for one that a client left."""
    states = getattr(getattr(models.engine_client, "output_processor", None), "request_states", {})
    while any(state.lora_name == name for state in list(states.values())):  # noqa: ASYNC110 - vLLM has no event for it
        await asyncio.sleep(SETTLE_S)


@contextlib.asynccontextmanager
async def living(app: Any, resolver: AdapterHubResolver, residency: VllmResidency, gate: Gate) -> AsyncIterator[None]:
    """Do the work of one server beside its requests while the block, the life of `app`, lasts, on their event loop.

    Raises:
        AdapterHubError: an adapter that the settings name cannot be loaded, before the block begins.
    """
    models, loop, tasks = app.state.openai_serving_models, asyncio.get_running_loop(), set[asyncio.Task[None]]()
    resolver.base_model = models.model_config.model
    pins = resolver.settings.pins
    for name in (*pins, *resolver.settings.preload):
        for spec in await resolver.aliases.targets(name):
            await residency.load(await resolver.leased(spec), models, pin=name in pins)

    def begin(work: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def changed() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: begin(residency.drop_denied(models)))

    resolver.denied.on_change(changed)
    resolver.passed = lambda digests: begin(residency.pass_over(digests, models))
    with gate.open(), resolver.upkeep(gate).running():
        yield

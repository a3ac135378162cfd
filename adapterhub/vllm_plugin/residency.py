"""Which adapters vLLM has loaded, under our names, and when one is unloaded so that another can take its place.

vLLM keeps `--max-cpu-loras` adapters in memory and evicts the least recently used one, whoever uses it. So the choice
is made here, before vLLM has to: an adapter is unloaded from the engine, and its lease ends, when no request runs on
it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from adapterhub.inference.serving import LeasedAdapter
    from adapterhub.vllm_plugin.resolver import AdapterHubResolver

MOST_LOADED: Final = 1000
"""How many adapters vLLM may know; the one that was used least recently is unloaded."""

SETTLE_S: Final = 0.05
"""How often to look whether the engine has ended a request that its client left."""

Models = Any
"""vLLM's OpenAIServingModels."""


@dataclass(slots=True)
class Resident:
    """An adapter that vLLM has or loads. `running` counts the requests on it."""

    leased: LeasedAdapter
    running: int = 0
    lora_id: int | None = None


class Residency:
    """The adapters of one server. All methods run on its event loop."""

    def __init__(self, resolver: AdapterHubResolver) -> None:
        self._resolver = resolver
        self._residents: dict[str, Resident] = {}
        """By model name, the least recently used first."""
        self._edition = 0

    def find(self, name: str) -> LeasedAdapter | None:
        """The adapter of that model name."""
        resident = self._residents.get(name)
        return resident.leased if resident else None

    def enter(self, leased: LeasedAdapter) -> None:
        """Count a request that begins on an adapter."""
        resident = self._residents.pop(leased.model, None) or Resident(leased)
        self._residents[leased.model] = resident
        resident.running += 1

    async def leave(self, leased: LeasedAdapter, models: Models) -> None:
        """Count the end of a request. Unloads the adapter if it is gone or denied, and the oldest beyond the bound."""
        resident = self._residents[leased.model]
        resident.running -= 1
        request = models.lora_requests.get(leased.model)
        if request is not None:
            resident.lora_id = request.lora_int_id
        if not resident.running and (request is None or self._resolver.denied.reason(leased.label, leased.digest)):
            await self.unload(resident, models)
        while len(self._residents) > MOST_LOADED:
            idle = next((one for one in self._residents.values() if not one.running), None)
            if idle is None:
                return
            await self.unload(idle, models)

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

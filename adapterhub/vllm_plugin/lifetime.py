"""What a server does beside answering, from its start to its end.

It loads adapters before it takes requests, follows the deny list and the tenants, and looks for yanks.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from adapterhub.inference.serving.access.watched import LOOK_S, Upkeep
from adapterhub.inference.serving.access.yanks import YANKS_S

if TYPE_CHECKING:
    from adapterhub.inference.serving.access.gate import Gate
    from adapterhub.vllm_plugin.residency import Residency
    from adapterhub.vllm_plugin.resolver import AdapterHubResolver


ALIASES_S: Final = 30.0
"""How long a thread that follows events waits for the look-up of aliases."""


class Lifetime:
    """The work of one server beside its requests."""

    def __init__(self, resolver: AdapterHubResolver, residency: Residency, gate: Gate) -> None:
        self._gate = gate
        self._resolver = resolver
        self._residency = residency
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def of(self, app: Any) -> AsyncIterator[None]:  # noqa: ANN401 - vLLM's FastAPI application
        """Do it while the block, the life of `app`, lasts. Runs on the event loop of its requests.

        Raises:
            AdapterHubError: an adapter that the settings name cannot be loaded, before the block begins.
        """
        await self._load(app.state.openai_serving_models)
        loop = asyncio.get_running_loop()
        denied = self._resolver.denied

        def drop_denied() -> None:
            task = loop.create_task(self._residency.drop_denied(app.state.openai_serving_models))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        def changed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(drop_denied)

        def refresh_aliases() -> None:
            refreshed = asyncio.run_coroutine_threadsafe(self._resolver.aliases.refresh(), loop)
            with contextlib.suppress(TimeoutError, concurrent.futures.TimeoutError):  # two names before Python 3.11
                refreshed.result(ALIASES_S)

        denied.on_change(changed)
        look = self._resolver.look_for_yanks
        with contextlib.ExitStack() as running:
            running.enter_context(self._gate.open())
            tasks = [(LOOK_S, denied.refresh), (LOOK_S, self._gate.refresh), (YANKS_S, look)]
            running.enter_context(Upkeep(tasks))
            if self._resolver.settings.follow:
                running.enter_context(self._resolver.followers(refresh_aliases))
            yield

    async def _load(self, models: Any) -> None:  # noqa: ANN401 - vLLM's OpenAIServingModels
        pins = self._resolver.settings.pins
        base = models.model_config.model
        for name in (*pins, *self._resolver.settings.preload):
            for spec in await self._resolver.aliases.targets(base, name):
                leased = await self._resolver.leased(base, spec)
                await self._residency.load(leased, models, pin=name in pins)

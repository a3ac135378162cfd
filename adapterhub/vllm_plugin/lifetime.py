"""What a server does beside answering, from its start to its end: it follows the deny list and looks for yanks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from adapterhub.inference.serving.access.watched import LOOK_S, Upkeep
from adapterhub.inference.serving.access.yanks import YANKS_S

if TYPE_CHECKING:
    from adapterhub.vllm_plugin.residency import Residency
    from adapterhub.vllm_plugin.resolver import AdapterHubResolver


ALIASES_S: Final = 30.0
"""How long a thread that follows events waits for the look-up of aliases."""


class Lifetime:
    """The work of one server beside its requests."""

    def __init__(self, resolver: AdapterHubResolver, residency: Residency) -> None:
        self._resolver = resolver
        self._residency = residency
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def of(self, app: Any) -> Iterator[None]:  # noqa: ANN401 - vLLM's FastAPI application
        """Do it while the block, the life of `app`, lasts. Runs on the event loop of its requests."""
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
        with contextlib.ExitStack() as running:
            running.enter_context(Upkeep([(LOOK_S, denied.refresh), (YANKS_S, self._resolver.look_for_yanks)]))
            if self._resolver.settings.follow:
                running.enter_context(self._resolver.followers(refresh_aliases))
            yield

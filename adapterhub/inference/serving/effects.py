"""Finds out whether an adapter changes what an engine says, before the first answer is given under its name.

An engine may drop an adapter silently: where its names fit no module, it answers like the base. So one prompt is
asked with the adapter and without it, for one token with the likelihoods of several.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from adapterhub.core.digests import Digest
from adapterhub.core.errors import WithoutEffect, shown
from adapterhub.inference.serving.metrics import ServingMetrics
from adapterhub.inference.serving.refusal import refusal_of

PROMPT: Final = "The quick brown fox jumps over the"
"""Of several tokens: over one, attention gives the same whatever the queries and keys are."""

COMPLETION: Final[Mapping[str, Any]] = {
    "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "seed": 1, "logprobs": 5,
}  # fmt: skip
"""The body of the question where an engine completes texts. A likelihood is of the whole vocabulary."""

LEAST: Final = 1e-6
"""What rounding may move a number of an answer by."""

_DOUBT: Final = 0.05
"""What the rest of a batch may move a likelihood by, in nats; such a difference is looked at again."""

_LOOKS: Final = 3
"""How often such a difference is looked at; both questions then run in one batch, so one look without it tells."""

_UNREAD: Final = "its update is not zero, and the engine still gives the same numbers with it and without it"

_TOLD: Final = ("choices", "content", "completion_probabilities", "data", "results")
"""The members of an answer that tell what the model said."""

_UNTOLD: Final = frozenset({"id", "index", "object", "created"})


class Told(NamedTuple):
    """The words and the numbers of an answer."""

    words: list[str]
    numbers: list[float]


def told_in(answer: Any) -> Told | None:
    """Return the model's numbers in an answer of OpenAI's form or llama.cpp's; None for another value."""
    if not isinstance(answer, dict):
        return None
    leaves = list(_leaves([answer.get(key) for key in _TOLD]))
    numbers = [float(one) for one in leaves if not isinstance(one, str)]
    return Told([one for one in leaves if isinstance(one, str)], numbers)


def apart(one: Told, other: Told) -> float:
    """Return the largest difference of two numbers of the same place; infinite for other words."""
    if one.words != other.words or len(one.numbers) != len(other.numbers):
        return float("inf")
    return max((abs(a - b) for a, b in zip(one.numbers, other.numbers, strict=True)), default=0.0)


def _leaves(value: Any) -> Iterator[str | float]:
    if isinstance(value, dict):
        for key, one in value.items():
            if key not in _UNTOLD:
                yield from _leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, str) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        yield value


POOLING: Final[Mapping[str, Any]] = {"input": PROMPT}
"""The body of the question where an engine makes vectors or classes of texts."""

Found = Literal["changes", "nothing", "unknown"]
"""Whether an adapter changes the answer to the question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asleep:
    """What the files of an adapter say beforehand. `zero`: why its update is zero, "" if it is not.

    `wakes`: it acts only after tokens of its own (aLoRA), which the question does not have.
    """

    zero: str = ""
    wakes: bool = False


AWAKE: Final = Asleep()
Ask = Callable[[bool], Awaitable[Told | None]]
"""Asks the engine the question, with the adapter or without it; None where it refuses."""


class Effects:
    """What is known of the adapters of one engine, from its start to its end, by digest. Within one event loop.

    So an adapter is asked about once, and again only when the engine, its base or the adapter's bytes are others.
    """

    def __init__(self, metrics: ServingMetrics) -> None:
        self._metrics = metrics
        self._base: Told | None = None
        self._found: dict[Digest, Found] = {}
        self._reasons: dict[Digest, str] = {}
        self._locks: dict[tuple[Digest, str | None], asyncio.Lock] = {}

    async def begin(self, ask: Ask) -> None:
        """Prompt the plain base, and keep its answer."""
        if self._base is None:
            self._base = await ask(False)

    def knows(self, digest: Digest) -> bool:
        """Return whether an adapter was asked about, so that `ensure` does not wait."""
        return digest in self._found

    def refusal(self, label: str, digest: Digest) -> WithoutEffect | None:
        """Return the refusal of an adapter that was found to change nothing."""
        reason = self._reasons.get(digest)
        return None if reason is None else WithoutEffect(f"`{shown(label, 200)}` has no effect on the base: {reason}")

    async def ensure(self, label: str, digest: Digest, tenant: str | None, asleep: Asleep, ask: Ask) -> None:
        """Find out whether an adapter has an effect, if it is not known. `ask` does its work on behalf of `tenant`.

        Requests of one tenant wait for one question; none waits for a question of another tenant.

        Raises:
            RequestRefused: 424, it has none.
        """
        key = digest, tenant
        if digest not in self._found:
            lock = self._locks.setdefault(key, asyncio.Lock())
            try:
                async with lock:
                    if digest not in self._found:
                        await self._find(digest, asleep, ask)
            finally:
                if digest in self._found:
                    self._locks.pop(key, None)
        error = self.refusal(label, digest)
        if error is not None:
            raise refusal_of(error)

    async def _find(self, digest: Digest, asleep: Asleep, ask: Ask) -> None:
        found: Found | None = "unknown" if asleep.wakes else await self._asked(asleep, ask)
        if found is None:
            return  # the request itself will get the engine's reason, and the next one asks once more
        if found == "nothing":
            self._reasons[digest] = asleep.zero or _UNREAD
        self._found[digest] = found
        self._metrics.probed(found)

    async def _asked(self, asleep: Asleep, ask: Ask) -> Found | None:
        _, told = await asyncio.gather(self.begin(ask), ask(True))
        if self._base is None or not self._base.numbers:
            return "unknown"
        if told is None:
            return None
        moved = apart(told, self._base)
        for _ in range(0 if asleep.zero else _LOOKS):
            if not LEAST < moved <= _DOUBT:
                break  # else what ran beside it may have moved it
            base, again = await asyncio.gather(ask(False), ask(True))
            moved = min(moved, apart(base, again)) if base is not None and again is not None else moved
        return "nothing" if moved <= (_DOUBT if asleep.zero else LEAST) else "changes"

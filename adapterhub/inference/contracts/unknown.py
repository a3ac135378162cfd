"""Why a check says nothing, and the budget that bounds it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from adapterhub.formats.contract.results import REASONS

Tick = Callable[[int], None]
"""Called with how many prompts were done since the last call; raises when the budget is spent."""


class Unknown(Exception):
    """No verdict is possible, for one of the reasons of the results."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or REASONS[reason])
        self.reason = reason
        self.detail = detail or REASONS[reason]


def ticking(budget_s: float | None, progress: Callable[[int], None]) -> Tick:
    """A tick that reports to `progress` and ends the check after `budget_s` CPU seconds of this process."""
    start = time.process_time()

    def tick(done: int) -> None:
        progress(done)
        if budget_s is not None and time.process_time() - start > budget_s:
            if budget_s == 0:
                raise Unknown("budget", "others spent the CPU seconds of this test")
            raise Unknown("budget", f"it took more than {budget_s:g} CPU seconds; `--budget` allows more")

    return tick


@contextlib.contextmanager
def memory_as_unknown() -> Iterator[None]:
    """Turn a lack of memory into a verdict."""
    try:
        yield
    except MemoryError:
        raise Unknown("memory") from None
    except RuntimeError as error:
        if lacks_memory(error):
            raise Unknown("memory") from None
        raise


def lacks_memory(error: Exception) -> bool:
    """Whether torch could not get memory; it has a class of its own for that only on GPUs."""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)

"""Bytes that come again in the middle of their removal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def arriving_before(
    arrive: Callable[[], object], step: int, owner: type, *names: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Within, `arrive` is called once: before call number `step` of these methods of `owner`. It must have been."""
    left = step

    def arriving(call: Callable[..., Any]) -> Callable[..., Any]:
        def arrives_before(*given: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                arrive()
            return call(*given, **more)

        return arrives_before

    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(owner, name, arriving(getattr(owner, name)))
        yield
    assert left < 0

"""The shared test data that lies beside the project; a test that needs it says so when it is absent."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def shared(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"the shared test data `../shared/data/{name}` is not beside this project")
    return path

"""Test data that lie beside the project, where they are there: `shared("wild")` is the one way to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.outside import asks

SHARED = "ADAPTERHUB_TEST_SHARED"
"""The folder of the shared data, where it is not `../shared/data`."""


def shared(name: str) -> Path:
    """A path of the shared data; without it the test skips, in CI too."""
    asks()
    beside = Path(__file__).resolve().parent.parents[2] / "shared" / "data"
    path = Path(os.environ.get(SHARED, beside)) / name
    if not path.exists():
        pytest.skip(f"the shared test data `../shared/data/{name}` are not beside this project")
    return path

"""A library with a base, and the state dict of an adapter for it, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapterhub import Library
from adapterhub.live.stream import LiveStream
from tests.support.tiny import make_adapter, make_base

State = dict[str, "np.ndarray[Any, Any]"]


@pytest.fixture
def home(tmp_path: Path) -> Library:
    library = Library(tmp_path / "home")
    library.add_base(make_base(tmp_path / "base"), "base-7b")
    return library


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "agent")


@pytest.fixture
def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


@pytest.fixture
def state(folder: Path) -> Callable[[int], State]:
    """The tensors of an adapter at a step: other ones at each."""
    first = load_file(folder / "adapter_model.safetensors")
    return lambda step: {name: value + np.float32(step) for name, value in first.items()}


@pytest.fixture
def stream(home: Library, config: dict[str, Any]) -> LiveStream:
    return home.live("agent@base-7b", config=config)

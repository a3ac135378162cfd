"""Where a library lives unless somebody says otherwise, and the folders it has there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

FOLDERS: Final = (
    "adapters", "bases", "blobs", "blobs/sha256", "cache", "cache/fingerprints", "intents", "keys", "leases", "locks",
    "manifests", "manifests/sha256", "mismatches", "origins", "pins", "projects", "quarantine", "synced", "tmp",
)  # fmt: skip
"""Folders of a library by fixed names."""


def default_root(environ: Mapping[str, str] | None = None) -> Path:
    """`ADAPTERHUB_HOME` of `environ`, else the user's data folder as the platform has it.

    Faces pass `os.environ`; code below them passes nothing and never depends on the environment.
    """
    home = (environ or {}).get("ADAPTERHUB_HOME")
    if home:
        return Path(home).expanduser()
    from platformdirs import user_data_dir

    return Path(user_data_dir("adapterhub", appauthor=False))

"""Names on disk: the default root of the library, its folders, and the files of a project."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from adapterhub.core.arguments import path_of

FOLDERS: Final = (
    "adapters", "aliases", "bases", "blobs", "blobs/sha256", "cache", "cache/fingerprints", "cache/meaning",
    "cache/tests", "cache/tried", "history", "intents", "keys", "leases", "locks", "manifests", "manifests/sha256",
    "mismatches", "origins", "pins", "projects", "quarantine", "synced", "tests", "tmp", "yanked",
)  # fmt: skip
"""The folders of a library that have fixed names."""

PROJECT_FILE: Final = "adapters.toml"
LOCK_FILE: Final = "adapters.lock"
ADAPTERS_FOLDER: Final = "adapters"
"""Where `sync` puts the adapters, beside the project file."""


def default_root(environ: Mapping[str, str]) -> Path:
    """Return `ADAPTERHUB_HOME` of `environ`, or the platform's data folder of the user."""
    home = environ.get("ADAPTERHUB_HOME")
    if home:
        return path_of(home)
    from platformdirs import user_data_dir

    return Path(user_data_dir("adapterhub", appauthor=False))

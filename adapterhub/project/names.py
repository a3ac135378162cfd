"""The names of a project's two files and its folder: all that it takes to find one."""

from __future__ import annotations

from typing import Final

PROJECT_FILE: Final = "adapters.toml"
LOCK_FILE: Final = "adapters.lock"
ADAPTERS_FOLDER: Final = "adapters"
"""Where `sync` puts the adapters, beside the project file."""

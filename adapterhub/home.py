"""Where a library lives unless somebody says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def default_root(environ: Mapping[str, str] | None = None) -> Path:
    """`ADAPTERHUB_HOME` of `environ`, else the user's data folder as the platform has it.

    Faces pass `os.environ`; code below them passes nothing and never depends on the environment.
    """
    home = (environ or {}).get("ADAPTERHUB_HOME")
    if home:
        return Path(home).expanduser()
    from platformdirs import user_data_dir

    return Path(user_data_dir("adapterhub", appauthor=False))

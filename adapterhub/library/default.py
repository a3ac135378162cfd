"""The library that a Python function uses by default, which is the one that the command line uses."""

from __future__ import annotations

import os

from adapterhub.core.arguments import path_of
from adapterhub.library.library import Library

LibraryLike = Library | str | os.PathLike[str] | None
"""A library, the folder of one, or None for the default one."""


def open_library(library: LibraryLike) -> Library:
    """Return the library that a caller means; None means `adapterhub.default_library()`."""
    if isinstance(library, Library):
        return library
    if library is not None:
        return Library(path_of(library).absolute())
    import adapterhub  # the front door, which alone reads the environment

    return adapterhub.default_library()

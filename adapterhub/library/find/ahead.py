"""What searches and comparisons need of each build, made before somebody asks: an `add` leaves it to a quiet moment."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from threading import Event

from adapterhub.core.errors import AdapterHubError
from adapterhub.library.find.meaning import opened
from adapterhub.library.find.sketching import sketches
from adapterhub.library.installed import InstalledBuilds


class _EndedError(Exception):
    """Nobody needs the rest."""


def make_ahead(library: InstalledBuilds, ended: Event) -> None:
    """Make the sketches and the vectors that installed builds lack, until `ended` is set.

    A command that needs a part that fails here reports the cause.
    """

    def go_on(*_: int) -> None:
        if ended.is_set():
            raise _EndedError

    with contextlib.suppress(_EndedError, AdapterHubError, OSError, ImportError):
        go_on()
        if find_spec("numpy") is not None:
            sketches(library, go_on)
        meaning = opened(library)
        if meaning is not None:
            meaning.make_missing(go_on)

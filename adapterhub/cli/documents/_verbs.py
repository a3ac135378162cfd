"""Documents of the commands that show how adapters relate, what they are and what they use."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.cli.documents._parts import Path, Size, TypedDict
from adapterhub.cli.documents._values import document_of
from adapterhub.library import identify
from adapterhub.library.upkeep import space


# ---------------------------------------------------------------- identify, cache
class Other(TypedDict):
    """A part of the library outside the store's objects."""

    name: str
    size_bytes: Size


class Space(TypedDict):
    """The space that the library uses."""

    root: Path
    objects: int
    size_bytes: Size
    holders: Annotated[list[document_of(space.Held)], "what uses the objects"]
    unused_objects: Annotated[int, "objects that nothing uses"]
    unused_bytes: int
    other: Annotated[list[Other], "parts of the library outside the objects"]


VERBS: dict[str, Any] = {
    "identify": document_of(identify.Identity),
    "identify.files": document_of(identify.LoraFiles),
    "cache": Space,
}

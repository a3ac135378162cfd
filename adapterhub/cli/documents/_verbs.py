"""Documents of the commands that show how adapters relate, what they are and what they use."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.cli.documents._parts import Digest, Node, Path, Size, TypedDict, Use
from adapterhub.cli.documents._values import document_of
from adapterhub.library import identify
from adapterhub.library.upkeep import space


# ---------------------------------------------------------------- tree and why
class Tree(TypedDict):
    """Adapters and their parents."""

    project: Annotated[str | None, "the project's folder; null for the library"]
    adapters: list[Node]


class ProjectNode(TypedDict):
    """An adapter of the project and its parents."""

    key: Annotated[str, "its name in the project"]
    name: Annotated[str, "its own name, with its namespace"]
    version: str
    digest: Digest
    rank: int | None
    group: str | None
    wanted: Annotated[str | None, "the requirement that it meets; null for a merge"]
    state: Annotated[str, "`installed`, `stored` or `missing`"]
    method: Annotated[str | None, "merge method"]
    parents: Annotated[list[Any], "nodes of this kind or [Node](#node), each with its `weight`"]


class ProjectTree(TypedDict):
    """The locked adapters of a project."""

    project: Path
    adapters: list[ProjectNode]


class HeldAdapter(TypedDict):
    """An adapter in use."""

    key: Annotated[str, "its name in the project, else its own name"]
    version: str
    digest: Digest


class HoldingGroup(TypedDict):
    """A holder and the adapters it needs."""

    kind: Annotated[str, "`project`, `process` or `nobody`"]
    who: Annotated[str | None, "a folder or process"]
    adapters: list[HeldAdapter]


class Holders(TypedDict):
    """Holders and the adapters they need."""

    holders: list[HoldingGroup]


class Why(TypedDict):
    """What needs an adapter."""

    adapter: Annotated[str, "name and version"]
    digest: Digest
    uses: list[Use]


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
    "tree": Tree,
    "tree.project": ProjectTree,
    "tree.holders": Holders,
    "why": list[Why],
    "identify": document_of(identify.Identity),
    "identify.files": document_of(identify.LoraFiles),
    "cache": Space,
}

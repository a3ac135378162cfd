"""Documents of the commands that show how adapters relate, what they are and what they use."""

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.cli.documents._parts import Digest, Node, Path, Size, TypedDict, Use, Verdict


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


# ---------------------------------------------------------------- diff, identify, cache
class Side(TypedDict):
    """One of two adapters."""

    label: str
    digest: Digest | None
    path: Annotated[Path | None, "null for one on a server"]
    origin: Annotated[str | None, "the repository and commit on a server; null: it is here"]


class FileDifference(TypedDict):
    """A file that differs; null: absent on that side."""

    path: str
    first: Digest | None
    second: Digest | None


class FieldDifference(TypedDict):
    """A field that differs; null: absent on that side."""

    field: str
    first: Any
    second: Any


class ModuleDifference(TypedDict):
    """A module of two adapters; all norms are Frobenius norms of updates."""

    name: str
    first: Annotated[float | None, "norm of the first update; null: absent"]
    second: float | None
    apart: Annotated[float, "norm of the difference"]
    relative: Annotated[float | None, "`apart` divided by `first`; null if the first is zero"]


class WeightsDifference(TypedDict):
    """The exact difference of two updates."""

    relative: Annotated[float | None, "`norm_apart` divided by `norm_first`; null if that is zero"]
    norm_first: float | None
    norm_second: float | None
    norm_apart: Annotated[float, "norm of the difference of the updates"]
    modules: Annotated[list[ModuleDifference], "largest difference first"]
    others: Annotated[list[ModuleDifference], "differing tensors that are not factors"]
    unlike: Annotated[dict[str, str], "modules that cannot be compared, with the reason"]
    caveats: Annotated[list[str], "what the numbers leave out, such as magnitudes of DoRA"]


class Difference(TypedDict):
    """The differences between two adapters."""

    first: Side
    second: Side
    identical: Annotated[bool, "whether they are the same byte for byte"]
    same_update: Annotated[bool | None, "whether they change a model in the same way; null if unknown"]
    base_verdict: Verdict
    files: list[FileDifference]
    config: list[FieldDifference]
    manifest: Annotated[list[FieldDifference] | None, "null if one has no manifest"]
    weights: Annotated[WeightsDifference | None, "null if the weights are the same bytes or cannot be compared"]


class Match(TypedDict):
    """A possible identity of a file."""

    what: Annotated[str, "`adapter`, `base` or `family`"]
    name: str
    sure: Annotated[str, "`proven`, `likely` or `possible`"]
    how: Annotated[str, "the evidence"]
    digest: Digest | None
    path: Path | None


class Identified(TypedDict):
    """The possible identities of a file or folder."""

    path: Path
    files: Annotated[dict[str, str], "digest of each file"]
    matches: Annotated[list[Match], "most certain first"]
    notes: Annotated[list[str], "remarks, as text"]


class Held(TypedDict):
    """The space that one holder uses."""

    kind: Annotated[str, "`installed`, `project`, `process` …"]
    name: str
    objects: int
    size_bytes: Size
    alone_bytes: Annotated[int, "bytes that no other holder uses"]


class Other(TypedDict):
    """A part of the library outside the store's objects."""

    name: str
    size_bytes: Size


class Space(TypedDict):
    """The space that the library uses."""

    root: Path
    objects: int
    size_bytes: Size
    holders: Annotated[list[Held], "what uses the objects"]
    unused_objects: Annotated[int, "objects that nothing uses"]
    unused_bytes: int
    other: Annotated[list[Other], "parts of the library outside the objects"]


VERBS: dict[str, Any] = {
    "tree": Tree,
    "tree.project": ProjectTree,
    "tree.holders": Holders,
    "why": list[Why],
    "diff": Difference,
    "identify": Identified,
    "cache": Space,
}

"""What the weights of builds are like: one build, two beside each other, its relatives, and the adapters of a base."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.pages.values.adapters import AdapterLine
from adapterhub.pages.values.common import Badge, Link
from adapterhub.pages.values.files import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatCell:
    """One number; `shade` is its share of the largest magnitude in the map, from -1 to 1. None where there is none."""

    name: str
    value: float | None
    text: str
    shade: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """A number for each layer and kind of module; `largest` is the largest magnitude.

    A cell of several modules, such as experts, has their mean.
    """

    title: str
    largest: float
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]

    @property
    def has_less(self) -> bool:
        """Whether a number is below zero."""
        return any(cell.shade < 0 for _, cells in self.rows for cell in cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumLine:
    """The singular values of one kind of module, divided by the largest of each module; means over the layers."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleLine:
    """One module of an adapter; without figures, `reason` says why."""

    name: str
    shape: str
    rank: int
    scale: float
    norm: float | None
    effective_rank: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLine:
    """An engine, whether it reads the adapter as trained, and why not; `notes` are what its user should know."""

    name: str
    reads: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPage:
    """One build. `state` is `made`, `waiting` for its figures, or `none`, and then `reason` says why."""

    repo: str
    version: str
    url: str
    commit: str
    digest: str
    badges: tuple[Badge, ...]
    links: tuple[Link, ...]
    state: str
    reason: str = ""
    norm: float | None = None
    others: int = 0
    heats: tuple[HeatMap, ...] = ()
    spectra: tuple[SpectrumLine, ...] = ()
    modules: tuple[ModuleLine, ...] = ()
    engines: tuple[EngineLine, ...] = ()
    findings: tuple[tuple[str, str], ...] = ()
    looked_at: str = "its config and its numbers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One of two builds: its address, its weight in the merge, and what its contract records."""

    name: str
    url: str
    weight: float
    norm: float | None
    contract: tuple[str, ...]
    badges: tuple[Badge, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLine:
    """One way to store a merge, with the command that makes it. `error` is relative; `size` is in bytes."""

    options: str
    rank: str
    error: float
    size: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecasted:
    """The expected merge: its norm, the share of the magnitudes that cancels (with its error), and ways to store it."""

    norm: float
    cancelled: float
    cancelled_error: float
    choices: tuple[StorageLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePage:
    """Two builds beside each other; an empty page has only the form. `obstacles` say why there is no forecast."""

    a: str
    b: str
    sides: tuple[Compared, ...] = ()
    config: tuple[Change, ...] = ()
    cosine: float | None = None
    opposite: float | None = None
    opposite_error: float = 0.0
    heats: tuple[HeatMap, ...] = ()
    alone: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()
    forecast: Forecasted | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relative:
    """A build beside another: how they are related, and its address where the reader may see it."""

    relation: str
    name: str
    url: str | None
    weight: float | None = None
    digest: str | None = None
    license: str | None = None
    yanked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineagePage:
    """The relatives of one build. `inherited` are licences and yanks of what it was made from, however far up."""

    repo: str
    version: str
    url: str
    parents: tuple[Relative, ...]
    children: tuple[Relative, ...]
    others: tuple[Relative, ...]
    inherited: tuple[Relative, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPoint:
    """An adapter on the map of its base, at `x` and `y` from -1 to 1, and the one whose update is most alike."""

    name: str
    url: str
    x: float
    y: float
    nearest: str
    cosine: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelatedBase:
    """Another base, and what it shares with this one."""

    label: str
    url: str
    relation: str
    adapters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePage:
    """One base by content: its names, related bases, and its newest adapters on a map of their updates."""

    sha256: str
    names: tuple[str, ...]
    count: int
    related: tuple[RelatedBase, ...]
    points: tuple[MapPoint, ...]
    adapters: tuple[AdapterLine, ...]
    search_url: str
    feed_url: str | None

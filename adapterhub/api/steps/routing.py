"""Routing: a file over an operator's list of adapters, how well it separates them, and which one a text is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapterhub.api.searching import search_installed
from adapterhub.api.steps.contracts.testing import subject_of_build
from adapterhub.core.arguments import path_of
from adapterhub.core.disk.files import write_output
from adapterhub.core.errors import AdapterHubError, CouldNotTell, UsageProblem, problem_list, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.documented import Documented
from adapterhub.formats.route import (
    BASE,
    FEWEST_ADAPTERS,
    FEWEST_PROMPTS,
    LEAST_ACCURACY,
    MOST_ADAPTERS,
    MOST_PROMPTS,
    Route,
    RoutedAdapter,
)

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedAdapter(Documented):
    """One adapter of a routing file, and what becomes of its own prompts when they are left out."""

    name: str
    version: str
    digest: str
    prompts: Annotated[int, "number of example prompts"]
    right: Annotated[int, "of these, answered by this adapter"]
    to_base: Annotated[int, "of these, below the threshold: the base answers them"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confused(Documented):
    """Prompts of one adapter that another answers."""

    name: str
    taken_for: str
    prompts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRoute(Documented):
    """How well a routing file serves its adapters at its threshold, by prompts that are left out."""

    base: str
    method: Annotated[str, "`centroid` up to eight adapters, then `lda`"]
    threshold: Annotated[float, "least cosine with the mean of an adapter's prompts; below, the base answers"]
    accuracy: Annotated[float, "share of the prompts that their own adapter answers, at the threshold"]
    accepted: Annotated[bool, "the operator accepts an accuracy below 0.9"]
    adapters: tuple[CheckedAdapter, ...]
    confused: tuple[Confused, ...]
    path: Annotated[str | None, "the file that was written"] = None

    @property
    def is_good(self) -> bool:
        """Whether it may route requests."""
        return self.accepted or self.accuracy >= LEAST_ACCURACY

    def ensure_good(self, ending: str) -> None:
        """Refuse a file at whose threshold too few prompts reach their adapter, unless the operator accepts it.

        Raises:
            CouldNotTell: its accuracy is below 0.9.
        """
        if self.is_good:
            return
        lines = [f"{one.prompts} prompts of `{one.name}` look like `{one.taken_for}`" for one in self.confused]
        below = [f"{one.to_base} prompts of `{one.name}` go to the base" for one in self.adapters if one.to_base]
        title = (
            f"with the threshold {self.threshold:g}, {self.accuracy:.1%} of left-out prompts reach their own "
            f"adapter, at least {LEAST_ACCURACY:.0%} are needed. {ending}"
        )
        raise CouldNotTell(
            problem_list(title, [*lines, *below]),
            hint="leave one of each pair out, add prompts, lower `--threshold`, or accept it with `--accept-routing`",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Near(Documented):
    """An adapter and how near a text is to it."""

    name: str
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed(Documented):
    """The adapter that a text is for. `name`, `version` and `digest` are null for the base."""

    model: Annotated[str, "the model name for a server, or `base`"]
    name: str | None
    version: str | None
    digest: str | None
    cosine: Annotated[float, "of the text with the mean of the prompts of the nearest adapter"]
    threshold: float
    near: Annotated[tuple[Near, ...], "the three nearest"]


# ---------------------------------------------------------------- build
def prompts_of(build: Installed) -> tuple[str, ...]:
    """Return the example prompts of a build: those of its contract, or of its manifest, at most 64."""
    try:
        contract = subject_of_build(build).contract()
    except CouldNotTell:  # of a later version
        contract = None
    found: list[str] = []
    for golden in contract.goldens if contract is not None else ():
        asked: Any = golden.asked
        if asked is not None and not isinstance(asked, str):
            turns = [turn["content"] for turn in asked if isinstance(turn, dict) and turn.get("role") == "user"]
            asked = turns[-1] if turns else None
        if isinstance(asked, str):
            found.append(asked)
    found = found or list(build.manifest.examples)
    return tuple(dict.fromkeys(text for text in found if text.strip()))[:MOST_PROMPTS]


def make_route(
    session: Session,
    base: BaseSpec,
    over: Sequence[AdapterSpec] = (),
    *,
    threshold: float | None = None,
    accept: bool = False,
) -> Route:
    """Return a routing file over installed builds for a base.

    Without `over`, over the newest of each that has enough prompts.

    Raises:
        AdapterNotFound, NoCompatibleRelease: a spec means no installed build for the base.
        UsageProblem: an adapter of the list has fewer than 8 example prompts, or there are fewer than two adapters.
        NotFound, MissingExtra: the model that compares texts is not set up.
    """
    library = session.library
    record = library.bases.find(base)
    builds = _chosen(library, over, record) if over else _newest(session, base)
    prompts = {build.full_name: prompts_of(build) for build in builds}
    few = [build for build in builds if len(prompts[build.full_name]) < FEWEST_PROMPTS]
    if over and few:
        lines = [f"`{one.full_name}` has {len(prompts[one.full_name])} example prompts" for one in few]
        raise UsageProblem(
            problem_list(f"routing needs at least {FEWEST_PROMPTS} example prompts of each adapter", lines),
            hint="`adapt contract record NAME --examples FILE` records a contract, whose prompts count",
        )
    builds = [build for build in builds if build not in few]
    if not FEWEST_ADAPTERS <= len(builds) <= MOST_ADAPTERS:
        raise UsageProblem(
            f"{len(builds)} adapters for `{record.label}` have at least {FEWEST_PROMPTS} example prompts;"
            f" routing takes {FEWEST_ADAPTERS} to {MOST_ADAPTERS}",
            hint="`adapt contract record NAME --examples FILE` records a contract, whose prompts count",
        )
    for build in few:
        session.out.note(f"left out: `{build.full_name}` has {len(prompts[build.full_name])} example prompts")
    from adapterhub.formats.meaning.ranking import packed
    from adapterhub.library.find.meaning import encoder_of

    encoder = encoder_of(library)
    adapters = []
    with session.out.steps("read prompts", unit="adapters") as progress:
        for done, build in enumerate(builds, 1):
            adapters.append(
                RoutedAdapter(
                    name=build.full_name,
                    version=build.manifest.version,
                    digest=build.manifest.digest,
                    vectors=packed(encoder.vectors(prompts[build.full_name])),
                )
            )
            progress(done, len(builds))
    route = Route(
        base=record.fingerprint.weights,
        base_name=record.label,
        threshold=threshold or 0.0,
        adapters=tuple(adapters),
        accepted=accept,
    )
    if threshold is not None:
        return route
    from adapterhub.formats.meaning.routing import checked

    return replace(route, threshold=checked(route).proposed(LEAST_ACCURACY))


def _chosen(library: Library, over: Sequence[AdapterSpec], record: Any) -> list[Installed]:
    from adapterhub.distribution.choosing import find_installed
    from adapterhub.library.bases.requested import RequestedBase

    wanted = RequestedBase(text=record.label, record=record, bases=library.bases)
    builds = [find_installed(library, spec, wanted=wanted)[0] for spec in dict.fromkeys(over)]
    names = [build.full_name for build in builds]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageProblem(
            f"`{twice}` is in the list twice; a text cannot tell two versions of it apart",
            hint="name one version of it",
        )
    return builds


def _newest(session: Session, base: BaseSpec) -> list[Installed]:
    """Return the build of each name that fits a base; a note lists each name for which none fits."""
    from adapterhub.distribution.choosing import find_installed
    from adapterhub.projects.session import wanted_from

    library = session.library
    found = []
    for name in sorted({row.full_name for row in search_installed(session, base)}):
        spec = AdapterSpec.parse(name)
        try:
            found.append(find_installed(library, spec, wanted=wanted_from(library, spec, base))[0])
        except AdapterHubError as error:
            session.out.note(f"left out: {error.message.splitlines()[0]}")
    return found


# ---------------------------------------------------------------- check
def check_route(route: Route) -> CheckedRoute:
    """Return the outcome per prompt of a routing file when it is left out, one of every adapter at a time.

    Raises:
        MissingExtra: numpy is not installed.
    """
    from adapterhub.core.extras import require

    require("find", "routing")
    from adapterhub.formats.meaning.routing import checked, method_of

    found = checked(route)
    served, names = found.served(route.threshold), [one.name for one in route.adapters]
    confused = [
        Confused(name=own, taken_for=other, prompts=int(served[at, to]))
        for at, own in enumerate(names)
        for to, other in enumerate(names)
        if at != to and served[at, to]
    ]
    return CheckedRoute(
        base=route.base_name,
        method=method_of(len(route.adapters)),
        threshold=route.threshold,
        accuracy=round(found.accuracy(route.threshold), 4),
        accepted=route.accepted,
        adapters=tuple(
            CheckedAdapter(
                name=one.name,
                version=one.version,
                digest=one.digest,
                prompts=one.prompts,
                right=int(served[at, at]),
                to_base=int(served[at, -1]),
            )
            for at, one in enumerate(route.adapters)
        ),
        confused=tuple(sorted(confused, key=lambda one: -one.prompts)),
    )


def write_route(route: Route, path: Path, result: CheckedRoute) -> CheckedRoute:
    """Write a routing file; returns its check with the path.

    Raises:
        NotAllowed: the place cannot be written.
    """
    return replace(result, path=str(write_output(path_of(path), route.to_bytes())))


# ---------------------------------------------------------------- route
def route_text(library: Library, route: Route, text: str) -> Routed:
    """Route a text by a routing file.

    Raises:
        UsageProblem: the text is empty.
        NotFound, MissingExtra: the model that compares texts is not set up.
    """
    if not text.strip():
        raise UsageProblem("there is no text to route", hint="put it in quotes")
    from adapterhub.formats.meaning.routing import Chooser
    from adapterhub.library.find.meaning import encoder_of

    choice = Chooser(route, encoder_of(library)).choose(text)
    one = choice.adapter
    return Routed(
        model=one.model if one else BASE,
        name=one.name if one else None,
        version=one.version if one else None,
        digest=one.digest if one else None,
        cosine=round(choice.cosine, 4),
        threshold=route.threshold,
        near=tuple(Near(name=name, cosine=round(cosine, 4)) for name, cosine in choice.near),
    )


def unrouted(text: str) -> str:
    """Return the words for a text that is for none of the adapters."""
    return f"`{shown(text, 60)}` is for none of the adapters"

"""Search, then prove: try candidates on a base and order them by their measured loss.

One example first for all, then all examples for the best six; a candidate that the plain base beats on the first
example is dropped, unless it beats all of them. A candidate within 1 % of the gap between the plain base and the best
is as good as the best; among these a build that is not a merge comes first, then the order of the search.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.api.listed import NotTried, Trial, Tried, TriedBuild
from adapterhub.api.searching import ASK_ABOVE_BYTES, search_installed, search_server
from adapterhub.api.steps.contracts.testing import TestQuestion, subject_of_build, what_decides
from adapterhub.core.digests import canonical_json, digest_of
from adapterhub.core.display import size_text
from adapterhub.core.errors import (
    AdapterHubError,
    BaseNotFound,
    CouldNotTell,
    NotAllowed,
    UsageProblem,
    problem_list,
    shown,
)
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.prompts.form import RAW, PromptForm
from adapterhub.inference.trying import Bench, MeasuredTrial, Span, forms_of, mean_of
from adapterhub.inference.tuning import Example, read_examples
from adapterhub.library.find.tried import KeptTrials

if TYPE_CHECKING:
    from adapterhub.core.digests import Digest, Progress
    from adapterhub.distribution.hub import Search, SearchHit
    from adapterhub.formats.manifest import Manifest
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.store.catalog import AdapterLike, Installed
    from adapterhub.projects.places import SpecSources
    from adapterhub.projects.session import Session
    from adapterhub.trust.signing.policy import SignaturePolicy


DEFAULT_TOP: Final = 8
MOST_CANDIDATES: Final = 32
MOST_EXAMPLES: Final = 100
MAX_EXAMPLES_BYTES: Final = 1 << 20
FINALISTS: Final = 6
TIE: Final = 0.01
"""The share of the gap within which two candidates are equally good."""

Agree = Callable[[int, int], None]
"""Called with the number of builds to fetch and their bytes; raises where the user does not agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialCandidate:
    """A build to try. `lend` gives its files while a block runs; `fetch_bytes` of them are not on this machine.

    `ensure_undamaged` raises for files on this machine that are not those of the manifest.
    """

    name: str
    manifest: Manifest
    spec: str
    fetch_bytes: int
    lend: Callable[[Progress | None], AbstractContextManager[Installed | Path]]
    ensure_undamaged: Callable[[], None] = lambda: None


def search_and_try(
    session: Session,
    base: BaseSpec | None,
    examples: Path,
    top: int | None,
    query: Mapping[str, Any],
    *,
    agree: Agree | None,
) -> Tried:
    """Try the first builds of a search on a base; those that are yanked or that `install` would refuse are left out.

    `query` has the conditions of `find_installed` and of a server's `Search`, and `remote`, `token`, `signatures` and
    `far`, which is for the library.

    Raises:
        UsageProblem: there is no base.
        RemoteUnreachable, NotAllowed: the server does not answer, or not to you.
        AdapterHubError: as `try_candidates`.
    """
    if base is None:
        raise UsageProblem("`--try` needs a base to try on", hint="add `--base NAME`; `adapt base list` shows them")
    most, conditions = top or DEFAULT_TOP, dict(query)
    where = {name: conditions.pop(name) for name in ("remote", "token", "signatures")}
    if where["remote"] is None:
        found, left_out = _installed(session, base, most, conditions)
    else:
        from adapterhub.distribution.hub import Search

        del conditions["far"]
        found, left_out = _of_server(session, base, Search(**conditions, limit=most), **where)
    return try_candidates(session, query["text"], base, found, examples, left_out=left_out, agree=agree)


def _installed(
    session: Session, base: BaseSpec, most: int, query: Mapping[str, Any]
) -> tuple[list[TrialCandidate], list[NotTried]]:
    library = session.library
    rows = search_installed(session, base, limit=most, **query)
    builds = list(library.still_in(session.root / row.folder for row in rows))
    yanked = {build.spec: why for build in builds if (why := library.yanked(build)) is not None}
    found = [
        TrialCandidate(
            name=build.full_name,
            manifest=build.manifest,
            spec=build.spec,
            fetch_bytes=0,
            lend=lambda _progress, build=build: contextlib.nullcontext(build),  # type: ignore[misc]  # a bound default
            ensure_undamaged=subject_of_build(build).ensure_undamaged,
        )
        for build in builds
        if build.spec not in yanked
    ]
    left_out = [
        NotTried(name=spec, reason=f"yanked: {shown(why or 'no reason given', 200)}") for spec, why in yanked.items()
    ]
    return found, left_out


def _of_server(
    session: Session,
    base: BaseSpec,
    search: Search,
    *,
    remote: str,
    token: str | None,
    signatures: SignaturePolicy | None,
) -> tuple[list[TrialCandidate], list[NotTried]]:
    """Return the builds, each as `install` would choose it. Nothing is fetched but manifests and signatures."""
    from adapterhub.projects.places import SpecSources, Where

    hub = session.named_hub(remote, token=token, offline=False)
    where = SpecSources(session, Where(remote=remote, token=token))
    found: list[TrialCandidate] = []
    left_out: list[NotTried] = []
    for hit in (one.hit for one in search_server(session, hub, base, search)):
        try:
            found.append(_planned(session, hit, base, where, signatures))
        except AdapterHubError as error:
            left_out.append(NotTried(name=hit.repo, reason=error.message.splitlines()[0]))
    return found, left_out


def _planned(
    session: Session, hit: SearchHit, base: BaseSpec, where: SpecSources, signatures: SignaturePolicy | None
) -> TrialCandidate:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.install import admit, borrowed
    from adapterhub.projects.places import Asked, objection_from, plan_one

    spec = AdapterSpec.parse(hit.repo)
    if hit.digest is not None:
        spec = replace(spec, digest_prefix=hit.digest)
    objection = objection_from(session, None)
    plan = plan_one(session, spec, where(spec), Asked(base=base), objection=objection)
    for warning in plan.resolution.warnings:
        session.out.warn(warning)
    session.note_once(plan.resolution.note)
    policy = signatures or where.policy_of(plan.source)
    if plan.present is None:
        admit(session.library, plan.release, plan.source, plan.asked, policy)  # a kept loss needs no fetch
    manifest = plan.release.manifest
    return TrialCandidate(
        name=plan.release.full_name,
        manifest=manifest,
        spec=f"{plan.release.full_name}=={manifest.version}#{manifest.digest[:19]}",
        fetch_bytes=plan.copy_bytes,
        lend=lambda progress: borrowed(session.library, plan, progress, signatures=policy),
    )


def first(candidates: Sequence[TrialCandidate]) -> list[TrialCandidate]:
    """Return the candidates, each build once: one may be installed under two full names."""
    return list({one.manifest.digest: one for one in reversed(candidates)}.values())[::-1]


@dataclass(slots=True, eq=False)
class _Entrant:
    """A candidate in the trials: what was measured so far, in its better form."""

    candidate: TrialCandidate
    place: int
    forms: tuple[PromptForm, ...]
    form: PromptForm = RAW
    parts: tuple[MeasuredTrial, ...] = ()
    cpu_s: float = 0.0
    is_cached: bool = True
    adapter: AdapterLike | None = None

    @property
    def digest(self) -> Digest:
        return self.candidate.manifest.digest

    @property
    def is_merge(self) -> bool:
        return len(self.candidate.manifest.parents) > 1

    @property
    def loss(self) -> float:
        return mean_of(self.parts)


class Rounds:
    """Measures candidates on one base and examples. What it lends from servers ends with `loans`."""

    def __init__(
        self,
        session: Session,
        record: BaseRecord,
        folder: Path,
        examples: tuple[Example, ...],
        loans: ExitStack,
        *,
        agree: Agree,
    ) -> None:
        library = session.library
        self._record, self._examples, self._loans = record, examples, loans
        self._session, self._agree = session, agree
        self._kept = KeptTrials(library.store)
        self._bench = Bench(library, folder, BaseSpec.parse(record.alias or str(folder)), examples)
        loans.callback(self._bench.close)
        self._is_loaded = False
        self._decides = what_decides(library, TestQuestion(), record)
        self._first: Span = (0, 1)
        self._rest: Span = (1, len(examples))

    def run(self, query: str, candidates: Sequence[TrialCandidate], left_out: Sequence[NotTried]) -> Tried:
        """Return the trial of all candidates.

        Raises:
            CouldNotTell: there are candidates, and not one can be tried.
        """
        lost = list(left_out)
        entrants = [
            _Entrant(candidate=one, place=at, forms=forms_of(one.manifest.prompt, self._examples))
            for at, one in enumerate(candidates)
        ]
        entrants = self._fetched(entrants, lost)
        with self._session.out.steps("try", unit="trials") as progress:
            total = len(entrants) + (min(len(entrants), FINALISTS) if len(self._examples) > 1 else 0)
            finalists = alive = self._round(entrants, self._first, lost, lambda done: progress(done, total))
            if alive and len(self._examples) > 1:
                best = _best([(one.loss, one) for one in alive], self._base_part(RAW, self._first).loss)
                before = total - len(best)
                finalists = self._round(best, self._rest, lost, lambda done: progress(before + done, total))
        if lost and not finalists:
            lines = [f"`{one.name}`: {one.reason}" for one in lost]
            raise CouldNotTell(
                problem_list("not one candidate can be tried on this base", lines),
                hint="`adapt search --base BASE` without `--try` lists them",
            )
        return self._tried(query, finalists, [one for one in alive if len(one.parts) < len(finalists[0].parts)], lost)

    # ------------------------------------------------------------ measure
    def _round(
        self, entrants: Sequence[_Entrant], span: Span, lost: list[NotTried], progress: Callable[[int], None]
    ) -> list[_Entrant]:
        """Those of the entrants that could be measured."""
        if entrants:
            self._base_part(RAW, span)  # what is wrong with the base or the examples is wrong for all
        alive = []
        for done, one in enumerate(entrants, 1):
            try:
                self._measure(one, span)
            except AdapterHubError as error:
                lost.append(NotTried(name=one.candidate.name, reason=error.message.splitlines()[0]))
            else:
                alive.append(one)
            progress(done)
        return alive

    def _measure(self, one: _Entrant, span: Span) -> None:
        """Measure an entrant: first in all its forms, then in the better one."""
        found: dict[PromptForm, MeasuredTrial] = {}
        for form in (one.form,) if one.parts else one.forms:
            try:
                found[form] = self._part(one, form, span)
            except AdapterHubError:  # the base has no chat template, for example
                if not found:
                    raise
        one.form = min(found, key=lambda form: found[form].loss)
        one.parts += (found[one.form],)

    def _part(self, one: _Entrant, form: PromptForm, span: Span) -> MeasuredTrial:
        question = self._question(form, span)
        if (kept := self._kept.find(one.digest, question)) is not None:
            one.candidate.ensure_undamaged()
            return MeasuredTrial(*kept)
        self._load()
        if one.adapter is None:
            one.adapter = self._loans.enter_context(one.candidate.lend(None))
        began = time.process_time()
        part = self._bench.measure(one.adapter, one.digest, form, span)
        one.cpu_s += time.process_time() - began
        one.is_cached = False
        self._keep(one.digest, question, part)
        return part

    def _base_part(self, form: PromptForm, span: Span) -> MeasuredTrial:
        question, weights = self._question(form, span), self._record.fingerprint.weights
        if (kept := self._kept.find(weights, question)) is not None:
            return MeasuredTrial(*kept)
        self._load()
        part = self._bench.measure(None, "", form, span)
        self._keep(weights, question, part)
        return part

    def _keep(self, what: Digest, question: Mapping[str, object], part: MeasuredTrial) -> None:
        """Keep what was measured, if the base is still the one that the question is about.

        Raises:
            CouldNotTell: its files have changed.
        """
        if what_decides(self._session.library, TestQuestion(), self._record) != self._decides:
            raise CouldNotTell(
                f"the files of base `{self._record.label}` changed during the trial",
                hint="try again",
            )
        self._kept.keep(what, question, *part)

    def _load(self) -> None:
        if not self._is_loaded:
            self._session.out.note(f"loading base {self._record.label}")
            self._bench.load()
            self._is_loaded = True

    def _question(self, form: PromptForm, span: Span) -> dict[str, object]:
        asked = digest_of(canonical_json([asdict(one) | {"line": 0} for one in self._examples[slice(*span)]]))
        return {**self._decides, "examples": asked, "form": form.to_json()}

    # ------------------------------------------------------------ fetch
    def _fetched(self, entrants: Sequence[_Entrant], lost: list[NotTried]) -> list[_Entrant]:
        """Return the entrants without those that cannot be fetched; what is fetched is announced, and agreed to."""
        fetch = [one for one in self._not_kept(entrants) if one.candidate.fetch_bytes]
        size_bytes = sum(one.candidate.fetch_bytes for one in fetch)
        if not fetch:
            return list(entrants)
        what = f"{len(fetch)} build{'s' * (len(fetch) != 1)}"
        self._session.out.note(f"the trial fetches {what}, {size_text(size_bytes)}, and installs none")
        self._agree(len(fetch), size_bytes)
        failed = []
        with self._session.out.progress("fetch", size_bytes) as fetched:
            for one in fetch:
                try:
                    one.adapter = self._loans.enter_context(one.candidate.lend(fetched))
                except AdapterHubError as error:
                    failed.append(one)
                    lost.append(NotTried(name=one.candidate.name, reason=error.message.splitlines()[0]))
        return [one for one in entrants if one not in failed]

    def _not_kept(self, entrants: Sequence[_Entrant]) -> list[_Entrant]:
        """Those with a loss that is not kept; where the first round is known, the finalists among them."""

        def kept(one: _Entrant, span: Span) -> list[float]:
            found = [self._kept.find(one.digest, self._question(form, span)) for form in one.forms]
            return [loss for loss, _ in (part for part in found if part is not None)]

        early = [(kept(one, self._first), one) for one in entrants]
        if any(len(losses) < len(one.forms) for losses, one in early):
            return [one for losses, one in early if len(losses) < len(one.forms) or not kept(one, self._rest)]
        if len(self._examples) == 1:
            return []
        base = self._kept.find(self._record.fingerprint.weights, self._question(RAW, self._first))
        best = _best([(min(losses), one) for losses, one in early], base[0] if base else math.inf)
        return [one for one in best if not kept(one, self._rest)]

    # ------------------------------------------------------------ tell
    def _tried(
        self, query: str, finalists: Sequence[_Entrant], others: Sequence[_Entrant], lost: Sequence[NotTried]
    ) -> Tried:
        base_loss = self._base_loss(finalists) if finalists else None
        least = min((one.loss for one in finalists), default=0.0)
        gap = (base_loss or 0.0) - least
        leaders = [one for one in finalists if gap > 0 and one.loss - least <= TIE * gap]
        leaders.sort(key=lambda one: (one.is_merge, one.place))
        rest = sorted((one for one in finalists if one not in leaders), key=lambda one: one.loss)
        behind = sorted(others, key=lambda one: one.loss)
        built = [self._build(one, finalists, leads=one in leaders) for one in (*leaders, *rest)]
        built += [self._build(one, [*finalists, *others], leads=False) for one in behind]
        return Tried(
            query=query,
            base=self._record.label,
            base_loss=base_loss,
            examples=len(self._examples),
            best=leaders[0].candidate.name if leaders else None,
            results=tuple(built),
            left_out=tuple(lost),
        )

    def _base_loss(self, entrants: Iterable[_Entrant], parts: int | None = None) -> float:
        """Return the loss of the base in the best of the entrants' forms, on as many parts as they answered."""
        entrants = list(entrants)
        spans = [self._first, self._rest][: parts or len(entrants[0].parts)]
        forms = {RAW, *(one.form for one in entrants)}
        return min(mean_of([self._base_part(form, span) for span in spans]) for form in forms)

    def _build(self, one: _Entrant, among: Sequence[_Entrant], *, leads: bool) -> TriedBuild:
        """Return the result of an entrant, with its share of the gap on the examples that it was asked."""
        parts = len(one.parts)
        base_loss = self._base_loss(among, parts)
        gap = base_loss - min(mean_of(other.parts[:parts]) for other in among)
        trial = Trial(
            loss=one.loss,
            base_loss=base_loss,
            share=(base_loss - one.loss) / gap if gap > 0 else None,
            examples=len(self._examples) if parts > 1 else 1,
            form=one.form.form,
            leads=leads,
            cpu_s=round(one.cpu_s, 3),
            is_cached=one.is_cached,
        )
        return TriedBuild(
            name=one.candidate.name,
            version=one.candidate.manifest.version,
            digest=one.digest,
            spec=one.candidate.spec,
            tried=trial,
        )


def _best(pairs: Sequence[tuple[float, _Entrant]], base_loss: float) -> list[_Entrant]:
    """Return the finalists by their loss on the first example: the best six that beat the base, if any does."""
    ahead = [pair for pair in pairs if pair[0] < base_loss] or list(pairs)
    return [one for _, one in sorted(ahead, key=lambda pair: pair[0])[:FINALISTS]]


def try_candidates(
    session: Session,
    query: str,
    base: BaseSpec,
    candidates: Sequence[TrialCandidate],
    examples: Path | Sequence[Example],
    *,
    left_out: Sequence[NotTried] = (),
    agree: Agree | None = None,
) -> Tried:
    """Try candidates, in the order of the search, on a base; `examples` is a file of JSON Lines or the examples.

    `agree` is called before anything is fetched; by default it refuses more than 200 MB. Losses that were measured
    earlier are not measured again, and their builds not fetched.

    Raises:
        NotFound, Malformed: the examples cannot be read.
        BaseNotFound: the weights of the base are not on this machine.
        BaseMismatch: they are not the registered ones.
        Incompatible, UsageProblem: the base continues no text.
        CouldNotTell: there are candidates, and not one can be tried.
    """
    if isinstance(examples, Path):
        examples = read_examples(examples, limit_bytes=MAX_EXAMPLES_BYTES, most=MOST_EXAMPLES)
    library = session.library
    record = library.bases.find(base)
    if record.path is None or not record.path.is_dir():
        raise BaseNotFound(
            f"the weights of base `{record.label}` are not on this machine",
            hint="register a local copy with `adapt base add PATH --as NAME`",
        )
    record = library.bases.current(record)
    assert record.path is not None  # as above
    with ExitStack() as loans:
        rounds = Rounds(session, record, record.path, tuple(examples), loans, agree=agree or refuse_much)
        return rounds.run(query, first(candidates), left_out)


def refuse_much(builds: int, size_bytes: int) -> None:
    """Refuse to fetch more than 200 MB.

    Raises:
        NotAllowed: it is more.
    """
    if size_bytes > ASK_ABOVE_BYTES:
        raise NotAllowed(
            f"trying {builds} builds would fetch {size_text(size_bytes)}, more than {size_text(ASK_ABOVE_BYTES)}."
            " Nothing was fetched",
            hint="try fewer with `--top`, or pass `--yes`",
        )

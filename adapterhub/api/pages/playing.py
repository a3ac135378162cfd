"""The playground's page: a form becomes choices of adapters, and the events of their answers become a page or a stream.

One base is in memory at a time; another one takes its place. A form names installed builds alone, never a folder.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from starlette.exceptions import HTTPException

from adapterhub.api.pages.addresses import address_of, number_in
from adapterhub.api.searching import search_installed
from adapterhub.core.errors import AdapterHubError, Conflict, UsageProblem, shown
from adapterhub.core.specs import AdapterSpec, BaseSpec
from adapterhub.inference.answering import Choice, Typed
from adapterhub.inference.generation import NEW_TOKENS, Writing
from adapterhub.inference.playground import Answering, Begun, Ended, Event, Piece, Playground, PlaygroundBounds
from adapterhub.pages.values import Answered, Column, FormChoice, Link, PlaygroundPage, Stream, TermView

if TYPE_CHECKING:
    from adapterhub.api.library import Library
    from adapterhub.pages.page import PageQuery

COLUMNS: Final = 4
TERMS: Final = 3
UNUSED: Final = ""
BASE_ALONE: Final = "none"
_RETRY_S: Final = 5
_DIGEST: Final = re.compile(r"#sha256:[0-9a-f]+")
_FORMS: Final[Mapping[str, str]] = {
    "own": "as each build states",
    "chat": "the base's chat template",
    "raw": "unchanged",
}
_ENDS: Final[Mapping[str, str]] = {
    "end": "",
    "length": ", cut at the limit",
    "time": ", cut as it took too long",
    "cancelled": ", stopped",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What a form asks for; `choices` by the number of their column."""

    base: str
    prompt: str
    choices: Mapping[int, Choice]
    form: str
    tokens: int
    temperature: float


class Playing:
    """The playground of one library, for the pages; `close` lets go of the base."""

    def __init__(self, library: Library, bounds: PlaygroundBounds | None = None) -> None:
        self._library = library
        self._bounds = bounds or PlaygroundBounds()
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._playground: Playground | None = None

    def close(self) -> None:
        """Let go of the base."""
        with self._lock:
            if self._playground is not None:
                self._playground.close()
            self._playground = None

    # ------------------------------------------------------------ what the pages show
    def page(self, asked: PageQuery) -> PlaygroundPage:
        """The form; `?base=` chooses the base and `?pick=` the first adapter."""
        query = dict(asked.query)
        return self._page({"base": query.get("base", ""), "pick-1-1": query.get("pick", BASE_ALONE)})

    def play(self, asked: PageQuery) -> PlaygroundPage:
        """The form with the answers, which it waits for, or with the merge that was saved."""
        page = self._page(asked.form)
        try:
            what, _, number = asked.form.get("do", "answer").partition("-")
            return self._saved(page, asked.form, number) if what == "save" else self._answered(page, asked.form)
        except AdapterHubError as error:
            return replace(page, problem=f"{error.message}. {error.hint}".removesuffix(". "))

    def stream(self, asked: PageQuery) -> Stream:
        """Server-sent events, one JSON object each: `begun`, `piece`, `ended`, `failed`."""
        wish = self._wish(asked.form)
        answering = self._ask(wish)
        return Stream(content=_events(answering, list(wish.choices)), on_end=answering.cancel)

    # ------------------------------------------------------------ answer and save
    def _answered(self, page: PlaygroundPage, form: Mapping[str, str]) -> PlaygroundPage:
        wish = self._wish(form)
        begun: Begun | None = None
        answers: dict[int, Answered] = {}
        numbers = list(wish.choices)
        for event in self._ask(wish):
            if isinstance(event, Begun):
                begun = event
            elif isinstance(event, Ended):
                assert begun is not None  # the first event
                answers[numbers[event.at]] = _answer(begun, event)
        columns = tuple(replace(column, answer=answers.get(column.number)) for column in page.columns)
        return replace(page, columns=columns, warnings=begun.warnings if begun else ())

    def _saved(self, page: PlaygroundPage, form: Mapping[str, str], number: str) -> PlaygroundPage:
        """Merge the adapters of a column with its weights, under the name of its field."""
        choice = self._wish({**form, "prompt": "-"}).choices.get(number_in(number) or 0, {})
        name = form.get(f"name-{number}", "").strip()
        if not choice or not name:
            raise UsageProblem("a merge needs adapters and a name", hint="choose adapters, and fill in the name")
        AdapterSpec.parse(name)  # a name, never a folder
        if not self._saving.acquire(blocking=False):
            raise HTTPException(503, "another merge is running", headers={"Retry-After": str(_RETRY_S)})
        try:
            merged = self._library.merge(list(choice), weights=list(choice.values()), output=name, base=page.base)
        finally:
            self._saving.release()
        build = merged.adapter
        assert build is not None  # it has a name, so it went into the library
        weights = ",".join(f"{weight:g}" for weight in choice.values())
        return replace(
            self._page(form),
            saved=Link(text=build.spec, url=address_of(build.namespace, build.manifest.name, build.manifest.digest)),
            command=f"adapt merge {' '.join(choice)} --weights {weights} -o {name}",
        )

    def _ask(self, wish: _Wish) -> Answering:
        typed = Typed() if wish.form == "own" else Typed(chat=wish.form == "chat")
        try:
            return self._opened(wish.base).ask(
                list(wish.choices.values()),
                wish.prompt,
                typed=typed,
                writing=Writing(temperature=wish.temperature),
                max_new_tokens=wish.tokens,
            )
        except Conflict as error:
            raise HTTPException(503, error.message, headers={"Retry-After": str(_RETRY_S)}) from None

    def _opened(self, base: str) -> Playground:
        """The playground on a base; another base is let go first."""
        with self._lock:
            if self._playground is None or self._playground.record.alias != base:
                if self._playground is not None:
                    self._playground.close()
                self._playground = self._library.playground(base, bounds=self._bounds)
            return self._playground

    # ------------------------------------------------------------ the form
    def _page(self, form: Mapping[str, str]) -> PlaygroundPage:
        bases = [row.alias for row in self._library.catalog.read(lambda index: index.bases()) if row.path]
        base = form.get("base", "") if form.get("base", "") in bases else next(iter(bases), "")
        picks = self._picks(base)
        return PlaygroundPage(
            bases=tuple(FormChoice(value=one, text=one, chosen=one == base) for one in bases),
            base=base,
            prompt=form.get("prompt", "")[: self._bounds.prompt_characters],
            most_characters=self._bounds.prompt_characters,
            forms=tuple(FormChoice(value=v, text=text, chosen=v == form.get("form")) for v, text in _FORMS.items()),
            tokens=NEW_TOKENS if (number := number_in(form.get("tokens", ""))) is None else number,
            most_tokens=self._bounds.new_tokens,
            temperature=form.get("temperature", "0")[:8],
            columns=tuple(_column(form, at, picks) for at in range(1, COLUMNS + 1)),
        )

    def _picks(self, base: str) -> Mapping[str, str]:
        """What a column may choose: specs of the builds for the base, each with its text."""
        if not base:
            return {}
        rows = search_installed(self._library.session, BaseSpec.parse(base))
        specs = {f"{row.full_name}=={row.version}#{row.digest[:19]}": row for row in rows}
        return {
            spec: f"{row.full_name} {row.version}" + (f" (rank {row.rank})" if row.rank else "")
            for spec, row in specs.items()
        }

    def _wish(self, form: Mapping[str, str]) -> _Wish:
        """What the form asks for.

        Raises:
            UsageProblem: a field has another form, or names no build for the base.
        """
        base = form.get("base", "")
        picks = self._picks(base if any(base == row.value for row in self._page(form).bases) else "")
        choices: dict[int, Choice] = {}
        for column in range(1, COLUMNS + 1):
            terms = {
                pick: _float(form.get(f"weight-{column}-{term}", "1"), "weight")
                for term in range(1, TERMS + 1)
                if (pick := form.get(f"pick-{column}-{term}", UNUSED)) != UNUSED
            }
            others = [pick for pick in terms if pick != BASE_ALONE and pick not in picks]
            if others:
                raise UsageProblem(f"`{shown(others[0], 200)}` is no build for the base `{shown(base, 200)}`")
            if terms:
                choices[column] = {pick: weight for pick, weight in terms.items() if pick != BASE_ALONE}
        asked = form.get("tokens", str(NEW_TOKENS))
        if (tokens := number_in(asked)) is None:
            raise UsageProblem(f"`{shown(asked, 40)}` new tokens, expected a whole number")
        temperature = _float(form.get("temperature", "0"), "temperature")
        if not 0 <= temperature <= 2:
            raise UsageProblem(f"temperature {temperature:g}, expected 0 to 2")
        return _Wish(
            base=base,
            prompt=form.get("prompt", ""),
            choices=choices,
            form=form.get("form", "own"),
            tokens=tokens,
            temperature=temperature,
        )


def _column(form: Mapping[str, str], column: int, picks: Mapping[str, str]) -> Column:
    numbers = range(1, TERMS + 1)
    is_sum = form.get(f"weight-{column}-1", "1") != "1" or any(form.get(f"pick-{column}-{n}") for n in numbers[1:])
    terms = tuple(_term(form, column, term, picks) for term in numbers)
    return Column(number=column, terms=terms, is_sum=is_sum)


def _term(form: Mapping[str, str], column: int, term: int, picks: Mapping[str, str]) -> TermView:
    value = form.get(f"pick-{column}-{term}", UNUSED)
    alone = {BASE_ALONE: "the base alone"} if term == 1 else {}
    options = {UNUSED: "no answer" if term == 1 else "nothing", **alone, **picks}
    return TermView(
        number=term,
        picks=tuple(FormChoice(value=one, text=text, chosen=one == value) for one, text in options.items()),
        weight=form.get(f"weight-{column}-{term}", "1")[:8],
    )


def _float(text: str, what: str) -> float:
    with suppress(ValueError):
        if math.isfinite(found := float(text)):
            return found
    raise UsageProblem(f"{what} `{shown(text, 40)}`, expected a number such as 0.7")


def _answer(begun: Begun, ended: Ended) -> Answered:
    answer = ended.answer
    return Answered(
        label=_DIGEST.sub("", begun.labels[ended.at]),
        text=answer.text if answer else "",
        tokens=answer.tokens if answer else 0,
        seconds=answer.seconds if answer else 0.0,
        ended=_ENDS[ended.why],
        form=begun.forms[ended.at].label,
        problem=ended.problem,
    )


def _events(answering: Answering, numbers: list[int]) -> Iterator[bytes]:
    """The events as the script of the page reads them; `numbers` are the columns of the choices."""
    begun: Begun | None = None
    try:
        for event in answering:
            begun = event if isinstance(event, Begun) else begun
            yield _event(_said(event, begun, numbers))
    except AdapterHubError as error:
        yield _event({"kind": "failed", "message": f"{error.message}. {error.hint}".removesuffix(". ")})


def _said(event: Event, begun: Begun | None, numbers: list[int]) -> dict[str, Any]:
    if isinstance(event, Begun):
        return {"kind": "begun", "warnings": event.warnings}
    if isinstance(event, Piece):
        return {"kind": "piece", "column": numbers[event.at], "text": event.text}
    assert begun is not None  # the first event
    said = _answer(begun, event)
    about = f"{said.label}: {said.tokens} tokens in {said.seconds:.1f} s{said.ended}; {said.form}"
    failed = bool(said.problem)
    return {"kind": "ended", "column": numbers[event.at], "about": said.problem or about, "failed": failed}


def _event(value: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()

"""The playground's page: a form becomes choices of adapters, and the events of their answers become a page or a stream.

One base is in memory at a time; another one takes its place. A form can name only installed builds, never a folder. It
also holds the answers, so that the next page still shows them.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.exceptions import HTTPException

from adapterhub.api.pages.source import address_of, has_folder, number_in, problem_text
from adapterhub.api.searching import search_installed
from adapterhub.core.choices import Choice
from adapterhub.core.errors import AdapterHubError, Conflict, UsageProblem, shown
from adapterhub.core.specs import AdapterSpec, BaseSpec
from adapterhub.formats.peft.methods import attaches
from adapterhub.inference.answering import Typed
from adapterhub.inference.generation import NEW_TOKENS, Writing
from adapterhub.inference.playground import Answering, Begun, Ended, Event, Piece, Playground, PlaygroundBounds
from adapterhub.pages.local_values import Answered, Column, PlaygroundPage, TermView
from adapterhub.pages.values import FormChoice, Link, Stream

if TYPE_CHECKING:
    from adapterhub import Library
    from adapterhub.pages.page import PageQuery

COLUMNS: Final = 4
TERMS: Final = 3
UNUSED: Final = ""
BASE_ALONE: Final = "none"
SUM: Final = "sum"
_OTHERS: Final = {BASE_ALONE: "Only the base", SUM: "A sum of adapters…"}
_MOST_PICKS: Final = 200
_RETRY_S: Final = 5
_DIGEST: Final = re.compile(r"#sha256:[0-9a-f]+")
_FORMS: Final[Mapping[str, str]] = {
    "own": "Each adapter's own",
    "chat": "Chat template",
    "raw": "Raw text",
}
_ENDS: Final[Mapping[str, str]] = {
    "end": "",
    "length": " · cut at the limit",
    "time": " · cut as it took too long",
    "cancelled": " · stopped",
}


class _Pick(NamedTuple):
    """A build that a column may choose: `name` as lists show it, and what stands below the list."""

    name: str
    about: str


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
        """Return the form; `?base=` chooses the base and `?pick=` the first adapter, beside which the base answers."""
        base = self._base_of(asked.query)
        first = asked.query.get("pick") or next(iter(self._picks(base, {})), BASE_ALONE)
        picks = dict.fromkeys((first, BASE_ALONE))
        return self._page({"base": base, "marks": "on", **{f"pick-{at}": pick for at, pick in enumerate(picks, 1)}})

    def play(self, asked: PageQuery) -> PlaygroundPage:
        """Return the form after what its button does: answers, which it waits for, other columns, or a saved merge."""
        what, _, number = asked.form.get("do", "answer").rpartition("-")
        form = _changed(asked.form, what, number)
        page = self._page(form)
        try:
            if asked.form.get("do", "answer") == "answer":
                return self._answered(page, form)
            return self._saved(page, form, number) if what == "save" else page
        except AdapterHubError as error:
            return replace(page, problem=problem_text(error))

    def stream(self, asked: PageQuery) -> Stream:
        """Server-sent events, one JSON object each: `begun`, `piece`, `ended`, `failed`."""
        wish = self._wish(asked.form)
        answering = self._ask(wish)
        return Stream(content=_events(answering, wish), on_end=answering.cancel)

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
                number = numbers[event.at]
                answers[number] = _answer(wish.choices[number], begun, event)
        columns = tuple(replace(column, answer=answers.get(column.number)) for column in page.columns)
        return replace(page, columns=columns, asked=wish.prompt, warnings=begun.warnings if begun else ())

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
            command=f"adapt merge {' '.join(map(shlex.quote, choice))} --weights={weights} -o {shlex.quote(name)}",
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
        """Return the playground on a base; another base is let go first."""
        with self._lock:
            if self._playground is None or self._playground.record.alias != base:
                if self._playground is not None:
                    self._playground.close()
                self._playground = self._library.playground(base, bounds=self._bounds)
            return self._playground

    # ------------------------------------------------------------ the form
    def _bases(self) -> list[str]:
        """Return the bases whose weights are a folder of this machine."""
        rows = self._library.catalog.read(lambda index: index.bases())
        return [row.alias for row in rows if has_folder(row)]

    def _base_of(self, form: Mapping[str, str]) -> str:
        """Return the base that a form chooses, otherwise the first."""
        bases, base = self._bases(), form.get("base", "")
        return base if base in bases else next(iter(bases), "")

    def _page(self, form: Mapping[str, str]) -> PlaygroundPage:
        base = self._base_of(form)
        picks = self._picks(base, form)
        columns = tuple(_column(_with_terms(form, at, picks), at, picks) for at in range(1, _count(form) + 1))
        return PlaygroundPage(
            bases=tuple(FormChoice(value=one, text=one, chosen=one == base) for one in self._bases()),
            base=base,
            prompt=form.get("prompt", "")[: self._bounds.prompt_characters],
            asked=form.get("asked", "") if any(column.answer for column in columns) else "",
            most_characters=self._bounds.prompt_characters,
            forms=tuple(FormChoice(value=v, text=text, chosen=v == form.get("form")) for v, text in _FORMS.items()),
            tokens=NEW_TOKENS if (number := number_in(form.get("tokens", ""))) is None else number,
            most_tokens=self._bounds.new_tokens,
            temperature=form.get("temperature", "0")[:8],
            columns=columns,
            can_grow=len(columns) < COLUMNS,
            marks="marks" in form,
        )

    def _picks(self, base: str, form: Mapping[str, str]) -> Mapping[str, _Pick]:
        """Return a column's choices: the specs of builds that fit the base and that a model takes.

        These are the first by name, and those that the form names.
        """
        if not base:
            return {}
        search = partial(search_installed, self._library.session, BaseSpec.parse(base))
        found = {row.digest + row.full_name: row for row in search(limit=2 * _MOST_PICKS)}
        for name, namespace in _names_in(form):
            found |= {row.digest + row.full_name: row for row in search(name=name, namespace=namespace)}
        rows = [row for row in found.values() if attaches(row.method.split(","))]
        count = Counter((row.full_name, row.version) for row in rows)
        return {
            f"{row.full_name}=={row.version}#{row.digest[:19]}": _Pick(
                f"{row.name} {row.version}"
                + (f" (rank {row.rank}, {row.digest[7:13]})" if count[row.full_name, row.version] > 1 else ""),
                f"{row.full_name}=={row.version}" + (f" · rank {row.rank}" if row.rank else ""),
            )
            for row in rows
        }

    def _wish(self, form: Mapping[str, str]) -> _Wish:
        """Return the form's request.

        Raises:
            UsageProblem: a field has another form, or names no build for the base.
        """
        base = form.get("base", "")
        picks = self._picks(base if base in self._bases() else "", form)
        choices: dict[int, Choice] = {}
        for column in range(1, _count(form) + 1):
            choice = _choice_of(form, column)
            others = [pick for pick in choice if pick not in picks]
            if others:
                raise UsageProblem(
                    f"`{shown(others[0], 200)}` is not a build for the base `{shown(base, 200)}`",
                    hint="choose one of the list",
                )
            if not choice and form.get(f"pick-{column}") == SUM:
                raise UsageProblem(f"column {column} is a sum of no adapter", hint="choose its adapters")
            choices[column] = choice
        if base not in self._bases():
            raise UsageProblem(
                f"`{shown(base, 200)}` is not a base with weights on this machine",
                hint="choose one of the list; `adapt base add PATH` registers another",
            )
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


# ---------------------------------------------------------------- columns and sums
def _count(form: Mapping[str, str]) -> int:
    """Return how many columns the form has: those without a gap, at least one."""
    numbers = range(1, COLUMNS + 1)
    return next((at - 1 for at in numbers if f"pick-{at}" not in form), COLUMNS) or 1


def _changed(form: Mapping[str, str], what: str, number: str) -> Mapping[str, str]:
    """Return the form with one more column, one less, or one more adapter in the sum of a column."""
    count, at = _count(form), number_in(number) or 0
    if what == "add" and count < COLUMNS:  # the button `add-column`
        return {**form, f"pick-{count + 1}": BASE_ALONE}
    if what == "remove" and 1 <= at <= count and count > 1:
        fields = ((*name.split("-"), "", "")[:3] for name in form)
        moved = {}
        for (kind, column, rest), text in zip(fields, form.values(), strict=True):
            own = number_in(column)
            if own is None or own < at:
                moved["-".join(filter(None, (kind, column, rest)))] = text
            elif own > at:
                moved["-".join(filter(None, (kind, str(own - 1), rest)))] = text
        return moved
    if what == "add-term" and 1 <= at <= count:
        terms = [term for term in range(1, TERMS + 1) if f"term-{at}-{term}" in form]
        return {**form, f"term-{at}-{min(len(terms) + 1, TERMS)}": UNUSED, f"weight-{at}-{len(terms) + 1}": "0.5"}
    return form


def _choice_of(form: Mapping[str, str], column: int) -> dict[str, float]:
    """Return the adapters of a column with their weights; an empty mapping for the plain base.

    Raises:
        UsageProblem: a weight is not a number.
    """
    pick = form.get(f"pick-{column}", BASE_ALONE)
    if pick != SUM:
        return {} if pick in {BASE_ALONE, UNUSED} else {pick: 1.0}
    return {
        chosen: _float(form.get(f"weight-{column}-{term}", "1"), "weight")
        for term in range(1, TERMS + 1)
        if (chosen := form.get(f"term-{column}-{term}", UNUSED)) != UNUSED
    }


def _column(form: Mapping[str, str], column: int, picks: Mapping[str, _Pick]) -> Column:
    pick = form.get(f"pick-{column}", BASE_ALONE)
    pick = pick if pick in picks or pick == SUM else BASE_ALONE
    form = {**form, f"pick-{column}": pick}
    terms = tuple(_terms(form, column, picks)) if pick == SUM else ()
    options = {spec: one.name for spec, one in picks.items()} | _OTHERS
    choice: dict[str, float] = {}
    with suppress(UsageProblem):
        choice = _choice_of(form, column)
    if pick == SUM:
        name, about = "A sum of adapters", ""  # its fields say which, as they stand now
    else:
        name, about = options[pick], picks[pick].about if pick in picks else ""
    kept = form.get(f"label-{column}") == _label(choice) and form.get(f"about-{column}")
    return Column(
        number=column,
        name=name,
        spec=about,
        picks=_listed(options, pick),
        is_sum=pick == SUM,
        terms=terms,
        can_grow=0 < len(terms) < min(TERMS, len(picks)),
        merge_name=form.get(f"name-{column}", "")[:100],
        answer=Answered(
            label=_label(choice), text=form.get(f"answer-{column}", ""), about=form.get(f"about-{column}", "")[:200]
        )
        if kept
        else None,
    )


def _names_in(form: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the namespace, or "", of each adapter that a form chooses."""
    for field, text in form.items():
        if field.startswith(("pick-", "term-")) and text not in {BASE_ALONE, SUM, UNUSED}:
            with suppress(AdapterHubError):  # it is no choice then, as any other text
                spec = AdapterSpec.parse(text)
                yield spec.name, spec.namespace or ""


def _with_terms(form: Mapping[str, str], column: int, picks: Mapping[str, _Pick]) -> Mapping[str, str]:
    """Return the form with two adapters, half of each, in a column that has just become a sum."""
    if form.get(f"pick-{column}") != SUM or any(name.startswith(f"term-{column}-") for name in form):
        return form
    first = [(f"term-{column}-{at}", spec, f"weight-{column}-{at}") for at, spec in zip((1, 2), picks, strict=False)]
    return {**form, **{term: spec for term, spec, _ in first}, **{weight: "0.5" for _, _, weight in first}}


def _terms(form: Mapping[str, str], column: int, picks: Mapping[str, _Pick]) -> Iterator[TermView]:
    """Yield the adapters of a sum."""
    options = {UNUSED: "Nothing"} | {spec: one.name for spec, one in picks.items()}
    for term in range(1, TERMS + 1):
        if f"term-{column}-{term}" in form:
            pick = form[f"term-{column}-{term}"]
            name = picks[pick].name if pick in picks else f"adapter {term}"
            weight = form.get(f"weight-{column}-{term}", "1")[:8]
            yield TermView(number=term, name=name, picks=_listed(options, pick), weight=weight)


def _listed(options: Mapping[str, str], chosen: str) -> tuple[FormChoice, ...]:
    """Return the choices of a list: the first adapters, the chosen one, and the choices that name no adapter."""
    shown_ones = {*list(options)[:_MOST_PICKS], chosen, BASE_ALONE, SUM}
    return tuple(
        FormChoice(value=one, text=text, chosen=one == chosen) for one, text in options.items() if one in shown_ones
    )


def _label(choice: Mapping[str, float]) -> str:
    """Return the words that name a choice of adapters exactly."""
    return " + ".join(f"{weight:g} {spec}" for spec, weight in choice.items()) or BASE_ALONE


def _float(text: str, what: str) -> float:
    with suppress(ValueError):
        if math.isfinite(found := float(text)):
            return found
    raise UsageProblem(f"{what} `{shown(text, 40)}`, expected a number such as 0.7")


def _answer(choice: Mapping[str, float], begun: Begun, ended: Ended) -> Answered:
    answer = ended.answer
    tokens, seconds = (answer.tokens, answer.seconds) if answer else (0, 0.0)
    rate = f" · {tokens / seconds:.1f} tokens/s" if seconds else ""
    form = begun.forms[ended.at].label
    return Answered(
        label=_label(choice),
        text=answer.text if answer else "",
        about=f"{tokens} token{'s' * (tokens != 1)} in {seconds:.1f} s{rate}{_ENDS[ended.why]} · {form}",
        problem=ended.problem,
    )


def _events(answering: Answering, wish: _Wish) -> Iterator[bytes]:
    """Yield the events as the script of the page reads them."""
    begun: Begun | None = None
    try:
        for event in answering:
            begun = event if isinstance(event, Begun) else begun
            yield _event(_said(event, begun, list(wish.choices.items())))
    except AdapterHubError as error:
        yield _event({"kind": "failed", "message": problem_text(error)})


def _said(event: Event, begun: Begun | None, choices: Sequence[tuple[int, Choice]]) -> dict[str, Any]:
    if isinstance(event, Begun):
        return {"kind": "begun", "warnings": event.warnings}
    number, choice = choices[event.at]
    if isinstance(event, Piece):
        return {"kind": "piece", "column": number, "text": event.text}
    assert begun is not None  # the first event
    said = _answer(choice, begun, event)
    failed = bool(said.problem)
    return {
        "kind": "ended",
        "column": number,
        "about": said.problem or said.about,
        "label": said.label,
        "failed": failed,
    }


def _event(value: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()

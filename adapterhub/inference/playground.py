"""A base in memory on which several choices of adapters answer one prompt side by side, token by token.

The weights of the base are in memory once, however many answer. Rows of one batch use their own adapters where an
`AdapterBank` can do that; what it cannot (sums of DoRA, classifiers) answers one after the other. A sum with other
weights is another choice, so trying a merge stores nothing.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from adapterhub.core.choices import Choice, label_of
from adapterhub.core.errors import Conflict, UsageProblem
from adapterhub.core.extras import extra_named
from adapterhub.inference.answering import Loading, Model, Typed
from adapterhub.inference.generation import NEW_TOKENS, Answer, Question, Writing

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library

Why = Literal["end", "length", "time", "cancelled"]
_GREEDY: Final = Writing()
_NOTHING_TYPED: Final = Typed()
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaygroundBounds:
    """The limits of one question; `waiting` counts the questions that are answered or wait."""

    side_by_side: int = 4
    prompt_characters: int = 16_000
    new_tokens: int = 512
    seconds: float = 120.0
    waiting: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The base is in memory. One label and one prompt form for each answer; `warnings` hold for all of them."""

    labels: tuple[str, ...]
    forms: tuple[PromptForm, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The next text of the answer number `at`."""

    at: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The answer number `at` is whole, or None with the `problem` of these adapters. `why` it ended."""

    at: int
    answer: Answer | None = None
    why: Why = "end"
    problem: str = ""


Event = Begun | Piece | Ended


class Answering:
    """The events of one question, in order: `Begun`, then pieces and ends. Iterate once.

    Leaving the loop ends the writing after the next token, as `cancel` does. Errors of the whole question are raised
    by the loop.
    """

    def __init__(self, work: Callable[[Answering], None]) -> None:
        self._events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._work = work
        self._thread = threading.Thread(target=self._run, name="playground", daemon=True)

    def start(self) -> None:
        """Begin the work, in a thread of its own."""
        self._thread.start()

    def __iter__(self) -> Iterator[Event]:
        try:
            while (event := self._events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.cancel()

    @property
    def is_cancelled(self) -> bool:
        """Whether no more is wanted."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End the writing after the next token; the texts so far are the answers."""
        self._cancelled.set()

    def wait(self) -> None:
        """Wait until the base is free again."""
        self._thread.join()

    def put(self, event: Event) -> None:
        """Add an event."""
        self._events.put(event)

    def _run(self) -> None:
        try:
            self._work(self)
        except BaseException as error:  # noqa: BLE001 - raised by the loop, in the thread of the reader
            self._events.put(error)
        finally:
            self._events.put(None)


class Playground:
    """A base that is loaded by the first question and stays; a context manager that lets go of it.

    Threads may share it: one question is answered at a time, and others wait.
    """

    def __init__(
        self,
        library: Library,
        record: BaseRecord,
        *,
        loading: Loading | None = None,
        bounds: PlaygroundBounds | None = None,
    ) -> None:
        self.library = library
        self.record = record
        self.bounds = bounds or PlaygroundBounds()
        self._loading = loading or Loading(base=None, dtype="auto", load_in=None, allow_base_mismatch=False)
        self._model: Model | None = None
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(self.bounds.waiting)
        self._warnings: list[str] = []
        self._open: set[Answering] = set()

    def ask(
        self,
        choices: Sequence[Choice],
        prompt: str,
        *,
        typed: Typed = _NOTHING_TYPED,
        writing: Writing = _GREEDY,
        max_new_tokens: int | None = None,
    ) -> Answering:
        """Begin to answer `prompt` with each of `choices`: adapters with weights, or nothing for the plain base.

        Raises:
            UsageProblem: too many choices or none, one of them twice, an empty or too long prompt, or too many new
                tokens; or the adapters need two models.
            Conflict: as many questions as `bounds.waiting` are open.
        """
        self._ensure_within(choices, prompt, max_new_tokens)
        typed.ensure_clear()
        if not self._room.acquire(blocking=False):
            raise Conflict(
                f"the playground has {self.bounds.waiting} questions to answer already",
                hint="wait for one of them, or cancel it",
            )

        def work(answering: Answering) -> None:
            try:
                with self._turn(answering) as mine, extra_named("the playground"):
                    if mine:
                        self._answer(answering, choices, prompt, typed, writing, max_new_tokens)
            finally:
                self._open.discard(answering)
                self._room.release()

        answering = Answering(work)
        self._open.add(answering)
        answering.start()
        return answering

    def close(self) -> None:
        """End what is written, and let go of the base."""
        for answering in tuple(self._open):
            answering.cancel()
        with self._lock:
            if self._model is not None and "bank" in vars(self._model):
                self._model.bank.close()
            self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ what the model reports
    def note(self, text: str) -> None:
        """Drop a note: it speaks of forms, which `Begun` has, and of options of the command line."""

    def warn(self, text: str) -> None:
        """Keep a warning for the question that is answered."""
        self._warnings.append(text)

    # ------------------------------------------------------------ inside
    def _ensure_within(self, choices: Sequence[Choice], prompt: str, max_new_tokens: int | None) -> None:
        bounds = self.bounds
        if not 1 <= len(choices) <= bounds.side_by_side:
            raise UsageProblem(f"{len(choices)} choices of adapters, expected 1 to {bounds.side_by_side}")
        again = next((choice for at, choice in enumerate(choices) if choice in choices[:at]), None)
        if again is not None:
            raise UsageProblem(f"`{label_of(again)}` is chosen twice", hint="choose each once")
        if not prompt.strip():
            raise UsageProblem("the prompt is empty", hint="write something to answer")
        if len(prompt) > bounds.prompt_characters:
            raise UsageProblem(
                f"the prompt has {len(prompt):,} characters, expected at most {bounds.prompt_characters:,}",
                hint="`adapt run` takes longer ones",
            )
        if max_new_tokens is not None and not 1 <= max_new_tokens <= bounds.new_tokens:
            raise UsageProblem(f"{max_new_tokens:,} new tokens, expected 1 to {bounds.new_tokens:,}")

    @contextlib.contextmanager
    def _turn(self, answering: Answering) -> Iterator[bool]:
        """Wait for the base; yields False if the question was cancelled before."""
        while not self._lock.acquire(timeout=_POLL_S):
            if answering.is_cancelled:
                yield False
                return
        try:
            yield not answering.is_cancelled
        finally:
            self._lock.release()

    def _loaded(self, choices: Sequence[Choice]) -> Model:
        """Return the base in memory; a classifier's head needs another model, and the one before goes first."""
        if self._model is None or not self._model.takes(choices):
            self._model = None
            self._model = Model(self, self.library, self.record, self._loading, choices)
        return self._model

    def _answer(
        self,
        answering: Answering,
        choices: Sequence[Choice],
        prompt: str,
        typed: Typed,
        writing: Writing,
        max_new_tokens: int | None,
    ) -> None:
        self._warnings.clear()
        model = self._loaded(choices)
        asked = model.questions(
            [(choice, prompt, typed) for choice in choices], max_new_tokens=max_new_tokens, compares=True
        )
        most = self.bounds.new_tokens
        questions = [_bounded(question, 0 if model.labels is not None else most) for question in asked]
        problems = [model.why_not(choice) for choice in choices]
        answering.put(
            Begun(
                labels=tuple(label_of(choice) for choice in choices),
                forms=tuple(question.form for question in questions),
                warnings=tuple(self._warnings),
            )
        )
        able = [at for at, problem in enumerate(problems) if not problem]
        for at in range(len(choices)):
            if problems[at]:
                answering.put(Ended(at=at, problem=problems[at]))
        together = [at for at in able if model.labels is None and model.can_mix(choices[at])]
        rounds = [together] if together else []
        rounds += [[at] for at in able if at not in together]
        until = time.monotonic() + self.bounds.seconds
        for rows in rounds:
            self._write(answering, model, rows, choices, questions, writing, until)

    def _write(
        self,
        answering: Answering,
        model: Model,
        rows: Sequence[int],
        choices: Sequence[Choice],
        questions: Sequence[Question],
        writing: Writing,
        until: float,
    ) -> None:
        """Answer with the choices of `rows` at once."""
        if answering.is_cancelled:
            return

        def send(row: int, text: str) -> None:
            answering.put(Piece(at=rows[row], text=text))

        with model.using_rows([choices[at] for at in rows]) as adapted:
            answers = model.answers(
                adapted,
                [questions[at] for at in rows],
                writing,
                on_text=partial(send, 0),  # of one row, which a classifier has
                on_piece=send,
                is_over=lambda: answering.is_cancelled or time.monotonic() > until,
            )
        for at, answer in zip(rows, answers, strict=True):
            why: Why = "end"
            if answer.tokens >= (questions[at].max_new_tokens or NEW_TOKENS):
                why = "length"
            elif answering.is_cancelled:
                why = "cancelled"
            elif time.monotonic() > until:
                why = "time"
            answering.put(Ended(at=at, answer=answer, why=why))


def _bounded(question: Question, most: int) -> Question:
    """Return the question with at most `most` new tokens."""
    return Question(
        text=question.text, form=question.form, max_new_tokens=min(question.max_new_tokens or NEW_TOKENS, most)
    )

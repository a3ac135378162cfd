"""Prompts that adapters answer: one, side by side, or many at once; the work of `Library.run`."""

from __future__ import annotations

import math
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.api.opened import text_of
from adapterhub.api.steps.finding import find_base
from adapterhub.core.choices import Choice, choice_from, label_of
from adapterhub.core.digests import strict_json
from adapterhub.core.disk.files import read_typed
from adapterhub.core.errors import AdapterHubError, Malformed, UsageProblem, problem_list, shown
from adapterhub.distribution.finding import with_weights
from adapterhub.formats.answers import BatchAnswers, ComparedAnswer, ComparedAnswers, OneAnswer, RowAnswer
from adapterhub.inference.answering import Loading, Model, Typed, drawing_of, used_of
from adapterhub.inference.generation import Answer, OnText, Question, Writing, all_tokens_of

if TYPE_CHECKING:
    from adapterhub.api.opened import Adapters
    from adapterhub.library.library import Library
    from adapterhub.projects.reporting import Reporter

MAX_FILE_BYTES: Final = 256 << 20
MAX_LINE_BYTES: Final = 4 << 20
PROBLEMS_SHOWN: Final = 20
_KEYS: Final = ("prompt", "adapter", "system", "id")
_FORM: Final = (
    '{"prompt": …, "adapter": "a" or {"a": 0.7, "b": 0.3} or null, "system": …, "id": …}, all but `prompt` optional'
)


def choice_of(adapters: Adapters | None) -> Choice:
    """Return the adapters of an answer as they would be typed, each with its weight; none for the plain base."""
    if adapters is None or adapters == {}:
        return {}
    return {text_of(what): weight for what, weight in with_weights(adapters, None)}


def writing_of(temperature: float | None, top_p: float | None, seed: int | None) -> Writing:
    """Greedy unless a temperature or a share is given; a random seed if none is.

    Raises:
        UsageProblem: a share or a seed is given for greedy decoding.
    """
    if temperature is None:
        temperature = 0.0 if top_p is None else 1.0
    if not temperature and (top_p is not None or seed is not None):
        option = "--seed" if top_p is None else "--top-p"
        raise UsageProblem(f"`{option}` has no effect without sampling", hint="add `--temperature 0.7`")
    return Writing(temperature=temperature, top_p=1.0 if top_p is None else top_p, seed=seed_of(seed))


def seed_of(seed: int | None) -> int:
    """Return the seed, or a random one."""
    return secrets.randbelow(1 << 31) if seed is None else seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt of a batch. `adapter` is the line's value, `choice` its meaning; `id` is None if missing."""

    line: int
    prompt: str
    adapter: Any
    choice: Choice
    system: str | None = None
    id: str | int | None = None


class Problems:
    """Collects the problems of all lines of a file, to report them at once."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: list[str] = []

    def check(self, line: int, call: Callable[[], Any]) -> Any:
        """Return the result of `call`; None if it raises, which is recorded as a problem of the line."""
        try:
            return call()
        except ValueError as error:
            self.found.append(f"line {line}: {error}")
        except AdapterHubError as error:
            self.found.append(f"line {line}: {error.message}")
        return None

    def refuse(self) -> None:
        """Raise if there are problems.

        Raises:
            Malformed: the message lists each line, up to a limit.
        """
        if not self.found:
            return
        title = f"{self.where}: not valid prompts; nothing was answered"
        raise Malformed(
            problem_list(title, self.found, PROBLEMS_SHOWN), hint=f"write one JSON object per line: {_FORM}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How prompts are answered. `typed` and `max_new_tokens` are what the user said, before what a build states."""

    library: Library
    reports: Reporter
    loading: Loading
    typed: Typed
    writing: Writing
    max_new_tokens: int | None
    prove_base: bool

    def _model(self, choices: Sequence[Choice]) -> Model:
        record = find_base(self.library, choices, self.loading.base)
        return Model(self.reports, self.library, record, self.loading, choices)

    def prompt(
        self, choices: Sequence[Choice], text: str, *, compares: bool, on_text: OnText | None = None
    ) -> ComparedAnswers:
        """Answer one prompt with each choice in turn; `on_text` gets the text while it is written."""
        model = self._model(choices)
        asked = [(choice, text, self.typed) for choice in choices]
        questions = model.questions(asked, max_new_tokens=self.max_new_tokens, compares=compares)
        answers: list[ComparedAnswer] = []
        bar = self.reports.steps("answer", unit="answers") if on_text is None else nullcontext(lambda _at, _of: None)
        with model.proved(wanted=self.prove_base) as proof, bar as progress:
            for at, (choice, question) in enumerate(zip(choices, questions, strict=True)):
                progress(at, len(choices))
                with model.using(choice) as (adapted, adapters):
                    (answer,) = model.answers(adapted, [question], self.writing, on_text=on_text)
                answers.append(
                    ComparedAnswer(
                        answered_by=label_of(choice),
                        adapters=used_of(adapters),
                        prompt_form=question.form.to_json(),
                        text=answer.text,
                        tokens=answer.tokens,
                        seconds=round(answer.seconds, 3),
                        **answer.label_json(),
                    )
                )
        facts: dict[str, Any] = drawing_of(self.writing) | proof
        kind = ComparedAnswers if compares else OneAnswer
        return kind(base=model.record.label, prompt=text, answers=tuple(answers), **facts)

    def rows(self, rows: Sequence[Row], problems: Problems, *, size: int) -> BatchAnswers:
        """Answer every row, `size` at a time.

        Raises:
            Malformed: the message lists every row that cannot be answered; nothing was answered.
        """
        model = self._model([row.choice for row in rows])
        asked = [(row.choice, row.prompt, _typed(self.typed, row, problems)) for row in rows]
        questions = model.questions(asked, max_new_tokens=self.max_new_tokens)
        if model.labels is not None:
            questions = [replace(question, max_new_tokens=0) for question in questions]
        lengths = self._lengths(model, rows, questions, problems)
        found: dict[int, Answer] = {}
        with model.proved(wanted=self.prove_base) as proof, self.reports.steps("answer", unit="rows") as progress:
            start = time.perf_counter()
            progress(0, len(rows))
            for batch in model.batches([row.choice for row in rows], lengths, size):
                with model.using_rows([rows[at].choice for at in batch]) as adapted:
                    given = model.answers(adapted, [questions[at] for at in batch], self.writing)
                found |= zip(batch, given, strict=True)
                progress(len(found), len(rows))
            seconds = time.perf_counter() - start
        tokens = sum(answer.tokens for answer in found.values())
        return BatchAnswers(
            base=model.record.label,
            rows=len(rows),
            tokens=tokens,
            seconds=round(seconds, 3),
            tokens_per_second=round(tokens / seconds, 2),
            rows_per_second=round(len(rows) / seconds, 3),
            answers=tuple(_row_answer(row, found[at]) for at, row in enumerate(rows)),
            **drawing_of(self.writing),
            **proof,
        )

    def _lengths(
        self, model: Model, rows: Sequence[Row], questions: Sequence[Question], problems: Problems
    ) -> list[int]:
        """Count the tokens of each prompt; raises for prompts and adapters that cannot be used, all at once."""

        def lengths_of(several: Sequence[Question]) -> list[int]:
            return [len(found) for found in all_tokens_of(model.base, model.tokenizer, several, self.writing)]

        lengths: list[int] = []
        try:
            lengths = lengths_of(questions)
        except AdapterHubError:  # now one by one, for the lines
            for row, question in zip(rows, questions, strict=True):
                problems.check(row.line, lambda question=question: lengths_of([question]))  # type: ignore[misc] # bound now
        reasons: dict[tuple[tuple[str, float], ...], str] = {}
        for row in rows:
            key = tuple(row.choice.items())
            if key not in reasons:
                reasons[key] = model.why_not(row.choice)
            if reasons[key]:
                problems.found.append(f"line {row.line}: {reasons[key]}")
        problems.refuse()
        return lengths


def _typed(typed: Typed, row: Row, problems: Problems) -> Typed:
    """Return the user's text for the row; its own system text replaces that of the command."""
    if row.system is None:
        return typed
    if typed.chat is False or typed.template is not None:
        option = "--raw" if typed.template is None else "--template"
        problems.found.append(f"line {row.line}: has a `system` text, and {option} forbids a chat")
        return typed
    return replace(typed, system=row.system)


def _row_answer(row: Row, answer: Answer) -> RowAnswer:
    return RowAnswer(
        id=row.id,
        prompt=row.prompt,
        adapter=row.adapter,
        text=answer.text,
        tokens=answer.tokens,
        system=row.system,
        **answer.label_json(),
    )


# ---------------------------------------------------------------- the prompts of a batch
def rows_of(prompts: Sequence[str], choice: Choice) -> tuple[list[Row], Problems]:
    """Prompts that the same adapters answer."""
    adapter = _as_written(choice)
    rows = [Row(line=at, prompt=text, adapter=adapter, choice=choice) for at, text in enumerate(prompts, 1)]
    if not rows:
        raise UsageProblem("there is no prompt", hint="pass at least one prompt")
    return rows, Problems("the prompts")


def read_rows(path: Path, default: Choice | None) -> tuple[list[Row], Problems]:
    """Return the rows of a file (`-` is stdin), without empty lines; `default` answers rows that name no adapter.

    Raises:
        NotFound: the file does not exist.
        Malformed: the file is too large or empty, or has lines that are not prompts.
    """
    is_stdin = str(path) == "-"
    where = "stdin" if is_stdin else shown(str(path), 200)
    if is_stdin:
        raw = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    else:
        raw = read_typed(path, MAX_FILE_BYTES, hint=f"name a file with one JSON object per line: {_FORM}")
    if len(raw) > MAX_FILE_BYTES:
        raise Malformed(f"{where}: larger than {MAX_FILE_BYTES >> 20} MB", hint="split the file")
    problems = Problems(where)
    rows: list[Row] = []
    seen: dict[str | int, int] = {}
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        row = problems.check(number, lambda line=line, number=number: _row(line, number, default))  # type: ignore[misc] # bound now
        if row is None:
            continue
        rows.append(row)
        if row.id is not None and seen.setdefault(row.id, number) != number:
            problems.found.append(f"line {number}: `id` {shown(row.id, 40)} is already that of line {seen[row.id]}")
    problems.refuse()
    if not rows:
        raise Malformed(f"{where}: contains no prompts", hint=f"write one JSON object per line: {_FORM}")
    return rows, problems


def _row(raw: bytes, line: int, default: Choice | None) -> Row:
    """Return the row of one line.

    Raises:
        ValueError, UsageProblem: the line is not a valid prompt.
    """
    value = strict_json(raw, limit_bytes=MAX_LINE_BYTES)
    if not isinstance(value, dict):
        raise ValueError(f"is {shown(value, 40)}, expected an object")
    unknown = [key for key in value if key not in _KEYS]
    if unknown:
        raise ValueError(f"has `{shown(unknown[0], 40)}`, expected {', '.join(f'`{key}`' for key in _KEYS)}")
    if "prompt" not in value:
        raise ValueError("has no `prompt`")
    if not isinstance(value["prompt"], str) or not value["prompt"]:
        raise ValueError(f"`prompt` is {shown(value['prompt'], 40)}, expected text")
    system, label = value.get("system"), value.get("id")
    if system is not None and not isinstance(system, str):
        raise ValueError(f"`system` is {shown(system, 40)}, expected text")
    if label is not None and (isinstance(label, bool) or not isinstance(label, str | int)):
        raise ValueError(f"`id` is {shown(label, 40)}, expected text or a whole number")
    choice = _choice(value["adapter"]) if "adapter" in value else default
    if choice is None:
        raise ValueError("names no `adapter`, and neither does the command (null means the base without an adapter)")
    adapter = value["adapter"] if "adapter" in value else _as_written(choice)
    return Row(line=line, prompt=value["prompt"], adapter=adapter, choice=choice, system=system, id=label)


def _choice(adapter: object) -> Choice:
    """Return the choice that the `adapter` of a line is; each name is a spec or a folder.

    Raises:
        ValueError, UsageProblem: it has another form.
    """
    from adapterhub.core.specs import AdapterSpec, names_folder

    if adapter is None:
        return {}
    if isinstance(adapter, str):
        choice = choice_from(adapter)
    elif not isinstance(adapter, dict) or not adapter:
        raise ValueError(f"`adapter` is {shown(adapter, 40)}, expected a spec, an object of specs and weights, or null")
    else:
        for name, weight in adapter.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                given = f"`adapter` gives `{shown(name, 40)}` the weight {shown(weight, 40)}"
                raise ValueError(f"{given}, expected a number")
        choice = {name: float(weight) for name, weight in adapter.items()}
    for name in choice:
        if not names_folder(name):
            AdapterSpec.parse(name)
    return choice


def _as_written(choice: Choice) -> Any:
    """`choice` as the value of `adapter` in a row."""
    if list(choice.values()) == [1.0]:
        return next(iter(choice))
    return dict(choice) or None

"""`adapt run --batch`: answer many prompts in batches, each with its own adapter."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.api.steps.finding import find_base
from adapterhub.cli.output import json_text
from adapterhub.cli.use.run_rows import Row, RowProblems, read_rows
from adapterhub.core.disk.files import write_durably
from adapterhub.core.disk.output_place import output_place
from adapterhub.core.errors import AdapterHubError, Conflict, NotAllowed, NotFound, shown
from adapterhub.inference.answering import Choice, Loading, Model, drawing_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.cli.options.params import Session
    from adapterhub.cli.output import Output
    from adapterhub.inference.answering import Typed
    from adapterhub.inference.generation import Answer, Question, Writing


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The settings of a batch. `default` answers rows without an adapter.

    `typed` and `max_new_tokens` are what the user said; a row's own system text makes it a chat.
    """

    prompts: Path
    out: Path | None
    default: Choice | None
    typed: Typed
    max_new_tokens: int | None
    size: int


def answer_batch(session: Session, batch: Batch, writing: Writing, loading: Loading, *, prove_base: bool) -> None:
    """Answer every row and write the answers in the order of the rows, all of them or none.

    Raises:
        NotFound, Malformed: the prompts cannot be read; the message lists every bad line, and nothing was answered.
        Conflict, NotAllowed, DiskFull: the answers cannot be written.
    """
    if batch.out is not None:
        _check_output(batch.out)
    rows, problems = read_rows(batch.prompts, batch.default)
    library, choices = session.project_library, [row.choice for row in rows]
    model = Model(session.out, library, find_base(library, choices, loading.base), loading, choices)
    asked = [(row.choice, row.prompt, _typed(batch.typed, row, problems)) for row in rows]
    questions = model.questions(asked, max_new_tokens=batch.max_new_tokens)
    if model.labels is not None:
        questions = [replace(question, max_new_tokens=0) for question in questions]
    lengths = _lengths(model, rows, questions, writing, problems)
    with model.proved(wanted=prove_base) as proof:
        start = time.perf_counter()
        answers = _answers(session.out, model, rows, questions, lengths, writing, batch.size)
        seconds = time.perf_counter() - start
    written = sum(answer.tokens for answer in answers)
    rates = {"tokens_per_second": round(written / seconds, 2), "rows_per_second": round(len(rows) / seconds, 3)}
    summary: dict[str, Any] = {"base": model.record.label, "rows": len(rows), "tokens": written}
    summary |= {"seconds": round(seconds, 3), **rates, **drawing_of(writing), **proof}
    documents = [_document(row, answer) for row, answer in zip(rows, answers, strict=True)]
    session.out.note(
        f"{len(rows):,} rows, {written:,} tokens in {seconds:.1f} s:"
        f" {rates['tokens_per_second']:.1f} tokens/s, {rates['rows_per_second']:.3g} rows/s"
    )
    trouble = _write(batch.out, documents) if batch.out else None
    kept = trouble is None and batch.out is not None
    summary |= {"out": str(batch.out)} if kept else {"answers": documents}
    session.out.result(summary, lambda: _say(session, batch.out if kept else None, documents))
    if trouble is not None:
        raise trouble


def _typed(typed: Typed, row: Row, problems: RowProblems) -> Typed:
    """What the user said of the row; its own system text replaces that of the command."""
    if row.system is None:
        return typed
    if typed.chat is False or typed.template is not None:
        option = "--raw" if typed.template is None else "--template"
        problems.found.append(f"line {row.line}: has a `system` text, and {option} forbids a chat")
        return typed
    return replace(typed, system=row.system)


def _lengths(
    model: Model, rows: Sequence[Row], questions: Sequence[Question], writing: Writing, problems: RowProblems
) -> list[int]:
    """The tokens of each prompt; raises for prompts and adapters that cannot be used, all at once."""
    from adapterhub.inference.generation import all_tokens_of

    def length_of(question: Question) -> int:
        return len(all_tokens_of(model.base, model.tokenizer, [question], writing)[0])

    try:
        lengths = [len(found) for found in all_tokens_of(model.base, model.tokenizer, questions, writing)]
    except AdapterHubError:  # now one by one, for the lines
        numbered = zip(rows, questions, strict=True)
        lengths = [problems.check(row.line, lambda q=question: length_of(q)) or 0 for row, question in numbered]  # type: ignore[misc] # bound now
    reasons: dict[tuple[tuple[str, float], ...], str] = {}
    for row in rows:
        key = tuple(row.choice.items())
        if key not in reasons:
            reasons[key] = model.why_not(row.choice)
        if reasons[key]:
            problems.found.append(f"line {row.line}: {reasons[key]}")
    problems.refuse()
    return lengths


def _answers(
    out: Output,
    model: Model,
    rows: Sequence[Row],
    questions: Sequence[Question],
    lengths: Sequence[int],
    writing: Writing,
    size: int,
) -> list[Answer]:
    """The answers in the order of the rows, with a bar that shows the rate."""
    found: dict[int, Answer] = {}
    start, tokens = time.perf_counter(), 0
    with out.described_steps("answer", unit="rows") as progress:
        progress(0, len(rows), "answer")
        for batch in model.batches([row.choice for row in rows], lengths, size):
            with model.using_rows([rows[at].choice for at in batch]) as adapted:
                given = model.answers(adapted, [questions[at] for at in batch], writing)
            found |= zip(batch, given, strict=True)
            tokens += sum(answer.tokens for answer in given)
            progress(len(found), len(rows), f"answer, {tokens / (time.perf_counter() - start):.3g} tokens/s")
    return [found[at] for at in range(len(rows))]


def _document(row: Row, answer: Answer) -> dict[str, Any]:
    document: dict[str, Any] = {} if row.id is None else {"id": row.id}
    document |= {"prompt": row.prompt, "adapter": row.adapter, "text": answer.text, "tokens": answer.tokens}
    document |= answer.label_json()
    return document if row.system is None else document | {"system": row.system}


def _say(session: Session, out: Path | None, documents: Sequence[dict[str, Any]]) -> None:
    if out is not None:
        session.out.line(f"wrote {len(documents):,} answers to {out}")
        return
    for document in documents:
        session.out.line(json_text(document))


# ---------------------------------------------------------------- the output file
def _check_output(out: Path) -> None:
    """Raise unless `out` is a new file in an existing, writable folder."""
    where = shown(str(out), 200)
    output_place(out)
    if out.exists() or out.is_symlink():
        raise Conflict(f"`{where}` exists. Nothing was answered", hint="name a file that does not exist yet")
    if not out.absolute().parent.is_dir():
        raise NotFound(f"the folder of `{where}` does not exist", hint=f"`mkdir -p {out.parent}`")
    if not os.access(out.absolute().parent, os.W_OK):
        raise NotAllowed(f"cannot write `{where}`: its folder is not writable", hint="name a file in another folder")


def _write(out: Path, documents: Sequence[dict[str, Any]]) -> NotAllowed | None:
    """Write all answers or none; returns the problem, so that a full disk does not lose an hour of answers."""
    data = "".join(json_text(document) + "\n" for document in documents).encode()
    try:
        write_durably(output_place(out), data)
    except OSError as error:
        where = f"cannot write `{shown(str(out), 200)}`: {error.strerror}"
        return NotAllowed(f"{where}. The answers went to stdout instead", hint="redirect stdout to a file with `>`")
    return None

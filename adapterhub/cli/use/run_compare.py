"""`adapt run --compare`: show the answers of several adapters to one prompt side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.cli.output import Output, printable
from adapterhub.inference.answering import Choice, Model, drawing_of, label_of

if TYPE_CHECKING:
    from adapterhub.inference.generation import Question, Writing


def compare_answers(
    out: Output,
    model: Model,
    who: Sequence[Choice],
    questions: Sequence[Question],
    writing: Writing,
    *,
    prove_base: bool,
) -> None:
    """Answer with each adapter in turn and print the answers in columns, or one below the other."""
    labels = [label_of(choice) for choice in who]
    answers: list[dict[str, Any]] = []
    with model.proved(wanted=prove_base) as proof, out.steps("answer", unit="answers") as progress:
        for at, (label, choice, question) in enumerate(zip(labels, who, questions, strict=True)):
            progress(at, len(who))
            with model.using(choice) as (adapted, adapters):
                (answer,) = model.answers(adapted, [question], writing)
            answers.append(
                {
                    "answered_by": label,
                    "adapters": [{"adapter": a.label, "weight": a.weight, "base": a.verdict.name} for a in adapters],
                    "prompt_form": question.form.to_json(),
                    "text": answer.text,
                    "tokens": answer.tokens,
                    "seconds": round(answer.seconds, 3),
                    **answer.label_json(),
                }
            )
    document: dict[str, Any] = {"base": model.record.label, "prompt": questions[0].text, "answers": answers}
    document |= drawing_of(writing) | proof
    out.result(document, lambda: _say(out, labels, [answer["text"] for answer in answers]))


def _say(out: Output, labels: Sequence[str], texts: Sequence[str]) -> None:
    if not sys.stdout.isatty():
        for at, (label, text) in enumerate(zip(labels, texts, strict=True)):
            out.piece(("\n" if at else "") + f"== {label}\n{text}\n")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for label in labels:
        table.add_column(Text(label), ratio=1, overflow="fold")
    table.add_row(*(Text(printable(text).strip("\n")) for text in texts))
    Console().print(table)

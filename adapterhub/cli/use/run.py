"""`adapt run`: answer prompts, or draw them, with adapters on their frozen base."""

from __future__ import annotations

import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.api.steps.finding import find_base
from adapterhub.cli.completion.completing import complete_first_spec, complete_specs_with_commas
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.loading import loading_options
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.output import Output, json_text, printable
from adapterhub.core.arguments import Count, Guidance, Seed, Share, Steps, Temperature
from adapterhub.core.digests import strict_json
from adapterhub.core.disk.files import output_place, read_typed, write_durably
from adapterhub.core.errors import (
    AdapterHubError,
    Conflict,
    Malformed,
    NotAllowed,
    NotFound,
    UsageProblem,
    problem_list,
    shown,
)
from adapterhub.formats.answers import (
    BatchAnswers,
    ComparedAnswer,
    ComparedAnswers,
    DrawnImage,
    OneAnswer,
    RowAnswer,
    UsedAdapter,
)
from adapterhub.inference.answering import (
    Choice,
    Loading,
    Model,
    choice_from,
    choices_from,
    drawing_of,
    label_of,
)

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.answering import Typed
    from adapterhub.inference.generation import Answer, Question, Writing
    from adapterhub.inference.loader import AttachedAdapter
    from adapterhub.library.store.catalog import AdapterLike

_MOST_PIXELS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """What the user typed for an image."""

    path: Path | None
    steps: int | None
    guidance: float | None
    size: str | None

    def ensure_image(self) -> None:
        """Raise if there is no image that the other options are for."""
        given = {"--steps": self.steps, "--guidance": self.guidance, "--size": self.size}
        named = next((name for name, value in given.items() if value is not None), None)
        if self.path is None and named:
            raise UsageProblem(f"`{named}` needs `--image`", hint="pass `--image out.png`")


def ensure_alone(image: ImageOptions, others: Mapping[str, object]) -> None:
    """Raise if an option for text is given with --image."""
    named = next((name for name, value in others.items() if value not in (None, False, ())), None)
    if named:
        raise UsageProblem(f"`{named}` is for text, and `--image` draws", hint=f"omit `{named}` or `--image`")


def draw_image(
    session: Session, choice: Choice, prompt: str, image: ImageOptions, loading: Loading, seed: int | None
) -> None:
    """Draw, and write the PNG.

    Raises:
        UsageProblem, Conflict, NotFound, NotAllowed: of the file or the options; nothing was drawn.
        BaseNotFound, MissingExtra, Incompatible, BaseMismatch: as `draw`.
    """
    assert image.path is not None  # the caller looked
    _check_image_output(image.path)
    size = None if image.size is None else _size(image.size)
    library = session.project_library
    record = find_base(library, [choice], loading.base)
    from adapterhub.inference.images import Drawing, draw, write_png

    drawing = Drawing(
        prompt=prompt,
        seed=secrets.randbelow(1 << 31) if seed is None else seed,
        steps=image.steps,
        guidance=image.guidance,
        size=size,
    )
    adapters: dict[AdapterLike, float] = dict(choice.items())
    with session.out.steps("draw", unit="steps") as progress:
        drawn = draw(
            library,
            record,
            adapters,
            drawing,
            dtype=loading.dtype,
            allow_base_mismatch=loading.allow_base_mismatch,
            on_step=progress,
        )
    for adapter in drawn.adapters:
        for warning in adapter.warnings:
            session.out.warn(f"`{shown(adapter.label, 200)}` {warning}")
    try:
        write_png(drawn.image, image.path)
    except OSError as error:
        raise NotAllowed(f"cannot write `{shown(str(image.path), 200)}`: {error.strerror}") from None
    width, height = drawn.image.size
    done = DrawnImage(
        adapters=_used(drawn.adapters),
        base=record.label,
        prompt=prompt,
        image=str(image.path),
        width=width,
        height=height,
        steps=image.steps,
        seed=drawing.seed,
        seconds=round(drawn.seconds, 3),
    )
    text = f"wrote {image.path}  {width} x {height}, seed {drawing.seed}"
    session.out.result(done.to_json(), lambda: session.out.line(text))


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    digits = cross and width.isdecimal() and height.isdecimal() and len(text) <= len("8192x8192")
    found = (int(width), int(height)) if digits else (0, 0)
    if not all(0 < side <= _MOST_PIXELS and side % 8 == 0 for side in found):
        raise UsageProblem(
            f"--size `{shown(text)}`, expected width and height in pixels, multiples of 8 up to {_MOST_PIXELS}",
            hint="such as `--size 768x512`",
        )
    return found


def _check_image_output(out: Path) -> None:
    """Raise unless `out` is a new PNG file in an existing, writable folder."""
    where = shown(str(out), 200)
    if out.suffix.lower() != ".png":
        raise UsageProblem(f"--image `{where}`, expected a file that ends in `.png`")
    output_place(out)
    if out.exists() or out.is_symlink():
        raise Conflict(f"`{where}` exists. Nothing was drawn", hint="name a file that does not exist yet")
    if not out.absolute().parent.is_dir():
        raise NotFound(f"the folder of `{where}` does not exist", hint=f"`mkdir -p {out.parent}`")
    if not os.access(out.absolute().parent, os.W_OK):
        raise NotAllowed(f"cannot write `{where}`: its folder is not writable", hint="name a file in another folder")


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
    answers: list[ComparedAnswer] = []
    with model.proved(wanted=prove_base) as proof, out.steps("answer", unit="answers") as progress:
        for at, (label, choice, question) in enumerate(zip(labels, who, questions, strict=True)):
            progress(at, len(who))
            with model.using(choice) as (adapted, adapters):
                (answer,) = model.answers(adapted, [question], writing)
            answers.append(_told(label, adapters, question, answer))
    facts: dict[str, Any] = drawing_of(writing) | proof
    done = ComparedAnswers(base=model.record.label, prompt=questions[0].text, answers=tuple(answers), **facts)
    out.result(done.to_json(), lambda: _say_compared(out, labels, [answer.text for answer in answers]))


def _used(adapters: Sequence[AttachedAdapter]) -> tuple[UsedAdapter, ...]:
    return tuple(UsedAdapter(adapter=one.label, weight=one.weight, base=one.verdict) for one in adapters)


def _told(label: str, adapters: Sequence[AttachedAdapter], question: Question, answer: Answer) -> ComparedAnswer:
    return ComparedAnswer(
        answered_by=label,
        adapters=_used(adapters),
        prompt_form=question.form.to_json(),
        text=answer.text,
        tokens=answer.tokens,
        seconds=round(answer.seconds, 3),
        **answer.label_json(),
    )


def _say_compared(out: Output, labels: Sequence[str], texts: Sequence[str]) -> None:
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
    documents = [_row_answer(row, answer) for row, answer in zip(rows, answers, strict=True)]
    done = BatchAnswers(
        base=model.record.label,
        rows=len(rows),
        tokens=written,
        seconds=round(seconds, 3),
        tokens_per_second=round(written / seconds, 2),
        rows_per_second=round(len(rows) / seconds, 3),
        **drawing_of(writing),
        **proof,
    )
    session.out.note(
        f"{len(rows):,} rows, {written:,} tokens in {seconds:.1f} s:"
        f" {done.tokens_per_second:.1f} tokens/s, {done.rows_per_second:.3g} rows/s"
    )
    trouble = _write(batch.out, documents) if batch.out else None
    kept = batch.out if trouble is None else None
    done = replace(done, out=str(kept)) if kept else replace(done, answers=tuple(documents))
    session.out.result(done.to_json(), lambda: _say_batch(session, kept, documents))
    if trouble is not None:
        raise trouble


def _typed(typed: Typed, row: RunRow, problems: RowProblems) -> Typed:
    """What the user said of the row; its own system text replaces that of the command."""
    if row.system is None:
        return typed
    if typed.chat is False or typed.template is not None:
        option = "--raw" if typed.template is None else "--template"
        problems.found.append(f"line {row.line}: has a `system` text, and {option} forbids a chat")
        return typed
    return replace(typed, system=row.system)


def _lengths(
    model: Model, rows: Sequence[RunRow], questions: Sequence[Question], writing: Writing, problems: RowProblems
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
    rows: Sequence[RunRow],
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


def _row_answer(row: RunRow, answer: Answer) -> RowAnswer:
    return RowAnswer(
        id=row.id,
        prompt=row.prompt,
        adapter=row.adapter,
        text=answer.text,
        tokens=answer.tokens,
        system=row.system,
        **answer.label_json(),
    )


def _say_batch(session: Session, out: Path | None, documents: Sequence[RowAnswer]) -> None:
    if out is not None:
        session.out.line(f"wrote {len(documents):,} answers to {out}")
        return
    for document in documents:
        session.out.line(json_text(document.to_json()))


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


def _write(out: Path, documents: Sequence[RowAnswer]) -> NotAllowed | None:
    """Write all answers or none; returns the problem, so that a full disk does not lose an hour of answers."""
    data = "".join(json_text(document.to_json()) + "\n" for document in documents).encode()
    try:
        write_durably(output_place(out), data)
    except OSError as error:
        where = f"cannot write `{shown(str(out), 200)}`: {error.strerror}"
        return NotAllowed(f"{where}. The answers went to stdout instead", hint="redirect stdout to a file with `>`")
    return None


MAX_FILE_BYTES: Final = 256 << 20
MAX_LINE_BYTES: Final = 4 << 20
PROBLEMS_SHOWN: Final = 20
_KEYS: Final = ("prompt", "adapter", "system", "id")
_FORM: Final = (
    '{"prompt": …, "adapter": "a" or {"a": 0.7, "b": 0.3} or null, "system": …, "id": …}, all but `prompt` optional'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One prompt of a batch. `adapter` is the line's value, `choice` its meaning; `id` is None if missing."""

    line: int
    prompt: str
    adapter: Any
    choice: Choice
    system: str | None
    id: str | int | None


class RowProblems:
    """Collects the problems of all lines of a file, to report them at once."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: list[str] = []

    def check(self, line: int, call: Callable[[], Any]) -> Any:
        """The result of `call`; None if it raises, which is recorded as a problem of the line."""
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


def read_rows(path: Path, default: Choice | None) -> tuple[list[RunRow], RowProblems]:
    """The rows of a file (`-` is stdin), without empty lines; `default` answers rows that name no adapter.

    Raises:
        NotFound: the file does not exist.
        Malformed: the file is too large or empty, or has lines that are not prompts.
    """
    is_stdin = str(path) == "-"
    where = "stdin" if is_stdin else shown(str(path), 200)
    raw = _read(path, where, is_stdin=is_stdin)
    problems = RowProblems(where)
    rows: list[RunRow] = []
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


def _read(path: Path, where: str, *, is_stdin: bool) -> bytes:
    if is_stdin:
        raw = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    else:
        raw = read_typed(path, MAX_FILE_BYTES, hint=f"name a file with one JSON object per line: {_FORM}")
    if len(raw) > MAX_FILE_BYTES:
        raise Malformed(f"{where}: larger than {MAX_FILE_BYTES >> 20} MB", hint="split the file")
    return raw


def _row(raw: bytes, line: int, default: Choice | None) -> RunRow:
    """The row of one line.

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
    if "adapter" not in value and default is None:
        raise ValueError("names no `adapter`, and neither does the command (null means the base alone)")
    choice = _choice(value["adapter"]) if "adapter" in value else default
    assert choice is not None  # refused above
    adapter = value["adapter"] if "adapter" in value else _as_written(choice)
    return RunRow(line=line, prompt=value["prompt"], adapter=adapter, choice=choice, system=system, id=label)


def _choice(adapter: object) -> Choice:
    if adapter is None:
        return {}
    if isinstance(adapter, str):
        return _parsed(choice_from(adapter))
    if not isinstance(adapter, dict) or not adapter:
        raise ValueError(f"`adapter` is {shown(adapter, 40)}, expected a spec, an object of specs and weights, or null")
    for name, weight in adapter.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"`adapter` gives `{shown(name, 40)}` the weight {shown(weight, 40)}, expected a number")
    return _parsed({name: float(weight) for name, weight in adapter.items()})


def _parsed(choice: Choice) -> Choice:
    """`choice`, with each name checked to be a spec or a folder.

    Raises:
        SpecError: a name is neither.
    """
    from adapterhub.core.specs import AdapterSpec, names_folder

    for name in choice:
        if not names_folder(name):
            AdapterSpec.parse(name)
    return choice


def _as_written(choice: Choice) -> Any:
    """`choice` as the value of `adapter` in a row."""
    if list(choice.values()) == [1.0]:
        return next(iter(choice))
    return dict(choice) or None


STDIN: Final = "-"
_QUOTES: Final = 'put the prompt in quotes: `adapt run legal-qa@base-7b "The parties agree that"`'


@click.command()
@click.argument("words", nargs=-1, metavar="[SPEC] [PROMPT]", shell_complete=complete_first_spec)
@click.option("--with", "mixture", metavar="A:W,B:W", help="Sum adapters at run time, such as `a:0.7,b:0.3`.")
@click.option(
    "--compare",
    "compared",
    multiple=True,
    metavar="SPECS",
    shell_complete=complete_specs_with_commas,
    help="Also answer with these and show the answers side by side: specs and `none` (the base alone), separated by"
    " commas, or one sum such as `a:0.7,b:0.3`; may be repeated.",
)
@click.option("--base", type=BASE, help="Use this base for specs that name none.")
@click.option("--system", metavar="TEXT", help="Put TEXT before the prompt in the chat template; implies --chat.")
@click.option(
    "--chat/--no-chat",
    " /--raw",
    default=None,
    help="Put the prompt into a chat template, or use it unchanged [default: as the adapter's build states, else raw].",
)
@click.option("--template", metavar="TEXT", help="Ask with TEXT, in which the prompt replaces `{input}`.")
@click.option(
    "--max-new-tokens",
    type=kind_of(Count),
    metavar="N",
    help="Stop after N tokens [default: as the build states, else 64].",
)
@click.option("--temperature", type=kind_of(Temperature), metavar="T", help="Sample at T; 0 is greedy [default: 0].")
@click.option("--top-p", type=kind_of(Share), metavar="P", help="Sample from the most likely share P.")
@click.option("--seed", type=kind_of(Seed), metavar="N", help="Make sampling repeatable.")
@click.option(
    "--batch",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Answer every line of FILE, a JSON object {prompt, adapter?, system?, id?}.",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the answers of --batch to FILE.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    metavar="N",
    help="Rows at once.",
)
@click.option("--image", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw PROMPT and write the image.")
@click.option("--steps", type=kind_of(Steps), metavar="N", help="Draw in N steps [default: the pipeline's].")
@click.option("--guidance", type=kind_of(Guidance), metavar="G", help="How strongly the prompt leads the image.")
@click.option("--size", metavar="WxH", help="Size of the image in pixels [default: the pipeline's].")
@loading_options
@click.option("--allow-base-mismatch", is_flag=True, help="Allow a base with other weights of the same shapes.")
@click.option("--prove-base", is_flag=True, help="Hash the base's parameters before and after, and compare.")
@common
def run(
    session: Session,
    words: tuple[str, ...],
    mixture: str | None,
    compared: tuple[str, ...],
    base: BaseSpec | None,
    system: str | None,
    chat: bool | None,
    template: str | None,
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    batch: Path | None,
    out: Path | None,
    batch_size: int,
    image: Path | None,
    steps: int | None,
    guidance: float | None,
    size: str | None,
    dtype: str,
    load_in: str | None,
    allow_base_mismatch: bool,
    prove_base: bool,
) -> None:
    """Answer PROMPT with an adapter on its frozen base, on the CPU or the first GPU; streams the text.

    Without PROMPT, or with `-`, reads the prompt from stdin. The SPEC `none` is the base alone. The prompt takes the
    form that the adapter's build states, and a note says which; --raw, --chat, --system and --template go before it.
    Without a form it is used unchanged. The command first checks that the base matches the adapter's fingerprint, and
    never changes the base. An adapter for classification (SEQ_CLS) answers with the label and its probability.
    With --image, the base is a pipeline in a folder of diffusers, and the result is a PNG; --seed repeats it.

    \b
    Examples:
      adapt run legal-qa@base-7b "The parties agree that"
      adapt run --with legal-qa:0.7,summarize:0.3 --base base-7b "The parties agree that"
      adapt run legal-qa@base-7b "The parties agree that" --raw
      adapt run legal-qa@base-7b "The parties agree that" --compare summarize,none
      adapt run legal-qa@base-7b --batch prompts.jsonl --out answers.jsonl
      adapt run watercolour@sdxl "a red cat" --image cat.png --seed 1
    """
    loading = Loading(base=base, dtype=dtype, load_in=load_in, allow_base_mismatch=allow_base_mismatch)
    from adapterhub.inference.answering import Typed

    drawn = ImageOptions(path=image, steps=steps, guidance=guidance, size=size)
    drawn.ensure_image()
    if image is not None:
        texts: dict[str, object] = {
            "--batch": batch,
            "--compare": compared,
            "--chat": chat,
            "--template": template,
            "--system": system,
        }
        texts |= {"--max-new-tokens": max_new_tokens, "--temperature": temperature, "--top-p": top_p, "--out": out}
        ensure_alone(drawn, texts | {"--load-in": load_in, "--prove-base": prove_base})
        who, prompt = _who_and_prompt(words, mixture, (), is_batch=False)
        draw_image(session, who[0], _prompt(prompt), drawn, loading, seed)
        return
    typed = Typed(chat=chat, template=template, system=system)
    typed.ensure_clear()
    if out is not None and batch is None:
        raise UsageProblem("`--out` needs `--batch`, whose answers it stores", hint="pass `--batch FILE`")
    if batch is not None and compared:
        raise UsageProblem("`--compare` and `--batch` exclude each other", hint="name each row's adapter in the file")
    who, prompt = _who_and_prompt(words, mixture, compared, is_batch=batch is not None)
    writing = _writing(temperature, top_p, seed)
    if batch is not None:
        batched = Batch(
            prompts=batch,
            out=out,
            default=who[0] if who else None,
            typed=typed,
            max_new_tokens=max_new_tokens,
            size=batch_size,
        )
        answer_batch(session, batched, writing, loading, prove_base=prove_base)
        return
    text = _prompt(prompt)
    library = session.project_library
    model = Model(session.out, library, find_base(library, who, base), loading, who)
    asked = [(choice, text, typed) for choice in who]
    questions = model.questions(asked, max_new_tokens=max_new_tokens, compares=bool(compared))
    if compared:
        compare_answers(session.out, model, who, questions, writing, prove_base=prove_base)
        return
    with model.proved(wanted=prove_base) as proof:
        answer = _answer(session.out, model, who[0], questions[0], writing)
    facts: dict[str, Any] = drawing_of(writing) | proof
    done = OneAnswer(base=model.record.label, prompt=text, answer=answer, **facts)
    session.out.result(done.to_json(), lambda: None)  # streamed already


def _answer(out: Output, model: Model, choice: Choice, question: Question, writing: Writing) -> ComparedAnswer:
    """One answer, streamed unless `--json` is set."""
    with model.using(choice) as (asked, adapters):
        on_text = None if out.as_json else out.piece
        (answer,) = model.answers(asked, [question], writing, on_text=on_text)
    if not out.as_json:
        out.line()
    if model.labels is None:
        out.note(f"{answer.tokens} tokens in {answer.seconds:.1f} s, {answer.tokens / answer.seconds:.1f} tokens/s")
    return _told(label_of(choice), adapters, question, answer)


# ---------------------------------------------------------------- what was typed
def _who_and_prompt(
    words: tuple[str, ...], mixture: str | None, compared: tuple[str, ...], *, is_batch: bool
) -> tuple[list[Choice], str]:
    """The adapters that answer, and the prompt; `-` reads it from stdin.

    If --with or --compare names an adapter, a single word is the prompt; otherwise the first word is a spec.
    """
    who = [choice_from(mixture, "--with")] if mixture else []
    others = [choice for text in compared for choice in choices_from(text, "--compare")]
    most = (0 if mixture else 1) if is_batch else (1 if mixture else 2)
    if len(words) > most:
        hint = "separate adapters to compare with commas: `--compare legal-qa,summarize,none`" if others else _QUOTES
        raise UsageProblem(f"{len(words)} words given, expected at most a spec and a prompt", hint=hint)
    names_one = not who and (is_batch or len(words) > 1 or not others)
    if names_one and words:
        who, words = [choice_from(words[0])], words[1:]
    who += others
    again = next((choice for at, choice in enumerate(who) if choice in who[:at]), None)
    if again is not None:
        raise UsageProblem(f"`{label_of(again)}` is named twice", hint="name each adapter once")
    if not who and not is_batch:
        raise UsageProblem("expected a spec and a prompt, or `--with A:W,B:W` and a prompt", hint=_QUOTES)
    return who, words[0] if words else STDIN


def _prompt(word: str) -> str:
    """The prompt, read from stdin for `-` without the line end that the shell adds."""
    if word != STDIN:
        return word
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageProblem("no prompt given", hint=_QUOTES + ", or pipe it to stdin")
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageProblem(f"the prompt on stdin is not {error.encoding} text") from None
    if not text.strip():
        raise UsageProblem("no prompt given: stdin is empty", hint=_QUOTES)
    return text.removesuffix("\n")


def _writing(temperature: float | None, top_p: float | None, seed: int | None) -> Writing:
    """Greedy unless --temperature or --top-p is given; without --seed, a random seed that the result reports."""
    from adapterhub.inference.generation import Writing

    if temperature is None:
        temperature = 0.0 if top_p is None else 1.0
    if not temperature and (top_p is not None or seed is not None):
        option = "--seed" if top_p is None else "--top-p"
        raise UsageProblem(f"`{option}` needs sampling, and this is greedy", hint="also pass `--temperature` above 0")
    return Writing(
        temperature=temperature,
        top_p=1.0 if top_p is None else top_p,
        seed=secrets.randbelow(1 << 31) if seed is None else seed,
    )

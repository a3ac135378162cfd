"""`adapt run`: answer prompts, or draw them, with adapters on their frozen base."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.api.arguments import refuse
from adapterhub.cli.completion.completing import complete_first_spec, complete_specs_with_commas
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.loading import loading_options
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.output import Output, json_text, printable
from adapterhub.core.arguments import Count, Guidance, Seed, Share, Steps, Temperature
from adapterhub.core.choices import Choice, choice_from, choices_from, label_of
from adapterhub.core.disk.files import ensure_new_file, write_output
from adapterhub.core.errors import DiskFull, NotAllowed, UsageProblem, shown

if TYPE_CHECKING:
    from adapterhub.formats.answers import BatchAnswers, ComparedAnswers, OneAnswer

STDIN: Final = "-"
_QUOTES: Final = 'put the prompt in quotes: `adapt run legal-qa@base-7b "The parties agree that"`'
_MOST_PIXELS: Final = 8192
_FOR_BOTH: Final = ("base", "seed", "dtype", "allow_base_mismatch")


def _size(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Width and height of `--size`."""
    if text is None:
        return None
    width, cross, height = text.lower().partition("x")
    digits = cross and width.isdecimal() and height.isdecimal() and len(text) <= len("8192x8192")
    found = (int(width), int(height)) if digits else (0, 0)
    if not all(0 < side <= _MOST_PIXELS and side % 8 == 0 for side in found):
        raise UsageProblem(
            f"--size `{shown(text)}`, expected width and height in pixels, multiples of 8 up to {_MOST_PIXELS}",
            hint="such as `--size 768x512`",
        )
    return found


@click.command()
@click.argument("words", nargs=-1, metavar="[SPEC] [PROMPT]", shell_complete=complete_first_spec)
@click.option("--with", "mixture", metavar="A:W,B:W", help="Sum adapters at run time, such as `a:0.7,b:0.3`.")
@click.option(
    "--compare",
    "compared",
    multiple=True,
    metavar="SPECS",
    shell_complete=complete_specs_with_commas,
    help="Also answer with these and show the answers side by side: specs and `none` (no adapter), separated by"
    " commas, or one sum such as `a:0.7,b:0.3`; may be repeated.",
)
@click.option("--base", type=BASE, help="Use this base for specs that name none.")
@click.option("--system", metavar="TEXT", help="Put TEXT before the prompt in the chat template; implies --chat.")
@click.option(
    "--chat/--no-chat",
    " /--raw",
    default=None,
    help="Put the prompt into a chat template, or use it unchanged [default: as the adapter's build states, or raw].",
)
@click.option("--template", metavar="TEXT", help="Ask with TEXT, in which the prompt replaces `{input}`.")
@click.option(
    "--max-new-tokens",
    type=kind_of(Count),
    metavar="N",
    help="Stop after N tokens [default: as the build states, or 64].",
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
@click.option(
    "--out", "stored", type=click.Path(path_type=Path), metavar="FILE", help="Write the answers of --batch to FILE."
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Rows at once [default: 8].",
)
@click.option("--image", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw PROMPT and write the image.")
@click.option("--steps", type=kind_of(Steps), metavar="N", help="Draw in N steps [default: the pipeline's].")
@click.option("--guidance", type=kind_of(Guidance), metavar="G", help="How strongly the prompt leads the image.")
@click.option("--size", metavar="WxH", callback=_size, help="Size of the image in pixels [default: the pipeline's].")
@loading_options
@click.option("--allow-base-mismatch", is_flag=True, help="Allow a base with other weights of the same shapes.")
@click.option("--prove-base", is_flag=True, help="Hash the base's parameters before and after, and compare.")
@common
def run(
    session: Session,
    words: tuple[str, ...],
    mixture: str | None,
    compared: tuple[str, ...],
    batch: Path | None,
    stored: Path | None,
    image: Path | None,
    **options: Any,
) -> None:
    """Answer PROMPT with an adapter on its frozen base, on the CPU or the first GPU; streams the text.

    Without PROMPT, or with `-`, reads the prompt from stdin. The SPEC `none` is the base without an adapter. The prompt
    takes the form that the adapter's build states, which a note names; --raw, --chat, --system and --template override
    it. Without a form it is used unchanged. The command first checks that the base matches the adapter's fingerprint,
    and never changes the base. An adapter for classification (SEQ_CLS) answers with the label and its probability. With
    --image, the base is a pipeline in a folder of diffusers, and the result is a PNG; --seed repeats it.

    \b
    Examples:
      adapt run legal-qa@base-7b "The parties agree that"
      adapt run --with legal-qa:0.7,summarize:0.3 --base base-7b "The parties agree that"
      adapt run legal-qa@base-7b "The parties agree that" --raw
      adapt run legal-qa@base-7b "The parties agree that" --compare summarize,none
      adapt run legal-qa@base-7b --batch prompts.jsonl --out answers.jsonl
      adapt run watercolour@sdxl "a red cat" --image cat.png --seed 1
    """
    out = session.out
    given = {name: v for name, v in options.items() if v is not None and (v is not False or name == "chat")}
    for_images = {name: given.pop(name) for name in ("steps", "guidance", "size") if name in given}
    if batch is not None and compared:
        raise UsageProblem("`--compare` and `--batch` exclude each other", hint="name each row's adapter in the file")
    if batch is None:
        refuse("only the answers of `--batch FILE` are stored", out=stored)
    if image is None:
        refuse("these are for `--image FILE.png`", **for_images)
    else:
        texts = {name: v for name, v in given.items() if name not in _FOR_BOTH}
        refuse("`--image` draws, and these are for text", batch=batch, compare=compared, **texts)
    who, prompt = _who_and_prompt(words, mixture, compared, is_batch=batch is not None)
    if image is not None:
        if image.suffix.lower() != ".png":
            raise UsageProblem(f"--image `{shown(str(image), 200)}`, expected a file that ends in `.png`")
        ensure_new_file(image, "drawn")
        drawn = session.opened.draw(who[0], _prompt(prompt), **for_images, **given).written(image)
        out.result(drawn, lambda: out.line(f"wrote {image}  {drawn.width} x {drawn.height}, seed {drawn.seed}"))
        return
    if batch is not None:
        if stored is not None:
            ensure_new_file(stored, "answered")
        answers: Any = session.opened.run(who[0] if who else None, batch=batch, **given)
        _say_batch(out, answers, stored)
        return
    compare = who[1:] if compared else None
    on_text = None if compared or out.as_json else out.piece
    done: Any = session.opened.run(who[0], _prompt(prompt), compare=compare, on_text=on_text, **given)
    if not compared:
        _say_rest(out, done)
    _say_proof(out, done)
    out.result(done, lambda: _say_compared(out, done) if compared else None)


# ---------------------------------------------------------------- what was typed
def _who_and_prompt(
    words: tuple[str, ...], mixture: str | None, compared: tuple[str, ...], *, is_batch: bool
) -> tuple[list[Any], str]:
    """Return the adapters that answer, and the prompt; `-` reads it from stdin.

    If --with or --compare names an adapter, a single word is the prompt; otherwise the first word is a spec.
    """
    who: list[Choice] = [choice_from(mixture, "--with")] if mixture else []
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
    """Return the prompt, read from stdin for `-` without the line end that the shell adds."""
    if word != STDIN:
        return word
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageProblem("no prompt given", hint=_QUOTES + ", or pipe it to stdin")
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageProblem(f"the prompt on stdin is not {error.encoding} text", hint="convert it to UTF-8") from None
    if not text.strip():
        raise UsageProblem("no prompt given: stdin is empty", hint=_QUOTES)
    return text.removesuffix("\n")


# ---------------------------------------------------------------- what is printed
def _say_rest(out: Output, done: OneAnswer) -> None:
    """Print the lines after the streamed text."""
    if not out.as_json:
        out.line()
    if done.answer.tokens:
        rate = done.answer.tokens / max(done.answer.seconds, 0.001)
        out.note(f"{done.answer.tokens} tokens in {done.answer.seconds:.1f} s, {rate:.1f} tokens/s")


def _say_proof(out: Output, done: ComparedAnswers | BatchAnswers) -> None:
    if done.base_digest is not None:
        after = "the same" if done.base_unchanged else "others"
        out.note(f"base parameters: {done.base_digest} before, {after} after")


def _say_batch(out: Output, done: BatchAnswers, stored: Path | None) -> None:
    """Store the answers, or print them; also print them if they cannot be stored, so that none is lost."""
    _say_proof(out, done)
    out.note(
        f"{done.rows:,} rows, {done.tokens:,} tokens in {done.seconds:.1f} s:"
        f" {done.tokens_per_second:.1f} tokens/s, {done.rows_per_second:.3g} rows/s"
    )
    lines = [json_text(answer.to_json()) for answer in done.answers or ()]
    if stored is not None:
        try:
            write_output(stored, "".join(f"{line}\n" for line in lines).encode())
        except (DiskFull, NotAllowed) as error:
            out.result(done, lambda: out.lines(lines))
            hint = "redirect stdout to a file with `>`"
            raise type(error)(f"{error.message}. The answers went to stdout instead", hint=hint) from None
        done = replace(done, answers=None, out=str(stored))
        lines = [f"wrote {done.rows:,} answers to {stored}"]
    out.result(done, lambda: out.lines(lines))


def _say_compared(out: Output, done: ComparedAnswers) -> None:
    """Print the answers in columns on a terminal, and one below the other elsewhere."""
    if not sys.stdout.isatty():
        for at, answer in enumerate(done.answers):
            out.piece(("\n" if at else "") + f"== {answer.answered_by}\n{answer.text}\n")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for answer in done.answers:
        table.add_column(Text(answer.answered_by), ratio=1, overflow="fold")
    table.add_row(*(Text(printable(answer.text).strip("\n")) for answer in done.answers))
    Console().print(table)

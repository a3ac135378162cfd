"""`adapt run`: answer prompts, or draw them, with adapters on their frozen base."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.api.steps.finding import find_base
from adapterhub.cli.completion.completing import complete_first_spec, complete_specs_with_commas
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.loading import loading_options
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.use.run_image import ImageOptions, draw_image, ensure_alone
from adapterhub.core.arguments import Count, Guidance, Seed, Share, Steps, Temperature
from adapterhub.core.errors import UsageProblem
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
    from adapterhub.cli.output import Output
    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.generation import Question, Writing

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
        from adapterhub.cli.use.run_batch import Batch, answer_batch

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
        from adapterhub.cli.use.run_compare import compare_answers

        compare_answers(session.out, model, who, questions, writing, prove_base=prove_base)
        return
    with model.proved(wanted=prove_base) as proof:
        document = _answer(session.out, model, who[0], questions[0], writing)
    document |= proof
    session.out.result(document, lambda: None)  # streamed already


def _answer(out: Output, model: Model, choice: Choice, question: Question, writing: Writing) -> dict[str, Any]:
    """One answer, streamed unless `--json` is set."""
    with model.using(choice) as (asked, adapters):
        on_text = None if out.as_json else out.piece
        (answer,) = model.answers(asked, [question], writing, on_text=on_text)
    if not out.as_json:
        out.line()
    if model.labels is None:
        out.note(f"{answer.tokens} tokens in {answer.seconds:.1f} s, {answer.tokens / answer.seconds:.1f} tokens/s")
    return {
        "adapters": [{"adapter": a.label, "weight": a.weight, "base": a.verdict.name} for a in adapters],
        "base": model.record.label,
        "prompt": question.text,
        "prompt_form": question.form.to_json(),
        "text": answer.text,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 3),
        **answer.label_json(),
        **drawing_of(writing),
    }


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

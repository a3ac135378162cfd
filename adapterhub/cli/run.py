"""`adapt run`: one prompt, answered by an adapter on its frozen base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.params import BASE, Session, common, wanted_from
from adapterhub.errors import BaseNotFound, UsageProblem

if TYPE_CHECKING:
    from adapterhub.bases import BaseRecord
    from adapterhub.library import Library
    from adapterhub.loader import AdapterLike
    from adapterhub.specs import AdapterSpec, BaseSpec


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[SPEC] PROMPT")
@click.option("--with", "mixture", metavar="A:W,B:W", help="Sum several adapters at run time, such as `a:0.7,b:0.3`.")
@click.option("--base", type=BASE, help="The base, where the spec names none.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, metavar="N", help="Length.")
@click.option("--chat", is_flag=True, help="Put the prompt into the base's chat template.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Precision of the base in memory.",
)
@click.option("--allow-base-mismatch", is_flag=True, help="Run on other weights of the same shapes.")
@click.option("--prove-base", is_flag=True, help="Hash every base parameter before and after, and compare.")
@common
def run(
    session: Session,
    words: tuple[str, ...],
    mixture: str | None,
    base: BaseSpec | None,
    max_new_tokens: int,
    chat: bool,
    dtype: str,
    allow_base_mismatch: bool,
    prove_base: bool,
) -> None:
    """Answer PROMPT with an adapter on its frozen base (greedy decoding, on the CPU or the first GPU).

    The base is checked against the adapter's fingerprint first, and never changed.

    \b
    Examples:
      adapt run legal-qa@base-7b "The parties agree that"
      adapt run --with legal-qa:0.7,summarize:0.3 --base base-7b "The parties agree that"
    """
    from adapterhub.specs import AdapterSpec, BaseSpec

    if len(words) != (1 if mixture else 2):
        raise UsageProblem(
            "expected a spec and a prompt, or `--with A:W,B:W` and a prompt",
            hint='put the prompt in quotes: `adapt run legal-qa@base-7b "The parties agree that"`',
        )
    library = session.library
    weights: dict[AdapterLike, float] = _mixture(mixture) if mixture else {words[0]: 1.0}
    first = AdapterSpec.parse(str(next(iter(weights))))
    wanted = wanted_from(library, first, base)
    record = wanted.record if wanted else _only_base(library, first)
    if record is None or record.path is None or not record.path.is_dir():
        raise BaseNotFound(
            f"the weights of the base for `{first}` are not on this machine",
            hint="`adapt base add PATH --as NAME` registers a local copy; name it after `@`",
        )
    from adapterhub.loader import attach, base_digest
    from adapterhub.loader.text import answer, load_base

    session.out.note(f"loading base {record.label}")
    model, tokenizer = load_base(record.path, dtype=dtype)
    named = BaseSpec.parse(record.alias or str(record.path))
    before = base_digest(model) if prove_base else None
    with attach(model, weights, library=library, base=named, allow_base_mismatch=allow_base_mismatch) as attached:
        for warning in attached.warnings:
            session.out.warn(warning)
        text = answer(attached.model, tokenizer, words[-1], max_new_tokens=max_new_tokens, chat=chat)
        document: dict[str, Any] = {
            "adapters": [{"adapter": a.label, "weight": a.weight, "base": a.verdict.name} for a in attached.adapters],
            "base": record.label,
            "prompt": words[-1],
            "text": text,
        }
    if prove_base:
        after = base_digest(model)
        document |= {"base_digest": before, "base_unchanged": before == after}
        session.out.note(f"base parameters: {before} before, {'the same' if before == after else after} after")
    session.out.result(document, lambda: session.out.line(text))


def _mixture(text: str) -> dict[AdapterLike, float]:
    """`a:0.7,b:0.3` as weights by spec."""
    weights: dict[AdapterLike, float] = {}
    for part in text.split(","):
        name, colon, number = part.strip().rpartition(":")
        try:
            weights[name] = float(number)
        except ValueError:
            colon = ""
        if not colon or not name:
            raise UsageProblem(f"--with `{part}`: expected a spec, a colon and a number, such as `legal-qa:0.7`")
    return weights


def _only_base(library: Library, spec: AdapterSpec) -> BaseRecord | None:
    """The base of the installed adapter that a spec without a base means."""
    from adapterhub.install import find_installed

    build, _ = find_installed(library, spec)
    if build.base.fingerprint is not None:
        return library.bases.by_fingerprint(build.base.fingerprint)
    records = library.bases.list()
    return records[0] if len(records) == 1 else None

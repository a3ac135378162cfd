"""The options that record a prompt form: `--prompt`, `--template` and `--system`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session
    from adapterhub.formats.prompts.form import PromptForm

FORMS: Final = ("raw", "template", "chat", "text")  # `formats.prompts.form` has them, too, and costs an import


def prompt_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options; the command gets them as `form`, a `PromptForm` or None."""

    @functools.wraps(command)
    def with_form(*args: Any, prompt_form: str | None, template: str | None, system: str | None, **rest: Any) -> None:
        form = None
        if any(said is not None for said in (prompt_form, template, system)):
            from adapterhub.formats.prompts.form import PromptForm

            form = PromptForm.typed(prompt_form, template=template, system=system)
        command(*args, form=form, **rest)

    made: Callable[..., None] = with_form
    for option in (
        click.option("--system", metavar="TEXT", help="Record this system text; means --prompt chat."),
        click.option("--template", metavar="TEXT", help="Record this text around `{input}`; means --prompt template."),
        click.option(
            "--prompt",
            "prompt_form",
            type=click.Choice(FORMS),
            help="Record how it is asked: `raw` text, a `template`, a `chat`, or `text` for an encoder.",
        ),
    ):
        made = option(made)
    return made


def warn_of_backslashes(session: Session, form: PromptForm | None) -> None:
    """Warn where a template that was typed holds `\\n` as two characters, which a shell does not make a line end."""
    if form is not None and form.template is not None and "\\n" in form.template:
        session.out.warn("the template holds `\\n` as two characters; bash makes line ends of them in $'…'")

"""The policy of the project that a command works in, as it has its say in choosing a build; and `--exclude-newer`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session
    from adapterhub.distribution.resolve import Candidate, Objection

F = TypeVar("F", bound=Callable[..., Any])


def exclude_newer_option(command: F) -> F:
    """`--exclude-newer`."""
    text = "Take no release newer than a day (2026-01-31), a time or an age (7d, 2w, 12h) [default: the project's]."
    return click.option("--exclude-newer", metavar="DATE|AGE", help=text)(command)


def objection_from(session: Session, exclude_newer: str | None) -> Objection | None:
    """What the project's policy has against builds, with `exclude_newer` instead of its own where that is given.

    Raises:
        UsageProblem: `exclude_newer` cannot be read.
    """
    from adapterhub.projects.file.policy import objection_of
    from adapterhub.projects.values import Policy

    project = session.project
    policy = project.policy if project else Policy()
    if exclude_newer is not None:
        policy = replace(policy, exclude_newer=exclude_newer)
    return objection_of(policy, time.time())


def refusal_here(session: Session, candidate: Candidate) -> str | None:
    """Why the project that a command works in would not take a build; None where it would, and outside of any."""
    objection = objection_from(session, None)
    return objection(candidate) if objection else None


def policy_fields(document: dict[str, Any]) -> list[tuple[str, object]]:
    """The line of `refusal_here`, which is under `policy_refusal` in a document."""
    refusal = document["policy_refusal"]
    return [("policy", f"the project refuses it: {refusal}")] if refusal else []

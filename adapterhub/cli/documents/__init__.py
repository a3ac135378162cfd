"""The documents that commands print with `--json`, as types: for the reference, for tests, and for scripts in Python.

    document: documents.Listed = json.loads(…)

No command imports them. A field that may be missing is `NotRequired`; one that may be null says `| None`. Fields may be
added in a release; none is renamed, dropped or given another meaning without a new major version.
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from adapterhub.cli.documents._engines import ENGINES
from adapterhub.cli.documents._library import ADAPTERS, BASES, Listed
from adapterhub.cli.documents._page import page_of
from adapterhub.cli.documents._parts import Added, Finding, Manifest, NotRequired
from adapterhub.cli.documents._projects import PROJECTS, VERBS
from adapterhub.cli.documents._servers import KEYS, REGISTRY, SERVERS
from adapterhub.cli.documents._shape import problems
from adapterhub.cli.documents._weights import ANSWERS, WEIGHTS

__all__ = [
    "CHAPTERS",
    "Added",
    "Failure",
    "Finding",
    "Listed",
    "Manifest",
    "page_of",
    "problems",
]


class FailureFacts(TypedDict):
    """What was refused; the lists are there where the error has them."""

    type: Annotated[str, "the class, in [exit codes](exit-codes.md)"]
    message: Annotated[str, "what, where, what was expected"]
    exit_code: int
    hint: NotRequired[Annotated[str, "what to type next"]]
    refusals: NotRequired[Annotated[list[Any], "releases that do not fit, each with its reason"]]
    reasons: NotRequired[list[Any]]
    findings: NotRequired[list[Any]]
    problems: NotRequired[list[Any]]


class Failure(TypedDict):
    """A refusal: the one document that goes to stderr."""

    error: FailureFacts


CHAPTERS: dict[str, dict[str, Any]] = {
    "Refusals": {"error": Failure},
    "Bases": BASES,
    "The library": ADAPTERS,
    "Projects": PROJECTS,
    "Finding out": VERBS,
    "Weights": WEIGHTS,
    "Answers": ANSWERS,
    "Engines": ENGINES,
    "Keys and signatures": KEYS,
    "Servers": SERVERS,
    "The registry": REGISTRY,
}
"""Types by name of document: the words of the command with `-` between, then `.` and which of its documents it is."""

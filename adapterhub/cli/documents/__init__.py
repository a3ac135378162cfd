"""The documents that commands print with `--json`, as types for the reference, tests, and scripts in Python.

    document: documents.Listed = json.loads(…)
    document = pydantic.TypeAdapter(list[documents.Listed]).validate_json(…)

Commands do not import them. A field that may be missing is `NotRequired`; one that may be null is `| None`. A release
may add fields. Only a new major version may rename or drop one, or change its type or meaning.
"""

from __future__ import annotations

from typing import Any

from adapterhub.cli.documents._contracts import CONTRACTS
from adapterhub.cli.documents._engines import ENGINES
from adapterhub.cli.documents._keys import KEYS
from adapterhub.cli.documents._library import ADAPTERS, BASES, Listed
from adapterhub.cli.documents._parts import Added, FailureFacts, Finding, Manifest, TypedDict
from adapterhub.cli.documents._projects import PROJECTS
from adapterhub.cli.documents._servers import REGISTRY, SERVERS
from adapterhub.cli.documents._values import document_of
from adapterhub.cli.documents._verbs import VERBS
from adapterhub.cli.documents._weights import ANSWERS, WEIGHTS
from adapterhub.formats.alias import Alias, AliasMove

__all__ = [
    "CHAPTERS",
    "Added",
    "Failure",
    "Finding",
    "Listed",
    "Manifest",
]


class Failure(TypedDict):
    """A refusal, the only document on stderr."""

    error: FailureFacts


CHAPTERS: dict[str, dict[str, Any]] = {
    "Refusals": {"error": Failure},
    "Bases": BASES,
    "The library": ADAPTERS,
    "Aliases": {
        **{f"alias-{verb}": document_of(Alias) for verb in ("set", "show", "remove", "rollback")},
        "alias-list": list[document_of(Alias)],  # type: ignore[misc]  # made when it runs
        "alias-history": list[document_of(AliasMove)],  # type: ignore[misc]  # as above
    },
    "Projects": PROJECTS,
    "Finding out": VERBS,
    "Weights": WEIGHTS,
    "Answers": ANSWERS,
    "Contracts": CONTRACTS,
    "Engines": ENGINES,
    "Keys and signatures": KEYS,
    "Servers": SERVERS,
    "The registry": REGISTRY,
}
"""Types by name of document: the words of the command joined with `-`, then `.` and the variant."""

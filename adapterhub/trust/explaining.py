"""What each finding and exit code means, and what to do about it; the sentences stand in `meanings.toml`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from adapterhub.core import errors
from adapterhub.core.errors import NotFound, shown
from adapterhub.formats.documented import Documented
from adapterhub.formats.documents import near_name, toml_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation(Documented):
    """A code, what it means and what to do."""

    code: Annotated[str, "of a finding, such as `E_SHAPE`, or an exit code, such as `11`"]
    kind: Annotated[str, "`error`, `unknown`, `warning` or `note` for a finding; `exit` for an exit code"]
    text: Annotated[str, "what it means"]
    remedy: Annotated[str, "what to do; empty if nothing has to be done"] = ""
    audit: Annotated[bool, "only `adapt audit` reports it"] = False
    raised: Annotated[tuple[str, ...], "the error classes in Python; empty for a finding"] = ()


@functools.cache
def explanations() -> Mapping[str, Explanation]:
    """Every finding and exit code by its code, findings first."""
    tables = toml_of(Path(__file__).with_name("meanings.toml").read_bytes())
    exits = tables.pop("exit")
    known = [
        Explanation(code=code, kind=severity, **row) for severity, rows in tables.items() for code, row in rows.items()
    ]
    return {one.code: one for one in (*known, *_exits(exits))}


def _exits(rows: Mapping[str, Mapping[str, str]]) -> Iterator[Explanation]:
    for code, row in rows.items():
        classes = [one for one in error_classes() if one.exit_code == int(code)]
        text = row.get("text") or first_line(classes[0])
        raised = tuple(one.__name__ for one in classes)
        yield Explanation(code=code, kind="exit", text=text, remedy=row.get("remedy", ""), raised=raised)


def error_classes() -> list[type[errors.AdapterHubError]]:
    """Return the classes of refusals, in the order of the error tree."""
    root = errors.AdapterHubError
    return [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, root) and c is not root]


def first_line(thing: type[Exception]) -> str:
    """Return the first line of a class's docstring."""
    return (thing.__doc__ or "").strip().split("\n")[0]


def explain(code: str | int) -> Explanation:
    """Explain a code of a finding (in any case), an exit code or an error class, and how to go on.

    Raises:
        NotFound: no finding, exit code or error class has that name.
    """
    name = str(code).strip()
    known = explanations()
    found = known.get(name) or known.get(name.upper())
    found = found or next((one for one in known.values() if name in one.raised), None)
    if found is None:
        near = near_name(name.upper(), known)
        message = f"no finding, exit code or error is called `{shown(name)}`{near}"
        raise NotFound(message, hint="`adapt help codes` lists all codes")
    return found

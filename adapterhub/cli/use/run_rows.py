"""Read the prompts of `adapt run --batch`: one JSON object per line, with every problem reported by its line."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import strict_json
from adapterhub.core.disk.nearest import read_typed
from adapterhub.core.errors import AdapterHubError, Malformed, problem_list, shown
from adapterhub.inference.answering import Choice, choice_from

MAX_FILE_BYTES: Final = 256 << 20
MAX_LINE_BYTES: Final = 4 << 20
PROBLEMS_SHOWN: Final = 20
_KEYS: Final = ("prompt", "adapter", "system", "id")
_FORM: Final = (
    '{"prompt": …, "adapter": "a" or {"a": 0.7, "b": 0.3} or null, "system": …, "id": …}, all but `prompt` optional'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt of a batch. `adapter` is the line's value, `choice` its meaning; `id` is None if missing."""

    line: int
    prompt: str
    adapter: Any
    choice: Choice
    system: str | None
    id: str | int | None


class RowProblems:
    """Collects the problems of all lines of a file, to report them at once."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: list[str] = []

    def check(self, line: int, call: Callable[[], Any]) -> Any:
        """The result of `call`; None if it raises, which is recorded as a problem of the line."""
        try:
            return call()
        except ValueError as error:
            self.found.append(f"line {line}: {error}")
        except AdapterHubError as error:
            self.found.append(f"line {line}: {error.message}")
        return None

    def refuse(self) -> None:
        """Raise if there are problems.

        Raises:
            Malformed: the message lists each line, up to a limit.
        """
        if not self.found:
            return
        title = f"{self.where}: not valid prompts; nothing was answered"
        raise Malformed(
            problem_list(title, self.found, PROBLEMS_SHOWN), hint=f"write one JSON object per line: {_FORM}"
        )


def read_rows(path: Path, default: Choice | None) -> tuple[list[Row], RowProblems]:
    """The rows of a file (`-` is stdin), without empty lines; `default` answers rows that name no adapter.

    Raises:
        NotFound: the file does not exist.
        Malformed: the file is too large or empty, or has lines that are not prompts.
    """
    is_stdin = str(path) == "-"
    where = "stdin" if is_stdin else shown(str(path), 200)
    raw = _read(path, where, is_stdin=is_stdin)
    problems = RowProblems(where)
    rows: list[Row] = []
    seen: dict[str | int, int] = {}
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        row = problems.check(number, lambda line=line, number=number: _row(line, number, default))  # type: ignore[misc] # bound now
        if row is None:
            continue
        rows.append(row)
        if row.id is not None and seen.setdefault(row.id, number) != number:
            problems.found.append(f"line {number}: `id` {shown(row.id, 40)} is already that of line {seen[row.id]}")
    problems.refuse()
    if not rows:
        raise Malformed(f"{where}: contains no prompts", hint=f"write one JSON object per line: {_FORM}")
    return rows, problems


def _read(path: Path, where: str, *, is_stdin: bool) -> bytes:
    if is_stdin:
        raw = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    else:
        raw = read_typed(path, MAX_FILE_BYTES, hint=f"name a file with one JSON object per line: {_FORM}")
    if len(raw) > MAX_FILE_BYTES:
        raise Malformed(f"{where}: larger than {MAX_FILE_BYTES >> 20} MB", hint="split the file")
    return raw


def _row(raw: bytes, line: int, default: Choice | None) -> Row:
    """The row of one line.

    Raises:
        ValueError, UsageProblem: the line is not a valid prompt.
    """
    value = strict_json(raw, limit_bytes=MAX_LINE_BYTES)
    if not isinstance(value, dict):
        raise ValueError(f"is {shown(value, 40)}, expected an object")  # noqa: TRY004 - as every other reason
    unknown = [key for key in value if key not in _KEYS]
    if unknown:
        raise ValueError(f"has `{shown(unknown[0], 40)}`, expected {', '.join(f'`{key}`' for key in _KEYS)}")
    if "prompt" not in value:
        raise ValueError("has no `prompt`")
    if not isinstance(value["prompt"], str) or not value["prompt"]:
        raise ValueError(f"`prompt` is {shown(value['prompt'], 40)}, expected text")
    system, label = value.get("system"), value.get("id")
    if system is not None and not isinstance(system, str):
        raise ValueError(f"`system` is {shown(system, 40)}, expected text")
    if label is not None and (isinstance(label, bool) or not isinstance(label, str | int)):
        raise ValueError(f"`id` is {shown(label, 40)}, expected text or a whole number")
    if "adapter" not in value and default is None:
        raise ValueError("names no `adapter`, and neither does the command (null means the base alone)")
    choice = _choice(value["adapter"]) if "adapter" in value else default
    assert choice is not None  # refused above
    adapter = value["adapter"] if "adapter" in value else _as_written(choice)
    return Row(line=line, prompt=value["prompt"], adapter=adapter, choice=choice, system=system, id=label)


def _choice(adapter: object) -> Choice:
    if adapter is None:
        return {}
    if isinstance(adapter, str):
        return _parsed(choice_from(adapter))
    if not isinstance(adapter, dict) or not adapter:
        raise ValueError(f"`adapter` is {shown(adapter, 40)}, expected a spec, an object of specs and weights, or null")
    for name, weight in adapter.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"`adapter` gives `{shown(name, 40)}` the weight {shown(weight, 40)}, expected a number")
    return _parsed({name: float(weight) for name, weight in adapter.items()})


def _parsed(choice: Choice) -> Choice:
    """`choice`, with each name checked to be a spec or a folder.

    Raises:
        SpecError: a name is neither.
    """
    from adapterhub.core.specs import AdapterSpec, names_folder

    for name in choice:
        if not names_folder(name):
            AdapterSpec.parse(name)
    return choice


def _as_written(choice: Choice) -> Any:
    """`choice` as the value of `adapter` in a row."""
    if list(choice.values()) == [1.0]:
        return next(iter(choice))
    return dict(choice) or None

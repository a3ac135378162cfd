"""Reads and writes `adapters.lock`; see `docs/reference/lock-file.md`.

The text is canonical (order, spaces, quotes), so equal locks are equal files, and a file that does not print as it came
read is damaged. Errors name the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.files import read_plain, write_durably
from adapterhub.core.disk.home import LOCK_FILE, PROJECT_FILE
from adapterhub.core.disk.output_place import output_place
from adapterhub.core.errors import Malformed, NotAllowed, NotFound, problem_list, shown
from adapterhub.core.specs import AdapterName
from adapterhub.formats.toml_lines import both_sides
from adapterhub.projects.lock._entries import LockReader, Section
from adapterhub.projects.lock._lines import Value, parse_value, text_of, value_of
from adapterhub.projects.lock._usual import usual_adapters
from adapterhub.projects.values import (
    Lock,
    LockedAdapter,
    LockedBase,
    LockedFile,
    LockedMerge,
    LockedSource,
    Policy,
    Project,
)
from adapterhub.weights.recipes.toml import Step, step_table

SCHEMA: Final = "adapterhub-lock/1"
LIMIT_BYTES: Final = 16 << 20
MOST_ENTRIES: Final = 10_000
"""Reading takes 0.3 ms an entry where something is wrong with the file."""
PROBLEMS_SHOWN: Final = 20

_HEAD: Final = f"# Written by `adapt lock` from {PROJECT_FILE}, which is the file to edit.\n"
_HINT: Final = f"restore `{LOCK_FILE}` from version control, or delete it and run `adapt lock`"


# ---------------------------------------------------------------- files
def read_lock(folder: Path) -> Lock:
    """The lock of the project in `folder`.

    Raises:
        NotFound: there is no lock file.
        Malformed: it is damaged; with the line.
    """
    path = folder / LOCK_FILE
    try:
        raw = read_plain(path, LIMIT_BYTES)
    except FileNotFoundError:
        raise NotFound(f"`{shown(str(folder), 200)}` has no `{LOCK_FILE}`", hint="`adapt lock` writes it") from None
    except OSError as error:
        raise NotAllowed(f"`{shown(str(path), 200)}` cannot be read: {error.strerror}") from None
    if len(raw) > LIMIT_BYTES:
        raise _damaged(str(path), [f"larger than the limit of {LIMIT_BYTES:,} bytes for a lock file"])
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _damaged(str(path), [f"line {line}: not UTF-8 at byte {error.start}"]) from None
    return parse_lock(text.replace("\r\n", "\n"), str(path))  # version control may check it out so on Windows


def previous_lock(project: Project) -> Lock | None:
    """The lock of the project; None if there is none yet.

    Raises:
        Malformed: it is damaged.
    """
    try:
        return read_lock(project.folder)
    except NotFound:
        return None


def write_lock(folder: Path, lock: Lock) -> bool:
    """Write the lock of the project in `folder` atomically. Returns whether the file changed.

    Raises:
        NotAllowed: it cannot be written, or would be too large to be read; the old file stays.
    """
    path, data = folder / LOCK_FILE, lock_text(lock).encode()
    if len(lock.entries) > MOST_ENTRIES or len(data) > LIMIT_BYTES:
        raise NotAllowed(
            f"the lock would have {len(lock.entries):,} entries and {len(data):,} bytes; `{LOCK_FILE}` has at most "
            f"{MOST_ENTRIES:,} and {LIMIT_BYTES:,}. It is unchanged",
            hint="make several projects of it",
        )
    try:
        if read_plain(path, 2 * len(data)).replace(b"\r\n", b"\n") == data:
            return False
    except OSError:
        pass  # none yet, or none that can be read
    try:
        write_durably(output_place(path), data)
    except OSError as error:
        raise NotAllowed(f"`{shown(str(path), 200)}` cannot be written: {error.strerror}. It is unchanged") from error
    return True


# ---------------------------------------------------------------- printing
def lock_text(lock: Lock) -> str:
    """The canonical text of a lock; the order of its entries does not matter."""
    return _text(lock, {})


def _text(lock: Lock, printed: Mapping[AdapterName, str]) -> str:
    """As `lock_text`, but the tables in `printed`, by key, word for word."""
    parts = [_HEAD, f"schema = {text_of(SCHEMA)}\n"]
    if lock.base is not None:
        parts.append("\n[base]\n" + _pairs({one.name: getattr(lock.base, one.name) for one in fields(LockedBase)}))
    policy = policy_table(lock.policy)
    if policy:
        parts.append("\n[policy]\n" + _pairs(policy))
    parts += (printed.get(e.key) or _adapter(e) for e in sorted(lock.adapters, key=lambda entry: entry.key))
    parts += (_merge(entry) for entry in sorted(lock.merges, key=lambda entry: entry.key))
    return "".join(parts)


def policy_table(policy: Policy) -> dict[str, object]:
    """A policy as a table, without unset keys."""
    told = {one.name.replace("_", "-"): getattr(policy, one.name) for one in fields(Policy)}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in told.items()
        if value not in (None, ())
    }


def _adapter(entry: LockedAdapter) -> str:
    names = ("key", "wanted", "name", "version", "digest", "base", "rank", "contract", "group")
    return (
        "\n[[adapter]]\n" + _pairs({name: getattr(entry, name) for name in names}) + _bytes(entry.source, entry.files)
    )


def _merge(entry: LockedMerge) -> str:
    names = ("key", "version", "digest", "base", "rank", "group", "task", "license")
    told = {name: getattr(entry, name) for name in names} | {"description": entry.description or None}
    recipe = _recipe(entry.step)
    inputs = recipe.pop("inputs")
    return "".join(
        [
            "\n[[merge]]\n",
            _pairs(told),
            _bytes(entry.source, entry.files),
            "\n[merge.recipe]\n",
            _pairs(recipe),
            _lines("inputs", inputs),
        ]
    )


def _bytes(source: LockedSource, files: Iterable[LockedFile]) -> str:
    listed = [
        f"  {{ path = {text_of(file.path)}, sha256 = {text_of(file.sha256)}, size = {file.size_bytes} }},\n"
        for file in sorted(files, key=lambda file: file.path)
    ]
    return f"source = {_source(source)}\nfiles = [\n{''.join(listed)}]\n"


def _source(source: LockedSource) -> str:
    return value_of(source.table)


def _recipe(step: Step) -> dict[str, Any]:
    return _ordered(step_table(step))


def _ordered(table: dict[str, Any]) -> dict[str, Any]:
    """The same table with the options of every level in the order of their names."""
    if "options" in table:
        table["options"] = dict(sorted(table["options"].items()))
    table["inputs"] = [
        item | {"merge": _ordered(item["merge"])} if "merge" in item else item for item in table["inputs"]
    ]
    return table


def _pairs(values: Mapping[str, object]) -> str:
    return "".join(f"{key} = {value_of(value)}\n" for key, value in values.items() if value is not None)


def _lines(key: str, items: Iterable[object]) -> str:
    return f"{key} = [\n{''.join(f'  {value_of(item)},{chr(10)}' for item in items)}]\n"


# ---------------------------------------------------------------- reading
def parse_lock(text: str, where: str = LOCK_FILE) -> Lock:
    """Parse the text of a lock; `where` names the file in errors.

    Raises:
        Malformed: it is not what `lock_text` prints; with the lines.
    """
    if told := both_sides(text):
        hint = f"take one side (`git checkout --ours {LOCK_FILE}`), then run `adapt lock`"
        raise _damaged(where, [told], hint)
    count = text.count("\n[[")
    if count > MOST_ENTRIES:
        raise _damaged(where, [f"has {count:,} entries, at most {MOST_ENTRIES:,} are read"])
    return _quickly(text) or _closely(text, where)


def _quickly(text: str) -> Lock | None:
    """The lock, its usual adapters each in one match; None if a close look must say what is wrong."""
    usual, rest = usual_adapters(text, _source)
    try:
        other = _closely(rest, "") if usual else None
    except Malformed:
        return None
    if other is None:
        return None
    adapters = [*(entry for entry, _ in usual.values()), *other.adapters]
    lock = replace(other, adapters=tuple(sorted(adapters, key=lambda entry: entry.key)))
    is_double = len(lock.entries) < len(lock.adapters) + len(lock.merges)
    return None if is_double or _text(lock, {key: table for key, (_, table) in usual.items()}) != text else lock


def _closely(text: str, where: str) -> Lock:
    """The lock, each value with its line."""
    try:
        sections = list(_sections(text))
    except ValueError as error:
        raise _damaged(where, [str(error)]) from None
    reader = LockReader()
    schema = sections[0].values.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, str) and schema.startswith("adapterhub-lock/")
        hint = "a newer adapterhub wrote it: `pip install -U adapterhub`" if newer else _HINT
        found = f"expected `{SCHEMA}`, got {f'`{shown(schema)}`' if isinstance(schema, str) else 'nothing'}"
        raise _damaged(where, [f"line {sections[0].line_of('schema')}: schema: {found}"], hint)
    lock = reader.lock(sections)
    if reader.problems or lock is None:
        raise _damaged(where, reader.problems)
    printed = lock_text(lock)
    if printed != text:
        raise _damaged(where, [_first_difference(text, printed)])
    return lock


def _sections(text: str) -> Iterator[Section]:
    """The tables of the text, each value with its line.

    Raises:
        ValueError: a line that cannot be read.
    """
    section = Section("", 1)
    items: list[Any] | None = None  # of the list that is open
    lines: list[int] = []  # of the last key and its items
    for number, line in enumerate(text.split("\n"), 1):
        if items is not None:
            if line == "]":
                items = None
            else:
                items.append(_value(line.strip().removesuffix(","), number))
                lines.append(number)
        elif not line or line.startswith("#"):
            continue
        elif line.startswith("["):
            yield section
            section = Section(line.strip(), number)
        else:
            key, equals, value = line.partition(" = ")
            if not equals:
                raise ValueError(f"line {number}: expected `key = value`, got `{shown(line)}`")
            if key in section.values:
                raise ValueError(f"line {number}: key `{shown(key)}` is given twice")
            items = [] if value == "[" else None
            section.values[key] = _value(value, number) if items is None else items
            section.lines[key] = lines = [number]
    if items is not None:
        raise ValueError(f"line {number}: ends inside a list")
    yield section


def _value(text: str, number: int) -> Value:
    try:
        return parse_value(text)
    except ValueError as error:
        raise ValueError(f"line {number}: {shown(str(error), 200)}") from None


def _first_difference(text: str, printed: str) -> str:
    found, expected = text.split("\n"), printed.split("\n")
    for number, (one, other) in enumerate(zip(found, expected, strict=False), 1):
        if one != other:
            return f"line {number}: expected `{shown(other, 100)}`, got `{shown(one, 100)}`"
    return f"line {min(len(found), len(expected)) + 1}: the file is cut short or too long"


def _damaged(where: str, problems: list[str], hint: str = _HINT) -> Malformed:
    text = problem_list(f"`{shown(where, 200)}`: not what `adapt lock` wrote", problems, PROBLEMS_SHOWN)
    return Malformed(f"{text}\nNothing was changed", hint=hint)

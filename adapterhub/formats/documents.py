"""The strict reader for JSON and TOML documents: takes checked values out and gathers every problem with its place.

A format derives its own reader from `DocumentReader` and names its fields there.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import date, datetime
from types import MappingProxyType
from typing import Any, ClassVar, Final

from adapterhub.core.digests import Json
from adapterhub.core.errors import PROBLEMS_SHOWN, AdapterHubError, SpecError, shown

MAX_TEXT_CHARACTERS: Final = 4096
MAX_DOTS: Final = 500
"""In one line of TOML. The TOML parsers of today take a minute for a key of fifty thousand parts."""

JSON_KINDS: Final[Mapping[type, str]] = MappingProxyType(
    {str: "string", int: "integer", float: "number", dict: "object", list: "list", bool: "boolean", type(None): "null"}
)
TOML_KINDS: Final[Mapping[type, str]] = MappingProxyType(
    {
        str: "text", int: "a whole number", float: "a number", dict: "a table", list: "a list", bool: "true or false",
        date: "a date", datetime: "a time",
    }
)  # fmt: skip
_LARGEST_SHOWN: Final = 1 << 64


def toml_of(raw: bytes) -> dict[str, Any]:
    """Parse TOML from an untrusted file, within bounds that are checked before the parser runs.

    Raises:
        ValueError: the bytes are not TOML; the message names the fault.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # of Python 3.10 only
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    dotted = next((number for number, line in enumerate(text.split("\n"), 1) if line.count(".") > MAX_DOTS), None)
    if dotted is not None:
        raise ValueError(f"line {dotted}: more than {MAX_DOTS} dots, which no recipe or project needs")
    try:
        return dict(tomllib.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:  # tomllib's own class derives from it; a number with too many digits raises it plainly
        raise ValueError(f"not TOML: {shown(str(error), 200)}") from None


def near_name(name: str, known: Collection[str]) -> str:
    """Return the nearest known name as the end of a refusal, `; did you mean …?`; empty when none is near."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def object_at(value: Json, path: str) -> dict[str, Any]:
    """`value`, checked to be an object.

    Raises:
        ValueError: it is not; the message names `path`.
    """
    if isinstance(value, dict):
        return value
    raise ValueError(f"{path}: expected object, got {JSON_KINDS.get(type(value), type(value).__name__)}")


class DocumentReader:
    """Base of the readers. `problems` holds `(path, text)` of each problem; reading goes on after one.

    A `path` argument is the prefix of a key's path: empty at the top; otherwise it ends with a dot.
    """

    kinds: ClassVar[Mapping[type, str]] = TOML_KINDS
    null_is_absent: ClassVar[bool] = True
    most_characters: ClassVar[int] = MAX_TEXT_CHARACTERS

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []

    @property
    def lines(self) -> list[str]:
        """Each problem as one line, `path: text`."""
        return [f"{shown(path, 200)}: {text}" for path, text in self.problems]

    def say(self, path: str, text: str) -> None:
        """Record one problem."""
        self.problems.append((path, text))

    def wrong(self, path: str, expected: str, item: object) -> None:
        """Record that the value at `path` is of another kind than expected."""
        got = self.kinds.get(type(item), type(item).__name__)
        is_short = isinstance(item, str | float) or (type(item) is int and abs(item) < _LARGEST_SHOWN)
        self.say(path, f"expected {expected}, got {got}" + (f" `{shown(item)}`" if is_short else ""))

    def known(self, holder: Mapping[str, Any], keys: Collection[str], path: str = "") -> None:
        """Record every key that the format does not have, with the nearest one that it has."""
        for key in holder:
            if key not in keys:
                self.say(f"{path}{key}", "no such key" + (self.near(key, keys) or f"; there are {', '.join(keys)}"))

    def near(self, name: str, names: Collection[str]) -> str:
        """As `near_name` while few problems are known: a search costs all names."""
        return near_name(name, names) if len(self.problems) < PROBLEMS_SHOWN else ""

    def take(self, holder: Mapping[str, Any], key: str, kind: type, path: str = "", *, required: bool = False) -> Json:
        """Return `holder[key]` if it has the type `kind`, otherwise None. A `float` may be whole and must be finite."""
        item = holder.get(key)
        if item is None and (key not in holder or self.null_is_absent):
            if required:
                self.say(f"{path}{key}", f"missing, expected {self._expected(kind)}")
            return None
        if kind is float:
            try:
                number = float(item) if type(item) in (int, float) else math.nan  # type: ignore[arg-type]  # a number
            except OverflowError:
                number = math.nan
            if math.isfinite(number):
                return number
        elif type(item) is kind:
            return item
        self.wrong(f"{path}{key}", self._expected(kind), item)
        return None

    def _expected(self, kind: type) -> str:
        name = self.kinds[kind]
        return name.replace("number", "finite number") if kind is float else name

    def number(self, holder: Mapping[str, Any], key: str, path: str = "") -> float:
        """Return a finite number that must be there; 0 after a problem. It keeps the sign of -0."""
        number = self.take(holder, key, float, path, required=True)
        return 0.0 if number is None else float(number)

    def text(self, holder: Mapping[str, Any], key: str, path: str = "", *, required: bool = False) -> str | None:
        """Return a text of bounded length that UTF-8 can hold, otherwise None."""
        item = self.take(holder, key, str, path, required=required)
        if item is None:
            return None
        if len(item) > self.most_characters:
            self.say(f"{path}{key}", f"at most {self.most_characters} characters, got {len(item)}")
        elif not item.isascii() and any("\ud800" <= c <= "\udfff" for c in item):
            self.say(f"{path}{key}", "holds half a character (a surrogate)")
        else:
            return str(item)
        return None

    def parsed(self, value: Json, parse: Callable[[Any], Any], *path: str) -> Json:
        """`parse(value)`; None for a value of None, and for one that `parse` refuses. `path` may come in parts."""
        if value is None:
            return None
        try:
            return parse(value)
        except AdapterHubError as error:
            reason = f"`{shown(error.text)}`: {error.reason}" if isinstance(error, SpecError) else error.message
            self.say("".join(path), reason + (f"; {error.hint}" if error.hint else ""))
        except ValueError as error:
            self.say("".join(path), str(error))
        return None

    def checked(
        self,
        holder: Mapping[str, Any],
        key: str,
        parse: Callable[[str], Json],
        path: str = "",
        *,
        required: bool = False,
    ) -> Json:
        """Return the text of `key` as `parse` returns it, or None."""
        return self.parsed(self.text(holder, key, path, required=required), parse, path, key)

    def texts(
        self,
        holder: Mapping[str, Any],
        key: str,
        path: str = "",
        parse: Callable[[str], str] | None = None,
        *,
        required: bool = False,
    ) -> tuple[str, ...]:
        """Return a list of texts, each as `parse` gives it back; items with a problem are left out."""
        found: list[str] = []
        for place, item in self._items(holder, key, path, required=required):
            if type(item) is not str:
                self.wrong(place, self.kinds[str], item)
            elif (text := self.parsed(item, parse, place) if parse else item) is not None:
                found.append(text)
        return tuple(found)

    def tables(
        self, holder: Mapping[str, Any], key: str, path: str = "", *, most: int = sys.maxsize, required: bool = False
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the tables of a list, each with the prefix of its keys' paths, as in `files[2].`.

        None of too long a list.
        """
        for place, item in self._items(holder, key, path, most=most, required=required):
            if isinstance(item, dict):
                yield f"{place}.", item
            else:
                self.wrong(place, self.kinds[dict], item)

    def _items(
        self, holder: Mapping[str, Any], key: str, path: str, *, most: int = sys.maxsize, required: bool
    ) -> Iterator[tuple[str, Any]]:
        items = self.take(holder, key, list, path, required=required) or []
        if len(items) > most:
            return self.say(f"{path}{key}", f"{len(items)} entries, expected at most {most}")
        for index, item in enumerate(items):
            if len(self.problems) > PROBLEMS_SHOWN:  # a list of a million wrong items costs no million messages
                return None
            yield f"{path}{key}[{index}]", item
        return None

    def rank(self, holder: Mapping[str, Any], key: str, path: str = "") -> int | None:
        """Return a rank of at least 1, or None."""
        rank: int | None = self.take(holder, key, int, path)
        if rank is None or rank >= 1:
            return rank
        self.say(f"{path}{key}", f"a rank is at least 1, got {shown(rank)}")
        return None


_HEADER: Final = re.compile(r"\s*\[\[?\s*([^\[\]#]+?)\s*\]\]?\s*(#.*)?")
_KEY: Final = re.compile(r"""\s*([A-Za-z0-9_.-]+|"[^"\\]*"|'[^']*')\s*=""")
_MARKS: Final = ("<<<<<<<", "=======", ">>>>>>>")


def both_sides(text: str) -> str | None:
    """Return the problem of a text with both sides of a merge in version control, with its line.

    None if it has none.
    """
    if not any(mark in text for mark in _MARKS):
        return None
    number = next((number for number, line in enumerate(text.split("\n"), 1) if line.startswith(_MARKS)), None)
    return None if number is None else f"line {number}: holds both sides of a merge in version control"


def line_of(path: str, lines: Mapping[str, int]) -> int | None:
    """Return the line of a key, or of the nearest enclosing table."""
    around = re.split(r"[.\[]", path)
    held = (lines.get(".".join(around[:count])) for count in range(len(around), 0, -1))
    return next((line for line in held if line is not None), None)


def lines_of(text: str) -> dict[str, int]:
    """Return the first line of each key, by its path, and of what stands on a line of its own in a list.

    For error messages only: multi-line texts can mislead it. The key that `line_of` takes as `inputs[0].rank` is
    `inputs.0].rank` here.
    """
    found: dict[str, int] = {}
    table, listed, item = "", "", 0
    counts: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        header = _HEADER.fullmatch(line)
        key = None if header else _KEY.match(line)
        if header:
            listed, table = "", re.sub(r"\s*\.\s*", ".", header[1].replace('"', "").replace("'", ""))
            found.setdefault(table, number)
            first, dot, rest = table.partition(".")
            if line.lstrip().startswith("[["):
                counts[table] = counts.get(table, -1) + 1
                table = f"{table}.{counts[table]}]"
            elif first in counts:
                table = f"{first}.{counts[first]}]{dot}{rest}"
            found.setdefault(table, number)
        elif key and not listed:
            name = key[1].strip("\"'")
            name = f"{table}.{name}" if table else name
            found.setdefault(name, number)
            listed, item = (name, 0) if line.rstrip().endswith("[") else ("", 0)
        elif listed and line.strip() == "]":
            listed = ""
        elif listed and line.strip():
            found.setdefault(f"{listed}.{item}]", number)
            item += 1
    return found

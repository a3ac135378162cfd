"""The subset of TOML that lock files use, with each value on one line.

    text       "…", with the escapes of TOML
    number     16   0.7   1e-05
    list       [ … ]     inside a line
    table      { a = …, b = … }

Any TOML reader can read it. This one knows the line of every value, and reads a file of a thousand adapters quickly.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

_ESCAPES: Final = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_UNESCAPES: Final = {written[1]: character for character, written in _ESCAPES.items()}
_TOKEN: Final = re.compile(
    r"""\s*(?:
    "(?P<text>(?:[^"\\]|\\.)*)"
    |(?P<number>[+-]?[0-9][0-9A-Za-z+.-]*)
    |(?P<word>[A-Za-z_][A-Za-z0-9_-]*)
    |(?P<mark>[\[\]{},=])
    )""",
    re.VERBOSE,
)
_ESCAPED: Final = re.compile(r"\\(?:u([0-9A-F]{4})|U([0-9A-F]{8})|(.))")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]+)?")
_FILE: Final = re.compile(
    r'\{ path = "([A-Za-z0-9._-]+)", sha256 = "(sha256:[0-9a-f]{64})", size = (0|[1-9][0-9]{0,17}) \}'
)
_DEEPEST: Final = 40
_SURROGATES: Final = range(0xD800, 0xE000)
_LONGEST_NUMBER: Final = 40


Value = Any
"""Any value of a lock file."""


# ---------------------------------------------------------------- printing
def text_of(text: str) -> str:
    """`text` as a TOML string; unprintable characters are escaped by number."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else _numbered(c)) for c in text) + '"'


def _numbered(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04X}" if code < 1 << 16 else f"\\U{code:08X}"


def value_of(value: object) -> str:
    """A value on one line."""
    if isinstance(value, str):
        return text_of(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        inside = ", ".join(
            f"{key if _BARE.fullmatch(key) else text_of(key)} = {value_of(v)}" for key, v in value.items()
        )
        return f"{{ {inside} }}" if inside else "{}"
    assert isinstance(value, Sequence)
    inside = ", ".join(value_of(item) for item in value)
    return f"[ {inside} ]" if inside else "[]"


# ---------------------------------------------------------------- reading
def parse_value(text: str) -> Value:
    """The single value in `text`.

    Raises:
        ValueError: there is no value, or something follows it.
    """
    # fast path: most values of a lock are one of these two
    if len(text) > 1 and text[0] == text[-1] == '"' and "\\" not in text and '"' not in text[1:-1]:
        return text[1:-1]
    if file := _FILE.fullmatch(text):
        return {"path": file[1], "sha256": file[2], "size": int(file[3])}
    tokens = _Tokens(text)
    value = tokens.value(0)
    tokens.end()
    return value


class _Tokens:
    def __init__(self, text: str) -> None:
        self._text = text.rstrip()
        self._at = 0

    def next(self) -> re.Match[str]:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            rest = self._text[self._at :].strip()
            raise ValueError(f"cannot be read from `{rest[:40]}` on" if rest else "ends too early")
        self._at = found.end()
        return found

    def end(self) -> None:
        if self._at != len(self._text):
            raise ValueError(f"nothing may follow, got `{self._text[self._at :].strip()[:40]}`")

    def value(self, depth: int) -> Value:
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        token = self.next()
        if token["text"] is not None:
            return _unescaped(token["text"])
        if token["number"] is not None:
            return _number(token["number"])
        if token["word"] in ("true", "false"):
            return token["word"] == "true"
        if token["mark"] == "[":
            return self.list(depth)
        if token["mark"] == "{":
            return self.table(depth)
        raise ValueError(f"expected a value, got `{token[0].strip()[:40]}`")

    def list(self, depth: int) -> list[Any]:
        found: list[Any] = []
        while not self.closed("]", first=not found):
            found.append(self.value(depth + 1))
        return found

    def table(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self.closed("}", first=not found):
            token = self.next()
            key = token["word"] or token["number"] or (_unescaped(token["text"]) if token["text"] is not None else None)
            if key is None or self.next()["mark"] != "=":
                raise ValueError("expected `key = value` in a table")
            if key in found:
                raise ValueError(f"key `{key[:40]}` is given twice")
            found[key] = self.value(depth + 1)
        return found

    def closed(self, mark: str, *, first: bool) -> bool:
        """Whether the list or table ends here; consumes the comma before the next item."""
        start = self._at
        found = self.next()["mark"]
        if found == mark:
            return True
        if first:
            self._at = start
        elif found != ",":
            raise ValueError(f"expected `,` or `{mark}`")
        return False


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text

    def character(found: re.Match[str]) -> str:
        number = found[1] or found[2]
        if number is None:
            if found[3] not in _UNESCAPES:
                raise ValueError(f"`\\{found[3]}` is not an escape of TOML")
            return _UNESCAPES[found[3]]
        code = int(number, 16)
        if code > sys.maxunicode or code in _SURROGATES:
            raise ValueError(f"`{found[0]}` is no character")
        return chr(code)

    return _ESCAPED.sub(character, text)


def _number(text: str) -> float:
    if len(text) <= _LONGEST_NUMBER:
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
            return number
    raise ValueError(f"`{text[:40]}` is not a number")

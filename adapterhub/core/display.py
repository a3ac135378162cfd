"""How values show themselves: sizes in decimal units, tables on a terminal of any width, HTML tables in notebooks."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, Final, Generic, TypeVar, overload

from adapterhub.core.errors import AdapterNotFound, NotFound

T = TypeVar("T")

_KILO = 1000
_GAP: Final = "  "
_NARROW: Final = 24
"""A column of text may wrap its words from this width on."""


def size_text(size_bytes: int) -> str:
    """Return a size such as `1.8 MB`, in decimal units."""
    if size_bytes < _KILO:
        return f"{size_bytes} B"
    size = size_bytes / _KILO
    for unit in ("kB", "MB", "GB"):
        if size < _KILO:
            return f"{size:.1f} {unit}"
        size /= _KILO
    return f"{size:.1f} TB"


def counted(number: int, one: str, several: str = "") -> str:
    """`1 adapter`, `2 adapters`; `several` is the plural where it is not `one` with an s."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return the first `most` names and how many follow: `a, b and 3 more`."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """Return an HTML table with every text escaped; None is an empty cell. Without `columns` there is no header."""
    from html import escape  # its table of names costs a millisecond, which `adapt --help` need not pay

    def cell(value: object) -> str:
        return f"<td>{'' if value is None else escape(str(value))}</td>"

    head = f"<thead><tr>{''.join(f'<th>{escape(column)}</th>' for column in columns)}</tr></thead>" if columns else ""
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}{head}<tbody>{body}</tbody></table>"


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Container[str] = (), width: int
) -> tuple[list[str], list[str]]:
    """Return the lines of the header, and those of a rule and the rows, at most `width` wide.

    A longer word stays whole.

    Columns of several words wrap them where that makes room. Columns that still find none stand on further lines of
    each row, indented.
    """
    texts = [[column, *(row[at] for row in rows)] for at, column in enumerate(columns)]
    widest = [max(map(_cells, column)) for column in texts]
    longest = [max(_cells(word) for text in column for word in text.split(" ")) for column in texts]
    least = [min(wide, max(_NARROW, word)) for wide, word in zip(widest, longest, strict=True)]
    if sum(least) + len(_GAP) * (len(least) - 1) <= width:
        widths, groups = _shrunk(widest, least, width), [range(len(columns))]
    else:
        widths = [min(wide, max(width - len(_GAP), word)) for wide, word in zip(widest, longest, strict=True)]
        groups = _groups(widths, width)
    head, *body = (list(_row(row, groups, widths, columns, right)) for row in (columns, *rows))
    lines = [line for row in body for line in row]
    return head, ["─" * min(width, max(map(_cells, [*head, *lines]))), *lines]


def _shrunk(widest: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """Return the widths of columns on one line: the widest ones give way, none below its least."""
    widths = list(widest)
    while sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        slack = [wide - low and wide for wide, low in zip(widths, least, strict=True)]
        widths[slack.index(max(slack))] -= 1
    return widths


def _groups(widths: Sequence[int], width: int) -> list[range]:
    """Return the columns of each line, as many as it holds."""
    groups, start, used = [], 0, widths[0]
    for at, wide in enumerate(widths[1:], 1):
        used += len(_GAP) + wide
        if used > width:
            groups.append(range(start, at))
            start, used = at, len(_GAP) + wide
    return [*groups, range(start, len(widths))]


def _row(
    cells: Sequence[str], groups: Sequence[range], widths: Sequence[int], columns: Sequence[str], right: Container[str]
) -> Iterator[str]:
    for number, group in enumerate(groups):
        wrapped = [_wrapped(cells[at], widths[at]) for at in group]
        for parts in zip_longest(*wrapped, fillvalue=""):
            padded = [
                f"{' ' * (widths[at] - _cells(part))}{part}"
                if columns[at] in right
                else f"{part}{' ' * (widths[at] - _cells(part))}"
                for at, part in zip(group, parts, strict=True)
            ]
            line = (_GAP * (number > 0) + _GAP.join(padded)).rstrip()
            if line or number == 0:
                yield line


def _wrapped(text: str, width: int) -> list[str]:
    """Return the text in lines of whole words, each at most `width` wide where its words are."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and _cells(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _cells(text: str) -> int:
    """Return how many cells of a terminal the text takes: two for a wide character, none for a mark on another."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def count_text(count: int) -> str:
    """Return a count such as `134.5M`, as parameter counts are written."""
    for limit, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return str(count)


class Listing(Sequence[T], Generic[T]):
    """A sequence that shows itself as a table; each item is read when it is taken.

    A loop passes over an item that was removed since; to take that one raises `AdapterNotFound`.
    """

    def __init__(
        self,
        what: str,
        columns: Sequence[str],
        rows: Sequence[tuple[Any, Sequence[object]]],
        read: Callable[[Any], T],
        document: Callable[[Any], Any] | None = None,
    ) -> None:
        """`rows` pairs a key with the cells of its row; `read` makes the item of a key, `document` what is printed."""
        self._what, self.columns, self._rows, self._read, self._document = what, columns, rows, read, document

    @property
    def cells(self) -> Iterator[Sequence[object]]:
        """The table that it shows, below `columns`, line by line."""
        return (cells for _, cells in self._rows)

    def documents(self) -> Iterator[Any]:
        """Return the documents of its rows, one by one."""
        describe = self._document
        return ((key if describe is None else describe(key)).to_json() for key, _ in self._rows)

    def to_json(self) -> list[Any]:
        """Return the same at once."""
        return [*self.documents()]

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Listing[T]: ...
    def __getitem__(self, at: int | slice) -> T | Listing[T]:
        if isinstance(at, slice):
            return Listing(self._what, self.columns, self._rows[at], self._read, self._document)
        return self._read(self._rows[at][0])

    def __iter__(self) -> Iterator[T]:
        for key, _ in self._rows:
            try:
                item = self._read(key)
            except NotFound:
                continue
            yield item

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        names = ", ".join(str(cells[0]) for _, cells in self._rows[:3])
        more = f", {names}{', …' if len(self) > 3 else ''}" if names else ""
        return f"<{len(self)} {self._what}{'s' * (len(self) != 1)}{more.replace(', ', ': ', 1)}>"

    def _repr_html_(self) -> str:
        return html_table(self.columns, self.cells)


class InPages(Sequence[tuple[Any, Sequence[object]]]):
    """The rows of these numbers, each with its cells; `read` gives those that are still there, when they are taken.

    A loop reads a page at a time, and passes over what was removed since.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        read: Callable[[Sequence[int]], Iterable[Any]],
        cells: Callable[[Any], Sequence[object]],
        page: int = 1000,
    ) -> None:
        self._numbers, self._read, self._cells, self._page = numbers, read, cells, page

    def __reduce__(self) -> tuple[object, ...]:
        """Go to another process as what is here now."""
        return list, ([*self],)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> tuple[Any, Sequence[object]]: ...
    @overload
    def __getitem__(self, at: slice) -> InPages: ...
    def __getitem__(self, at: int | slice) -> tuple[Any, Sequence[object]] | InPages:
        if isinstance(at, slice):
            return InPages(self._numbers[at], self._read, self._cells, self._page)
        for row in self._read([self._numbers[at]]):
            return row, self._cells(row)
        raise AdapterNotFound("it was removed since it was listed", hint="list again")

    def __iter__(self) -> Iterator[tuple[Any, Sequence[object]]]:
        for start in range(0, len(self._numbers), self._page):
            for row in self._read(self._numbers[start : start + self._page]):
                yield row, self._cells(row)

"""How values show themselves: sizes in decimal units, tables on a terminal of any width, HTML tables in notebooks."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence


_KILO = 1000
_GAP: Final = "  "
_NARROW: Final = 24
"""A column of text may wrap its words from this width on."""


def size_text(size_bytes: int) -> str:
    """A size such as `1.8 MB`, in decimal units."""
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
    """The first `most` names and how many follow: `a, b and 3 more`."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """An HTML table with every text escaped; None is an empty cell. Without `columns` there is no header."""
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
    """The lines of the header, and those of a rule and the rows, at most `width` wide; a longer word stays whole.

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
    """The widths of columns on one line: the widest ones give way, none below its least."""
    widths = list(widest)
    while sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        slack = [wide - low and wide for wide, low in zip(widths, least, strict=True)]
        widths[slack.index(max(slack))] -= 1
    return widths


def _groups(widths: Sequence[int], width: int) -> list[range]:
    """The columns of each line, as many as it holds."""
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
    """The text in lines of whole words, each at most `width` wide where its words are."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and _cells(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _cells(text: str) -> int:
    """How many cells of a terminal the text takes: two for a wide character, none for a mark on another."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def count_text(count: int) -> str:
    """A count such as `134.5M`, as parameter counts are written."""
    for limit, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return str(count)

"""How values show themselves: sizes in decimal units, and small HTML tables in notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


_KILO = 1000


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


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """An HTML table with every text escaped; None is an empty cell. Without `columns` there is no header."""
    from html import escape  # its table of names costs a millisecond, which `adapt --help` need not pay

    def cell(value: object) -> str:
        return f"<td>{'' if value is None else escape(str(value))}</td>"

    head = f"<thead><tr>{''.join(f'<th>{escape(column)}</th>' for column in columns)}</tr></thead>" if columns else ""
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}{head}<tbody>{body}</tbody></table>"

"""The one sink for everything a command says: results to stdout, all else to stderr.

On a terminal: rich tables and progress bars. Elsewhere: tab-separated text and no bars. With `--json`: one JSON
document on stdout. `NO_COLOR` is obeyed (rich does), and colour never carries meaning alone.
"""

from __future__ import annotations

import contextlib
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.core import display
from adapterhub.core.errors import AdapterHubError, shown

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from adapterhub.core.digests import Progress


size_text = display.size_text


@dataclass(frozen=True, slots=True)
class Output:
    """How this run speaks."""

    as_json: bool = False
    quiet: bool = False

    def result(self, document: Any, text: Callable[[], None]) -> None:  # noqa: ANN401 - any JSON value
        """The result: `document` (or what it returns) under `--json`, otherwise whatever `text` prints to stdout."""
        if self.as_json:
            sys.stdout.write(json_text(document() if callable(document) else document, indent=1) + "\n")
        else:
            text()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> None:
        """A table on a terminal, tab-separated with a header elsewhere; columns in `right` are aligned right."""
        cells = [["" if cell is None else shown(str(cell), 400) for cell in row] for row in rows]
        if not sys.stdout.isatty():
            lines = ["\t".join(columns), *("\t".join(row) for row in cells)]
            sys.stdout.write("\n".join(lines) + "\n")
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)

    def fields(self, pairs: Sequence[tuple[str, object]]) -> None:
        """`name  value` lines; names are padded on a terminal, tab-separated elsewhere. None is left out."""
        kept = [(shown(name), shown(str(value), 400)) for name, value in pairs if value is not None]
        width = max((len(name) for name, _ in kept), default=0)
        for name, value in kept:
            self.line(f"{name:<{width}}  {value}" if sys.stdout.isatty() else f"{name}\t{value}")

    def line(self, text: str = "") -> None:
        """One line of the result."""
        sys.stdout.write(text + "\n")

    def piece(self, text: str) -> None:
        """A piece of the result, shown at once; `printable` on a terminal."""
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Something worth knowing beside the result; silent under `--quiet`."""
        if not self.quiet:
            sys.stdout.flush()  # a log of both streams keeps their order
            sys.stderr.write(escaped(text) + "\n")

    def warn(self, text: str) -> None:
        """A warning; also under `--quiet`."""
        sys.stdout.flush()
        sys.stderr.write(f"warning: {escaped(text)}\n")

    def hint(self, text: str) -> None:
        """A command that would help."""
        if text:
            self.note(f"hint: {text}")

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None, *, unit: str = "bytes") -> Iterator[Progress]:
        """A bar on stderr while the block runs (terminal only, not under `--quiet`); call it with what was done."""
        with self._bar(what, total, unit) as bar:
            yield (lambda done: bar[0].advance(bar[1], done)) if bar else (lambda _done: None)

    @contextlib.contextmanager
    def steps(self, what: str, *, unit: str) -> Iterator[Callable[[int, int], None]]:
        """The same for those who count themselves: call it with how many of how many are done."""
        with self.told_steps(what, unit=unit) as progress:
            yield lambda done, total: progress(done, total, what)

    @contextlib.contextmanager
    def told_steps(self, what: str, *, unit: str) -> Iterator[Callable[[int, int, str], None]]:
        """The same for those who also have something to tell on the way, in place of `what`."""
        with self._bar(what, None, unit) as bar:
            yield (
                (lambda done, total, now: bar[0].update(bar[1], completed=done, total=total, description=now))
                if bar
                else (lambda _done, _total, _now: None)
            )

    @contextlib.contextmanager
    def _bar(self, what: str, total: int | None, unit: str) -> Iterator[tuple[Bars, TaskID] | None]:
        """The bar and its only task; with how far it is, how fast it goes, and the time that is left."""
        if self.quiet or not sys.stderr.isatty():
            yield None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bars
        from rich.text import Text

        class Rate(ProgressColumn):
            """How many a second, or how many seconds for one."""

            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                if not speed:
                    return Text(unit)
                return Text(f"{unit}, {speed:.3g}/s" if speed >= 1 else f"{unit}, {1 / speed:.3g} s each")

        columns = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), Rate())
        bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            *columns,
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            transient=True,
        )
        with bars:
            yield bars, bars.add_task(what, total=total)


def report_failure(error: AdapterHubError, *, as_json: bool) -> None:
    """The refusal on stderr, in words or as `{"error": …}`."""
    if as_json:
        facts: dict[str, Any] = {
            "type": type(error).__name__,
            "message": error.message,
            "exit_code": error.exit_code,
        }
        if error.hint:
            facts["hint"] = error.hint
        for name in ("refusals", "reasons", "findings", "problems"):
            if getattr(error, name, None):
                facts[name] = [list(item) if isinstance(item, tuple) else item for item in getattr(error, name)]
        text = json_text({"error": facts})
    else:
        text = f"error: {escaped(error.message)}" + (f"\nhint: {escaped(error.hint)}" if error.hint else "")
    with contextlib.suppress(OSError):  # where nobody can be told, as on a full disk, the exit code still says it
        sys.stderr.write(f"{text}\n")


def json_text(document: Any, *, indent: int | None = None, compact: bool = False) -> str:  # noqa: ANN401 - any JSON value
    """A document as every command prints it: what does not print, such as a bidi mark, is written by its number."""
    import json

    separators = (",", ":") if compact else None
    text = json.dumps(document, indent=indent, ensure_ascii=False, separators=separators, default=str)
    if text.replace("\n", "").isprintable():
        return text
    pairs = (c.encode("utf-16-be", "surrogatepass").hex() for c in text)  # as JSON counts characters
    return "".join(
        c if c.isprintable() or c == "\n" else "".join(f"\\u{pair[at : at + 4]}" for at in range(0, len(pair), 4))
        for c, pair in zip(text, pairs, strict=True)
    )


def escaped(text: str) -> str:
    """Lines for a terminal, should a stranger's text have come into them as it was: `shown` for what has several."""
    return "".join(c if c.isprintable() or c in "\t\n" else shown(c) for c in text)


def printable(text: str) -> str:
    """Text of several lines without control characters, with which a model could steer a terminal."""
    return "".join(c for c in text if c in "\t\n" or unicodedata.category(c) != "Cc")


def count_text(count: int) -> str:
    """`134.5M`: how people write parameter counts."""
    for limit, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return str(count)

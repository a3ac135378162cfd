"""Write everything a command prints: results to stdout, all else to stderr.

A terminal gets tables, colours and progress bars; a pipe gets tab-separated text and none of these. `--json` gives one
JSON document on stdout. `NO_COLOR` is obeyed, and no meaning depends on colour.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, TextIO

from adapterhub.core import display
from adapterhub.core.errors import AdapterHubError, shown
from adapterhub.core.redaction import without_own_secrets, without_secrets

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from adapterhub.core.digests import Progress


size_text, count_text = display.size_text, display.count_text
listed, counted = display.listed, display.counted


@dataclass(frozen=True, slots=True)
class Output:
    """The output settings of one run."""

    as_json: bool = False
    quiet: bool = False

    def result(self, document: Any, text: Callable[[], None]) -> None:
        """Print the JSON of `document` (or of its return value) under `--json`, or call `text`, which also prints.

        An iterator of documents is printed as an array, each while the next one is made.
        """
        if self.as_json:
            from adapterhub.formats.documented import json_value

            value = document() if callable(document) else document
            if isinstance(value, Iterator):
                _write_array(map(json_value, value))
            else:
                sys.stdout.write(json_text(json_value(value), indent=1) + "\n")
        else:
            text()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
        """Print a table on a terminal, tab-separated text with a header elsewhere; align columns in `right` right.

        The text is printed while the rows are made; a table needs the widths of all.
        """
        texts = map(_cells, rows)
        if not sys.stdout.isatty():
            lines = chain(["\t".join(columns)], ("\t".join(row) for row in texts))
            while some := list(islice(lines, _AT_ONCE)):
                sys.stdout.write(without_own_secrets("\n".join(some)) + "\n")
            return
        import shutil

        from adapterhub.core.display import table_lines

        cells = [[without_own_secrets(cell) for cell in row] for row in texts]
        head, body = table_lines(columns, cells, right=right, width=shutil.get_terminal_size().columns)
        sys.stdout.write("\n".join([*(coloured(line, "1", sys.stdout) for line in head), *body]) + "\n")

    def fields(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Print `name  value` lines: padded on a terminal, tab-separated elsewhere. Skip values that are None."""
        kept = [(shown(name), shown(str(value), 400)) for name, value in pairs if value is not None]
        width = max((len(name) for name, _ in kept), default=0)
        for name, value in kept:
            self.line(f"{name:<{width}}  {value}" if sys.stdout.isatty() else f"{name}\t{value}")

    def line(self, text: str = "") -> None:
        """Print one line of the result."""
        sys.stdout.write(without_own_secrets(text) + "\n")

    def lines(self, texts: Sequence[str]) -> None:
        """Print several lines of the result."""
        for text in texts:
            self.line(text)

    def piece(self, text: str) -> None:
        """Print a piece of the result at once, through `printable` on a terminal."""
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print extra information; silent under `--quiet`."""
        if not self.quiet:
            sys.stdout.flush()  # keeps the order where both streams go to one log
            sys.stderr.write(escaped(text) + "\n")

    def detail(self, text: str) -> None:
        """Print what `--verbose` asks for."""
        sys.stdout.flush()
        sys.stderr.write(escaped(text) + "\n")

    def warn(self, text: str) -> None:
        """Print a warning, also under `--quiet`."""
        sys.stdout.flush()
        sys.stderr.write(f"{_label('warning')} {escaped(text)}\n")

    def hint(self, text: str) -> None:
        """Print a command or advice that helps."""
        if text and not self.quiet:
            sys.stdout.flush()
            sys.stderr.write(f"{_label('hint')} {escaped(text)}\n")

    @property
    def shows_bars(self) -> bool:
        """Whether stderr is a terminal that is to show bars."""
        return not self.quiet and sys.stderr.isatty()

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None, *, unit: str = "bytes") -> Iterator[Progress]:
        """Show a bar on stderr (terminal only, not under `--quiet`) during the block; call it with each amount done."""
        with self._bar(what, total, unit) as bar:
            yield (lambda done: bar[0].advance(bar[1], done)) if bar else (lambda _done: None)

    @contextlib.contextmanager
    def steps(self, what: str, *, unit: str) -> Iterator[Callable[[int, int], None]]:
        """Provide the same as `progress`, for callers that count themselves: call it with `(done, total)`."""
        with self._bar(what, None, unit) as bar:
            yield (
                (lambda done, total: bar[0].update(bar[1], completed=done, total=total))
                if bar
                else (lambda _done, _total: None)
            )

    @contextlib.contextmanager
    def _bar(self, what: str, total: int | None, unit: str) -> Iterator[tuple[Bars, TaskID] | None]:
        """Provide the bar and its only task, with the position, the rate and the time left."""
        if not self.shows_bars:
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
            """Items per second, or seconds per item."""

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
            redirect_stdout=sys.stdout.isatty(),  # what goes to a file or pipe stays there
        )
        with bars:
            yield bars, bars.add_task(what, total=total)


_CELL_CHARACTERS: Final = 400
_AT_ONCE: Final = 1000


def _write_array(values: Iterator[Any]) -> None:
    """Write the JSON array of the values, as `json_text` indents it; a part of them is in memory at a time."""
    opened = False
    while some := list(islice(values, _AT_ONCE)):
        text = json_text(some, indent=1).removeprefix("[\n").removesuffix("\n]")
        sys.stdout.write((",\n" if opened else "[\n") + text)
        opened = True
    sys.stdout.write("\n]\n" if opened else "[]\n")


_COLOURS: Final = {"error": "1;31", "warning": "1;33", "hint": "1;36"}


def _cells(row: Sequence[object]) -> list[str]:
    """Return the cells of one row of a table as text."""
    cells = ["" if cell is None else str(cell) for cell in row]
    whole = "".join(cells)
    if len(whole) <= _CELL_CHARACTERS and whole.isprintable():  # as most are; asked once, not of each cell
        return cells
    return [shown(cell, _CELL_CHARACTERS) for cell in cells]


def _label(kind: str) -> str:
    """`error:`, `warning:` or `hint:`, in its colour on a terminal."""
    return coloured(f"{kind}:", _COLOURS[kind], sys.stderr)


def coloured(text: str, code: str, stream: TextIO) -> str:
    """`text` in the style `code` of ANSI terminals, unchanged in a pipe, under NO_COLOR and on a dumb terminal."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def report_failure(error: AdapterHubError, *, as_json: bool) -> None:
    """Write the error to stderr, as text or as `{"error": …}`."""
    if as_json:
        text = without_secrets(json_text({"error": failure_facts(error)}))
    else:
        usual = error.hint or error.usual_hint
        hint = f"\n{_label('hint')} {escaped(usual)}" if usual else ""
        text = f"{_label('error')} {escaped(error.message)}{hint}"
    with contextlib.suppress(OSError):  # on a full disk the exit code still reports the failure
        sys.stderr.write(f"{text}\n")


def report_traceback(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """Write an exception to stderr with its traceback, without secrets: the hook for ADAPTERHUB_DEBUG."""
    import traceback

    sys.stderr.write(without_secrets("".join(traceback.format_exception(error))))


def failure_facts(error: AdapterHubError) -> dict[str, Any]:
    """Return the facts about a refusal, as `--json` prints them."""
    facts: dict[str, Any] = {
        "type": type(error).__name__,
        "message": error.message,
        "exit_code": error.exit_code,
    }
    if usual := error.hint or error.usual_hint:
        facts["hint"] = usual
    for name in ("refusals", "reasons", "findings", "problems"):
        if getattr(error, name, None):
            facts[name] = [list(item) if isinstance(item, tuple) else item for item in getattr(error, name)]
    return facts


def json_text(document: Any, *, indent: int | None = None, compact: bool = False) -> str:
    """Return the JSON text of a document without one's own secrets.

    What does not print, such as bidi marks, is escaped.
    """
    import json

    separators = (",", ":") if compact else None
    text = without_own_secrets(
        json.dumps(document, indent=indent, ensure_ascii=False, separators=separators, default=str)
    )
    if text.replace("\n", "").isprintable():
        return text
    pairs = (c.encode("utf-16-be", "surrogatepass").hex() for c in text)  # as JSON counts characters
    return "".join(
        c if c.isprintable() or c == "\n" else "".join(f"\\u{pair[at : at + 4]}" for at in range(0, len(pair), 4))
        for c, pair in zip(text, pairs, strict=True)
    )


def escaped(text: str) -> str:
    """`text` without secrets, each unprintable character escaped, for messages that may quote untrusted text."""
    return "".join(c if c.isprintable() or c in "\t\n" else shown(c) for c in without_secrets(text))


def printable(text: str) -> str:
    """`text` of several lines without control characters, with which a model could control a terminal."""
    import unicodedata

    return "".join(c for c in text if c in "\t\n" or unicodedata.category(c) != "Cc")

"""Results of a check that was interrupted, so that the next one continues.

    cache/verify/<64 hex>.jsonl      a line for each build that was checked, and for each object that was hashed
    cache/doctor/<64 hex>.jsonl      a line with the index row of each build that was read
    cache/upgrade/<64 hex>.jsonl     a line with the offers of the places for each adapter; for an hour

The name is a digest of what decides about all: this version, the limits, the registered bases. A line holds what
decides about one, as the inode, size and times of each file of its folder. A run that ends deletes the file, so that
the next one reads every byte again: a file may rot and keep its times.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from adapterhub.core.dates import time_text
from adapterhub.core.digests import canonical_json, digest_of, hex_of, strict_json

KEPT_S: Final = 7 * 86_400.0
_SETTLED_NS: Final = 2_000_000_000
"""A file that changed since then may change again and keep its times, on file systems with coarse ones."""
_MOST_ENTRIES: Final = 1000
"""Of a folder with more, nothing is kept."""
_LONGEST_BYTES: Final = 16 << 20
_WORTH_KEEPING_BYTES: Final = 1 << 16

Before = tuple[str, Any]
"""The key of an earlier look, and what it found."""


def key_of_folder(folder: Path, about: str) -> str:
    """Return a digest of what decides about a folder and of `about`.

    "" if its files are not settled, or too many.
    """
    facts = facts_below(folder)
    return _key_of(str(folder), about, facts) if len(facts) <= _MOST_ENTRIES else ""


def key_of_files(folder: Path, *names: str) -> str:
    """Return a digest of what decides about some files of a folder, and about which files it has.

    "" if that may change.
    """
    return _key_of(str(folder), "", facts_of(folder, "", *names))


def _key_of(folder: str, about: str, facts: Sequence[tuple[str, int, int, int, int, int, int]]) -> str:
    newest = max((max(one[-2:]) for one in facts), default=0)
    if not facts or time.time_ns() - newest < _SETTLED_NS:
        return ""
    return digest_of_facts([folder, about, facts])


def digest_of_facts(about: object) -> str:
    """Return the hex digest of numbers and text."""
    return hex_of(digest_of(json.dumps(about).encode()))  # canonical JSON has no integers as large as a time


def facts_of(folder: Path, *names: str) -> list[tuple[str, int, int, int, int, int, int]]:
    """Return the same as `facts_below` of some names in a folder."""
    found: list[tuple[str, int, int, int, int, int, int]] = []
    for name in names:
        with contextlib.suppress(OSError):
            found.append((name, *_numbers(os.lstat(os.path.join(folder, name)))))  # noqa: PTH118 - for each file
    return found


def facts_below(folder: Path) -> list[tuple[str, int, int, int, int, int, int]]:
    """Path, mode, device, inode, size and times of everything below a folder, sorted; links are not followed."""
    found: list[tuple[str, int, int, int, int, int, int]] = []
    for around, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(around, name)  # noqa: PTH118 - for each file
            with contextlib.suppress(FileNotFoundError):
                facts = os.lstat(path)
                found.append((os.path.relpath(path, folder), *_numbers(facts)))
        if len(found) > _MOST_ENTRIES:
            break
    return sorted(found)


def _numbers(facts: os.stat_result) -> tuple[int, int, int, int, int, int]:
    return facts.st_mode, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _stamp(facts: os.stat_result) -> str:
    return " ".join(map(str, _numbers(facts)))


class Interrupted:
    """Results of a run of `what` that did not end. In a library that cannot be written nothing is kept.

    It counts for `kept_s` seconds.
    """

    def __init__(self, root: Path, what: str, header: str, *, kept_s: float = KEPT_S) -> None:
        self.path = root / "cache" / what / f"{header}.jsonl"
        self._places: dict[str, int] = {}
        self._sink: int | None = None
        self.began_at = 0.0
        with contextlib.suppress(OSError):
            for other in self.path.parent.glob("*.jsonl"):  # of another version, of other bases, or too old
                if other != self.path or other.stat().st_mtime < time.time() - kept_s:
                    other.unlink()
            self._index()

    def _index(self) -> None:
        with self.path.open("rb") as file:
            at = 0
            for line in file:
                if (value := _value_in(line)) is not None:
                    self._places[value["of"]] = at
                    self.began_at = self.began_at or float(value["at"])
                at += len(line)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def said(self) -> str:
        """That the run goes on, for a note; "" if it begins."""
        if not self._places:
            return ""
        return f"goes on with a check that was interrupted: {len(self)} were checked, from {time_text(self.began_at)}"

    def before(self, of: str) -> Before | None:
        """Return the key and the report that were kept of a folder or an object."""
        at = self._places.get(of)
        if at is not None:
            with contextlib.suppress(OSError), self.path.open("rb") as file:
                file.seek(at)
                if (value := _value_in(file.readline())) is not None and value["of"] == of:
                    return str(value["key"]), value["report"]
        return None

    def keep(self, of: str, key: str, report: Any = None) -> None:
        """Keep what was found; a power cut may lose some of it."""
        data = canonical_json({"of": of, "key": key, "report": report, "at": int(time.time())})
        with contextlib.suppress(OSError):
            if self._sink is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
                self._sink = os.open(self.path, flags, 0o600)
            os.write(self._sink, b"%08x %s\n" % (zlib.crc32(data), data))

    def knows(self, path: Path, facts: os.stat_result) -> bool:
        """Return whether an object was hashed that has these facts."""
        before = self.before(str(path))
        return before is not None and before[0] == _stamp(facts)

    def note(self, path: Path, facts: os.stat_result) -> None:
        """Keep that an object is sound, which had these facts before it was hashed."""
        is_settled = time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > _SETTLED_NS
        if is_settled and facts.st_size >= _WORTH_KEEPING_BYTES:
            with contextlib.suppress(OSError):
                if _stamp(path.lstat()) == _stamp(facts):
                    self.keep(str(path), _stamp(facts))

    def close(self, *, is_over: bool) -> None:
        """Forget it all where the run `is_over`."""
        if self._sink is not None:
            os.close(self._sink)
            self._sink = None
        if is_over:
            with contextlib.suppress(OSError):
                self.path.unlink()


def _value_in(line: bytes) -> dict[str, Any] | None:
    """Return the content of a line; None for one that a power cut or a full disk left in part."""
    crc, _, data = line.rstrip(b"\n").partition(b" ")
    with contextlib.suppress(ValueError):
        if int(crc, 16) == zlib.crc32(data):
            value: dict[str, Any] = strict_json(data, limit_bytes=_LONGEST_BYTES)
            return value
    return None

"""The results of the benchmark: JSON lines, one for each adapter and change, in the order in which they were judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

KEY: Final = ("family", "adapter", "recipe", "change")
RECORDING: Final = "(recording)"
NEVER: Final = "never broken by a merge"
DRIFT: Final = "drift of damages by their size"


@dataclass(slots=True)
class Results:
    """The file and what is in it; a half line at its end, of a run that was ended, is passed over."""

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """All results, the newest of a pair alone."""
        if not self.path.exists():
            return []
        found = {}
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            found[tuple(row.get(name) for name in KEY)] = row
        return list(found.values())

    def keys(self) -> set[tuple[Any, ...]]:
        """The pairs that were judged."""
        return {tuple(row.get(name) for name in KEY) for row in self.rows()}

    def append(self, key: Sequence[Any], **values: Any) -> None:
        """Write one result; it is on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        ends = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
        with self.path.open("a") as file:
            line = json.dumps(dict(zip(KEY, key, strict=True)) | values, allow_nan=False)
            file.write(("" if ends else "\n") + line + "\n")
            file.flush()

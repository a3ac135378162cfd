"""How a case is declared, and how all of them are written to a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.hostile_kinds import Kind, into_new_folder

CASES: dict[str, Kind] = {}
SECRET = "outside-secret-3f1c"  # noqa: S105 - what a link out of the folder must not bring in
Maker = Callable[[Path], Any]


def case(
    name: str, verdict: str | tuple[str, ...], code: str, why: str, *, skip: tuple[str, ...] = ()
) -> Callable[[Maker], Maker]:
    """Declare a case; what is decorated makes the adapter in an empty folder, and may return another path to it."""

    def keep(make: Maker) -> Maker:
        assert name not in CASES
        verdicts = (verdict,) if isinstance(verdict, str) else verdict
        CASES[name] = Kind(why, verdicts, code, into_new_folder(make), skip)
        return make

    return keep


def write(out: Path) -> dict[str, Path]:
    """Write every case below the new folder `out`, and beside them a secret; where each adapter lies, by id."""
    out.mkdir(parents=True)
    (out / "outside_secret.txt").write_text(SECRET)
    folders = {name: out / name / "adapter" for name in CASES}
    return {name: CASES[name].make(folder) or folder for name, folder in folders.items()}

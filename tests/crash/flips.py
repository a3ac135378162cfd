"""Single bits flipped in objects and in the index: `verify --all` finds each, or nothing that is shown has changed."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from tests.support.command_line import Adapt

SHOWN = (
    ("list", "--json"),
    ("search", "one", "--json"),
    ("search", "--rank", "4", "--json"),
    ("base", "list", "--json"),
)
"""What a user sees of the index."""


@dataclass(frozen=True)
class Flips:
    """What became of the flips. `missed` names each that changed something and was not found."""

    found: int
    harmless: int
    missed: tuple[str, ...]
    false_alarms: int


def flip_bits(folder: Path, number: int, seed: int) -> Flips:
    """Flip `number` random bits, one at a time, in the stand `folder`; all is put back after each."""
    adapt, chance = Adapt(folder), random.Random(seed)
    home = folder / "home"
    files = [p for g in ("blobs/sha256/*/*", "manifests/sha256/*", "index.db") for p in sorted(home.glob(g))]
    expected = [adapt.ok(*words) for words in SHOWN]
    false_alarms = int(adapt("verify", "--all").exit_code != 0)
    found = harmless = 0
    missed = []
    for _ in range(number):
        path = chance.choice(files)
        whole, mode = path.read_bytes(), path.stat().st_mode
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        _write(path, whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        where = f"{path.relative_to(home)} byte {place} bit {bit}"
        done = adapt("verify", "--all")
        if "Traceback" in done.stderr or "a bug in" in done.stderr or done.exit_code not in (0, 3, 12, 16, 17):
            missed.append(f"{where}: exit {done.exit_code}: {done.stderr}")
        elif done.exit_code:
            found += 1
        elif path.name == "index.db" and [adapt(*words).stdout for words in SHOWN] == expected:
            harmless += 1
        else:
            missed.append(where)
        _write(path, whole)
        path.chmod(mode)
    false_alarms += int(adapt("verify", "--all").exit_code != 0)
    return Flips(found=found, harmless=harmless, missed=tuple(missed), false_alarms=false_alarms)


def _write(path: Path, data: bytes) -> None:
    """In place, so that hard links see it, as a failing disk would."""
    path.chmod(0o644)
    handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)

"""Find the smallest fine-tune of a source that each of its copies tells from the source.

    python -m tests.same_base.smallest SOURCE COPY...

Each row is a copy; each cell is the smallest change of rank 16, in percent of the norm of each linear weight (or of one
weight only), that is not called the same: by fingerprint, by files and by every number.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from safetensors.torch import load_file, save_file

from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseComparison
from adapterhub.formats.base.folders import fingerprint_folder
from adapterhub.formats.base.quantised.deep import compare_models
from adapterhub.formats.base.quantised.opening import opened
from tests.same_base.changes import Tensors, last_linear, tuned

PARTS: Final = (0.0, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)
"""Of the norm; 0 is the source itself."""

Judge = Callable[[Path, Path], BaseComparison]

JUDGES: Final[dict[str, Judge]] = {
    "fingerprint": lambda one, other: compare(
        *(fingerprint_folder(each, cache_folder=None)[0] for each in (one, other))
    ),
    "files": lambda one, other: compare_models(opened(one), opened(other)),
    "full": lambda one, other: compare_models(opened(one), opened(other), full=True),
}


def changed_sources(source: Path, out: Path, *, is_one: bool) -> Iterator[tuple[float, Path]]:
    """The source after each change, as a folder."""
    tensors: Tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors |= load_file(path)
    for part in PARTS:
        place = out / f"{part}-{is_one}"
        place.mkdir(parents=True)
        for path in source.glob("*.json"):
            if "index" not in path.name:
                (place / path.name).write_bytes(path.read_bytes())
        made = tuned(tensors, part, only=last_linear(tensors) if is_one else "") if part else tensors
        save_file({name: tensor.contiguous().clone() for name, tensor in made.items()}, place / "model.safetensors")
        yield part, place


def smallest(changed: list[tuple[float, Path]], copy: Path, judge: Judge) -> str:
    """The smallest change that is told, in percent; "refused" where the source itself is not recognised."""
    for part, place in changed:
        told = not judge(place, copy).verdict.is_same_model
        if told:
            return f"{100 * part:g} %" if part else "refused"
    return "none"


def main() -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("copies", type=Path, nargs="+")
    parser.add_argument("--quick", action="store_true", help="leave out every number")
    given = parser.parse_args()
    judges = {name: judge for name, judge in JUDGES.items() if not (given.quick and name == "full")}
    with tempfile.TemporaryDirectory() as temporary:
        changed = {
            what: list(changed_sources(given.source, Path(temporary), is_one=what == "one weight"))
            for what in ("all weights", "one weight")
        }
        print(f"{'copy':44}" + "".join(f"{what}, {name}".ljust(26) for what in changed for name in judges))
        for copy in given.copies:
            cells = [smallest(found, copy, judge) for found in changed.values() for judge in judges.values()]
            print(f"{copy.name:44}" + "".join(cell.ljust(26) for cell in cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

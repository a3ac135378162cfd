"""Judge quantised copies in a folder against their sources and against models that are nearly the same.

    python -m tests.same_base FOLDER [--only REGEX] [--others 3] [--most-full MB]

Prints a row for each copy and model: the verdict, whether it is right, and seconds, by fingerprint, by files and by every
number; then totals by writer and format. `weaker`: right, but not the proof that the format allows. `unseen` and
`likely`: a change of 1 % of the norm or less that the format hides, called the same or likely the same. Exit code 1 if
one is WRONG. `tests/same_base/pairs.py` says how the folder is laid out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.same_base.pairs import Row, rows_of

HOW = ("fingerprint", "files", "full")


def totals(rows: list[Row]) -> str:
    """By writer, kind of format and side: how many are what, by fingerprint, files and every number."""
    lines = [f"{'writer':18}{'numbers':9}{'against':16}{'rows':>5}  {'fingerprint':44}{'files':44}full"]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        for writer in (row.copy.writer, "all"):
            groups.setdefault((writer, row.copy.kind, row.against or "its source"), []).append(row)
    for (writer, kind, against), members in sorted(groups.items()):
        cells = []
        for number in range(len(HOW)):
            found = Counter(row.judged(row.verdicts[number]) for row in members)
            cells.append(", ".join(f"{count} {what}" for what, count in sorted(found.items()) if what != "-"))
        lines.append(f"{writer:18}{kind:9}{against:16}{len(members):5}  {cells[0]:44}{cells[1]:44}{cells[2]}")
    return "\n".join(lines)


def main() -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--others", type=int, default=3)
    parser.add_argument(
        "--most-full", type=int, default=64, help="megabytes of a copy of which every number is compared"
    )
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        made = rows_of(
            given.folder, Path(temporary), others=given.others, most_full=given.most_full << 20, only=given.only
        )
        for row in made:
            rows.append(row)
            print(row, flush=True)
            if row.is_wrong:
                for how, found in zip(HOW, row.verdicts, strict=True):
                    if row.judged(found) == "WRONG" and found is not None:
                        print(f"    {how}: {' | '.join(found.differences)[:300]}", flush=True)
    print(totals(rows))
    wrong = sum(row.is_wrong for row in rows)
    copies = len({row.copy.place for row in rows})
    print(f"{copies} copies, {len(rows)} pairs, {wrong} with a wrong verdict")
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())

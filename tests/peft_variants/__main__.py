"""Judges every configuration of PEFT's own test suite, and prints a Markdown table.

    python -m tests.peft_variants [--sdist peft-0.21.2.tar.gz] [--only TEXT] [--write]

Fetches the source distribution of PEFT from the package index, or takes one. Exits with 1 unless every configuration is
right. Takes about 3 minutes on two cores. AdaMSS needs scikit-learn, without which PEFT does not make it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from tests.peft_variants.configuration import Configuration
from tests.peft_variants.judge import Verdict, judged
from tests.peft_variants.own import OWN
from tests.peft_variants.reasons import WHY
from tests.peft_variants.suite import VERSION, configurations, fetched, tests_in

PAGE: Final = Path(__file__).with_name("README.md")
_COLUMNS: Final = ("equal", "refused", "wrong", "misled", "not made")
_all: list[Configuration] = []
"""What the child processes judge; they are forked, for models of the suite cannot be sent to a process."""


def main() -> int:
    """Judge, print the table and everything that is not right; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.peft_variants", description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", type=Path, help=f"the source distribution of PEFT {VERSION}, instead of fetching it")
    parser.add_argument("--only", default="", metavar="TEXT", help="configurations whose title or base contains TEXT")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--write", action="store_true", help=f"write the table to {PAGE.name}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        sdist = arguments.sdist or fetched(Path(place))
        _all[:] = [*configurations(tests_in(sdist, Path(place))), *OWN]
    chosen = [n for n, one in enumerate(_all) if arguments.only in f"{one.title} {one.base.name}"]
    verdicts = []
    with multiprocessing.get_context("fork").Pool(arguments.processes, _be_quiet) as pool:
        for done, (number, found) in enumerate(pool.imap_unordered(_judge, chosen), 1):
            verdicts.append(Verdict(configuration=_all[number], **found))
            print(f"\r{done} of {len(chosen)}", end="", file=sys.stderr, flush=True)
    text = "\n".join([*table(verdicts), "", *refused(verdicts)])
    print(f"\n{text}\n")
    print("\n".join(_complaints(verdicts)))
    if arguments.write:
        PAGE.write_text(_page(text), encoding="utf-8")
    return 0 if all(verdict.grade == "right" for verdict in verdicts) else 1


def table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """One row for each method of PEFT, and the sum."""
    counts: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        column = verdict.outcome if verdict.grade == "right" else verdict.grade
        counts.setdefault(verdict.peft_type or "?", Counter())[column] += 1
    yield f"| method | configurations | {' | '.join(_COLUMNS)} |"
    yield f"| --- {'| ---: ' * (len(_COLUMNS) + 1)}|"
    rows = [(f"`{method}`", found) for method, found in sorted(counts.items())]
    for name, found in [*rows, ("all", sum(counts.values(), Counter()))]:
        cells = " | ".join(str(found[column] or "") for column in _COLUMNS)
        yield f"| {name} | {sum(found.values())} | {cells} |"


def refused(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """One row for each reason for which a configuration cannot be attached."""
    kinds = Counter((v.peft_type, v.reasons[0]) for v in verdicts if v.outcome == "refused")
    yield "| refused | configurations | why |"
    yield "| --- | ---: | --- |"
    for (method, reason), count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])):
        name = f"`{method}`" if method == reason else f"`{method}` ({reason})"
        yield f"| {name} | {count} | {WHY.get(reason, '')} |"


def _complaints(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for verdict in verdicts:
        one = verdict.configuration
        for fault in verdict.faults:
            yield f"{fault.grade}: {one.title} on {one.base.name}, {fault.step}: {fault.text}"


def _judge(number: int) -> tuple[int, dict[str, Any]]:
    with contextlib.redirect_stderr(io.StringIO()):  # the bars of FRoD
        verdict = judged(_all[number])
    return number, {key: getattr(verdict, key) for key in ("peft_type", "outcome", "faults", "reasons")}


def _be_quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()


def _page(text: str) -> str:
    intro, _, rest = PAGE.read_text(encoding="utf-8").partition("| method | configurations |")
    _, heading, others = rest.partition("\n## ")
    return f"{intro.rstrip()}\n\n{text}\n{heading}{others}"


if __name__ == "__main__":
    sys.exit(main())

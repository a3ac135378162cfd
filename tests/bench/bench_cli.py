"""CPU time of whole processes against the stock hub client and pip, with 1,000 adapters installed.

    python -m tests.bench.bench_cli [--runs 7]

Ours: `adapt --help`, `list` (of an empty library, too), `tree`, `verify` of a folder with an adapter of a few kB, and
what the shell starts at a press of the tabulator key. Peers: `hf --help` and `hf cache ls` of the installed
huggingface_hub (with an empty cache, so its least work) and `pip list`; floors: Python with click alone, and with numpy.
All are run turn by turn, in the same run, with compiled files as an installation has them. Prints medians of user and
system time, the ratios of medians, and exit code 1 if a ratio is above its bound.
"""

from __future__ import annotations

import os
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

from tests.bench.harness import given, measured
from tests.bench.many_builds import fill_index
from tests.support.tiny import make_adapter

ADAPTERS = 1_000
HELP, LIST, TREE = "adapt --help", "adapt list", "adapt tree"
EMPTY, VERIFY = "adapt list --root empty", "adapt verify ./adapter"
CLICK, NUMPY = "python -c 'import click'", "python -c 'import numpy'"
NAMES, COMMANDS = "complete a name", "complete a command"
HF_HELP, HF_LIST, PIP = "hf --help", "hf cache ls", "pip list"
LINES = {NAMES: "adapt info legal-", COMMANDS: "adapt li"}
BOUNDS = {
    (HELP, HF_HELP): 0.25,
    (LIST, HF_LIST): 0.40,
    (EMPTY, HF_LIST): 0.28,
    (CLICK, HF_LIST): 0.25,  # what is left to our commands' own work and imports
    (VERIFY, HF_LIST): 0.65,
    (VERIFY, NUMPY): 1.6,
    (EMPTY, CLICK): 1.75,
    (LIST, PIP): 0.60,
    (TREE, HF_LIST): 0.60,
    (TREE, PIP): 0.80,
    (NAMES, HF_LIST): 0.45,
    (NAMES, PIP): 0.60,
    (COMMANDS, HF_LIST): 0.30,
    (COMMANDS, PIP): 0.40,
}
"""Pairs of ours and a peer's, and the ratio of CPU times that is not to be exceeded."""


def command_of(what: str) -> list[str]:
    """The command line, with the scripts beside this Python."""
    name, *words = ["adapt"] if what in LINES else shlex.split(what)
    return [str(Path(sys.executable).parent / name), *words]


def main() -> int:
    """Measure and print; 1 when a ratio is above its bound."""
    runs = given(__doc__, runs=7).runs
    with tempfile.TemporaryDirectory() as folder:
        home, hub = Path(folder, "home"), Path(folder, "hub")
        hub.mkdir()
        make_adapter(Path(folder, "adapter"))
        fill_index(home, ADAPTERS)
        environ = os.environ | {"ADAPTERHUB_HOME": str(home), "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
        environ |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        bounds = {pair: bound for pair, bound in BOUNDS.items() if all(Path(command_of(w)[0]).exists() for w in pair)}
        for ours, theirs in BOUNDS.keys() - bounds.keys():  # an environment that `uv` made has no pip
            print(f"{ours:24} / {theirs:24} left out: `{theirs.split()[0]}` is not installed beside this Python")
        everything = list(dict.fromkeys(what for pair in bounds for what in pair))
        times: dict[str, list[float]] = {what: [] for what in everything}
        for turn in range(runs + 1):
            for what in everything:
                asked = {"_ADAPT_COMPLETE": "zsh_complete", "ADAPT_LINE": LINES[what]} if what in LINES else {}
                # 17: `verify` compares with no base
                spent = measured(command_of(what), codes=(0, 17), env=environ | asked, cwd=folder).cpu_s
                if turn:  # the first turn warms the page cache
                    times[what].append(spent)
    medians = {what: statistics.median(seconds) for what, seconds in times.items()}
    for what, median in medians.items():
        print(f"{what:24} {median * 1000:6.0f} ms CPU")
    failed = False
    for (ours, theirs), bound in bounds.items():
        ratio = medians[ours] / medians[theirs]
        failed |= ratio > bound
        print(f"{ours:24} / {theirs:24} {ratio:5.2f} (at most {bound:.2f})")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

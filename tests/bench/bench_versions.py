"""CPU time of this checkout beside another one: has a change made anything slower?

    OMP_NUM_THREADS=1 python -m tests.bench.bench_versions OTHER_CHECKOUT [--runs 9] [--only NAME,…]

Both checkouts run under this Python with their own folder on the path, turn by turn in one run, on the same adapters (r = 16
on all linear layers of SmolLM2-135M). Prints the median CPU time of each side and the median of the ratios of the turns,
ours to theirs, and ends with 1 if a ratio is above `MOST`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from tests.bench.harness import measured
from tests.support.real_base import smollm2_base

ROOT = Path(__file__).resolve().parent.parent.parent
MOST = 1.05
MAIN = "import sys; sys.argv = ['adapt', {}]\nfrom adapterhub.cli import main\nmain()"
IN_MEMORY = """
import time, sys, warnings
warnings.simplefilter("ignore")
import torch, transformers, adapterhub
from pathlib import Path
adapters = sorted(Path("adapters").iterdir())
library = adapterhub.Library(Path("bases"))
def timed(act, times):
    act()
    start = time.process_time()
    for _ in range(times):
        act()
    print((time.process_time() - start) / times)
"""
CASES = {
    "adapt --help": MAIN.format("'--help'"),
    "adapt list": MAIN.format("'list', '--root', 'one'"),
    "adapt list of none": MAIN.format("'list', '--root', 'none'"),
    "complete a name": "import os\nos.environ.update(_ADAPT_COMPLETE='zsh_complete', ADAPT_LINE='adapt info r', "
    "ADAPTERHUB_HOME='one')\n" + MAIN.format(""),
    "adapt add": "import shutil, tempfile\nfolder = tempfile.mkdtemp(dir='.') + '/home'\nshutil.copytree('bases', folder)\n"
    + MAIN.format("'add', 'adapters/random-0', '--name', 'x', '--base', 'smollm2', '--root', folder"),
    "attach": IN_MEMORY
    + "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
    + "timed(lambda: adapterhub.attach(model, adapters[0], library=library).detach(), 3)",
    "bank load": IN_MEMORY
    + "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
    + "import inspect\nnew = 'memory_limit' in inspect.signature(adapterhub.AdapterBank.__init__).parameters\n"
    + "limit = {'memory_limit': '25MB'} if new else {'max_resident_bytes': 25_000_000}\n"
    + "bank = adapterhub.AdapterBank(model, library=library, **limit)\n"
    + "names = iter(adapters * 9)\ntimed(lambda: bank.load(str(next(names).resolve())), 6)",
    "merge svd": IN_MEMORY
    + "import tempfile\ninputs = [adapterhub.MergeInput(folder=f, label=f.name, weight=0.5) for f in adapters[:2]]\n"
    + "out = Path(tempfile.mkdtemp(dir='.'))\nnumber = iter(range(9))\n"
    + "timed(lambda: adapterhub.merge_adapters(inputs, out / str(next(number)), method='svd', rank=16), 2)",
}


def cpu_seconds(checkout: Path, code: str, folder: Path) -> float:
    """What the code prints last, else user and system seconds of its process."""
    path = os.pathsep.join(str(checkout / part) for part in (".", "registry"))
    command = [sys.executable, "-W", "ignore", "-c", code, smollm2_base()]
    done = measured(command, cwd=folder, env=os.environ | {"PYTHONPATH": path})
    return float(done.said.split()[-1]) if code.startswith(IN_MEMORY) else done.cpu_s


def prepare(folder: Path, checkout: Path, adapters: Path) -> None:
    """Three adapters, a library that has one, and an empty one, as the checkout makes them."""
    shutil.copytree(adapters, folder / "adapters")
    for home in ("one", "none", "bases"):
        (folder / home).mkdir()
    for home in ("one", "bases"):
        code = MAIN.format(f"'base', 'add', {str(smollm2_base())!r}, '--as', 'smollm2', '--root', {home!r}")
        cpu_seconds(checkout, code, folder)
    cpu_seconds(
        checkout,
        MAIN.format("'add', 'adapters/random-0', '--name', 'random', '--base', 'smollm2', '--root', 'one'"),
        folder,
    )


def main() -> int:
    """Measure and print; 1 when something is slower than `MOST` allows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--only", default=",".join(CASES))
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        from tests.bench.bench_bank import write_adapters

        (Path(name) / "adapters").mkdir()
        write_adapters(Path(name) / "adapters", 3, 16, "all-linear")
        theirs = options.other.resolve()
        folders = {ROOT: Path(name) / "ours", theirs: Path(name) / "theirs"}
        for checkout, folder in folders.items():
            folder.mkdir()
            prepare(folder, checkout, Path(name) / "adapters")
        for case in options.only.split(","):
            pairs = []
            for turn in range(options.runs + 1):
                order = (ROOT, theirs) if turn % 2 else (theirs, ROOT)
                spent = {one: cpu_seconds(one, CASES[case], folders[one]) for one in order}
                if turn:  # the first turn warms the page cache and compiles
                    pairs.append((spent[ROOT], spent[theirs]))
            mine, yours = (statistics.median(side) * 1000 for side in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            failed |= ratio > MOST
            print(f"{case:20} {mine:8.1f} ms  {yours:8.1f} ms  {ratio:5.2f}{'  SLOWER' if ratio > MOST else ''}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())

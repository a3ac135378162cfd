"""An AdapterBank beside PEFT on SmolLM2-135M: load, switch, memory, tokens per second.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_bank [--dtype float32|bfloat16] [--upto 1000] [--peft-upto 10]
                                                       [--rank 16] [--targets all-linear|q_proj,v_proj] [--rows 8]
                                                       [--only load,memory,speed] [--tokens 16] [--repeat 2] [--plot FILE]

Adapters are random files in the page cache (19.5 MB at rank 16 on all linear layers in float32; `--rank 4` makes 4.9).
The copies are hard links to the weights of twelve, whose headers differ, each with a config of its own, so that no
cache carries over; `headers alike` shows adapters of one layout, of which the bank reads a header once. Builds of a
library stand beside them. `floor` is to read and hash the file, in turns with the loads. Loads from
folders need fresh memory, the others take that of the adapter that went last. The exponent is that of the growth from
k = 10 to the last mark. PEFT's figures for k = 100 take minutes (--peft-upto 100).
A minute of CPU is enough for 32 rows with `--prefill 2 --tokens 4 --repeat 1`, for a base in bfloat16 with `--prefill 1
--tokens 2 --repeat 1`.
Times are CPU time of the process: medians of ten around k, and the least in brackets. Memory is that of the process,
per adapter. For speed, all choices take turns at each step, and each ratio is the median of those to one adapter in the
same turn. `anew` chooses rows anew at each step, so that factors are stacked. `bound` is what the base and the two
products of each module leave, which need no hooks, no choice and no look at shapes.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import json
import math
import mmap
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.file import read_header
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader.text import load_base
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from tests.bench.harness import given
from tests.support.real_base import smollm2_base

COUNT = 8
LAYOUTS = 12
WINDOW = 10
PROMPT = 8
ONE, MIXED, ANEW = "one adapter", f"rows of {COUNT}", f"rows of {COUNT}, anew"


def write_adapters(root: Path, count: int, rank: int, targets: str) -> list[Path]:
    model, _ = load_base(smollm2_base(), dtype="float32")
    modules = targets if targets == "all-linear" else targets.split(",")
    peft = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules))
    generator = torch.Generator().manual_seed(0)
    folders = []
    for i in range(count):
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lora_" in name:
                    size = 0.02 if "lora_A" in name else 0.005
                    parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
        peft.save_pretrained(root / f"random-{i}")
        folders.append(root / f"random-{i}")
    return folders


def with_own_headers(folders: list[Path], count: int, root: Path) -> list[Path]:
    """Folders of the same numbers, none of which has the header of another."""
    made = []
    for i, folder in zip(range(count), itertools.cycle(folders), strict=False):
        target = root / f"own-{i}"
        target.mkdir()
        shutil.copyfile(folder / CONFIG_FILE, target / CONFIG_FILE)
        save_file(load_file(folder / WEIGHTS_FILE), target / WEIGHTS_FILE, {"format": "pt", "copy": str(i)})
        made.append(target)
    return made


def fill_library(library: Library, folders: list[Path]) -> None:
    base = library.bases.add(smollm2_base(), "smollm2")
    for folder in folders:
        about = Description(name=parse_name(folder.name), version="1.0.0", task=None, description="")
        library.add(folder, about, base=base)


def copies_of(folders: list[Path], count: int, root: Path) -> list[Path]:
    """As many folders as one likes, of the same weights in other files, each with another alpha."""
    made = []
    for i, folder in zip(range(count), itertools.cycle(folders), strict=False):
        target = root / f"copy-{i}"
        target.mkdir(parents=True)
        (target / WEIGHTS_FILE).hardlink_to(folder / WEIGHTS_FILE)
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")) | {"lora_alpha": 16 + i}
        (target / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
        made.append(target)
    return made


def resident_bytes() -> int:
    gc.collect()
    text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    return 1024 * int(next(line for line in text.splitlines() if line.startswith("Rss:")).split()[1])


def timed(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def around(times: list[float], k: int) -> float:
    low = max(0, k - 1 - WINDOW // 2)
    return statistics.median(times[low : low + WINDOW]) * 1e3


def read_and_hash(path: Path, room: mmap.mmap | None = None) -> mmap.mmap:
    """The memory into which the file was read: `room`, or else fresh memory in pages of 4 KiB."""
    room = mmap.mmap(-1, path.stat().st_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if room is None else room
    with path.open("rb") as stream:
        stream.readinto(room)
    hashlib.sha256(room).digest()
    return room


def bench_load(model: Any, library: Library, folders: list[Path], arguments: argparse.Namespace) -> None:
    marks = [k for k in (1, 10, 100, 1000) if k <= max(arguments.upto, arguments.peft_upto)]
    with tempfile.TemporaryDirectory(dir=folders[0].parent) as temporary:
        own = with_own_headers(folders, LAYOUTS, Path(temporary))
        fill_library(library, own)
        same = copies_of(folders, 3 * WINDOW, Path(temporary, "alike"))
        many = copies_of(own, max(arguments.upto, arguments.peft_upto), Path(temporary))
        rooms: list[mmap.mmap] = []
        most = int(6e9 // (folders[0] / WEIGHTS_FILE).stat().st_size)  # bytes in memory at once
        with AdapterBank(model, library=library) as bank:
            first, cold = [], []
            for i in range(min(arguments.upto, most)):
                if i % 10 == 0:  # in turns: what fresh memory costs changes from minute to minute
                    cold.append(timed(lambda: rooms.append(read_and_hash(many[0] / WEIGHTS_FILE))))
                first.append(timed(lambda i=i: bank.load(many[i])))
            alike = [timed(lambda i=i: bank.load(same[i], name=f"alike-{i}")) for i in range(len(same))][1:]
            every = (bank.names * 1000)[:10_000]
            switch = [timed(lambda: deque(map(bank.use, every), maxlen=0)) / len(every) for _ in range(WINDOW)]
            bank.use(None)
        warm = [timed(lambda room=room: read_and_hash(many[0] / WEIGHTS_FILE, room)) for room in rooms[: 2 * WINDOW]]
        rooms.clear()
        with AdapterBank(model, library=library) as bank:
            names, own_names = ([bank.load(folder.name) for folder in of] for of in (folders, own))
            store, store_alike = (
                [timed(lambda n=n: (bank.unload(n), bank.load(n))) for _ in range(3) for n in of]
                for of in (own_names, names)
            )
        with AdapterBank(model, library=library, max_resident=1) as bank:
            for folder in many[:2]:
                bank.load(folder)
            again = []
            for _ in range(2 * WINDOW):
                again += [timed(lambda n=n: bank.use(n)) for n in bank.names]
            bank.use(None)
        print(f"{'load, ms, k =':34}" + "".join(f"{k:>10}" for k in marks))
        report("bank, folder, full verify", first, marks)
        for label, found in (
            ("floor: read, hash, fresh memory", cold),
            ("floor: read, hash, used memory", warm),
            ("bank, folder, headers alike", alike),
            ("bank, from the store, checked", store),
            ("bank, store, headers alike", store_alike),
            ("bank, again after an eviction", again),
        ):
            print(f"{label:34}{statistics.median(found) * 1e3:10.1f}  ({min(found) * 1e3:.1f})")
        with AdapterBank(model, library=library, max_resident=16) as bank:
            # the same adapters again and again: checks are done, each load is a miss
            for folder in many[:32]:
                bank.load(folder)
            known = bank.names
            times = [timed(lambda i=i: bank.use(known[i % 32])) for i in range(arguments.upto)]
            bank.use(None)
            report("bank, k-th miss, 16 in memory", times, marks)
            print(f"   {bank.stats}")
        series = {"bank, folder, full verify": first, "bank, miss, 16 in memory": times}
        print(f"{'switch, µs':34}{statistics.median(switch) * 1e6:10.2f}  ({min(switch) * 1e6:.2f})")
        if arguments.peft_upto:
            peft_times, switch = peft_loads(model, many[: arguments.peft_upto])
            report("PEFT load_adapter", peft_times, marks)
            print(f"{'PEFT set_adapter, µs':34}{statistics.median(switch) * 1e6:10.1f}  (N = {len(peft_times)})")
            last = max(k for k in marks if k <= min(len(peft_times), max(1, len(first))))
            for label, ms in (("folder", around(first, last)), ("store", statistics.median(store) * 1e3)):
                print(f"PEFT's load of k = {last} takes {around(peft_times, last) / ms:.0f} times the bank's, {label}")
            series["PEFT load_adapter"] = peft_times
        if arguments.plot:
            adapter = (folders[0] / "adapter_model.safetensors").stat().st_size
            draw(series, sum(p.nbytes for p in model.parameters()), adapter, arguments.plot)


def draw(series: dict[str, list[float]], base: int, adapter: int, out: Path) -> None:
    """Load times as measured; memory as the bytes of the base and of the adapters that are in it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, times in series.items():
        left.plot(range(1, len(times) + 1), [around(times, k) for k in range(1, len(times) + 1)], label=label)
    left.set(xscale="log", yscale="log", xlabel="k", ylabel="ms", title="loading the k-th adapter")
    counts = range(1, 1001)
    right.plot(counts, [n * base / 1e9 for n in counts], label="a full copy each")
    right.plot(counts, [(base + n * adapter) / 1e9 for n in counts], label="one base, all adapters in memory")
    right.plot(counts, [(base + min(n, 16) * adapter) / 1e9 for n in counts], label="one base, 16 in memory")
    right.set(xscale="log", yscale="log", xlabel="adapters", ylabel="GB", title="memory")
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.savefig(out, dpi=100)


def report(label: str, times: list[float], marks: list[int]) -> None:
    shown = [f"{around(times, k):10.1f}" if k <= len(times) else f"{'-':>10}" for k in marks]
    last = max((k for k in marks if k <= len(times)), default=0)
    grows = math.log(around(times, last) / around(times, 10), last / 10) if last > 10 else math.nan
    print(f"{label:34}" + "".join(shown) + f"  ({min(times) * 1e3:.1f})  exponent {grows:.2f}")


def peft_loads(model: Any, folders: list[Path]) -> tuple[list[float], list[float]]:
    peft = PeftModel.from_pretrained(model, folders[0], adapter_name="a0")
    times = [timed(lambda i=i, f=f: peft.load_adapter(f, adapter_name=f"a{i}")) for i, f in enumerate(folders[1:], 1)]
    switch = [timed(lambda i=i: peft.set_adapter(f"a{i % len(folders)}")) for i in range(5)]
    strip(peft)
    return [times[0], *times], switch


def strip(peft: Any) -> None:
    base = peft.unload()
    vars(base).pop("peft_config", None)


def bench_memory(model: Any, library: Library, folders: list[Path]) -> None:
    size = (folders[0] / "adapter_model.safetensors").stat().st_size
    ids = torch.arange(8)[None]
    for label, source in (("folders, read", folders), ("builds, mapped", [folder.name for folder in folders])):
        with AdapterBank(model, library=library) as bank:
            names = [bank.load(source[0])]
            with bank.use(names[0]), torch.no_grad():
                model(ids)
            before = resident_bytes()
            for what in source[1:]:
                with bank.use(bank.load(what)), torch.no_grad():
                    model(ids)
            each = (resident_bytes() - before) / (len(folders) - 1)
            print(f"memory per adapter, {label:15} {each / 1e6:6.1f} MB, {each / size:.2f} of its file")


def bench_speed(model: Any, library: Library, folders: list[Path], arguments: argparse.Namespace) -> None:
    rows = arguments.rows
    ids = torch.randint(1000, 2000, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
    prompts = ids.repeat(1, arguments.prefill)
    steps: dict[str, list[float]] = {}
    reads: dict[str, list[float]] = {}
    peft = peft_ways(folders, rows, arguments.dtype)
    with torch.no_grad():
        for _ in range(arguments.repeat):
            with AdapterBank(model, library=library) as bank:
                ways = bank_ways(model, bank, [bank.load(folder) for folder in folders], rows)
                for label in ("base", ONE, "rows of 1", "rows of 2", MIXED):
                    taken = timed(lambda run=ways[label]: run(prompts, logits_to_keep=1))
                    reads.setdefault(label, []).append(taken)
                decode(ways | peft, ids, arguments.tokens, steps)
                del ways  # their choices hold adapters
        header = read_header(folders[0] / WEIGHTS_FILE).by_name
        pairs = [(a.shape, header[n.replace("lora_A", "lora_B")].shape) for n, a in header.items() if "lora_A" in n]
        for title, times, tokens in (("decode", steps, 1), ("prefill", reads, prompts.shape[1])):
            print(f"{title}, {rows} rows of {tokens} tokens, medians of {len(times[ONE])} turns, beside one adapter")
            for label, taken in times.items():
                middle = statistics.median(taken)
                line = f"  {label:20}{rows * tokens / middle:8.1f} tokens a CPU second  {ratio(times[ONE], taken):.3f}"
                count = {ONE: 1, MIXED: min(rows, COUNT)}.get(label)
                if count:
                    bare = products(pairs, rows, tokens, adapters=count)
                    line += f"  bound {ratio(times[ONE], [base + bare for base in times['base']]):.3f}"
                print(line)
    first, later, one = (statistics.median(steps[label]) for label in (ANEW, MIXED, ONE))
    print(f"  {PROMPT} tokens after a new choice of rows: {PROMPT * one / (first + (PROMPT - 1) * later):.3f}")
    print(f"  {MIXED}: {ratio(steps[f'PEFT, {MIXED}'], steps[MIXED]):.2f} of PEFT's")


def bank_ways(model: Any, bank: AdapterBank, names: list[str], rows: int) -> dict[str, Callable[..., Any]]:
    """The model's forward pass by the choice that it runs with, which lasts as long as the function."""

    def way(choose: Callable[..., object], choice: Any) -> Callable[..., Any]:
        context = copy_context()
        context.run(choose, choice)
        return partial(context.run, model, use_cache=True)

    def anew(*args: Any, **more: Any) -> Any:
        return way(bank.rows, mixed)(*args, **more)

    mixed = [names[i % COUNT] for i in range(rows)]
    return {
        "base": way(bank.use, None),
        ONE: way(bank.use, names[0]),
        "sum of two": way(bank.use, {names[0]: 0.5, names[1]: 0.5}),
        "rows of 1": way(bank.rows, [names[0]] * rows),
        "rows of 2": way(bank.rows, [names[i % 2] for i in range(rows)]),
        MIXED: way(bank.rows, mixed),
        ANEW: anew,
        "every other row": way(bank.rows, [(names[0], None)[i % 2] for i in range(rows)]),
    }


def peft_ways(folders: list[Path], rows: int, dtype: str) -> dict[str, Callable[..., Any]]:
    """The same by PEFT, on a base of its own."""
    model, _ = load_base(smollm2_base(), dtype=dtype)
    peft = PeftModel.from_pretrained(model, folders[0], adapter_name="a0").eval()
    for i, folder in enumerate(folders[1:], 1):
        peft.load_adapter(folder, adapter_name=f"a{i}")
    run = partial(peft, use_cache=True)
    called = {f"PEFT, rows of {some}": [f"a{i % some}" for i in range(rows)] for some in (1, 2, COUNT)}
    return {f"PEFT, {ONE}": run} | {label: partial(run, adapter_names=names) for label, names in called.items()}


def decode(ways: dict[str, Callable[..., Any]], ids: torch.Tensor, tokens: int, times: dict[str, list[float]]) -> None:
    """Add the time of each step. The ways take turns at each, so that a busy moment of the machine meets them all."""
    caches = {label: run(ids).past_key_values for label, run in ways.items()}
    times |= {label: times.get(label, []) for label in ways}
    order = deque(ways)
    for _ in range(tokens):
        order.rotate()  # the next one finds in the cache what the one before left
        for label in order:
            taken = timed(lambda label=label: ways[label](ids[:, -1:], past_key_values=caches[label]))
            times[label].append(taken)


def products(pairs: list[tuple[Any, Any]], rows: int, tokens: int, *, adapters: int) -> float:
    """Seconds of the two products of each module alone, in float32, with so many adapters for the rows."""
    tall = rows * tokens // adapters
    work = [
        [
            torch.randn(*shape)
            for shape in ((adapters, tall, a[1]), (adapters, *a), (adapters, a[0], b[0]), (adapters, tall, b[0]))
        ]
        for a, b in pairs
    ]

    def multiply() -> None:
        for x, a, b, output in work:
            torch.baddbmm(output, torch.bmm(x, a.transpose(1, 2)), b)

    return statistics.median(timed(multiply) for _ in range(5))


def ratio(of: list[float], to: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def main() -> None:
    arguments = given(
        __doc__,
        dtype=("float32", "bfloat16"),
        upto=1000,
        peft_upto=10,
        rank=16,
        targets="all-linear",
        rows=8,
        only="load,memory,speed",
        tokens=16,
        prefill=8,
        repeat=2,
        plot=Path,
    )
    warnings.simplefilter("ignore")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what is measured is seen, also in a pipe
    root = Path(tempfile.mkdtemp(prefix="bench-bank-"))
    try:
        folders = write_adapters(root, COUNT, arguments.rank, arguments.targets)
        library = Library(root / "home")
        fill_library(library, folders)
        model, _ = load_base(smollm2_base(), dtype=arguments.dtype)
        if "load" in arguments.only:
            bench_load(model, library, folders, arguments)
        if "memory" in arguments.only:
            bench_memory(model, library, folders)
        if "speed" in arguments.only:
            bench_speed(model, library, folders, arguments)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()

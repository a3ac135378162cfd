"""What a publish takes: CPU time and its growth with the versions, in memory to a library, beside `save_pretrained` and `adapt add`.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_live [--versions 10000] [--keep 5] [--sync] [--folder DIR] [--remote 1000]
        [--beside 10000] [--memory]

The adapter is r = 16 on q_proj and v_proj of 12 layers of width 768, random float16: 1.2 MB. Prints p10, p50 and p99 of the CPU
time of a publish (user and system, this process; on a busy machine p10 is nearest to that of a quiet one), those of the last tenth beside the first, and the growth exponent; then what it replaces: `save_pretrained` to a folder and the command `adapt add`, and
`Library.add` in this process. `--keep 0` keeps all versions. `--folder` is where the library lies: a disk, for fsync; default:
a temporary folder. `--sync` waits for the disk at each version. `--remote` also pushes so many versions of a second stream to a
registry in this process, and then lets it compute the figures of 20, which a server does in the background. With `--beside`, the registry then gets so many other
versions, and the stream publishes as many as before again. `--profile` prints where the time goes.
`--memory` only measures how far the memory of the process rises during a publish of 113 MB (Linux), as a multiple of the adapter.
"""

from __future__ import annotations

import contextlib
import cProfile
import gc
import os
import pstats
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from tests.bench.harness import exponent, given, measured, timed

WIDTH, LAYERS, RANK = 768, 12, 16
ROOT = Path(__file__).resolve().parent.parent.parent


def model(folder: Path, rank: int = RANK) -> Any:
    """A PEFT model whose adapter has 1.2 MB, at this rank; its base is saved in the folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=12, vocab_size=64
    )
    base = LlamaForCausalLM(config)
    base.save_pretrained(folder)
    settings = LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(base, settings)


def quantile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def line(what: str, cpu: list[float], wall: list[float]) -> str:
    """Both times in milliseconds."""
    times = [
        f"p10 {quantile(one, 0.1) * 1e3:.1f}, p50 {statistics.median(one) * 1e3:.1f}, p99 {quantile(one, 0.99) * 1e3:.1f} ms"
        for one in (cpu, wall)
    ]
    return f"{what}: CPU {times[0]}; wall {times[1]}"


Times = tuple[list[float], list[float]]
"""Of CPU and on the wall, in seconds."""


def published(stream: Any, trained: Any, count: int, *, sync: bool, profile: cProfile.Profile | None = None) -> Times:
    """What each of so many versions took; the adapter is another one at each."""
    import torch

    weights = [value for name, value in trained.named_parameters() if "lora" in name]
    cpu, wall = list[float](), list[float]()
    for number in range(count):
        for value in weights:
            value.data += torch.randn(1).item() * 1e-3
        begun, at = time.process_time(), time.perf_counter()
        if profile:
            profile.enable()
        stream.publish(trained, step=number, sync=sync)
        if profile:
            profile.disable()
        cpu.append(time.process_time() - begun)
        wall.append(time.perf_counter() - at)
    stream.close()
    return cpu, wall


def show(what: str, times: Times) -> None:
    """The first tenth, the last, all, and the exponent between the two."""
    cpu, wall = times
    part = max(len(cpu) // 10, 1)
    curve = {}
    for first in (0, len(cpu) - part):
        chosen = slice(first, first + part)
        print(line(f"{what} {first + 1:,} to {first + part:,}", cpu[chosen], wall[chosen]))
        curve[first + part] = statistics.median(cpu[chosen])
    print(line(f"{what}, all", cpu, wall))
    if len(curve) > 1:
        print(f"{what}: growth exponent of the median CPU time {exponent(curve):.3f}")


def replaced(trained: Any, place: Path, library: Any) -> float:
    """Print what a publish replaces; the median CPU time of `save_pretrained` and the command `adapt add`."""
    cpu, wall, in_process = list[float](), list[float](), list[float]()
    for number in range(5):
        out = place / f"out-{number}"
        begun, at = time.process_time(), time.perf_counter()
        trained.save_pretrained(out)
        saved = time.process_time() - begun
        run = measured(
            [sys.executable, "-W", "ignore", "-c", "from adapterhub.cli import main; main()", "add", out,
             "--name", f"added-{number}", "--base", "base", "--root", library.root],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        cpu.append(saved + run.cpu_s)
        wall.append(time.perf_counter() - at)
    for number in range(5):
        spent, _ = timed(
            lambda number=number: library.add(place / f"out-{number}", name=f"again-{number}", base="base")
        )
        in_process.append(spent)
    print(line("save_pretrained and `adapt add`", cpu, wall))
    print(f"Library.add in this process: CPU p50 {statistics.median(in_process) * 1e3:.1f} ms")
    return statistics.median(cpu)


def memory(place: Path) -> None:
    """Print how far the resident memory rises during a publish, file pages that are mapped included; and during a copy."""
    from adapterhub import Library

    def now(field: str) -> int:
        found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(found.split()[1]) * 1024

    trained = model(place / "base", rank=WIDTH)
    weights = [value for name, value in trained.named_parameters() if "lora" in name]
    size = sum(value.numel() * value.element_size() for value in weights)
    library = Library(place / "home")
    library.add_base(place / "base", "base")
    with library.live("agent@base", keep=1) as stream:

        def publish(step: int, *, sync: bool = True) -> object:
            return stream.publish(trained, step=step, sync=sync)

        def copy(_: int) -> object:
            return [value.detach().clone() for value in weights]

        ways: list[tuple[str, Callable[[int], object]]] = [
            ("the first publish, with imports", publish),
            ("publish", publish),
            ("publish, sync=False", partial(publish, sync=False)),
            ("a copy of the tensors, to compare", copy),
        ]
        for step, (what, way) in enumerate(ways):
            gc.collect()
            before = now("VmRSS:")
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            made = way(step)
            stream.close()  # all is durable
            rise = now("VmHWM:") - before
            print(f"{what}: {size / 1e6:.0f} MB, memory rises by {rise / 1e6:.1f} MB, {rise / size:.2f} of the adapter")
            del made


def main() -> None:
    """Measure and print."""
    options = given(
        __doc__, versions=10_000, keep=5, folder=str, profile=False, sync=False, remote=0, beside=0, memory=False
    )
    from adapterhub import Library

    place = Path(tempfile.mkdtemp(dir=options.folder))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        if options.memory:
            memory(place)
            return
        trained = model(place / "base")
        weights = [value for name, value in trained.named_parameters() if "lora" in name]
        for value in weights:
            value.data = value.data.half()
        library = Library(place / "home")
        library.add_base(place / "base", "base")
        size = sum(value.numel() * value.element_size() for value in weights)
        print(f"adapter: {size:,} bytes, {len(weights)} tensors; keep {options.keep or 'all'}; sync {options.sync}")
        stream = library.live("agent@base", keep=options.keep or None)
        published(stream, trained, 5, sync=True)  # imports and caches
        profile = cProfile.Profile() if options.profile else None
        times = published(stream, trained, options.versions, sync=options.sync, profile=profile)
        if profile:
            pstats.Stats(profile).sort_stats("cumtime").print_stats(40)
        show("publish", times)
        print(f"files in the library: {sum(len(names) for _, _, names in os.walk(place / 'home')):,}")
        before = replaced(trained, place, library)
        print(f"ratio of CPU, `save_pretrained` and `adapt add` to publish: {before / statistics.median(times[0]):.1f}")
        if options.remote:
            from adapterhub_registry import worker

            from tests.registry.many_versions import add_versions
            from tests.registry.running import running

            server = stack.enter_context(running(place / "registry", derives=False))
            library.remotes.add("ours", server.url, namespaces=["team"])
            library.remotes.login("ours", server.token)
            sent = library.live("sent@base", keep=options.keep or None, remote="ours")
            published(sent, trained, 5, sync=True)
            what = "publish to library and registry, both sides"
            show(what, published(sent, trained, options.remote, sync=True))
            figures = list[float]()
            for _ in range(20):
                claim = worker._claim(server.registry.db)
                assert claim is not None
                spent, _ = timed(
                    lambda claim=claim: worker._make(server.registry.db, server.registry.blobs, claim, Event())
                )
                figures.append(spent)
            print(f"figures of a version, in the background: CPU p50 {statistics.median(figures) * 1e3:.1f} ms")
            if options.beside:
                others = range(1_000_000, 1_000_000 + options.beside)
                add_versions(server.registry.db, server.registry.blobs, "team/sent", others)
                print(line(f"{what}, beside {options.beside:,}", *published(sent, trained, options.remote, sync=True)))


if __name__ == "__main__":
    main()

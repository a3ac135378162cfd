"""How long until followers answer by a version that was just published, and what following costs while nothing happens.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_follow [--versions 100] [--pause-s 0.2] [--idle-s 20] [--vllm 20]

Another process publishes versions of 1.2 MB to a stream and says when each publish returned; the clock is the machine's. The
bank's requests are one forward pass each, back to back. Prints p50 and p99 of the times from the return of a publish to the
first yield of `stream.follow()`, to the swap in a bank, and to the end of the first forward pass by the version; the CPU time of a
follower of an alias that does not move; and the memory that remains after all swaps. `--vllm` does so many versions in vLLM on
this CPU, with SmolLM2-135M, from the move to the last byte of the first answer; a request has 4 tokens.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.bench.harness import given

NAME = "agent@live"


def model(folder: Path) -> Any:
    """A PEFT model whose adapter has 1.2 MB; its base is saved in the folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=768, intermediate_size=64, num_hidden_layers=6, num_attention_heads=12, vocab_size=64
    )
    base = LlamaForCausalLM(config)
    base.save_pretrained(folder)
    return get_peft_model(base, LoraConfig(r=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


def publisher(home: Path, versions: int, pause_s: float) -> None:
    """Publish versions to the library, and print when each publish returned."""
    from adapterhub import Library

    trained = model(home.parent / "again")
    stream = Library(home).live("agent@base")
    weights = [value for name, value in trained.named_parameters() if "lora" in name]
    for number in range(versions):
        for value in weights:
            value.data *= 1.001
        made = stream.publish(trained, step=number, sync=False)
        print(made.version, time.monotonic(), flush=True)
        time.sleep(pause_s)
    stream.close()


def publishing(home: Path, versions: int, pause_s: float) -> subprocess.Popen[str]:
    """A process that publishes."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.bench_follow"]
    command += ["--publisher", str(home), "--versions", str(versions), "--pause-s", str(pause_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def quantile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def tell(what: str, found: dict[str, float], published: dict[str, float]) -> None:
    """The times from publishing to what was found, and how many versions were passed over."""
    times = [at - published[version] for version, at in found.items() if version in published]
    if times:
        words = f"p50 {statistics.median(times) * 1e3:.0f} ms, p99 {quantile(times, 0.99) * 1e3:.0f} ms"
        print(f"{what}: {words} ({len(times)} of {len(published)} versions)")


def resident_bytes() -> int:
    """What this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_bank(place: Path, versions: int, pause_s: float, idle_s: float) -> None:
    """Follow by an iterator and by a bank at once, while another process publishes."""
    import torch

    from adapterhub import AdapterBank, Library

    base = model(place / "model").unload()
    library = Library(place / "home")
    library.add_base(place / "model", "base")
    yielded, swapped, answered = dict[str, float](), dict[str, float](), dict[str, float]()
    over = threading.Event()
    ids = torch.arange(16)[None] % 64

    def iterate() -> None:
        for found in library.live("agent@base").builds(stopped=over):
            yielded[found.build.manifest.version] = time.monotonic()

    with AdapterBank(base, library=library) as bank:
        following = bank.follow(NAME)

        def wait() -> None:
            known = None
            while not over.is_set():
                found = following.wait(other_than=known, timeout_s=1)
                if found is not None:
                    known = found.version
                    swapped[known] = time.monotonic()

        threads = [threading.Thread(target=one, daemon=True) for one in (iterate, wait)]
        for thread in threads:
            thread.start()
        process = publishing(library.root, versions, pause_s)
        early, passes = 0, list[float]()
        while process.poll() is None:
            if following.current is None:
                time.sleep(0.01)
                continue
            began = time.monotonic()
            with bank.use(NAME), torch.no_grad():
                [label] = bank.chosen
                base(ids)
            passes.append(time.monotonic() - began)
            answered.setdefault(label.rpartition("==")[2], time.monotonic())
            if not early and len(answered) > versions // 4:
                early = resident_bytes()
        assert process.stdout is not None
        published = {version: float(at) for version, at in map(str.split, process.stdout)}
        tell("stream.follow", yielded, published)
        tell("bank, swapped", swapped, published)
        tell("bank, first forward pass", answered, published)
        print(
            f"a forward pass: p50 {statistics.median(passes) * 1e3:.0f} ms, p99 {quantile(passes, 0.99) * 1e3:.0f} ms"
        )
        gc.collect()
        print(f"memory after a quarter of the swaps {early / 1e6:.0f} MB, after all {resident_bytes() / 1e6:.0f} MB")
        over.set()
        for thread in threads:
            thread.join()
        spent = time.process_time()
        time.sleep(idle_s)
        print(
            f"a follower of an alias that does not move: {100 * (time.process_time() - spent) / idle_s:.2f} % of a CPU"
        )


def in_vllm(place: Path, versions: int) -> None:
    """Move an alias while requests run, one after the other."""
    import urllib.request

    from adapterhub.core.specs import AdapterSpec
    from adapterhub.live.stream import LiveStream
    from tests.inference.engines.__main__ import vllm_python
    from tests.inference.engines.served_library import make_served_library
    from tests.inference.engines.servers import adapt_serve
    from tests.inference.engines.variants import SERVED, write_variant

    served = make_served_library(place)
    stream = LiveStream(served.library, AdapterSpec.parse("agent"), served.record)
    folders = [write_variant(place / "peft" / str(seed), SERVED["plain"], seed=seed) for seed in range(4)]
    stream.publish(folders[0], step=0)
    os.environ["ADAPTERHUB_VLLM_PYTHON"] = str(vllm_python())
    published, answered, waits = dict[str, float](), dict[str, float](), list[float]()
    arguments = [NAME, "--base", "smol", "--max-rank", "16", "--slots", "2", "--offline", "--alias-ttl", "3600"]
    with adapt_serve(served.home, place / "vllm.log", *arguments) as server:
        body = {"model": NAME, "prompt": "The", "max_tokens": 4, "temperature": 0, "ignore_eos": True}

        def ask() -> None:
            headers, began = {"Content-Type": "application/json"}, time.monotonic()
            request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=300) as answer:
                answer.read()
                version = answer.headers["x-adapter-name"].rpartition("==")[2]
            waits.append(time.monotonic() - began)
            answered.setdefault(version, time.monotonic())

        ask()
        for number in range(1, versions + 1):
            version = stream.publish(folders[number % 4], step=number, sync=False).version
            published[version] = time.monotonic()
            while version not in answered:
                ask()
            ask()
    tell("vLLM, first answer", answered, published)
    print(f"vLLM, an answer: p50 {statistics.median(waits) * 1e3:.0f} ms, p99 {quantile(waits, 0.99) * 1e3:.0f} ms")
    stream.close()


def main() -> None:
    """Run it."""
    options = given(__doc__, versions=100, pause_s=0.2, idle_s=20.0, vllm=0, publisher="")
    if options.publisher:
        publisher(Path(options.publisher), options.versions, options.pause_s)
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        if options.vllm:
            in_vllm(Path(folder), options.vllm)
        else:
            in_bank(Path(folder), options.versions, options.pause_s, options.idle_s)


if __name__ == "__main__":
    main()

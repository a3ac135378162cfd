"""A registry on loopback: installing and pushing many adapters against the stock client, and what the server bears.

    python -m tests.bench.bench_remote [--pushes 100] [--adapters 100] [--megabytes 10] [--repositories 10000] [--gigabytes 1]
    python -m tests.bench.bench_remote --only together [--together 20] [--delay-ms 20]
    python -m tests.bench.bench_remote --only pushing [--runs 3]

Peers, in the same run against the same server: `hf download` and `hf upload` of the installed huggingface_hub, one
process each, as they are used, and `snapshot_download` of all repositories in one process. Bounds: install at most 0.7
of the wall time, a second install (all present) at most 0.05 of it; one process that installs 20 at most 0.5 of
`snapshot_download` behind a network of 20 ms; the server under 200 MB while 1 GiB goes up and comes down.

`together` prints a curve as well: 2, 20 and 200 adapters installed. `pushing` prints that of pushes of 0.1 to 100 MB.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

from tests.bench.harness import given, measured, told

# for the client in this process, which only sets the stage; those that are measured are processes of their own
os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}

import numpy as np
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.numpy import save_file

SCRIPTS = Path(sys.executable).parent
RANK = 16


def make_adapter(folder: Path, megabytes: float, seed: int) -> None:
    """A LoRA adapter of about that size with one large pair, of its own numbers."""
    folder.mkdir(parents=True)
    width = int(megabytes * 1e6 / 4 / 2 / RANK)
    random = np.random.default_rng(seed)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    pair = {
        f"{key}A.weight": random.standard_normal((RANK, width), "f4"),
        f"{key}B.weight": random.standard_normal((width, RANK), "f4"),
    }
    save_file(pair, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": RANK, "lora_alpha": RANK}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))


@contextmanager
def registry(root: Path, *words: str) -> Iterator[tuple[str, str, int]]:
    """A running server with these options: URL, administrator's token, process id."""
    command = [str(SCRIPTS / "adapt"), "registry", "serve", "--root", str(root), "--port", "0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline().partition(": ")[2].strip() for _ in range(2)]
        yield lines[0], lines[1], process.pid
    finally:
        process.terminate()
        process.wait(30)


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process so far, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1000


_DELAYING = """
import asyncio, sys
port, delay_s = int(sys.argv[1]), float(sys.argv[2]) / 1000

async def pump(reader, writer):
    due = asyncio.Queue()
    async def send():
        while (item := await due.get()) is not None:
            at, data = item
            await asyncio.sleep(max(0, at - asyncio.get_running_loop().time()))
            writer.write(data)
            await writer.drain()
        writer.close()
    sending = asyncio.create_task(send())
    while data := await reader.read(1 << 18):
        due.put_nowait((asyncio.get_running_loop().time() + delay_s / 2, data))
    due.put_nowait(None)
    await asyncio.gather(sending, return_exceptions=True)

async def serve(reader, writer):
    there, back = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
"""Passes connections on to a port, each direction late by half of the delay."""


@contextmanager
def far_away(url: str, delay_ms: float) -> Iterator[str]:
    """The URL of the same server, `delay_ms` away there and back."""
    command = [sys.executable, "-c", _DELAYING, url.rpartition(":")[2], str(delay_ms)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait(30)


_SESSION = "from huggingface_hub import get_session; get_session()"
_CLIENT = "from huggingface_hub import CommitOperationAdd, HfApi"
_SNAPSHOTS = "import sys; from huggingface_hub import snapshot_download as get; [get(name) for name in sys.argv[1:]]"


def install_together(folder: Path, most: int, megabytes: float, delay_ms: float) -> None:
    """Adapters from one server in one process, near and far, against `snapshot_download` of the same; and a curve."""
    with registry(folder / "registry") as (url, token, _):
        api = HfApi(endpoint=url, token=token)
        names = [f"acme/one-{i}" for i in range(most * 10)]
        for i, name in enumerate(names):
            make_adapter(folder / f"one-{i}", megabytes if i < most else 0.01, i)
            api.create_repo(name)
            files = ("adapter_config.json", "adapter_model.safetensors")
            operations = [CommitOperationAdd(one, (folder / f"one-{i}" / one).read_bytes()) for one in files]
            api.create_commit(name, operations, commit_message="upload")

        def environ(server: str, run: str) -> dict[str, str]:
            own = {"HF_ENDPOINT": server, "ADAPTERHUB_REMOTE": server, "HF_TOKEN": token, "ADAPTERHUB_TOKEN": token}
            own |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            return os.environ | own | {"ADAPTERHUB_HOME": f"{folder}/home-{run}", "HF_HUB_CACHE": f"{folder}/hub-{run}"}

        adapt = str(SCRIPTS / "adapt")
        with far_away(url, delay_ms) as far:
            for place, server in (("near", url), (f"{delay_ms:g} ms away", far)):
                pairs = [
                    (
                        measured([adapt, "install", *names[:most], "-q"], env=environ(server, f"{place}-{run}")).wall_s,
                        measured(
                            [sys.executable, "-c", _SNAPSHOTS, *names[:most]], env=environ(server, f"{place}-{run}")
                        ).wall_s,
                    )
                    for run in range(3)
                ]
                ours, theirs = (min(column) for column in zip(*pairs, strict=True))
                print(
                    f"install of {most} adapters of {megabytes:g} MB, {place}: adapt {ours:.2f} s, snapshot_download "
                    f"{theirs:.2f} s, ratio {ours / theirs:.2f}"
                )
        curve = {
            count: min(
                measured([adapt, "install", *names[-count:], "-q"], env=environ(url, f"{count}-{run}")).wall_s
                for run in range(3)
            )
            for count in (most // 10, most, most * 10)
        }
        start = min(
            measured([adapt, "install", names[-1], "-q"], env=environ(url, f"{most}-0")).wall_s for _ in range(3)
        )
        print(told(f"install, adapters, beyond {start:.2f} s of a start that finds it there,", curve, start))
        for what, code in (
            ("its session", _SESSION),
            ("its session and sqlite-utils", f"{_SESSION}; import sqlite_utils"),
        ):
            floor = min(measured([sys.executable, "-c", code], env=environ(url, "floor")).cpu_s for _ in range(3))
            print(f"floor of an install: {floor:.2f} s CPU to start Python with the Hub's client, {what}")


def push_growing(folder: Path, runs: int) -> None:
    """CPU seconds of pushes of 0.1 to 100 MB, each in a process of its own, ours and `hf upload`; the least of some."""
    with registry(folder / "registry") as (url, token, _):
        own = {"HF_ENDPOINT": url, "ADAPTERHUB_REMOTE": url, "HF_TOKEN": token, "ADAPTERHUB_TOKEN": token}
        own |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "ADAPTERHUB_HOME": str(folder / "home")}
        environ = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_XET"} | own
        adapt, hf = str(SCRIPTS / "adapt"), str(SCRIPTS / "hf")
        ours, theirs = dict[int, float](), dict[int, float]()
        for size in (100, 1_000, 10_000, 100_000):
            for run in range(runs):
                name = f"size-{size}-{run}"
                make_adapter(folder / name, size / 1000, size + run)
                measured([adapt, "add", str(folder / name), "--name", name, "-q"], env=environ)
                for curve, command in ((ours, [adapt, "push", name, "--to", f"acme/{name}", "-q"]),
                                       (theirs, [hf, "upload", f"acme/their-{name}", str(folder / name)])):  # fmt: skip
                    curve[size] = min(curve.get(size, math.inf), measured(command, env=environ).cpu_s)
                shutil.rmtree(folder / name)
            print(f"push of {size:,} kB: adapt {ours[size]:.2f} s CPU, hf upload {theirs[size]:.2f} s, "
                  f"ratio {ours[size] / theirs[size]:.2f}")  # fmt: skip
        print(told("push, kB, CPU", ours))
        floor = min(measured([sys.executable, "-c", _CLIENT], env=environ).cpu_s for _ in range(runs))
        print(f"floor of a push: {floor:.2f} s CPU to import the client's part that makes commits")


def move_adapters(folder: Path, pushes: int, push_megabytes: float, count: int, megabytes: float) -> None:
    """Push some adapters, install others, ours and the stock client's in turn."""
    with registry(folder / "registry") as (url, token, _):
        environ = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_XET"} | {
            "HF_ENDPOINT": url,
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "ADAPTERHUB_REMOTE": url,
            "ADAPTERHUB_TOKEN": token,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "ADAPTERHUB_HOME": str(folder / "home"),
            "HF_HUB_CACHE": str(folder / "cache"),
        }
        adapt, hf = str(SCRIPTS / "adapt"), str(SCRIPTS / "hf")
        ours = theirs = 0.0
        for i in range(pushes):
            make_adapter(folder / f"small-{i}", push_megabytes, i)
            measured([adapt, "add", str(folder / f"small-{i}"), "--name", f"small-{i}", "-q"], env=environ)
            ours += measured([adapt, "push", f"small-{i}", "--to", f"acme/small-{i}", "-q"], env=environ).wall_s
            theirs += measured([hf, "upload", f"acme/theirs-{i}", str(folder / f"small-{i}")], env=environ).wall_s
        print(
            f"push of {pushes} adapters of {push_megabytes:g} MB: adapt {ours:.1f} s, hf upload {theirs:.1f} s, "
            f"ratio {ours / theirs:.2f}"
        )
        api = HfApi(endpoint=url, token=token)
        for i in range(count):
            make_adapter(folder / f"large-{i}", megabytes, count + i)
            files = ("adapter_config.json", "adapter_model.safetensors")
            api.create_repo(f"acme/large-{i}")
            with (folder / f"large-{i}" / files[1]).open("rb") as stream:
                operations = [
                    CommitOperationAdd(files[0], folder / f"large-{i}" / files[0]),
                    CommitOperationAdd(files[1], stream),
                ]
                api.create_commit(f"acme/large-{i}", operations, commit_message="upload")
        names = [f"acme/large-{i}" for i in range(count)]
        theirs = sum(measured([hf, "download", name, "--quiet"], env=environ).wall_s for name in names)
        environ["ADAPTERHUB_HOME"] = str(folder / "second-home")
        ours = measured([adapt, "install", *names, "-q"], env=environ).wall_s
        again = measured([adapt, "install", *names, "-q"], env=environ).wall_s
        print(
            f"install of {count} adapters of {megabytes:g} MB: adapt {ours:.1f} s, hf download {theirs:.1f} s, "
            f"ratio {ours / theirs:.2f} (at most 0.7)"
        )
        print(f"second install, all present: {again:.2f} s, ratio {again / theirs:.3f} (at most 0.05)")


def bear(folder: Path, repositories: int, gigabytes: float) -> None:
    """Requests per second with many repositories, and memory while one large file goes up and comes down."""
    with registry(folder / "many") as (url, token, pid):
        api = HfApi(endpoint=url, token=token)
        weights = folder / "weights"
        make_adapter(weights, 0.01, 1)
        data = (weights / "adapter_model.safetensors").read_bytes()
        config = json.loads((weights / "adapter_config.json").read_text())

        def publish(first: int) -> None:
            for i in range(first, repositories, 8):
                repo = f"acme/r{i}"
                api.create_repo(repo)
                text = json.dumps(config | {"base_model_name_or_path": f"org/base-{i % 50}"}).encode()
                operations = [
                    CommitOperationAdd("adapter_config.json", text),
                    CommitOperationAdd("adapter_model.safetensors", data),
                ]
                api.create_commit(repo, operations, commit_message="x")

        start = time.perf_counter()
        threads = [threading.Thread(target=publish, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        made = time.perf_counter() - start
        print(f"{repositories:,} repositories made in {made:.0f} s ({repositories / made:.0f} a second)")
        for what, method, path in (
            ("resolve HEAD", "HEAD", "/acme/r7/resolve/main/adapter_model.safetensors"),
            (
                "filtered listing",
                "GET",
                "/api/models?filter=base_model:adapter:org/base-7&filter=lora-rank:16&limit=50",
            ),
            ("adapters by base and rank", "GET", "/api/adapt/v1/adapters?base=org/base-7&rank_min=8&rank_max=32"),
        ):
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < 5:
                urlopen(Request(url + path, method=method, headers={"Authorization": f"Bearer {token}"})).read()
                count += 1
            print(f"{what}: {count / 5:.0f} requests a second, one connection each, one at a time")
    with registry(folder / "large") as (url, token, pid):
        api = HfApi(endpoint=url, token=token)
        api.create_repo("acme/large")
        big = folder / "big.bin"
        block = os.urandom(1 << 20)
        with big.open("wb") as sink:
            for i in range(int(gigabytes * 1024)):
                sink.write(hashlib.sha256(i.to_bytes(4, "little")).digest() + block[32:])
        with big.open("rb") as stream:
            api.create_commit("acme/large", [CommitOperationAdd("big.bin", stream)], commit_message="large")
        up = peak_mb(pid)
        hasher = hashlib.sha256()
        request = Request(f"{url}/acme/large/resolve/main/big.bin", headers={"Authorization": f"Bearer {token}"})
        with urlopen(request) as answer:
            while chunk := answer.read(1 << 20):
                hasher.update(chunk)
        same = (
            hasher.hexdigest() == hashlib.file_digest(big.open("rb"), "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else True
        )
        print(
            f"{gigabytes:g} GiB up and down, bytes {'the same' if same else 'DIFFER'}: server peak {up:.0f} MB after the "
            f"upload, {peak_mb(pid):.0f} MB after the download (under 200)"
        )


def main() -> None:
    """Measure and print."""
    options = given(
        __doc__,
        adapters=100,
        megabytes=10.0,
        pushes=100,
        push_megabytes=1.0,
        repositories=10_000,
        gigabytes=1.0,
        together=20,
        delay_ms=20.0,
        only=(None, "move", "together", "pushing", "bear"),
        runs=3,
    )
    if options.only in (None, "together"):
        with tempfile.TemporaryDirectory() as folder:
            install_together(Path(folder), options.together, options.push_megabytes, options.delay_ms)
    if options.only in (None, "pushing"):
        with tempfile.TemporaryDirectory() as folder:
            push_growing(Path(folder), options.runs)
    if options.only in (None, "move"):
        with tempfile.TemporaryDirectory() as folder:
            move_adapters(Path(folder), options.pushes, options.push_megabytes, options.adapters, options.megabytes)
    if options.only in (None, "bear"):
        with tempfile.TemporaryDirectory() as folder:
            bear(Path(folder), options.repositories, options.gigabytes)


if __name__ == "__main__":
    main()

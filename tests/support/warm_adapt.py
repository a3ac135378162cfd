"""`adapt` in a process of its own for each command, without importing torch each time.

A server imports what the commands need and then forks a child for each command, which gets the caller's arguments,
folder, environment, stdin, stdout and stderr. The pages of the documentation run hundreds of commands.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent.parent
MOST_BYTES = 1 << 20
NEEDED_BY_OTHERS = ("adapterhub.vllm_plugin", "adapterhub.api.callbacks", "adapterhub.cli.start.demo_run.train")
"""Modules that other programs run, with what those have installed."""

CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(ADDRESS)
    call = json.dumps({"argv": sys.argv[1:], "folder": os.getcwd(), "environ": dict(os.environ)}).encode()
    socket.send_fds(server, [len(call).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(call)
    code = server.recv(1)
sys.exit(code[0] if code else "the command ended without an exit code")
"""


@contextlib.contextmanager
def warm_adapt() -> Iterator[str]:
    """The text of a program `adapt` to put into the PATH; it works until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="adapt-") as folder:  # short: the name of a socket has 104 bytes at most
        address = f"{folder}/socket"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTERHUB_")}
        environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "registry")])
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm_adapt", address], stdout=subprocess.PIPE, env=environ, cwd=ROOT
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            code = CLIENT.replace("ADDRESS", repr(address))
            yield f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -ISc {shlex.quote(code)} "$@"\n'
        finally:
            server.terminate()
            server.communicate()


def _serve(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        _import_what_commands_need()
        print("ready", flush=True)  # noqa: T201 - what the caller waits for
        while True:
            caller, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(caller)
            caller.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _import_what_commands_need() -> None:
    """All modules of the package, and what they import when they are used: a child imports nothing twice."""
    package = ROOT / "adapterhub"
    for path in sorted(package.rglob("[a-z]*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not name.startswith(NEEDED_BY_OTHERS):
            importlib.import_module(name)
    for name in ("torch", "safetensors.torch", "safetensors.numpy", "huggingface_hub", "numpy.random", "sqlite_utils"):
        importlib.import_module(name)
    for name in ("rich.table", "cryptography", "tomlkit", "yaml", "rfc8785", "packaging.utils", "packaging.specifiers"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the first search for garbage in a child copies all pages


def _answer(caller: socket.socket) -> NoReturn:
    try:
        head, descriptors, _, _ = socket.recv_fds(caller, 4, 3)
        call = json.loads(_received(caller, int.from_bytes(head, "big")))
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        caller.sendall(bytes([run_main(call["argv"], call["folder"], call["environ"])]))
    except BaseException:  # noqa: BLE001 - the end of this process, whatever it is
        traceback.print_exc()
    finally:
        os._exit(0)


def _received(caller: socket.socket, length: int) -> bytes:
    text = b""
    while len(text) < min(length, MOST_BYTES):
        text += caller.recv(length - len(text))
    return text


def run_main(argv: list[str], folder: str, environ: dict[str, str]) -> int:
    """The exit code of `adapt` in this process, which is a child made for it."""
    from adapterhub.cli import main

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a new interpreter, whatever a test before it set
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    sys.argv = ["adapt", *argv]
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 - until the end
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115 - as above
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()  # as an interpreter does at its end


if __name__ == "__main__":
    _serve(sys.argv[1])

"""Asks llama.cpp's server for greedy answers, with an exported adapter on a base that is a GGUF file."""

from __future__ import annotations

import contextlib
import http.client
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.core.errors import EngineFailed, shown
from adapterhub.inference.serving.front import free_port
from adapterhub.inference.serving.llama_cpp.engine import command_of
from adapterhub.inference.serving.process import EngineProcess

_START_S: Final = 600.0
_ANSWER_S: Final = 600.0
_MOST_BYTES: Final = 16 << 20
_LINES_SHOWN: Final = 8
_ONE: Final = [{"id": 0, "scale": 1.0}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An answer: its token ids, with the end token if it came, and its text without special tokens."""

    tokens: tuple[int, ...]
    text: str


class LlamaServer:
    """A server that runs, at a port of loopback."""

    def __init__(self, port: int) -> None:
        self._port = port

    def answer(self, prompt: Sequence[int], *, new: int, stop: Sequence[str] = ()) -> Written:
        """The greedy answer to the tokens of a prompt, of at most `new` tokens.

        Raises:
            EngineFailed: the server does not answer, or in words that cannot be read.
        """
        asked = {"prompt": list(prompt), "n_predict": new, "temperature": 0, "top_k": 1, "stop": list(stop)}
        body = json.dumps({**asked, "return_tokens": True, "cache_prompt": False, "lora": _ONE})
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_S)
        try:
            with contextlib.closing(connection):
                connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                raw = answer.read(_MOST_BYTES)
            if answer.status != http.HTTPStatus.OK:
                raise EngineFailed(f"llama-server refuses a prompt: {shown(raw.decode(errors='replace'), 200)}")
            value = json.loads(raw)
            return Written(tokens=tuple(map(int, value["tokens"])), text=str(value["content"]))
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise EngineFailed(f"llama-server gives no answer that can be read: {shown(str(error), 200)}") from None


@contextlib.contextmanager
def serving(program: str, base: Path, adapter: Path, environ: Mapping[str, str]) -> Iterator[LlamaServer]:
    """A server with the one adapter on the base while the block runs.

    Raises:
        EngineFailed: it does not start; with its last lines.
    """
    port = free_port("127.0.0.1")
    words = ["--host", "127.0.0.1", "--port", str(port)]
    command = command_of(program, base.absolute(), [adapter.absolute()], words, 1)
    with tempfile.TemporaryFile() as log:
        try:
            with EngineProcess(command, environ, output=log) as engine:
                engine.wait_until_ready(f"http://127.0.0.1:{port}/health", within_s=_START_S)
                yield LlamaServer(port)
        except EngineFailed as error:
            log.seek(0)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            tail = "\n".join(f"  {shown(line, 200)}" for line in lines[-_LINES_SHOWN:])
            raise EngineFailed(f"{error.message}\n{tail}".rstrip()) from None

"""llama.cpp's server as a child of the front: its command, the only way to reach it, and what is sent over that.

It listens on a Unix socket in a folder that only this account can enter, or on loopback with a key that only the front
knows, and gets requests that the front writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx

from adapterhub.core.errors import NotFound, UsageProblem, shown
from adapterhub.inference.serving.process import free_port
from adapterhub.inference.serving.refusal import RequestRefused

_PROVED: Final = "`--gguf` names the base, which is proved to be that of the adapters"
_NAME_A_MODEL: Final = (
    "--model", "-m", "--model-url", "-mu", "--hf-repo", "-hf", "-hfr", "--hf-file", "-hff", "--docker-repo", "-dr",
)  # fmt: skip
_PRESETS: Final = ("-default", "-spec")
"""Ends of options such as `--gpt-oss-20b-default`, which fetch a model."""

OURS: Final = {
    "--cache-ram": "it restores keys and values that another adapter computed",
    "-cram": "it restores keys and values that another adapter computed",
    "--slot-save-path": "it keeps prompts of all clients on the disk",
    **dict.fromkeys(_NAME_A_MODEL, _PROVED),
    "--lora": "SPECs name the adapters",
    "--lora-scaled": "SPECs name the adapters",
    "--host": "the engine is reached through this server only; `--host` of `adapt serve` sets the server's address",
    "--port": "the engine is reached through this server only; `--port` of `adapt serve` sets the server's address",
    "--parallel": "`--slots` of `adapt serve` sets it",
    "-np": "`--slots` of `adapt serve` sets it",
    "--kv-unified": "it lets one client push the others' prompts out",
    "-kvu": "it lets one client push the others' prompts out",
    "--lookup-cache-dynamic": "it keeps prompts of all clients",
    "-lcd": "it keeps prompts of all clients",
    "--props": "it lets clients change the answers of others",
    "--api-key-file": "`--tenants` has the keys of this server",
    "--tools": "it lets clients run programs",
}
"""Options of the engine that `adapt serve` sets or refuses, with the reason."""

_START_S: Final = 5.0
_AGAIN_S: Final = 0.05
_HELP_S: Final = 60.0
_MOST_LINE_BYTES: Final = 1 << 18
_MOST_ANSWER_BYTES: Final = 64 << 20
_EVENT_END: Final = b"\n\n"


def find_llama_server(program: str | None) -> str:
    """Find the server's program.

    Raises:
        NotFound: there is no such program.
    """
    found = shutil.which(program or "llama-server")
    if found is None:
        raise NotFound(
            f"`{shown(program or 'llama-server', 200)}` was not found",
            hint="download it from llama.cpp's releases or build it, then pass `--llama-server FILE`",
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The address on which the engine listens: a Unix socket, or a port of loopback with a key."""

    socket: Path | None = None
    port: int = 0
    key: str = ""

    @property
    def words(self) -> list[str]:
        """The words of the engine's command line."""
        if self.socket is not None:
            return ["--host", str(self.socket)]
        return ["--host", "127.0.0.1", "--port", str(self.port)]

    @property
    def url(self) -> str:
        """The address of its routes."""
        return "http://127.0.0.1" if self.socket is not None else f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """The variables that give the engine its key."""
        return {"LLAMA_API_KEY": self.key} if self.key else {}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of each request to it."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def answers(self) -> bool:
        """Return whether the engine is ready."""
        made = httpx.HTTPTransport(uds=None if self.socket is None else str(self.socket))
        try:
            with httpx.Client(transport=made, timeout=_START_S, trust_env=False) as client:
                return client.get(f"{self.url}/health", headers=self.headers).status_code == HTTPStatus.OK
        except httpx.HTTPError:
            return False


@contextlib.contextmanager
def addresses(program: str, count: int) -> Iterator[list[Address]]:
    """Choose where each engine listens while the block runs: a socket if its version can, otherwise loopback."""
    with tempfile.TemporaryDirectory(
        prefix="adapt-"
    ) as folder:  # of this account only, and short: a path of a socket may have 108 bytes
        if "UNIX socket" in _help_of(program):
            yield [Address(socket=Path(folder, f"engine{at}.sock")) for at in range(count)]
        else:
            key = secrets.token_urlsafe(32)
            yield [Address(port=free_port("127.0.0.1"), key=key) for _ in range(count)]


def _help_of(program: str) -> str:
    try:
        done = subprocess.run([program, "--help"], capture_output=True, timeout=_HELP_S, check=False)  # noqa: S603 - the program that the user named
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFound(
            f"`{shown(program, 200)}` cannot be run: {shown(str(error), 200)}",
            hint="`--llama-server FILE` names the program",
        ) from None
    return done.stdout.decode("utf-8", "replace")


def command_of(
    program: str, base: Path, adapters: Sequence[Path], words: Sequence[str], slots: int, extra: Sequence[str] = ()
) -> list[str]:
    """Write the command that starts the server at the address of `words`; no adapter is applied unless a request asks.

    Raises:
        UsageProblem: `extra` has an option that would mix the adapters or the clients.
    """
    for word in extra:
        reason = _PROVED if word.startswith("--") and word.endswith(_PRESETS) else OURS.get(word.partition("=")[0])
        if reason is not None:
            raise UsageProblem(
                f"`--engine-args` has `{shown(word, 100)}`, which `adapt serve` does not pass on: {reason}"
            )
    loras = [word for path in adapters for word in ("--lora", str(path))]
    own = ["--lora-init-without-apply", "--cache-ram", "0", "--no-slots", "--no-webui", "--parallel", str(slots)]
    return [program, "--model", str(base), *loras, *extra, *own, *words]


def environ_of(environ: Mapping[str, str], where: Address) -> dict[str, str]:
    """Return the environment of the engine: without options of its own, which could undo those of the command."""
    kept = {name: value for name, value in environ.items() if not name.startswith(("LLAMA_ARG_", "LLAMA_API_KEY"))}
    return kept | where.variables


class Engine:
    """What the front asks the engine, within one event loop.

    Each request has a connection of its own, because the engine closes one after each stream without announcing it.
    """

    def __init__(self, where: Address) -> None:
        self._where = where
        fixed = ["Host: engine", "Connection: close", "Content-Type: application/json"]
        lines = [*fixed, *(f"{name}: {text}" for name, text in where.headers.items())]
        self._head = "".join(f"{line}\r\n" for line in lines)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._where.socket is None:
            return await asyncio.open_connection("127.0.0.1", self._where.port, limit=_MOST_LINE_BYTES)
        place = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        place.setblocking(False)
        try:
            while True:
                with contextlib.suppress(
                    BlockingIOError
                ):  # its line of connections is full, such as while it is stopped
                    place.connect(str(self._where.socket))
                    return await asyncio.open_unix_connection(sock=place, limit=_MOST_LINE_BYTES)
                await asyncio.sleep(_AGAIN_S)
        except BaseException:
            place.close()
            raise

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, path: str, data: bytes = b""
    ) -> AsyncIterator[tuple[int, dict[str, str], AsyncIterator[bytes]]]:
        """Provide the status, the headers and the body of an answer, in pieces.

        Left early, it ends the engine's work.
        """
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(data)}\r\n\r\n"
        async with contextlib.AsyncExitStack() as stack:
            with _unread():
                reader, writer = await self._connected()
                stack.callback(writer.close)
                writer.write(head.encode("latin-1") + data)
                await writer.drain()
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                pairs = (line.partition(":") for line in lines if line)
                headers = {name.lower(): text.strip() for name, _, text in pairs}
                status = int(first.split()[1])
            yield status, headers, _body(reader, headers)

    async def ask(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Return the status and the JSON of an answer. Cancelled, it ends the engine's work."""
        async with self._asked("POST", path, json.dumps(body).encode()) as (status, _, pieces):
            data = await _joined(pieces)
        try:
            return status, json.loads(data)
        except (ValueError, RecursionError):
            raise RequestRefused(502, "the engine's answer cannot be read") from None

    @contextlib.asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Provide the status of an answer and its server-sent events, each whole; an error comes as one piece."""
        async with self._asked("POST", path, json.dumps(body).encode()) as (status, headers, pieces):
            is_stream = headers.get("content-type", "").startswith("text/event-stream")
            yield status, _events(pieces) if is_stream else _whole(pieces)

    async def figures(self) -> bytes:
        """Return the engine's own figures, where it was started with `--metrics`."""
        with contextlib.suppress(RequestRefused, asyncio.TimeoutError):
            return await asyncio.wait_for(self._figures(), _START_S)
        return b""

    async def _figures(self) -> bytes:
        async with self._asked("GET", "/metrics") as (status, headers, pieces):
            data = await _joined(pieces)
        return data if status == HTTPStatus.OK and headers.get("content-type", "").startswith("text/plain") else b""


async def figures_of(engines: Sequence[Engine]) -> bytes:
    """Return the figures of all engines, which the label `engine` tells apart where there are several."""
    texts = await asyncio.gather(*(one.figures() for one in engines))
    if len(texts) == 1:
        return texts[0]
    samples: dict[bytes, list[bytes]] = {}
    for at, text in enumerate(texts):
        for line in text.splitlines():
            name, _, value = line.partition(b" ")
            if name != b"#":
                samples.setdefault(name, []).append(b'%b{engine="%d"} %b\n' % (name, at, value))
            elif not at:  # what the next name means
                samples.setdefault(line.split()[2], []).append(line + b"\n")
    return b"".join(line for lines in samples.values() for line in lines)


@contextlib.contextmanager
def _unread() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError):
        raise RequestRefused(502, "the engine does not answer") from None


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    with _unread():
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(await reader.readline(), 16):
                yield (await reader.readexactly(size + 2))[:-2]
            return
        rest = int(headers["content-length"]) if "content-length" in headers else None
        while rest != 0 and (piece := await reader.read(_MOST_LINE_BYTES if rest is None else rest)):
            rest = None if rest is None else rest - len(piece)
            yield piece
        if rest:
            raise EOFError


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in pieces:
        *events, rest = (rest + piece).split(_EVENT_END)
        for event in events:
            yield event
        if len(rest) > _MOST_ANSWER_BYTES:
            raise RequestRefused(502, "the engine's answer is too long")


async def _whole(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield await _joined(pieces)


async def _joined(pieces: AsyncIterator[bytes]) -> bytes:
    found, size = list[bytes](), 0
    async for piece in pieces:
        found.append(piece)
        size += len(piece)
        if size > _MOST_ANSWER_BYTES:
            raise RequestRefused(502, "the engine's answer is too long")
    return b"".join(found)

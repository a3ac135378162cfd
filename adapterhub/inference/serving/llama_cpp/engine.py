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
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from adapterhub.core.errors import NotFound, UsageProblem, shown
from adapterhub.inference.serving.access.refused import RequestRefused
from adapterhub.inference.serving.front import free_port

if TYPE_CHECKING:
    from typing_extensions import Self

OURS: Final = {
    "--cache-ram": "it restores keys and values that another adapter computed",
    "-cram": "it restores keys and values that another adapter computed",
    "--slot-save-path": "it keeps prompts of all clients on the disk",
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

_ANSWER_S: Final = 3600.0
_START_S: Final = 5.0
_KEPT_S: Final = 2.0
"""How long a connection is kept for another request; the engine ends it after five seconds."""

_HELP_S: Final = 60.0
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
    """Where the engine listens: a Unix socket, or a port of loopback with a key."""

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
        """Whether the engine is ready."""
        made = httpx.HTTPTransport(uds=None if self.socket is None else str(self.socket))
        try:
            with httpx.Client(transport=made, timeout=_START_S, trust_env=False) as client:
                return client.get(f"{self.url}/health", headers=self.headers).status_code == HTTPStatus.OK
        except httpx.HTTPError:
            return False


@contextlib.contextmanager
def addresses(program: str, count: int) -> Iterator[list[Address]]:
    """Choose where each engine listens while the block runs: a socket where its version can, else loopback."""
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
        raise NotFound(f"`{shown(program, 200)}` cannot be run: {shown(str(error), 200)}") from None
    return done.stdout.decode("utf-8", "replace")


def command_of(
    program: str, base: Path, adapters: Sequence[Path], words: Sequence[str], slots: int, extra: Sequence[str] = ()
) -> list[str]:
    """Write the command that starts the server at the address of `words`; no adapter is applied unless a request asks.

    Raises:
        UsageProblem: `extra` has an option that would mix the adapters or the clients.
    """
    for word in extra:
        reason = OURS.get(word.partition("=")[0])
        if reason is not None:
            raise UsageProblem(
                f"`--engine-args` has `{shown(word, 100)}`, which `adapt serve` does not pass on: {reason}"
            )
    loras = [word for path in adapters for word in ("--lora", str(path))]
    own = ["--lora-init-without-apply", "--cache-ram", "0", "--no-slots", "--no-webui", "--parallel", str(slots)]
    return [program, "--model", str(base), *loras, *extra, *own, *words]


def environ_of(environ: Mapping[str, str], where: Address) -> dict[str, str]:
    """The environment of the engine: without options of its own, which could undo those of the command."""
    kept = {name: value for name, value in environ.items() if not name.startswith(("LLAMA_ARG_", "LLAMA_API_KEY"))}
    return kept | where.variables


class Engine:
    """What the front asks the engine, within one event loop; a context manager."""

    def __init__(self, where: Address) -> None:
        made = httpx.AsyncHTTPTransport(
            uds=None if where.socket is None else str(where.socket),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=_KEPT_S),
        )
        timeout = httpx.Timeout(_ANSWER_S, connect=_START_S)
        self._client = httpx.AsyncClient(
            transport=made, base_url=where.url, headers=where.headers, timeout=timeout, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    @contextlib.asynccontextmanager
    async def _posted(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[httpx.Response]:
        # The engine ends a connection after each stream, and does not say so: another request on it would fail.
        headers = {"connection": "close"} if body.get("stream") else {}
        try:
            async with self._client.stream("POST", path, json=dict(body), headers=headers) as answer:
                yield answer
        except httpx.HTTPError as error:
            print("DEBUG", repr(error), flush=True, file=__import__("sys").stderr)
            raise RequestRefused(502, "the engine does not answer") from None

    async def ask(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """The status and the JSON of an answer. Cancelled, it ends the engine's work."""
        async with self._posted(path, body) as answer:
            data = b""
            async for piece in answer.aiter_bytes():
                data += piece
                if len(data) > _MOST_ANSWER_BYTES:
                    raise RequestRefused(502, "the engine's answer is too long")
        try:
            return answer.status_code, json.loads(data)
        except (ValueError, RecursionError):
            raise RequestRefused(502, "the engine's answer cannot be read") from None

    @contextlib.asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """The status of an answer and its server-sent events, each whole; an error comes as one piece."""
        async with self._posted(path, body) as answer:
            is_stream = answer.headers.get("content-type", "").startswith("text/event-stream")
            yield answer.status_code, _events(answer) if is_stream else _whole(answer)

    async def figures(self) -> bytes:
        """The engine's own figures, where it was started with `--metrics`."""
        with contextlib.suppress(httpx.HTTPError):
            answer = await self._client.get("/metrics", timeout=_START_S)
            if answer.status_code == HTTPStatus.OK and answer.headers.get("content-type", "").startswith("text/plain"):
                return answer.content
        return b""


async def figures_of(engines: Sequence[Engine]) -> bytes:
    """The figures of all engines, which the label `engine` tells apart where there are several."""
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


async def _events(answer: httpx.Response) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in answer.aiter_bytes():
        *events, rest = (rest + piece).split(_EVENT_END)
        for event in events:
            yield event
        if len(rest) > _MOST_ANSWER_BYTES:
            raise RequestRefused(502, "the engine's answer is too long")


async def _whole(answer: httpx.Response) -> AsyncIterator[bytes]:
    yield await answer.aread()

"""A remote that is down, hangs or comes back, seen from a server whose clients wait for answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from adapterhub.core.errors import AdapterHubError, RemoteUnreachable
from adapterhub.distribution.hub import Hub
from adapterhub.inference.serving.following import REST_S, UnreachableRemotes
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.remotes import Remotes
from adapterhub.vllm_plugin.resolver import FETCHES_AT_ONCE, AdapterHubResolver
from tests.support.standin_vllm import importable

PLACE = "http://127.0.0.1:1"


class Hanging:
    """A server that accepts connections and answers nothing until `release`."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.accepted: list[socket.socket] = []
        self.has = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # `release` closes the listener
            while True:
                connection, _ = self._listener.accept()
                with self.has:
                    self.accepted.append(connection)
                    self.has.notify_all()

    def wait_for(self, count: int) -> None:
        with self.has:
            assert self.has.wait_for(lambda: len(self.accepted) >= count, timeout=60)

    def release(self) -> None:
        """End every connection, and accept no other."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self.has:
            for connection in self.accepted:
                connection.close()


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server = Hanging()
    yield server
    server.release()


@pytest.fixture
def resolver(
    tmp_path: Path, library: Library, base: BaseRecord, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AdapterHubResolver]:
    """vLLM's resolver over the library, whose only remote hangs."""
    with importable(tmp_path / "standin", monkeypatch):
        Remotes(library.root).add("ours", hanging.url, namespaces=("acme",))
        yield AdapterHubResolver({"ADAPTERHUB_HOME": str(library.root), "ADAPTERHUB_TIMEOUT_S": "60"}, ["vllm"])
        hanging.release()


def test_a_remote_that_hangs_holds_up_no_installed_adapter(
    resolver: AdapterHubResolver, base: BaseRecord, hanging: Hanging, add: Callable[..., Added]
) -> None:
    digest = add("legal-qa").build.manifest.digest

    async def run() -> tuple[str, list[BaseException | object], bool]:
        fetching = [
            asyncio.create_task(resolver.resolve_lora(str(base.path), f"acme/x{number}"))
            for number in range(2 * FETCHES_AT_ONCE)
        ]
        await asyncio.to_thread(hanging.wait_for, FETCHES_AT_ONCE)
        found = await resolver.resolve_lora(str(base.path), "legal-qa")
        waiting = not any(task.done() for task in fetching)
        hanging.release()
        return found.lora_path, await asyncio.gather(*fetching, return_exceptions=True), waiting

    path, refused, waiting = asyncio.run(run())

    assert path.endswith(digest.replace(":", "-"))
    assert waiting
    assert {getattr(error, "http_status", None) for error in refused} == {424}


def test_a_remote_that_did_not_answer_is_left_alone_for_a_while(
    resolver: AdapterHubResolver, base: BaseRecord, hanging: Hanging
) -> None:
    from vllm.exceptions import GracefulHTTPError

    async def run() -> int:
        first = asyncio.create_task(resolver.resolve_lora(str(base.path), "acme/first"))
        await asyncio.to_thread(hanging.wait_for, 1)
        for connection in hanging.accepted:
            connection.close()
        for task in (first, *(resolver.resolve_lora(str(base.path), f"acme/x{number}") for number in range(5))):
            with pytest.raises(GracefulHTTPError) as caught:
                await task
            assert caught.value.http_status == 424
        return len(hanging.accepted)

    assert asyncio.run(run()) == 1


def test_a_server_that_hangs_holds_up_no_other_server(hanging: Hanging) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"features": ["search"]}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    failed: list[AdapterHubError] = []

    def ask_hanging() -> None:
        try:
            _ = Hub(endpoint=hanging.url, token=None, silence_s=60).features
        except AdapterHubError as error:
            failed.append(error)

    asking = threading.Thread(target=ask_hanging)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asking.start()
        hanging.wait_for(1)
        features = Hub(endpoint=f"http://127.0.0.1:{server.server_port}", token=None).features
        still_waits = asking.is_alive()
        server.shutdown()
    hanging.release()
    asking.join()

    assert features == {"search"}
    assert still_waits
    assert isinstance(failed[0], RemoteUnreachable)


# ---------------------------------------------------------------- the breaker
class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def fail(status: int | None = None) -> Callable[[], object]:
    def request() -> object:
        raise RemoteUnreachable("remote `ours` is down", status=status)

    return request


def never() -> object:
    raise AssertionError("was sent")


@pytest.mark.parametrize("status", [None, 500, 503, 429])
def test_after_a_failure_nothing_is_sent_until_the_rest_is_over(status: int | None) -> None:
    clock = Clock()
    remotes = UnreachableRemotes(clock)
    with pytest.raises(RemoteUnreachable):
        remotes.call(PLACE, fail(status))

    clock.now = REST_S - 1
    with pytest.raises(RemoteUnreachable, match=r"is down \(no new attempt for 1 s\)"):
        remotes.call(PLACE, never)
    assert remotes.call("http://127.0.0.1:2", lambda: "another") == "another"

    clock.now = REST_S
    assert remotes.call(PLACE, lambda: "back") == "back"
    assert remotes.call(PLACE, lambda: "again") == "again"


def test_one_caller_alone_tries_again() -> None:
    clock = Clock()
    remotes = UnreachableRemotes(clock)
    with pytest.raises(RemoteUnreachable):
        remotes.call(PLACE, fail())
    clock.now = REST_S

    def second_caller_meanwhile() -> str:
        with pytest.raises(RemoteUnreachable, match="no new attempt"):
            remotes.call(PLACE, never)
        return "back"

    assert remotes.call(PLACE, second_caller_meanwhile) == "back"


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_refused_request_says_nothing_of_others(status: int) -> None:
    remotes = UnreachableRemotes(Clock())

    with pytest.raises(RemoteUnreachable):
        remotes.call(PLACE, fail(status))

    assert remotes.call(PLACE, lambda: "other") == "other"

"""Real bytes of a Xet client, and a slow writer of the same formats.

`capture` runs the installed hf_xet client against a server on loopback that answers as little as it can and keeps the
bodies. `xorb_bytes` and `shard_bytes` write the formats from their description, for cases the client never makes.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lz4.frame
from adapterhub_registry.storage.xet import chunk_node, xorb_hash

UPLOAD = """
import sys
from pathlib import Path
import hf_xet
from huggingface_hub.utils._xet import get_xet_session

url, *paths = sys.argv[1:]
with get_xet_session().new_upload_commit(
    token_refresh_url=url + "/api/models/a/b/xet-write-token/main",
    token_refresh_headers={"authorization": "Bearer x"},
    custom_headers={"user-agent": "test"},
) as commit:
    handles = [commit.start_upload_bytes(Path(p).read_bytes(), sha256=hf_xet.COMPUTE_SHA256) for p in paths]
print([h.result().xet_info.sha256 for h in handles])
"""


@dataclass
class Captured:
    xorbs: dict[str, bytes] = field(default_factory=dict)
    shards: list[bytes] = field(default_factory=list)


def capture(paths: Sequence[Path], home: Path) -> Captured:
    """What the installed client sends for these files."""
    with _server() as (url, captured):
        environment = {**os.environ, "HF_HOME": str(home)}
        environment.pop("HF_HUB_OFFLINE", None)
        subprocess.run([sys.executable, "-c", UPLOAD, url, *map(str, paths)], env=environment, check=True, timeout=120)
    return captured


@contextmanager
def _server() -> Iterator[tuple[str, Captured]]:
    captured = Captured()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or a body waits 40 ms for its head

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = f"http://127.0.0.1:{self.server.server_address[1]}/_xet/1/1"
            status, value, headers = 404, {"error": "no"}, {}
            if "xet-write-token" in self.path:
                expires = int(time.time()) + 3000
                status, value = 200, {"accessToken": "t", "exp": expires, "casUrl": url}
                headers = {
                    "X-Xet-Access-Token": "t",
                    "X-Xet-Token-Expiration": str(expires),
                    "X-Xet-Cas-Url": url,
                }
            elif "/xorbs/" in self.path:
                captured.xorbs[self.path.rpartition("/")[2]] = body
                status, value = 200, {"was_inserted": True}
            elif self.path.endswith("/v1/shards"):
                captured.shards.append(body)
                status, value = 200, {"result": 1}
            sent = json.dumps(value).encode()
            self.send_response(status)
            for name, text in (headers | {"Content-Length": str(len(sent))}).items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = answer  # noqa: N815 - the names that http.server looks for

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", captured
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def chunk_bytes(data: bytes, scheme: int = 0, *, unpacked: int | None = None) -> bytes:
    if scheme == 2:
        packed = lz4.frame.compress(b"".join(bytes(data[i] for i in range(lane, len(data), 4)) for lane in range(4)))
    else:
        packed = lz4.frame.compress(data) if scheme else data
    size = len(data) if unpacked is None else unpacked
    return b"\0" + len(packed).to_bytes(3, "little") + bytes([scheme]) + size.to_bytes(3, "little") + packed


def xorb_bytes(chunks: Sequence[tuple[bytes, int]], footer: bytes = b"") -> bytes:
    return b"".join(chunk_bytes(data, scheme) for data, scheme in chunks) + footer


def xorb_name(chunks: Sequence[tuple[bytes, int]]) -> str:
    """The hash that a xorb of these chunks has, whatever they are packed with."""
    return xorb_hash([chunk_node(data) for data, _ in chunks])


def turned(text: str) -> bytes:
    """The bytes of a hash in its text form."""
    raw = bytes.fromhex(text)
    return b"".join(raw[at : at + 8][::-1] for at in range(0, 32, 8))


def shard_bytes(
    files: Sequence[tuple[str, Sequence[tuple[str, int, int, int]]]],
    *,
    flags: int = 0xC0000000,
    version: int = 2,
    rest: bytes = b"",
) -> bytes:
    """`files` are (sha256, segments), a segment (xorb hash, unpacked bytes, first chunk, end chunk)."""
    out = [b"HFRepoMetaData\0".ljust(32, b"U") + struct.pack("<QQ", version, 0)]
    for sha256, segments in files:
        out.append(struct.pack("<32sII8x", b"\x11" * 32, flags, len(segments)))
        out += [struct.pack("<32sIIII", turned(xorb), 0, size, first, end) for xorb, size, first, end in segments]
        if flags & 1 << 31:
            out += [bytes(48)] * len(segments)
        if flags & 1 << 30:
            out.append(turned(sha256) + bytes(16))
    out.append(b"\xff" * 32 + bytes(16))
    return b"".join(out) + rest

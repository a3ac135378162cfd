"""A small OCI registry on loopback, in this process: blobs, manifests, tags, referrers and tokens as the spec has them.

`answers` replaces what it says to a path, so that tests can make it hostile.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

INDEX = "application/vnd.oci.image.index.v1+json"
PATH = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>blobs|manifests|tags|referrers)/(?P<rest>.+)")


@dataclass
class Reply:
    """What a path is answered with, in place of what the registry holds."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class OciServer(ThreadingHTTPServer):
    """`users` are names with passwords; with any, each request needs a token. `refers`: has the referrers API."""

    def __init__(self, *, refers: bool = True) -> None:
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.answers: dict[str, Reply] = {}
        self.users: dict[str, str] = {}
        self.came: list[tuple[str, str, str]] = []
        self.refers, self.page = refers, 1000
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def address(self) -> str:
        return f"oci://{self.host}"

    def handle_error(self, *_arguments: object) -> None:
        """Nothing on stderr where a client hangs up."""

    def tags(self, name: str) -> list[str]:
        return sorted(tag for repo, tag in self.manifests if repo == name and not tag.startswith("sha256:"))

    def manifest(self, name: str, reference: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.manifests[name, reference][1])
        return found

    def put(self, name: str, reference: str, raw: bytes, media_type: str) -> str:
        digest = digest_of(raw)
        self.manifests[name, digest] = self.manifests[name, reference] = media_type, raw
        return digest

    def put_blob(self, name: str, data: bytes) -> str:
        self.blobs[name, digest_of(data)] = data
        return digest_of(data)


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for its head
    server: OciServer

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body, place, server = self.rfile.read(length), urlsplit(self.path), self.server
        server.came.append((self.command, self.path, self.headers.get("authorization", "")))
        if place.path == "/token":
            return self._token(parse_qs(place.query))
        if server.users and self.headers.get("authorization") != f"Bearer {self._granted(place.path)}":
            realm = f'Bearer realm="http://{server.host}/token",service="tests"'
            return self._send(Reply(401, b"{}", {"www-authenticate": realm}))
        reply = server.answers.get(f"{self.command} {place.path}") or server.answers.get(place.path)
        return self._send(reply or self._reply(place.path, parse_qs(place.query), body))

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815 - names of the protocol

    def _granted(self, path: str) -> str:
        found = PATH.match(path)
        scope = f"repository:{found['name']}:" if found else ""
        return f"{scope}{'pull' if self.command in ('GET', 'HEAD') else 'pull,push'}" if scope else "any"

    def _token(self, asked: dict[str, list[str]]) -> None:
        known = {base64.b64encode(f"{u}:{p}".encode()).decode() for u, p in self.server.users.items()}
        if self.headers.get("authorization", "").removeprefix("Basic ") not in known:
            return self._send(Reply(401, b'{"errors": [{"code": "DENIED", "message": "no such user"}]}'))
        return self._send(Reply(200, json.dumps({"token": asked.get("scope", ["any"])[0]}).encode()))

    def _reply(self, path: str, asked: dict[str, list[str]], body: bytes) -> Reply:
        if path == "/v2/":
            return Reply()
        if path == "/v2/_catalog":
            return Reply(
                200, json.dumps({"repositories": sorted({name for name, _ in self.server.manifests})}).encode()
            )
        found = PATH.match(path)
        if found is None:
            return Reply(404)
        kind: Any = getattr(self, f"_{found['kind']}")
        reply: Reply = kind(found["name"], found["rest"], asked, body)
        return reply

    def _blobs(self, name: str, rest: str, asked: dict[str, list[str]], body: bytes) -> Reply:
        server = self.server
        if self.command == "POST":
            return Reply(202, headers={"location": f"/v2/{name}/blobs/uploads/1?state=x"})
        if self.command == "PUT":
            digest = asked["digest"][0]
            if digest_of(body) != digest:
                return Reply(400, b'{"errors": [{"code": "DIGEST_INVALID", "message": "other bytes"}]}')
            server.blobs[name, digest] = body
            return Reply(201)
        data = server.blobs.get((name, rest))
        if data is None:
            return Reply(404)
        begin = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if begin is None:
            return Reply(200, data)
        part = data[int(begin[1]) : int(begin[2]) + 1 if begin[2] else None]
        return Reply(206, part, {"content-range": f"bytes {begin[1]}-{int(begin[1]) + len(part) - 1}/{len(data)}"})

    def _manifests(self, name: str, rest: str, _asked: object, body: bytes) -> Reply:
        server = self.server
        if self.command == "PUT":
            digest = server.put(name, rest, body, self.headers["content-type"])
            subject = json.loads(body).get("subject")
            told = {"oci-subject": subject["digest"]} if subject and server.refers else {}
            return Reply(201, headers={"docker-content-digest": digest, **told})
        if (name, rest) not in server.manifests:
            return Reply(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no such manifest"}]}')
        media_type, raw = server.manifests[name, rest]
        return Reply(200, raw, {"content-type": media_type, "docker-content-digest": digest_of(raw)})

    def _tags(self, name: str, _rest: str, asked: dict[str, list[str]], _body: bytes) -> Reply:
        tags = self.server.tags(name)
        if not tags:
            return Reply(404)
        tags = [tag for tag in tags if tag > asked.get("last", [""])[0]]
        shown = tags[: self.server.page]
        more = {"link": f'</v2/{name}/tags/list?last={shown[-1]}>; rel="next"'} if len(shown) < len(tags) else {}
        return Reply(200, json.dumps({"name": name, "tags": shown}).encode(), more)

    def _referrers(self, name: str, rest: str, _asked: object, _body: bytes) -> Reply:
        if not self.server.refers:
            return Reply(404, b"404 page not found")
        found = []
        for (repo, reference), (media_type, raw) in self.server.manifests.items():
            value = json.loads(raw)
            if repo == name and reference.startswith("sha256:") and value.get("subject", {}).get("digest") == rest:
                found.append(
                    {"mediaType": media_type, "digest": reference, "size": len(raw)}
                    | {key: value[key] for key in ("artifactType", "annotations") if key in value}
                )
        return Reply(200, json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": found}).encode())

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, text in reply.headers.items():
            self.send_header(name, text)
        if "content-length" not in {name.lower() for name in reply.headers}:
            self.send_header("content-length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def log_message(self, *_arguments: object) -> None:
        """Nothing on stderr."""


@contextmanager
def serving(*, refers: bool = True) -> Iterator[OciServer]:
    server = OciServer(refers=refers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

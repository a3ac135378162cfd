"""Conditions of requests for files (RFC 9110): a resumed download never joins the bytes of two files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import httpx
import pytest

from tests.registry.running import Running, running

OLD, NEW = b"the first file", b"another file of the same name"
PATH = "/acme/files/resolve/main/a.txt"


def commit(server: Running, content: bytes) -> str:
    value = {"path": "a.txt", "content": base64.b64encode(content).decode()}
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": value}]
    answer = httpx.post(
        f"{server.url}/api/models/acme/files/commit/main",
        content="\n".join(json.dumps(line) for line in lines),
        headers={"Authorization": f"Bearer {server.token}"},
    )
    return str(answer.raise_for_status().json()["commitOid"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        server.post("/api/repos/create", {"organization": "acme", "name": "files"}).raise_for_status()
        yield server


@pytest.fixture(scope="module")
def tags(server: Running) -> tuple[str, str]:
    """The ETag of the file before its last change, and the one of now."""
    found = []
    for content in (OLD, NEW):
        commit(server, content)
        found.append(httpx.get(server.url + PATH).headers["etag"])
    return found[0], found[1]


def ask(server: Running, tags: tuple[str, str], method: str = "GET", **conditions: str) -> httpx.Response:
    """The file, under conditions in which OLD and NEW stand for its ETags."""
    named = {
        name.replace("_", "-"): v.replace("OLD", tags[0]).replace("NEW", tags[1]) for name, v in conditions.items()
    }
    return httpx.request(method, server.url + PATH, headers=named)


def test_a_download_is_resumed_only_into_the_same_file(server: Running, tags: tuple[str, str]) -> None:
    same = ask(server, tags, Range="bytes=4-", If_Range="NEW")
    other = ask(server, tags, Range="bytes=4-", If_Range="OLD")

    assert (same.status_code, same.content) == (206, NEW[4:])
    assert same.headers["content-range"] == f"bytes 4-{len(NEW) - 1}/{len(NEW)}"
    assert (other.status_code, other.content) == (200, NEW)
    assert "content-range" not in other.headers
    assert same.headers["etag"] == other.headers["etag"] == tags[1]


@pytest.mark.parametrize(
    "validator",
    ["W/NEW", "*", "NEW, OLD", "nonsense", "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"],
)
def test_only_the_one_strong_validator_resumes(server: Running, tags: tuple[str, str], validator: str) -> None:
    answer = ask(server, tags, Range="bytes=4-", If_Range=validator)

    assert (answer.status_code, answer.content) == (200, NEW)


def test_a_range_beyond_the_end_is_refused_only_when_it_counts(server: Running, tags: tuple[str, str]) -> None:
    beyond = f"bytes={len(NEW)}-"
    refused = ask(server, tags, Range=beyond, If_Range="NEW")

    assert (refused.status_code, refused.headers["content-range"]) == (416, f"bytes */{len(NEW)}")
    assert refused.headers["x-error-code"] == "RangeNotSatisfiable"
    assert ask(server, tags, Range=beyond).status_code == 416
    assert ask(server, tags, Range=beyond, If_Range="OLD").status_code == 200
    assert ask(server, tags, Range=beyond, If_None_Match="NEW").status_code == 304
    assert ask(server, tags, Range=beyond, If_Match="OLD").status_code == 412
    assert ask(server, tags, "HEAD", Range=beyond).status_code == 200


# what is asked, and the status of GET and HEAD
CONDITIONS: list[tuple[dict[str, str], int]] = [
    ({"If_Match": "NEW"}, 200),
    ({"If_Match": "OLD"}, 412),
    ({"If_Match": "*"}, 200),
    ({"If_Match": "OLD, NEW"}, 200),
    ({"If_Match": 'OLD , , "x,y" ,\tNEW'}, 200),
    ({"If_Match": "W/NEW"}, 412),
    ({"If_Match": "W/NEW, OLD"}, 412),
    ({"If_Match": ""}, 412),
    ({"If_Match": "nonsense"}, 412),
    ({"If_Match": "NEW nonsense"}, 412),
    ({"If_None_Match": "NEW"}, 304),
    ({"If_None_Match": "W/NEW"}, 304),
    ({"If_None_Match": "OLD"}, 200),
    ({"If_None_Match": "*"}, 304),
    ({"If_None_Match": "OLD, W/NEW"}, 304),
    ({"If_None_Match": 'OLD, "x"'}, 200),
    ({"If_None_Match": "nonsense"}, 200),
    ({"If_None_Match": "NEW nonsense"}, 200),
    ({"If_Match": "NEW", "If_None_Match": "NEW"}, 304),
    ({"If_Match": "OLD", "If_None_Match": "NEW"}, 412),
    ({"If_Match": "OLD", "If_None_Match": "OLD"}, 412),
    ({"If_Match": "NEW", "If_None_Match": "OLD"}, 200),
    # no answer carries Last-Modified: conditions on dates are passed over
    ({"If_Modified_Since": "Fri, 31 Dec 9999 23:59:59 GMT"}, 200),
    ({"If_Unmodified_Since": "Wed, 21 Oct 2015 07:28:00 GMT"}, 200),
    ({"If_None_Match": "OLD", "If_Modified_Since": "Fri, 31 Dec 9999 23:59:59 GMT"}, 200),
    ({"If_Range": "OLD"}, 200),
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("conditions", "status"), CONDITIONS)
def test_conditions_are_answered(
    server: Running, tags: tuple[str, str], method: str, conditions: dict[str, str], status: int
) -> None:
    answer = ask(server, tags, method, **conditions)

    assert answer.status_code == status
    assert answer.headers["etag"] == tags[1]
    assert answer.headers["x-repo-commit"]
    assert "last-modified" not in answer.headers
    if status == 304:
        assert answer.content == b""
        assert not {"content-type", "content-length", "content-range"} & set(answer.headers)
    if status == 412:
        assert answer.headers["x-error-code"] == "PreconditionFailed"
    if status == 200:
        assert answer.headers["content-length"] == str(len(NEW))


def test_a_condition_in_several_lines_is_one_list(server: Running, tags: tuple[str, str]) -> None:
    lines = [("If-None-Match", tags[0]), ("If-None-Match", tags[1])]

    assert httpx.get(server.url + PATH, headers=lines).status_code == 304


@pytest.mark.parametrize("condition", ["If-None-Match", "If-Match"])
def test_a_condition_tells_nothing_of_what_may_not_be_read(server: Running, condition: str) -> None:
    server.post("/api/repos/create", {"organization": "acme", "name": "hidden", "visibility": "private"})
    answers = [
        httpx.get(f"{server.url}/acme/{name}/resolve/main/a.txt", headers={condition: "*"})
        for name in ("hidden", "nowhere")
    ]

    assert [(answer.status_code, answer.headers["x-error-code"]) for answer in answers] == [(404, "RepoNotFound")] * 2


def test_what_was_not_sent_is_no_download(server: Running, tags: tuple[str, str]) -> None:
    value = {"path": "config.json", "content": base64.b64encode(b"{}").decode()}
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": value}]
    headers = {"Authorization": f"Bearer {server.token}"}
    server.post("/api/repos/create", {"organization": "acme", "name": "counted"})
    body = "\n".join(json.dumps(line) for line in lines)
    httpx.post(f"{server.url}/api/models/acme/counted/commit/main", content=body, headers=headers).raise_for_status()
    place, counter = f"{server.url}/acme/counted/resolve/main/config.json", {"X-HF-Download-Counter": "1"}

    for condition in ({"If-None-Match": "*"}, {"If-Match": tags[0]}, {"Range": "bytes=9-"}, {}):
        httpx.get(place, headers=counter | condition)
    server.registry.downloads.flush()

    assert server.get("/api/models/acme/counted").json()["downloads"] == 1

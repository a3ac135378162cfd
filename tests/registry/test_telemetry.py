"""What a server tells of itself: health, metrics, and a log in which nothing opens anything."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.access.telemetry import JsonLines, Telemetry, logged_path
from prometheus_client.parser import text_string_to_metric_families

from adapterhub.core.redaction import without_secrets
from tests.registry.conftest import serving
from tests.registry.pushing import Push
from tests.registry.running import running

TOKEN = "adp_" + "a2" * 16 + "_0123abcd"


def samples(text: str) -> dict[str, float]:
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_health_is_where_orchestrators_look(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        answer = server.get("/healthz", token=None)

        assert (answer.status_code, answer.json()) == (200, {"status": "ok", "database": "ok", "blobs": "ok"})
        (tmp_path / "blobs" / "sha256").rename(tmp_path / "blobs" / "gone")
        sick = server.get("/healthz", token=None)
        (tmp_path / "blobs" / "gone").rename(tmp_path / "blobs" / "sha256")

    assert (sick.status_code, sick.json()["blobs"]) == (503, "unreachable")


def test_metrics_name_routes_and_no_repositories(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.push("secret-project/x", b"w" * 1000)
        server.get("/nobody/there/resolve/main/x")
        text = server.get("/metrics").text

    found = samples(text)
    commit = [("method", "POST"), ("route", "/api/models/{namespace}/{name}/commit/{rev}"), ("status", "200")]
    assert found[f"adapterhub_requests_total{commit}"] == 1
    assert found[f"adapterhub_request_seconds_count{commit[:2]}"] == 1
    missing = [("method", "GET"), ("route", "/{namespace}/{name}/resolve/{rev}/{path:path}"), ("status", "404")]
    assert found[f"adapterhub_requests_total{missing}"] == 1
    assert found["adapterhub_requests_running[]"] == 1  # this one
    assert found["adapterhub_received_bytes_total[]"] > 1000
    assert "secret-project" not in text


def test_each_request_is_a_line_without_tokens_and_links(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    # `serving` wants an empty log at its end; here the log is what is looked at
    with contextlib.suppress(AssertionError), serving(tmp_path, (), "--log-requests") as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        with httpx.Client(base_url=server.url, headers=headers) as client:
            Push(repo="acme/x", weights=b"w" * 1000).run(client)
            client.get("/api/models", params={"search": TOKEN})
            client.get(f"/acme/x/resolve/main/{TOKEN}.txt")
        token = server.token
    text = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]

    assert token not in text
    assert TOKEN not in text
    assert "search" not in text
    assert not re.search(r"/_lfs/object/.", text)
    assert [line["path"] for line in lines[:3]] == [
        "/api/repos/create",
        "/acme/x.git/info/lfs/objects/batch",
        "/_lfs/object",
    ]
    assert {line["user"] for line in lines if line["path"] != "/_lfs/object"} == {"admin"}
    assert all(line["status"] and line["ms"] >= 0 and len(line["request"]) == 16 for line in lines)
    assert lines[2]["received_bytes"] == 1000


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {TOKEN}",
        f"could not read {TOKEN}!",
        "GET https://s3/b/k?X-Amz-Signature=deadbeef&X-Amz-Credential=key%2Fx&a=b",
        "postgresql://ann:deadbeef@host/db",
        "token eyJ1c2VyIjoiYW5uIiwib2lkIjoi.deadbeef",
    ],
)
def test_what_opens_something_is_removed(text: str) -> None:
    cleaned = without_secrets(text)

    assert "deadbeef" not in cleaned
    assert TOKEN not in cleaned
    assert "[removed]" in cleaned


def test_paths_that_carry_rights_are_cut() -> None:
    assert logged_path("/_lfs/object/eyJ.sig") == "/_lfs/object"
    assert logged_path("/_xet/1-2/20000/v1/shards") == "/_xet/1-2"
    assert logged_path("/acme/x/resolve/main/a.txt") == "/acme/x/resolve/main/a.txt"


def test_errors_are_lines_too() -> None:
    error = ValueError(f"with {TOKEN}")
    found = (ValueError, error, None)
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "request %s failed", ("12",), found)

    line = json.loads(JsonLines().format(record))

    assert (line["level"], line["message"]) == ("error", "request 12 failed")
    assert "ValueError: with [removed]" in line["traceback"]


def test_a_request_that_is_broken_off_is_counted() -> None:
    stream = io.StringIO()
    telemetry = Telemetry(stream)
    from adapterhub_registry.access.telemetry import RequestRecord

    telemetry.began()
    telemetry.ended({"type": "http", "method": "BREW", "path": "/a"}, RequestRecord(), "n")

    assert json.loads(stream.getvalue())["status"] == 0
    assert 'method="other"' in telemetry.exposition().decode()

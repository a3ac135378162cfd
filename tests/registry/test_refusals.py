"""The log of refused changes: who tried what, and why it was refused."""

from __future__ import annotations

import pytest
from adapterhub_registry.access import telemetry
from adapterhub_registry.access.telemetry import refusal_records

from tests.registry.running import Running


def commit(server: Running, repo: str, token: str | None) -> int:
    header = '{"key":"header","value":{"summary":"x"}}'
    url, kind = f"{server.url}/api/models/{repo}/commit/main", {"Content-Type": "application/x-ndjson"}
    import httpx

    headers = kind | ({"Authorization": f"Bearer {token}"} if token else {})
    return httpx.post(
        url, content=header + '\n{"key":"file","value":{"path":"../x","content":""}}', headers=headers
    ).status_code


def test_refused_changes_are_kept_with_who_and_why(server: Running) -> None:
    server.create("ann/refused")
    writer = server.registry.tokens.create("carl", "read", namespaces=["ann/*"])

    codes = [commit(server, "ann/refused", token) for token in (server.token, server.token, writer, None)]
    found = refusal_records(server.registry.db)

    assert codes[2:] == [403, 401]
    assert [(r.user, r.repo, r.action, r.status, r.count) for r in found] == [
        ("carl", "ann/refused", "commit", 403, 1),
        ("ann", "ann/refused", "commit", codes[0], 2),
    ]
    assert "../x" in found[1].message
    assert refusal_records(server.registry.db, user="carl") == found[:1]


def test_the_log_is_bounded(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "KEPT", 3)
    server.create("ann/many")
    readers = [server.registry.tokens.create(f"user-{at}", "read", namespaces=["ann/*"]) for at in range(5)]

    for reader in readers:
        assert commit(server, "ann/many", reader) == 403

    assert [r.user for r in refusal_records(server.registry.db)] == ["user-4", "user-3", "user-2"]

"""What controllers of Kubernetes send to a server to load an adapter, and what the guard answers.

The requests are as the controllers' sources had them in August 2026; `docs/how-to/serve-in-production.md` names the senders.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub.vllm_plugin.guard import Guard

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "how-to" / "serve-in-production.md"
PATH = "/mnt/lora/sql"
KEY = {"Authorization": "Bearer k"}
LOAD = "/v1/load_lora_adapter"
UNLOAD = "/v1/unload_lora_adapter"

REQUESTS: dict[str, tuple[str, str, dict[str, Any], dict[str, str]]] = {
    "production-stack, `LoraAdapter`": ("POST", LOAD, {"lora_name": "sql", "lora_path": PATH}, KEY),
    "production-stack, `LoraAdapter` deleted": ("POST", UNLOAD, {"lora_name": "sql"}, KEY),
    "AIBrix, `ModelAdapter`": ("POST", LOAD, {"lora_name": "sql", "lora_path": "org/sql"}, KEY),
    "AIBrix, `ModelAdapter` with the sidecar": ("POST", LOAD, {"lora_name": "sql", "lora_path": PATH}, {}),
    "AIBrix, `ModelAdapter` deleted": ("POST", UNLOAD, {"lora_name": "sql"}, KEY),
    "Gateway API, the syncer until 1.3": (
        "POST", LOAD, {"lora_name": "sql", "lora_path": "org/sql", "base_model_name": "base-7b"}, {},
    ),
    "Gateway API, the syncer's `ensureNotExist`": ("POST", UNLOAD, {"lora_name": "sql"}, {}),
    "SageMaker, an adapter component": ("POST", "/adapters", {"name": "sql", "src": PATH}, {}),
    "SageMaker, a component deleted": ("DELETE", "/adapters/sql", {}, {}),
}  # fmt: skip


async def _reached(scope: Any, receive: Any, send: Any) -> None:
    """Stands where vLLM stands."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def answer(method: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(Guard(_reached)), base_url="http://server"
        ) as client:
            return await client.request(method, path, json=body, headers=headers)

    return asyncio.run(send())


def test_the_page_names_every_sender() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert [sender for sender in REQUESTS if sender.partition(",")[0] not in page] == []


@pytest.mark.parametrize("sender", REQUESTS)
def test_the_guard_refuses_what_the_sender_asks(sender: str) -> None:
    response = answer(*REQUESTS[sender])

    assert (response.status_code, response.json()["error"]["code"]) == (403, 403)


@pytest.mark.parametrize(("path", "status"), [(LOAD, 403), (UNLOAD, 200)])
def test_the_admin_key_opens_unloading_only(monkeypatch: pytest.MonkeyPatch, path: str, status: int) -> None:
    monkeypatch.setenv("ADAPTERHUB_SERVE_ADMIN_KEY", "admin")

    assert answer("POST", path, {"lora_name": "sql"}, {"x-admin-key": "admin"}).status_code == status

"""A push by hand, call by call, as a client of the hub does it; it says where it stopped."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import httpx

CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8, "target_modules": ["q_proj"]}
PIECE_BYTES = 1 << 20


def put(link: str, content: bytes) -> None:
    """Send bytes to a signed link."""

    def pieces() -> Iterator[bytes]:  # given whole, httpx copies what is left of them after each write
        for start in range(0, len(content), PIECE_BYTES):
            yield content[start : start + PIECE_BYTES]

    headers = {"Content-Length": str(len(content))}
    httpx.put(link, content=pieces(), headers=headers, timeout=600).raise_for_status()


@dataclass(frozen=True, kw_only=True)
class Push:
    """One adapter that is to be pushed to a repository of its own."""

    repo: str
    weights: bytes
    version: str = "v1.0.0"

    @property
    def files(self) -> dict[str, bytes]:
        return {"adapter_config.json": json.dumps(CONFIG).encode(), "adapter_model.safetensors": self.weights}

    @cached_property
    def oid(self) -> str:
        return hashlib.sha256(self.weights).hexdigest()

    def run(self, client: httpx.Client) -> str:
        """Push and tag; the commit. Raises what the client raises for errors."""
        namespace, _, name = self.repo.partition("/")
        made = client.post("/api/repos/create", json={"organization": namespace, "name": name})
        if made.status_code != httpx.codes.CONFLICT:
            made.raise_for_status()
        commit = self.commit(client)
        tagged = client.post(f"/api/models/{self.repo}/tag/main", json={"tag": self.version})
        if tagged.status_code != httpx.codes.CONFLICT:
            tagged.raise_for_status()
        return commit

    def commit(self, client: httpx.Client) -> str:
        self.send(client)
        answer = client.post(f"/api/models/{self.repo}/commit/main", content=self._lines())
        answer.raise_for_status()
        commit: str = answer.json()["commitOid"]
        return commit

    def send(self, client: httpx.Client) -> None:
        item = {"oid": self.oid, "size": len(self.weights)}
        body = {"operation": "upload", "transfers": ["basic"], "objects": [item], "hash_algo": "sha256"}
        batch = client.post(f"/{self.repo}.git/info/lfs/objects/batch", json=body)
        batch.raise_for_status()
        actions = batch.json()["objects"][0].get("actions")
        if actions is not None:
            # without Authorization, as the stock client sends it
            put(actions["upload"]["href"], self.weights)
            client.post(actions["verify"]["href"], json=item).raise_for_status()

    def _lines(self) -> str:
        config = base64.b64encode(self.files["adapter_config.json"]).decode()
        weights = {"path": "adapter_model.safetensors", "algo": "sha256", "oid": self.oid, "size": len(self.weights)}
        lines = [
            {"key": "header", "value": {"summary": "push"}},
            {"key": "file", "value": {"path": "adapter_config.json", "content": config, "encoding": "base64"}},
            {"key": "lfsFile", "value": weights},
        ]
        return "\n".join(json.dumps(line) for line in lines)

    def is_whole(self, client: httpx.Client, revision: str = "main") -> bool:
        """Whether every file is there with the right bytes at `revision`."""
        for path, content in self.files.items():
            answer = client.get(f"/{self.repo}/resolve/{revision}/{path}", follow_redirects=True)
            if answer.content != content:
                return False
        return True

"""Several uploads of one large file at the same time: each has its own parts, on the disk and in a bucket."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.settings import S3Place, ServerLimits

from tests.registry.running import Running, running
from tests.registry.shared_servers import CREDENTIALS, S3

MEBIBYTE = 1 << 20
LIMITS = ServerLimits(multipart_from_bytes=8 * MEBIBYTE, part_bytes=5 * MEBIBYTE)
LARGE_BYTES = 24 * MEBIBYTE + 7
CLIENT = """
import json, sys
from huggingface_hub import HfApi
url, token, repo, folder = sys.argv[1:]
api = HfApi(endpoint=url, token=token)
api.create_repo(repo, exist_ok=True)
if hasattr(api, "upload_large_folder"):  # before 2.0
    api.upload_large_folder(repo_id=repo, folder_path=folder, repo_type="model", print_report=False)
else:
    api.upload_folder(repo_id=repo, folder_path=folder)
print(json.dumps(sorted(api.list_repo_files(repo))))
"""


@pytest.fixture(scope="module", params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root, s3 = tmp_path_factory.mktemp("registry"), None
    with ExitStack() as stack:
        if request.param == "bucket":
            server: S3 = request.getfixturevalue("s3_server")
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in CREDENTIALS.items():
                patch.setenv(name, value)
            s3 = S3Place(bucket=server.new_bucket(), prefix="reg/", endpoint=server.endpoint)
        yield stack.enter_context(running(root, limits=LIMITS, s3=s3))


def client_of(server: Running, home: Path, repo: str, folder: Path) -> subprocess.Popen[str]:
    """The stock client as a process of its own, which sends by LFS."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    mine |= {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", CLIENT, server.url, server.token, repo, str(folder)]
    return subprocess.Popen(command, env=mine, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def files_of(client: subprocess.Popen[str]) -> list[str]:
    out, error = client.communicate(timeout=120)
    assert client.returncode == 0, error[-2000:]
    return [str(name) for name in json.loads(out.splitlines()[-1]) if name != ".gitattributes"]


def test_one_large_file_at_two_paths_is_uploaded(place: Running, tmp_path: Path) -> None:
    folder, content = tmp_path / "folder", os.urandom(LARGE_BYTES)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "weights.safetensors").write_bytes(content)

    names = files_of(client_of(place, tmp_path / "home", "acme/twice", folder))

    assert names == ["a/weights.safetensors", "b/weights.safetensors"]


def test_several_clients_upload_the_same_file_at_once(place: Running, tmp_path: Path) -> None:
    content, clients = os.urandom(LARGE_BYTES), []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"{number}.safetensors").write_bytes(content)
        clients.append(client_of(place, tmp_path / f"home-{number}", "acme/together", folder))

    for client in clients:
        files_of(client)

    listed = place.get("/api/models/acme/together").json()["siblings"]
    assert {f"{number}.safetensors" for number in range(3)} <= {one["rfilename"] for one in listed}


def announced(server: Running, content: bytes) -> dict[str, Any]:
    """The links of a new upload of `content` in two parts."""
    item = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    body = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": [item], "hash_algo": "sha256"}
    answer = server.post("/acme/parts.git/info/lfs/objects/batch", body).json()
    return dict(answer["objects"][0]["actions"]["upload"])


def test_an_upload_that_ends_does_not_touch_another_of_the_same_bytes(place: Running) -> None:
    server, content = place, os.urandom(9 * MEBIBYTE)
    server.post("/api/repos/create", {"organization": "acme", "name": "parts"}).raise_for_status()
    pieces = {"1": content[: LIMITS.part_bytes], "2": content[LIMITS.part_bytes :]}
    one, other = announced(server, content), announced(server, content)

    def send(upload: dict[str, Any], number: str, piece: Iterator[bytes] | bytes) -> dict[str, object]:
        size = {"Content-Length": str(len(pieces[number]))}
        answer = httpx.put(upload["header"][number], content=piece, headers=size).raise_for_status()
        return {"partNumber": int(number), "etag": answer.headers["etag"]}

    def completed(upload: dict[str, Any], *parts: dict[str, object]) -> int:
        return httpx.post(upload["href"], json={"parts": parts}).status_code

    ends = []

    def second_part() -> Iterator[bytes]:
        yield pieces["2"][: 2 * MEBIBYTE]
        ends.append(completed(one, *mine))  # while the other upload is on its way
        yield pieces["2"][2 * MEBIBYTE :]

    mine = [send(one, number, piece) for number, piece in pieces.items()]
    theirs = [send(other, "1", pieces["1"]), send(other, "2", second_part())]

    assert [*ends, completed(other, *theirs)] == [200, 200]
    assert completed(one, *mine) == 200  # asks again, as its answer was lost


# ------------------------------------------------------------ who was removed
def test_links_and_tokens_of_an_upload_end_with_their_user(place: Running) -> None:
    server, content = place, os.urandom(9 * MEBIBYTE)
    leaver = server.registry.tokens.create("leaver", "write")
    server.post("/api/repos/create", {"organization": "leaver", "name": "x"}, token=leaver)
    whole = {"oid": "0" * 64, "size": 1}
    objects = [whole, {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}]
    body = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": objects, "hash_algo": "sha256"}
    batch = server.post("/leaver/x.git/info/lfs/objects/batch", body, token=leaver).json()["objects"]
    one, parts = (answer["actions"]["upload"] for answer in batch)
    links = [link for link in (one["href"], parts["header"]["1"]) if link.startswith(server.url)]
    xet = server.get("/api/models/leaver/x/xet-write-token/main", token=leaver).json()

    server.registry.tokens.revoke_user("leaver")

    answers = [httpx.put(link, content=b"x") for link in links]
    answers.append(httpx.post(parts["href"], json={"parts": []}))
    for route in (f"/v1/xorbs/default/{'0' * 64}", "/v1/shards"):
        head = {"Authorization": f"Bearer {xet['accessToken']}"}
        answers.append(httpx.post(xet["casUrl"] + route, content=b"x", headers=head))
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.json()["error"].partition(";")[0] for answer in answers} == {
        "the token for which this was signed is revoked or has expired"
    }

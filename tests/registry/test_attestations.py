"""What a registry attests of the job that published a release, and that no library takes another attestation."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry import treelog
from adapterhub_registry.database.db import releases
from adapterhub_registry.operations.far import FarPublishers
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from sqlalchemy import update

from adapterhub.distribution.hub import Hub
from adapterhub.formats.publication import Job, Publication
from adapterhub.formats.release import Release
from adapterhub.formats.signature import Bundle
from adapterhub.formats.treelog import LogKey, LogSigner
from adapterhub.inference.serving.process import free_port
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.registry.issuer import Issuer, issuing
from tests.registry.running import Running, running
from tests.support.command_line import Adapt

API = "/api/adapt/v1"
CLAIMS = {"repository": "acme/training", "ref": "refs/heads/main", "environment": "release"}
numbers = count(1)
Push = Callable[..., None]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    port = free_port("127.0.0.1")
    with running(tmp_path / "registry", port=port, public_url=f"http://127.0.0.1:{port}") as server:
        yield server


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as issuer:
        issuer.claims = {**CLAIMS, "run_id": "77", "workflow_ref": "acme/training/.github/workflows/publish.yml@main"}
        yield issuer


@pytest.fixture
def push(online: None, server: Running, issuer: Issuer, library: Library, add: Callable[..., Added]) -> Push:
    """Publish an adapter as `acme/NAME`, as a job does, or else by hand."""
    made: dict[str, Added] = {}

    def pushed(name: str, *, by_hand: bool = False) -> None:
        token = server.token
        if not by_hand:
            FarPublishers(server.url, server.token).add(f"acme/{name}", issuer.url, CLAIMS)
            wanted = {"repo": f"acme/{name}", "token": issuer.token(server.url)}
            token = server.post(f"{API}/publish-token", wanted, token=None).json()["token"]
        if name not in made:
            made[name] = add(name, seed=next(numbers))
        release = Release(manifest=made[name].build.manifest, namespace=None, origin="home")
        copy(release, library, Hub(endpoint=server.url, token=token).to(f"acme/{name}"))

    return pushed


@pytest.fixture
def far(tmp_path: Path) -> Adapt:
    return Adapt(tmp_path, home="far")


def attestation_of(server: Running, repo: str, *, token: str | None = "") -> Any:
    return server.get(f"{API}/adapters/{repo}/versions/1.0.0/attestation", token=token)


def opened(server: Running, repo: str) -> Publication:
    key = LogKey.parse(server.get(f"{API}/info").json()["log_key"])
    return Publication.opened(attestation_of(server, repo).content, key)


# ------------------------------------------------------------ what is attested
def test_the_registry_attests_the_job_that_published_a_release(server: Running, issuer: Issuer, push: Push) -> None:
    push("job")
    push("hand", by_hand=True)

    found = opened(server, "acme/job")
    listed = server.get(f"{API}/adapters/acme/job/versions/1.0.0").json()

    assert (found.repository, found.version, found.digest) == ("acme/job", "1.0.0", listed["digest"])
    assert found.job.issuer == issuer.url
    assert found.job.claims.items() >= {**CLAIMS, "run_id": "77"}.items()
    assert found.job.claims["workflow_ref"].endswith("publish.yml@main")
    assert listed["publisher"]["by"] == found.job.by
    assert attestation_of(server, "acme/hand").headers["X-Error-Code"] == "AttestationNotFound"
    assert attestation_of(server, "acme/none").status_code == 404


def test_any_program_that_reads_dsse_can_check_it(server: Running, push: Push) -> None:
    push("job")
    value = attestation_of(server, "acme/job").json()
    envelope, public = value["dsseEnvelope"], LogKey.parse(server.get(f"{API}/info").json()["log_key"]).public
    pem = base64.b64encode(bytes.fromhex("302a300506032b6570032100") + public).decode()
    key: Any = load_pem_public_key(f"-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----\n".encode())
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)

    key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)

    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/release/v0.1"
    assert statement["predicate"]["purl"] == "pkg:generic/acme/job@1.0.0"


def test_an_attestation_follows_the_name_of_its_repository(server: Running, push: Push, far: Adapt) -> None:
    push("job")
    moved = {"fromRepo": "acme/job", "toRepo": "acme/other", "type": "model"}
    server.post("/api/repos/move", moved).raise_for_status()

    assert opened(server, "acme/other").repository == "acme/other"
    assert opened(server, "acme/job").repository == "acme/job"  # as a reader knows it who has the earlier name
    assert far.json("install", "acme/other", "--remote", server.url)
    assert far.json("info", "acme/job" if far("info", "acme/other").exit_code else "acme/other")["publisher"]


def test_an_attestation_of_a_private_release_is_for_its_readers(server: Running, push: Push) -> None:
    push("job")
    server.send("PUT", "/api/models/acme/job/settings", {"private": True}).raise_for_status()

    assert attestation_of(server, "acme/job", token=None).status_code == 404
    assert opened(server, "acme/job").job.claims["ref"] == "refs/heads/main"


def test_info_audit_and_the_page_show_who_published(server: Running, issuer: Issuer, push: Push, far: Adapt) -> None:
    push("job")
    words = f"job of {issuer.url.removeprefix('http://')}, acme/training@refs/heads/main, run 77"
    there = far.json("info", "acme/job", "--remote", server.url)
    far.json("install", "acme/job", "--remote", server.url)

    assert there["publisher"]["by"] == far.json("info", "acme/job", "--offline")["publisher"]["by"] == words
    assert f"published by\t{words}" in far.ok("info", "acme/job")
    assert f"{words}, published it at" in far.ok("audit", "--notes", "--offline")
    page = server.send("GET", "/acme/job?format=json").json()
    assert words in {fact["text"] for fact in page["facts"] if fact["name"] == "Published by"}


# ------------------------------------------------------------ what no library takes
def altered(raw: bytes) -> bytes:
    """The claim of another repository under the old signature."""
    bundle = Bundle.parse(raw)
    return replace(bundle, payload=bundle.payload.replace(b"acme/training", b"evil/training")).to_bytes()


def other_job(found: Publication) -> Publication:
    return replace(found, job=Job(issuer=found.job.issuer, claims={**found.job.claims, "repository": "evil/training"}))


class Lies:
    """What a registry, or one between, may show in place of the attestation of `acme/job`."""

    def __init__(self, server: Running) -> None:
        self.server, self.signer = server, server.registry.log.signer()
        self.true = attestation_of(server, "acme/job").content
        self.told = Publication.opened(self.true, self.signer.key)

    def signed(self, **changes: Any) -> bytes:
        return replace(self.told, **changes).signed(self.signer)


LIES: dict[str, tuple[Callable[[Lies], bytes | None], str]] = {
    "of another release": (lambda one: attestation_of(one.server, "acme/other").content, "is of `acme/other` 1.0.0"),
    "of another version": (lambda one: one.signed(version="1.0.1"), "is of `acme/job` 1.0.1"),
    "of other bytes": (lambda one: one.signed(digest=f"sha256:{'0' * 64}"), "sha256:000"),
    "of another repository": (lambda one: one.signed(repository="acme/jobs"), "is of `acme/jobs`"),
    "by another key": (lambda one: one.told.signed(LogSigner(b"8" * 32)), "not signed by the key"),
    "with altered claims": (lambda one: altered(one.true), "not signed by the key"),
    "of another job, by the right key": (lambda one: other_job(one.told).signed(one.signer), "names another job"),
    "taken away": (lambda _: None, "the log has a job of a CI, and the server has none"),
    "broken": (lambda _: b"{}", "cannot be believed"),
}


def test_an_attestation_that_does_not_match_is_refused(
    server: Running, push: Push, far: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    push("job")
    push("other")
    lies = Lies(server)
    shown = {case: (lie(lies), why) for case, (lie, why) in LIES.items()}
    for case, (lie, why) in shown.items():
        monkeypatch.setattr(treelog.TreeLog, "_attestation", lambda *_, lie=lie: lie)
        assert why in far.fails(12, "install", "acme/job", "--remote", server.url), case

    assert not list(far.library.installed())
    assert not (far.library.root / "published").exists()


def test_an_attestation_is_not_shown_again_after_a_deletion(
    server: Running, push: Push, far: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    push("job")
    before = attestation_of(server, "acme/job").content
    server.remove("acme/job")
    push("job", by_hand=True)  # the same bytes under the same name

    assert attestation_of(server, "acme/job").status_code == 404
    with monkeypatch.context() as patch:
        patch.setattr(treelog.TreeLog, "_attestation", lambda *_: before)
        refusal = far.fails(12, "install", "acme/job", "--remote", server.url)
    assert "the server has a job of a CI, and the log has none" in refusal
    far.json("install", "acme/job", "--remote", server.url)
    assert far.json("info", "acme/job")["publisher"] is None


def test_a_row_that_was_changed_in_the_database_is_refused(server: Running, push: Push, far: Adapt) -> None:
    push("job")
    other = json.dumps({"issuer": "https://evil.example", "claims": {"repository": "evil/training"}})
    with server.registry.db.begin() as connection:
        connection.execute(update(releases).values(publisher=other))

    assert "names another job" in far.fails(12, "install", "acme/job", "--remote", server.url)


def test_a_kept_attestation_counts_for_its_build_and_key_alone(server: Running, push: Push, far: Adapt) -> None:
    push("job")
    push("hand", by_hand=True)
    far.json("install", "acme/job", "acme/hand", "--remote", server.url)
    (kept,) = (far.library.root / "published").glob("*/*.json")
    (hand,) = [one for one in far.library.installed() if one.full_name == "acme/hand"]
    other = far.library.root / "published" / hand.manifest.digest.removeprefix("sha256:") / kept.name
    other.parent.mkdir()
    other.write_bytes(kept.read_bytes())
    kept.write_bytes(altered(kept.read_bytes()))

    assert far.json("info", "acme/hand")["publisher"] is None
    assert far.json("info", "acme/job")["publisher"] is None
    assert "published" in far("doctor").stdout


# ------------------------------------------------------------ words
@pytest.mark.parametrize(
    ("issuer", "claims", "words"),
    [
        (
            "https://token.actions.githubusercontent.com",
            {"repository": "a/b", "ref": "refs/tags/v1", "run_id": "7"},
            "GitHub workflow a/b@refs/tags/v1, run 7",
        ),
        ("https://gitlab.com", {"project_path": "a/b", "pipeline_id": "7"}, "job of gitlab.com, a/b, run 7"),
        ("https://ci.example", {"sub": "x\u202e\n"}, "job of ci.example, x\\u202e\\n"),
    ],
)
def test_a_job_in_words(issuer: str, claims: dict[str, str], words: str) -> None:
    assert Job(issuer=issuer, claims=claims).by == words

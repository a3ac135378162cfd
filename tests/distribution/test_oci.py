"""Adapters in an OCI registry: what is pushed there, and that it comes back the same, signed and tested as it was."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.formats.manifest import MANIFEST_FILE, WEIGHTS_FILE
from adapterhub.library.results import results_of
from tests.support.command_line import Adapt
from tests.support.oci_registry import OciServer, Reply, serving
from tests.support.results import signed, with_contract
from tests.support.tiny import make_adapter

REPO = "acme/legal-qa"
ANA = "ana:s3cret"


@pytest.fixture(params=[True, False], ids=["referrers", "fallback tag"])
def registry(request: pytest.FixtureRequest, online: None) -> Iterator[OciServer]:
    with serving(refers=request.param) as server:
        yield server


@pytest.fixture
def plain(online: None) -> Iterator[OciServer]:
    with serving() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add, base) -> Adapt:
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "ADAPTERHUB_TOKEN", "ADAPTERHUB_REMOTE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    add("legal-qa", task="legal", rank=4, description="Answers on contracts.")
    return Adapt(tmp_path)


@pytest.fixture
def other(home: Adapt, base) -> Adapt:
    """Another user, who has the base alone."""
    made = Adapt(home.folder, home="other")
    record = made.library.bases.add(Path(home.folder / "base"), "base-7b")
    made.library.catalog.put_base(record)
    return made


def test_a_pushed_build_is_a_modelpack_image_whose_layers_are_its_files(home, plain):
    sent = home.json("push", "legal-qa@base-7b", "--to", f"{plain.address}/{REPO}")

    image = plain.manifest(REPO, "1.0.0")
    build = next(iter(home.library.installed()))
    layers = {one["annotations"]["org.opencontainers.image.title"]: one for one in image["layers"]}
    assert image["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert image["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert layers[WEIGHTS_FILE]["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"
    assert layers[WEIGHTS_FILE]["digest"] == build.manifest.file(WEIGHTS_FILE).sha256
    assert layers[MANIFEST_FILE]["digest"] == build.manifest.digest
    assert set(layers) == {"adapter_config.json", WEIGHTS_FILE, MANIFEST_FILE, "README.md"}
    assert image["annotations"]["vnd.adapterhub.base"] == build.base.fingerprint.weights
    config = json.loads(plain.blobs[REPO, image["config"]["digest"]])
    assert config["descriptor"]["name"] == "legal-qa"
    assert config["modelfs"] == {"type": "layers", "diffIds": [one["digest"] for one in image["layers"]]}
    assert (sent["created"], sent["sent_files"]) == (True, 2)
    assert sent["url"].startswith(f"{plain.address}/{REPO}:1.0.0@sha256:")
    assert plain.tags(REPO) == ["1.0.0", "1.0.0-mount"]


def signer(home: Adapt, other: Adapt) -> None:
    """`home` gets a key, which `other` trusts."""
    other.ok("key", "trust", "ana", home.json("key", "new", "ana", "--unencrypted")["public"])


def test_a_signed_and_tested_build_comes_back_with_both(home, other, registry):
    signer(home, other)
    build = with_contract(home.library, next(iter(home.library.installed())))
    signed(home.library, build, "ana")
    home.ok("push", f"legal-qa@base-7b=={build.manifest.version}", "--to", f"{registry.address}/{REPO}", "--sign")
    other.ok("key", "policy", "require")

    other.ok("install", f"{REPO}@base-7b", "--remote", registry.address)

    (got,) = other.library.installed()
    assert got.manifest == build.manifest
    assert other.library.origins.of(got.manifest.digest).place == registry.address
    found, refusals = results_of(other.library, got.manifest.digest, got.full_name)
    assert ([(one.result.verdict, one.signer) for one in found], refusals) == ([("PASS", "ana")], [])
    assert registry.tags(REPO)[0] == build.manifest.version


def test_a_signature_goes_to_an_image_that_is_there_once(home, other, registry):
    signer(home, other)
    target = f"{registry.address}/{REPO}"
    home.ok("push", "legal-qa", "--to", target)
    before = registry.manifests[REPO, "1.0.0"]

    said = home.ok("push", "legal-qa", "--to", target, "--sign")
    again = home.ok("push", "legal-qa", "--to", target, "--sign")

    assert said.startswith("sent the signature of legal-qa")
    assert "nothing was sent" in again
    assert registry.manifests[REPO, "1.0.0"] == before
    other.ok("pull", REPO, home.folder / "out", "--remote", registry.address, "--signatures", "require")


def test_a_tag_never_moves_to_another_build(home, plain, add):
    home.ok("push", "legal-qa", "--to", f"{plain.address}/{REPO}")
    before = dict(plain.manifests)
    add("risk", rank=2)

    told = home.fails(15, "push", "risk", "--to", f"{plain.address}/{REPO}")
    home.ok("push", "risk", "--to", f"{plain.address}/{REPO}:risk")

    assert f"`{REPO}:1.0.0` is another build; a release never changes. Nothing was sent" in told
    assert plain.manifests[REPO, "1.0.0"] == before[REPO, "1.0.0"]
    assert plain.tags(REPO) == ["1.0.0", "1.0.0-mount", "risk", "risk-mount"]


def test_an_interrupted_push_leaves_no_release_and_sends_nothing_twice(home, other, plain):
    target, tag = f"{plain.address}/{REPO}", f"PUT /v2/{REPO}/manifests/1.0.0"
    plain.answers[tag] = Reply(403, b'{"errors": [{"message": "not now"}]}')

    assert "answered 403: not now" in home.fails(14, "push", "legal-qa", "--to", target)
    assert plain.tags(REPO) == []
    assert "no adapter" in other.fails(10, "install", REPO, "--remote", plain.address)
    del plain.answers[tag]
    plain.came.clear()
    home.ok("push", "legal-qa", "--to", target)

    assert [path for command, path, _ in plain.came if command == "POST"] == []
    assert plain.tags(REPO) == ["1.0.0", "1.0.0-mount"]


def test_all_tags_are_builds_and_the_newest_is_chosen(home, other, plain, add):
    add("legal-qa", version="1.10.0", rank=2)
    add("legal-qa", version="2.0.0rc1", rank=2)
    plain.page = 2
    plain.put(REPO, "image", b'{"schemaVersion": 2, "layers": []}', "application/vnd.oci.image.manifest.v1+json")
    for version in ("1.0.0", "1.10.0", "2.0.0rc1"):
        home.ok("push", f"legal-qa=={version}", "--to", f"{plain.address}/team/{REPO}")
    plain.manifests["team/" + REPO, "image"] = plain.manifests[REPO, "image"]
    other.ok("remote", "add", "ours", f"{plain.address}/team/", "--namespaces", "acme")

    other.ok("install", "legal-qa@base-7b")
    plain.came.clear()
    other.ok("install", f"{REPO}@base-7b==1.0.0")

    assert {one.manifest.version for one in other.library.installed()} == {"1.0.0", "1.10.0"}
    assert not any(path.endswith("manifests/1.10.0") for _, path, _ in plain.came)
    assert other.json("remote", "list")[0]["url"] == f"{plain.address}/team"


def test_files_that_oras_pushed_are_an_adapter_under_the_name_of_their_repository(home, other, plain):
    folder = make_adapter(home.folder / "plain", rank=2)
    layers = []
    for name in ("adapter_config.json", WEIGHTS_FILE):
        data = (folder / name).read_bytes()
        layers.append(
            {"mediaType": "application/octet-stream", "digest": plain.put_blob(REPO, data), "size": len(data)}
            | {"annotations": {"org.opencontainers.image.title": name}}
        )
    image = {"schemaVersion": 2, "config": layers[0], "layers": layers}
    plain.put(REPO, "3.1", json.dumps(image).encode(), "application/vnd.oci.image.manifest.v1+json")
    plain.came.clear()

    other.ok("install", REPO, "--remote", plain.address)

    (got,) = other.library.installed()
    assert (got.full_name, got.manifest.version, got.manifest.rank) == (REPO, "3.1", 2)
    assert (got.folder / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()


def test_a_project_locks_the_image_and_syncs_it_after_its_tag_is_gone(home, other, plain):
    home.ok("push", "legal-qa", "--to", f"{plain.address}/{REPO}")
    project = other.folder / "project"
    project.mkdir()
    (project / "adapters.toml").write_text(
        f'[remotes.ours]\nkind = "oci"\nurl = "{plain.address}"\nnamespaces = ["acme"]\n'
        f'[adapters]\nlegal-qa = "{REPO}@base-7b"\n'
    )
    inside = ("--project", project)
    other = other.having(ADAPTERHUB_TRUST_PROJECT="1")

    other.ok("lock", *inside)
    lock = (project / "adapters.lock").read_text()
    image = next(reference for repo, reference in plain.manifests if reference.startswith("sha256:"))
    assert (
        f'source = {{ remote = "ours", kind = "oci", url = "{plain.address}", repo = "{REPO}", image = "{image}" }}'
        in lock
    )
    del plain.manifests[REPO, "1.0.0"]
    other.ok("sync", *inside)

    assert (project / "adapters" / "legal-qa" / "adapter_config.json").is_file()


# ------------------------------------------------------------ who may
def tokens(registry: OciServer) -> set[str]:
    return {token for _, path, token in registry.came if not path.startswith("/token")} - {""}


@pytest.mark.parametrize("way", ["docker", "token", "login"])
def test_a_password_is_changed_for_tokens_that_each_allow_one_thing(home, plain, monkeypatch, way):
    plain.users["ana"] = "s3cret"
    if way == "docker":
        (home.folder / ".docker").mkdir()
        auth = base64.b64encode(b"ana:s3cret").decode()
        (home.folder / ".docker" / "config.json").write_text(json.dumps({"auths": {plain.host: {"auth": auth}}}))
    elif way == "token":
        home = home.having(ADAPTERHUB_TOKEN=ANA)
    else:
        home.ok("remote", "login", plain.address, "--token", "ana:s3cret")

    home.ok("push", "legal-qa", "--to", f"{plain.address}/{REPO}")
    home.ok("pull", REPO, home.folder / "out", "--remote", plain.address)

    basic = "Basic " + base64.b64encode(b"ana:s3cret").decode()
    assert tokens(plain) - {"Bearer any"} == {f"Bearer repository:{REPO}:pull,push", f"Bearer repository:{REPO}:pull"}
    assert {token for _, path, token in plain.came if path.startswith("/token")} == {basic}


def test_a_program_that_keeps_docker_credentials_is_asked(home, plain, monkeypatch):
    plain.users["ana"] = "s3cret"
    helper = home.folder / "bin" / "docker-credential-toy"
    helper.parent.mkdir()
    helper.write_text(
        f'#!/bin/sh\nread host; [ "$host" = "{plain.host}" ] && echo \'{{"Username": "ana", "Secret": "s3cret"}}\'\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:/usr/bin:/bin")
    monkeypatch.setenv("DOCKER_CONFIG", str(home.folder))
    (home.folder / "config.json").write_text('{"credsStore": "toy"}')

    home.ok("push", "legal-qa", "--to", f"{plain.address}/{REPO}")


@pytest.mark.parametrize("token", [None, "ana:wrong", "of-another-place"])
def test_without_the_right_password_nothing_is_sent_or_stored(home, plain, token):
    plain.users["ana"] = "s3cret"
    asking = home if token is None else home.having(ADAPTERHUB_TOKEN=token)

    told = asking.fails(14, "push", "legal-qa", "--to", f"{plain.address}/{REPO}")
    login = home.fails(14, "remote", "login", plain.address, "--token", token or "ana:wrong")

    assert "answered 401" in told
    assert "s3cret" not in told
    assert "nothing was stored" in login
    assert (plain.blobs, plain.manifests) == ({}, {})


def test_what_an_oci_registry_cannot_do_is_said(home, plain):
    target = f"{plain.address}/{REPO}"
    for words, arguments in {
        "decides who may read": ("push", "legal-qa", "--to", target, "--private"),
        f"write `{REPO}==1.0.0 --remote {plain.address}`": ("pull", f"{target}:1.0.0", "./out"),
        "write `a/b --remote oci://host/team`": ("install", "oci://host/team/a/b:stable"),
        "is an image": ("push", "legal-qa", "--to", target, "--results"),
        "is not a place to push to": ("push", "legal-qa", "--to", target, "--remote", "hub"),
        "is not a repository of an OCI registry": ("push", "legal-qa", "--to", f"{plain.address}/Acme/qa"),
        "is not a tag": ("push", "legal-qa", "--to", f"{target}:a/b"),
        "is not the address of an OCI registry": ("remote", "add", "x", "oci://host/UPPER"),
    }.items():
        assert words in home.fails(2, *arguments)
    assert plain.came == []


# ------------------------------------------------------------ search
def test_search_reads_what_images_say_of_themselves(home, plain, add):
    add("risk", task="legal", rank=2)
    home.ok("push", "legal-qa", "--to", f"{plain.address}/team/{REPO}")
    home.ok("push", "risk", "--to", f"{plain.address}/team/acme/risk")
    home.ok("push", "risk", "--to", f"{plain.address}/elsewhere/risk")
    home.ok("remote", "add", "ours", f"{plain.address}/team")

    def found(*asked: object) -> list[tuple[str, str]]:
        return [(hit["repository"], hit["base"]) for hit in home.json("search", "--remote", "ours", *asked)]

    everything = [("team/acme/legal-qa", "base-7b"), ("team/acme/risk", "base-7b")]
    assert found() == found("--task", "legal", "--base", "base-7b") == everything
    assert found("legal") == found("--rank", "4-") == found(REPO) == everything[:1]
    assert found("--task", "other") == found("--method", "dora") == []
    plain.answers["/v2/_catalog"] = Reply(401)
    assert found(REPO) == everything[:1]
    assert "lists no repositories" in home.fails(2, "search", "legal", "--remote", "ours")


def test_info_and_doctor_ask_the_registry_without_its_weights(home, other, plain):
    home.ok("push", "legal-qa", "--to", f"{plain.address}/{REPO}")
    other.ok("remote", "add", "ours", plain.address, "--namespaces", "acme", "--default")

    told = other.json("info", REPO)
    found = {line["check"]: line for line in other.json("doctor")}

    assert (told["remote"], told["repository"], told["installed"]) == (plain.address, REPO, False)
    assert plain.manifests[REPO, told["commit"]] == plain.manifests[REPO, "1.0.0"]
    assert told["header"]["parameters"] == next(iter(home.library.installed())).manifest.parameters
    assert "reachable" in found["hub"]["fact"]


def test_a_dry_run_shows_the_tag_and_asks_nothing(home, plain):
    told = home.json("push", "legal-qa", "--to", f"{plain.address}/{REPO}:stable", "--dry-run")

    assert (told["kind"], told["tag"]) == ("repository", "stable")
    assert plain.came == []


def test_a_newer_tag_is_noticed_and_taken(home, other, plain, add):
    home.ok("push", "legal-qa", "--to", f"{plain.address}/{REPO}")
    other.ok("remote", "add", "ours", plain.address, "--namespaces", "acme")
    other.ok("install", f"{REPO}@base-7b")
    add("legal-qa", version="1.1.0", rank=2)
    home.ok("push", "legal-qa==1.1.0", "--to", f"{plain.address}/{REPO}")

    told = other.json("upgrade", "--check")
    other.ok("upgrade", REPO)
    audited = other.json("audit", f"{REPO}==1.1.0")["adapters"][0]["findings"]

    assert [(one["name"], one["newest"]) for one in told] == [(REPO, "1.1.0")]
    assert {one.manifest.version for one in other.library.installed()} == {"1.0.0", "1.1.0"}
    assert not {"E_YANKED", "W_GONE", "U_YANKED"} & {one["code"] for one in audited}

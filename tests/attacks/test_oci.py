"""A hostile OCI registry: whatever it answers, the refusal is plain, nothing is stored, and no token goes elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.errors import RemoteUnreachable
from adapterhub.distribution.oci._image import Credentials, OciWire
from adapterhub.formats.manifest import LIMIT_BYTES, MANIFEST_FILE, WEIGHTS_FILE
from tests.distribution.test_oci import REPO
from tests.support.command_line import Adapt
from tests.support.oci_registry import OciServer, Reply, digest_of, serving
from tests.support.tiny import make_base

IMAGE = "application/vnd.oci.image.manifest.v1+json"
TITLE = "org.opencontainers.image.title"
MANIFEST, TAGS = f"/v2/{REPO}/manifests/1.0.0", f"/v2/{REPO}/tags/list"
ANA = "ana:s3cret"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Adapt, OciServer]]:
    """A registry with one honest build, and a user without it."""
    import huggingface_hub.constants

    from adapterhub.core.specs import parse_name
    from adapterhub.library.intake.description import Description
    from tests.support.tiny import make_adapter

    folder = tmp_path_factory.mktemp("oci")
    made, user = Adapt(folder, home="maker"), Adapt(folder)
    record = made.library.bases.add(make_base(folder / "base"), "base-7b")
    about = Description(name=parse_name("legal-qa"), version="1.0.0")
    made.library.add(make_adapter(folder / "made"), about, base=record)
    with pytest.MonkeyPatch.context() as patch, serving() as server:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "ADAPTERHUB_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(folder))
        patch.setattr("adapterhub.distribution.http.stream.PAUSES_S", (0.0,))
        patch.setattr("adapterhub.distribution.oci._image.MOST_PAGES", 5)
        patch.setattr("adapterhub.distribution.http.wire.time.sleep", lambda _s: None)
        made.ok("push", "legal-qa", "--to", f"{server.address}/{REPO}")
        yield user, server


@pytest.fixture
def user(published: tuple[Adapt, OciServer]) -> Adapt:
    return published[0]


@pytest.fixture
def registry(published: tuple[Adapt, OciServer]) -> Iterator[OciServer]:
    server = published[1]
    kept = dict(server.blobs), dict(server.manifests)
    server.came.clear()
    yield server
    server.blobs, server.manifests = kept
    server.answers.clear()
    server.users.clear()


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[OciServer], None]:
    """The image with one thing changed, under a digest that fits."""

    def apply(server: OciServer) -> None:
        image = server.manifest(REPO, "1.0.0")
        change(image)
        server.put(REPO, "1.0.0", json.dumps(image).encode(), IMAGE)

    return apply


def says(body: bytes, path: str = MANIFEST, status: int = 200, **headers: str) -> Callable[[OciServer], None]:
    told = {name.replace("_", "-"): text for name, text in headers.items()}
    return lambda server: server.answers.update({path: Reply(status, body, told)})


def layer(image: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in image["layers"] if one["annotations"][TITLE] == name)
    return found


def path_of(server: OciServer, name: str) -> str:
    return f"/v2/{REPO}/blobs/{layer(server.manifest(REPO, '1.0.0'), name)['digest']}"


def blob(name: str, status: int = 200, body: bytes = b"{}", **headers: str) -> Callable[[OciServer], None]:
    return lambda server: says(body, path_of(server, name), status, **headers)(server)


def other_bytes(server: OciServer) -> None:
    path = path_of(server, WEIGHTS_FILE)
    data = bytearray(server.blobs[REPO, path.rpartition("/")[2]])
    data[-1] ^= 1
    server.answers[path] = Reply(200, bytes(data))


def title(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda image: image["layers"][0]["annotations"].update({TITLE: name})


HOSTILE: dict[str, tuple[Callable[[OciServer], None], int, str]] = {
    "no JSON": (says(b"<html>"), 16, "is no image of an adapter"),
    "a list": (says(b"[]"), 16, "expected an object"),
    "a key twice": (says(b'{"layers": [], "layers": []}'), 16, "key `layers` is given twice"),
    "endless depth": (says(b'{"layers": ' + b"[" * 100_000), 16, "is no image of an adapter"),
    "a huge manifest": (says(b" " * (5 << 20)), 13, "more than 4,194,304 bytes"),
    "an endless manifest": (says(b" " * (17 << 20)), 13, "expected a small file"),
    "another digest": (says(b"{}", docker_content_digest="sha256:" + "0" * 64), 12, "does not match its digest"),
    "no layers": (changed(lambda image: image.pop("layers")), 16, "layers: missing"),
    "layers in an object": (changed(lambda image: image.update(layers={})), 16, "layers: expected a list"),
    "too many layers": (changed(lambda i: i.update(layers=i["layers"] * 300)), 16, "expected at most 1000, got 1200"),
    "a digest of another kind": (
        changed(lambda image: image["layers"][0].update(digest="sha512:" + "0" * 128)),
        16,
        "expected sha256",
    ),
    "a digest that is a path": (
        changed(lambda image: image["layers"][0].update(digest="sha256:../../../etc/passwd")),
        16,
        "expected sha256",
    ),
    "a negative size": (changed(lambda image: image["layers"][0].update(size=-1)), 16, "expected a number of bytes"),
    "a size of true": (changed(lambda image: image["layers"][0].update(size=True)), 16, "expected a number of bytes"),
    "a huge size": (changed(lambda image: image["layers"][0].update(size=1 << 60)), 16, "expected a number of bytes"),
    "a name that leads out": (changed(title("../adapter_config.json")), 16, "which is not a path inside a folder"),
    "an absolute name": (changed(title("/etc/passwd")), 16, "which is not a path inside a folder"),
    "a name with a NUL": (changed(title("a\0b")), 16, "which is not a path inside a folder"),
    "a file twice": (changed(title("./README.md")), 16, "names the file `README.md` twice"),
    "an archive": (
        changed(lambda image: image["layers"][0].update(mediaType="application/vnd.cncf.model.weight.v1.tar+gzip")),
        16,
        "packs the file `adapter_config.json`",
    ),
    "annotations of numbers": (changed(lambda image: image.update(annotations={"a": 1})), 16, "expected texts"),
    "a subject that is none": (changed(lambda image: image.update(subject={"digest": 1})), 16, "size: expected"),
    "a build without its weights": (
        changed(lambda image: image["layers"].remove(layer(image, WEIGHTS_FILE))),
        16,
        f"lacks the file `{WEIGHTS_FILE}`",
    ),
    "weights of another size": (changed(lambda image: layer(image, WEIGHTS_FILE).update(size=8)), 12, "does not match"),
    "a huge build manifest": (
        changed(lambda image: layer(image, MANIFEST_FILE).update(size=LIMIT_BYTES + 1)),
        13,
        f"expected at most {LIMIT_BYTES:,}",
    ),
    "another build manifest": (blob(MANIFEST_FILE), 12, "does not match its digest"),
    "other weights": (other_bytes, 12, "does not match its digest"),
    "weights cut off": (blob(WEIGHTS_FILE), 12, "does not match"),
    "weights that are not there": (blob(WEIGHTS_FILE, 404), 13, "answered 404"),
    "packed weights": (blob(WEIGHTS_FILE, content_encoding="gzip"), 13, "compressed bytes"),
    "a redirect to a file": (blob(WEIGHTS_FILE, 307, location="file:///etc/passwd"), 13, "not a web address"),
    "a redirect in a circle": (says(b"", status=302, location=MANIFEST), 13, "redirected more than 5 times"),
    "tags that are no list": (says(b'{"tags": 7}', TAGS), 13, "no valid list of tags"),
    "a tag that is a path": (says(b'{"tags": ["../../../evil"]}', TAGS), 13, "no valid list of tags"),
    "too many tags": (
        says(json.dumps({"tags": [f"t{n}" for n in range(1001)]}).encode(), TAGS),
        13,
        "1001 tags, expected at most 1000",
    ),
    "tags without end": (says(b'{"tags": []}', TAGS, link=f'<{TAGS}>; rel="next"'), 13, "more than 5 pages"),
    "tags that go on elsewhere": (
        says(b'{"tags": []}', TAGS, link='<http://127.0.0.1:9/v2/x>; rel="next"'),
        13,
        "elsewhere",
    ),
    "an error": (says(b'{"errors": [{"message": "\x1b[31mboo"}]}', status=500), 13, "answered 500"),
    "referrers that are none": (
        lambda server: says(b"[]", f"/v2/{REPO}/referrers/{digest_of(server.manifests[REPO, '1.0.0'][1])}")(server),
        16,
        "expected an object",
    ),
    "a token from a file": (
        says(b"", status=401, www_authenticate='Bearer realm="file:///etc/passwd"'),
        13,
        "not an http(s) URL",
    ),
    "a token from nowhere": (says(b"", status=401, www_authenticate="Bearer"), 13, "not an http(s) URL"),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_answer_is_refused_plainly_and_stores_nothing(hostile: str, user: Adapt, registry: OciServer) -> None:
    change, code, words = HOSTILE[hostile]
    change(registry)

    told = user.fails(code, "install", REPO, "--remote", registry.address)

    assert words in told
    assert "Traceback" not in told
    assert all(c.isprintable() or c == "\n" for c in told)
    assert list(user.library.installed()) == []


def test_a_password_never_travels_unencrypted_from_an_encrypted_registry() -> None:
    wire = OciWire("https://registry.example", Credentials(user="ana", password="s3cret"))  # noqa: S106 - of no registry

    with pytest.raises(RemoteUnreachable, match="unencrypted"):
        wire._grant('Bearer realm="http://registry.example/token"', REPO, writes=False)


@pytest.mark.parametrize(
    "body", [b"<html>", b'{"token": "a b"}', b'{"token": "a\\r\\nx: y"}', b'{"token": 7}', b"[]", b"{}"]
)
def test_a_token_that_is_none_is_not_sent(body: bytes, user: Adapt, registry: OciServer) -> None:
    with serving() as place:
        place.answers["/auth"] = Reply(200, body)
        says(b"", status=401, www_authenticate=f'Bearer realm="http://{place.host}/auth"')(registry)

        assert "sent no token" in user.fails(13, "install", REPO, "--remote", registry.address)
    assert {token for _, _, token in registry.came} == {""}


def test_no_token_goes_along_to_another_host(user: Adapt, registry: OciServer, tmp_path: Path) -> None:
    registry.users["ana"] = "s3cret"
    with serving() as storage:
        path = path_of(registry, WEIGHTS_FILE)
        storage.answers["/signed"] = Reply(200, registry.blobs[REPO, path.rpartition("/")[2]])
        registry.answers[f"GET {path}"] = Reply(307, b"", {"location": f"http://{storage.host}/signed"})

        user.having(ADAPTERHUB_TOKEN=ANA).ok("pull", REPO, tmp_path / "out", "--remote", registry.address)

    assert [(path, token) for _, path, token in storage.came] == [("/signed", "")]
    assert (tmp_path / "out" / WEIGHTS_FILE).is_file()


def test_a_storage_elsewhere_cannot_ask_for_the_password(user: Adapt, registry: OciServer) -> None:
    registry.users["ana"] = "s3cret"
    with serving() as thief:
        thief.answers["/signed"] = Reply(401, b"", {"www-authenticate": f'Basic realm="{thief.host}"'})
        blob(WEIGHTS_FILE, 307, location=f"http://{thief.host}/signed")(registry)

        user.having(ADAPTERHUB_TOKEN=ANA).fails(14, "install", REPO, "--remote", registry.address)

    assert {token for _, _, token in thief.came} == {""}


@pytest.mark.parametrize("place", ["", "file:///tmp/x", "ftp://storage.example/x"])
def test_an_upload_to_nowhere_sends_nothing(
    place: str, published: tuple[Adapt, OciServer], registry: OciServer
) -> None:
    maker = Adapt(published[0].folder, home="maker")
    registry.answers["/v2/acme/new/blobs/uploads/"] = Reply(202, b"", {"location": place})

    told = maker.fails(13, "push", "legal-qa", "--to", f"{registry.address}/acme/new")

    assert "to upload to. Nothing was sent there" in told
    assert registry.tags("acme/new") == []


def test_an_upload_elsewhere_takes_no_token(published: tuple[Adapt, OciServer], registry: OciServer) -> None:
    maker = Adapt(published[0].folder, home="maker")
    registry.users["ana"] = "s3cret"
    with serving() as storage:
        storage.answers["/put"] = Reply(201)
        registry.answers["/v2/acme/new/blobs/uploads/"] = Reply(
            202, b"", {"location": f"http://{storage.host}/put?a=b"}
        )

        maker.having(ADAPTERHUB_TOKEN=ANA).ok("push", "legal-qa", "--to", f"{registry.address}/acme/new")

    assert {(command, token) for command, _, token in storage.came} == {("PUT", "")}
    assert all("a=b&digest=sha256%3A" in path for _, path, _ in storage.came)


def test_a_signature_about_another_image_does_not_count(user: Adapt, registry: OciServer, tmp_path: Path) -> None:
    image = digest_of(registry.manifests[REPO, "1.0.0"][1])
    held = {"mediaType": "x/y", "digest": registry.put_blob(REPO, b"{}"), "size": 2}
    kind = "application/vnd.adapterhub.signature.v1"
    stray = {"schemaVersion": 2, "artifactType": kind, "config": held, "layers": [held]}
    stray["subject"] = held  # the index below says that it is about the image
    raw = json.dumps(stray).encode()
    listed = {"mediaType": IMAGE, "digest": registry.put(REPO, digest_of(raw), raw, IMAGE), "size": len(raw)}
    index = {"schemaVersion": 2, "manifests": [{**listed, "artifactType": kind}]}
    registry.answers[f"/v2/{REPO}/referrers/{image}"] = Reply(200, json.dumps(index).encode())

    user.ok("pull", REPO, tmp_path / "out", "--remote", registry.address)
    told = user.fails(14, "pull", REPO, tmp_path / "two", "--remote", registry.address, "--signatures", "require")

    assert "has no signature" in told or "is not signed" in told

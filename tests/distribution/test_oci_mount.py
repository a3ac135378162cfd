"""The image to mount beside a build: what it holds, that older clients pass it by, and that its tag never moves."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from adapterhub.core.errors import DigestMismatch
from adapterhub.distribution.oci._mount import file_of, tar_pieces
from adapterhub.formats.manifest import WEIGHTS_FILE
from tests.distribution.test_oci import REPO, home, other, plain, registry, signer
from tests.support.command_line import Adapt
from tests.support.oci_registry import INDEX, OciServer, Reply

__all__ = ["home", "other", "plain", "registry"]  # fixtures

TAG = "1.0.0-mount"
MOUNT = "application/vnd.adapterhub.mount.v1"


def push(home: Adapt, server: OciServer, *options: str) -> str:
    return home.ok("push", "legal-qa", "--to", f"{server.address}/{REPO}", *options)


def files_in(server: OciServer) -> dict[str, tarfile.TarInfo]:
    """What the archive holds, by path."""
    digest = manifests(server)[0]["layers"][0]["digest"]
    with tarfile.open(fileobj=io.BytesIO(server.blobs[REPO, digest]), mode="r:") as archive:
        return {member.name: member for member in archive}


def manifests(server: OciServer) -> list[dict]:
    return [server.manifest(REPO, one["digest"]) for one in server.manifest(REPO, TAG)["manifests"]]


def unpacked(server: OciServer, folder: Path) -> Path:
    digest = manifests(server)[0]["layers"][0]["digest"]
    with tarfile.open(fileobj=io.BytesIO(server.blobs[REPO, digest]), mode="r:") as archive:
        archive.extractall(folder, filter="data")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_folder_of_the_image_is_that_of_the_installed_adapter(home, plain, tmp_path):
    said = push(home, plain)

    (build,) = home.library.installed()
    folder = unpacked(plain, tmp_path / "out")
    assert said.splitlines()[1:] == [f"to mount: {plain.host}/{REPO}:{TAG}"]
    assert contents(folder) == contents(folder / "models") == contents(build.folder)
    assert (folder / WEIGHTS_FILE).samefile(folder / "models" / WEIGHTS_FILE)


def test_each_platform_has_a_manifest_with_the_one_plain_layer(home, plain):
    push(home, plain)

    index = plain.manifest(REPO, TAG)
    layers = [one["layers"] for one in manifests(plain)]
    assert [one["platform"]["architecture"] for one in index["manifests"]] == ["amd64", "arm64"]
    assert layers[0] == layers[1]
    assert [one["mediaType"] for one in layers[0]] == ["application/vnd.oci.image.layer.v1.tar"]
    for entry, image in zip(index["manifests"], manifests(plain), strict=True):
        config = json.loads(plain.blobs[REPO, image["config"]["digest"]])
        assert image["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
        assert "artifactType" not in image  # some runtimes take an image with one for no image
        assert {key: config[key] for key in ("architecture", "os")} == entry["platform"]
        assert config["rootfs"] == {"type": "layers", "diff_ids": [layers[0][0]["digest"]]}


def test_the_index_refers_to_the_build_and_names_the_base(home, registry):
    push(home, registry)

    (build,) = home.library.installed()
    index, image = registry.manifest(REPO, TAG), registry.manifests[REPO, "1.0.0"][1]
    assert index["artifactType"] == MOUNT
    assert registry.manifests[REPO, index["subject"]["digest"]][1] == image
    assert index["annotations"]["vnd.adapterhub.base"] == build.base.fingerprint.weights
    assert index["annotations"]["vnd.adapterhub.digest"] == build.manifest.digest
    if not registry.refers:
        listed = registry.manifest(REPO, index["subject"]["digest"].replace(":", "-"))["manifests"]
        assert [one["artifactType"] for one in listed] == [MOUNT]


def test_the_same_build_makes_the_same_archive_of_root_in_1970(home, plain):
    push(home, plain)
    first = manifests(plain)
    members = files_in(plain)
    plain.manifests.clear()
    plain.blobs.clear()

    push(home, plain)

    assert manifests(plain) == first
    assert {(one.mtime, one.uid, one.gid, one.uname) for one in members.values()} == {(0, 0, 0, "")}
    names = [name for name in members if name.startswith("models/")]
    assert names == sorted(names)


def test_a_signature_lies_beside_the_files(home, other, plain, tmp_path):
    signer(home, other)

    push(home, plain, "--sign")

    (build,) = home.library.installed()
    assert contents(unpacked(plain, tmp_path / "out"))["model.sig"] == (build.folder / "model.sig").read_bytes()


def test_a_build_of_an_earlier_adapt_gets_its_image_once(home, plain):
    push(home, plain)
    before = plain.manifests.pop((REPO, TAG))
    plain.came.clear()

    said, again = push(home, plain), push(home, plain)

    assert "is already in" in said
    assert f"to mount: {plain.host}/{REPO}:{TAG}" in said
    assert "nothing was sent" in again
    assert plain.manifests[REPO, TAG] == before
    assert [path for command, path, _ in plain.came if command == "POST"] == []


def test_a_push_that_breaks_before_the_tag_leaves_no_image_and_one_after_it_is_mended(home, plain):
    build, mount = (f"PUT /v2/{REPO}/manifests/{tag}" for tag in ("1.0.0", TAG))
    for path, tags in ((build, []), (mount, ["1.0.0"])):
        plain.answers = {path: Reply(403)}
        home.fails(14, "push", "legal-qa", "--to", f"{plain.address}/{REPO}")
        assert plain.tags(REPO) == tags
    plain.answers = {}

    push(home, plain)

    assert plain.tags(REPO) == ["1.0.0", TAG]


@pytest.mark.parametrize(
    "held",
    [
        b'{"schemaVersion": 2, "layers": []}',
        b"[]",
        b"no JSON",
        b'{"subject": "x", "annotations": []}',
        json.dumps({"artifactType": MOUNT, "annotations": {"vnd.adapterhub.digest": "sha256:" + "0" * 64}}).encode(),
    ],
)
def test_a_tag_with_something_else_is_never_overwritten(home, plain, held):
    plain.put(REPO, TAG, held, INDEX)

    told = home.fails(15, "push", "legal-qa", "--to", f"{plain.address}/{REPO}")

    assert f"`{REPO}:{TAG}` is something else than the image to mount of this build. Nothing was sent" in told
    assert (plain.tags(REPO), plain.blobs) == ([TAG], {})


def test_images_to_mount_are_no_builds_and_are_not_asked_for(home, other, plain):
    push(home, plain)
    plain.came.clear()

    other.ok("install", f"{REPO}@base-7b", "--remote", plain.address)

    asked = [path.rpartition("/")[2] for _, path, _ in plain.came if "/manifests/" in path]
    assert "1.0.0" in asked
    assert TAG not in asked
    assert [one.manifest.version for one in other.library.installed()] == ["1.0.0"]


def test_a_client_that_asks_for_every_tag_passes_the_image_by(home, other, plain, monkeypatch):
    push(home, plain)
    monkeypatch.setattr("adapterhub.distribution.oci.without_mounts", list)  # as before there were such images
    plain.came.clear()

    other.ok("install", f"{REPO}@base-7b==1.0.0", "--remote", plain.address)

    assert any(path.endswith(f"/manifests/{TAG}") for _, path, _ in plain.came)
    assert [one.manifest.version for one in other.library.installed()] == ["1.0.0"]


def test_a_build_whose_tag_only_looks_like_that_of_an_image_is_found(home, other, plain):
    home.ok("push", "legal-qa", "--to", f"{plain.address}/{REPO}:old-mount")

    other.ok("install", REPO, "--remote", plain.address)

    assert plain.tags(REPO) == ["old-mount", "old-mount-mount"]


def test_a_tag_that_leaves_no_room_for_the_second_is_refused(home, plain):
    told = home.fails(2, "push", "legal-qa", "--to", f"{plain.address}/{REPO}:{'x' * 123}")

    assert "expected 1 to 128" in told
    assert plain.came == []


def test_a_dry_run_and_the_json_name_the_image(home, plain):
    target = f"{plain.address}/{REPO}:stable"
    reference = f"{plain.host}/{REPO}:stable-mount"

    assert f"once more in one archive, to mount: {reference}" in home.ok(
        "push", "legal-qa", "--to", target, "--dry-run"
    )
    assert home.json("push", "legal-qa", "--to", target)["mount"] == reference
    assert home.json("push", "legal-qa", "--to", "./published")["mount"] is None


def test_a_file_that_changed_is_refused_and_one_of_gigabytes_has_a_head():
    good = file_of("a", b"x" * 600)
    changed = type(good)(name="a", digest=good.digest, size_bytes=600, open=lambda: io.BytesIO(b"y" * 600))
    cut = type(good)(name="a", digest=good.digest, size_bytes=600, open=lambda: io.BytesIO(b"x" * 599))
    huge = type(good)(name="a", digest=good.digest, size_bytes=9 << 30, open=lambda: io.BytesIO(b""))

    assert len(b"".join(tar_pieces([good]))) == 512 * (1 + 1 + 2 + 1 + 2)
    for one in (changed, cut):
        with pytest.raises(DigestMismatch):
            list(tar_pieces([one]))
    _, head = (piece for _, piece in zip(range(2), tar_pieces([huge]), strict=False))
    with tarfile.open(fileobj=io.BytesIO(head), mode="r:") as archive:
        assert archive.next().size == 9 << 30

"""`adapt doctor --repair` and what `adapt verify --all` says of a damaged store."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3

import pytest

from tests.crash.stand import damage_in, make_stand, state_of
from tests.registry.running import running
from tests.support import faulty_proxy as net
from tests.support.command_line import Adapt

pytestmark = pytest.mark.slow


@pytest.fixture
def stand(tmp_path):
    """Two installed adapters, and `three` installed from a published directory."""
    folder = make_stand(tmp_path / "stand")
    Adapt(folder).ok("install", "three@base-7b", "--from", "./published")
    return folder


@pytest.fixture
def adapt(stand):
    return Adapt(stand)


def build_of(stand, name="three"):
    return Adapt(stand).library.builds_named(name)[0]


def blob_of(stand, name="three", file="adapter_model.safetensors"):
    build = build_of(stand, name)
    return Adapt(stand).library.store.blob_path(build.manifest.file(file).sha256)


def rename_in_manifest(stand):
    path = build_of(stand).folder / "adapterhub.json"
    write(path, path.read_bytes().replace(b'"name":"three"', b'"name":"tiree"'))


def write(path, data):
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    write(path, bytes(data))


def swap(stand):
    one, two = blob_of(stand), blob_of(stand, "one")
    one.rename(one.with_name("aside"))
    two.rename(one)
    one.with_name("aside").rename(two)


def replace_by_link(path):
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


DAMAGES = {
    "flipped": lambda stand: flip(blob_of(stand)),
    "truncated": lambda stand: write(blob_of(stand), blob_of(stand).read_bytes()[:100]),
    "emptied": lambda stand: write(blob_of(stand), b""),
    "swapped": swap,
    "deleted": lambda stand: blob_of(stand).unlink(),
    "a link": lambda stand: replace_by_link(blob_of(stand)),
    "manifest flipped": lambda stand: flip(build_of(stand).folder / "adapterhub.json"),
    "manifest names another": rename_in_manifest,
    "manifest object deleted": lambda stand: (
        Adapt(stand).library.store.manifest_path(build_of(stand).manifest.digest).unlink()
    ),
    "folder's manifest deleted": lambda stand: (build_of(stand).folder / "adapterhub.json").unlink(),
    "folder's weights deleted": lambda stand: (build_of(stand).folder / "adapter_model.safetensors").unlink(),
    "folder's config replaced": lambda stand: (
        (build_of(stand).folder / "adapter_config.json").unlink(),
        (build_of(stand).folder / "adapter_config.json").write_text("{}"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_mended_and_kept_in_quarantine(stand, adapt, damage):
    expected = state_of(stand)
    DAMAGES[damage](stand)

    found = adapt("verify", "--all")
    planned = adapt("doctor", "--repair", "--dry-run", "--json")
    untouched = adapt("verify", "--all").stdout == found.stdout
    mended = adapt("doctor", "--repair", "--json")

    assert found.exit_code in (3, 12)
    assert "a bug in" not in found.stderr
    assert (planned.exit_code, untouched) == (3, True)
    assert (mended.exit_code, json.loads(mended.stdout)["mended"]) == (0, True), mended
    assert (adapt("verify", "--all").exit_code, damage_in(stand), state_of(stand)) == (0, [], expected)
    assert adapt.json("doctor", "--repair")["steps"] == []


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.mkdir(), lambda path: path.symlink_to("/dev/zero")])
def test_what_has_the_name_of_a_file_and_is_none_is_set_aside(stand, adapt, put):
    (build_of(stand).folder / "README.md").unlink()
    put(build_of(stand).folder / "README.md")
    assert adapt("verify", "--all").exit_code == 3

    adapt.ok("doctor", "--repair", "--offline")

    adapt.ok("verify", "--all")
    assert "# three" in (build_of(stand).folder / "README.md").read_text()


@pytest.mark.parametrize("level", ["version", "name", "base"])
@pytest.mark.parametrize(
    "put", [os.mkfifo, lambda path: path.symlink_to(path.name), lambda path: path.write_bytes(b"x")]
)
def test_what_stands_in_the_place_of_a_folder_is_set_aside(stand, adapt, level, put):
    version = build_of(stand).folder
    folder = {"version": version, "name": version.parent, "base": version.parent.parent}[level]
    shutil.rmtree(folder)
    put(folder)

    adapt.ok("doctor", "--repair", "--offline")

    adapt.ok("verify", "--all")
    adapt.ok("install", "three@base-7b", "--from", "./published")


def test_a_folder_in_the_place_of_the_index_is_set_aside(stand, adapt):
    (stand / "home" / "index.db").unlink()
    (stand / "home" / "index.db" / "x").mkdir(parents=True)

    adapt.ok("doctor", "--repair", "--offline")

    adapt.ok("verify", "--all")


def test_a_manifest_that_nobody_writes_to_holds_nobody_up(stand, adapt):
    path = build_of(stand).folder / "adapterhub.json"
    path.unlink()
    os.mkfifo(path)
    (stand / "home" / "index.db").unlink()

    adapt.ok("doctor", "--repair", "--offline")

    assert build_of(stand).manifest.name == "three"


def test_a_damaged_object_lies_in_quarantine_byte_for_byte(stand, adapt):
    flip(blob_of(stand))
    damaged = blob_of(stand).read_bytes()

    adapt.ok("doctor", "--repair")

    kept = [p.read_bytes() for p in (stand / "home" / "quarantine").iterdir()]
    assert damaged in kept
    adapt.ok("cache", "clean", "--grace", "0")
    assert damaged in [p.read_bytes() for p in (stand / "home" / "quarantine").iterdir()]


def test_what_no_place_has_is_named_and_stays_named(stand, adapt):
    flip(blob_of(stand))
    shutil.rmtree(stand / "published")
    shutil.rmtree(stand / "three")

    done = adapt("doctor", "--repair")

    assert done.exit_code == 3
    assert "not mended" in done.stdout
    assert "published` : does not exist any more" in done.stdout.replace("`:", "` :")
    assert "--from" in done.stderr
    found = adapt("verify", "--all")
    assert (found.exit_code, "three 1.0.0 (rank 4): FAILED" in found.stdout) == (12, True)


def test_a_place_named_with_from_helps(stand, adapt):
    flip(blob_of(stand))
    (stand / "published").rename(stand / "elsewhere")

    adapt.ok("doctor", "--repair", "--from", "./elsewhere")

    assert damage_in(stand) == []


def test_what_came_from_a_server_is_fetched_from_it_by_digest(stand, adapt, tmp_path, online):
    with running(tmp_path / "registry") as server:
        adapt.ok("remote", "add", "ours", server.url, "--namespaces", "acme")
        adapt.ok("remote", "login", "ours", "--token", server.token)
        adapt.ok("push", "three@base-7b", "--to", "acme/three", "--remote", "ours")
        adapt.ok("remove", "three@base-7b", "--yes")
        adapt.ok("cache", "clean", "--grace", "0")
        shutil.rmtree(stand / "three")
        shutil.rmtree(stand / "published")
        adapt.ok("install", "acme/three@base-7b")
        installed = state_of(stand)
        flip(blob_of(stand))
        (build_of(stand).folder / "adapter_config.json").unlink()

        away = adapt("doctor", "--repair", "--offline")
        mended = adapt.ok("doctor", "--repair")

    assert (away.exit_code, "forbids contacting a server" in away.stdout) == (3, True)
    assert f"from `{server.url}`" in mended
    assert (state_of(stand), damage_in(stand), adapt("verify", "--all").exit_code) == (installed, [], 0)


def test_a_token_meant_for_the_default_server_goes_to_no_place_something_came_from(
    stand, adapt, tmp_path, monkeypatch, online
):
    with running(tmp_path / "registry") as server, net.faulty(server.url) as proxy:
        adapt.having(ADAPTERHUB_TOKEN=server.token).ok(
            "push", "one@base-7b", "--to", "acme/one", "--remote", server.url
        )
        adapt.ok("install", "acme/one@base-7b", "--remote", proxy.url)
        flip(blob_of(stand, "one"))
        monkeypatch.setenv("ADAPTERHUB_TOKEN", "meant-for-another")
        proxy.seen.clear()

        adapt("audit")
        shutil.rmtree(stand / "one")
        adapt("doctor", "--repair")

    assert len(proxy.seen) > 1
    assert not any("meant-for-another" in value for request in proxy.seen for value in request.headers.values())


def test_an_adapter_that_was_added_is_fetched_from_the_folder_it_was_added_from(stand, adapt):
    flip(blob_of(stand, "one"))

    done = adapt.ok("doctor", "--repair")

    assert f"{stand / 'one'}" in done
    assert damage_in(stand) == []


BASE = ("--base", "base-7b")
SAID = ("--license", "MIT", "--task", "qa", "--description", "Ärger", "--version", "2.1", "--example", "Wo ist es?")


@pytest.mark.parametrize("options", [BASE, (*BASE, *SAID), (*SAID, "--no-base"), ("--no-base",)])
@pytest.mark.parametrize("has_card", [False, True])
def test_a_manifest_that_no_place_has_is_made_again_from_what_was_added(stand, adapt, options, has_card):
    readme = stand / "new" / "README.md"
    if has_card:
        readme.write_text("---\nlicense: apache-2.0\ntags: [law]\n---\n# Mine\n\nMade by hand.\n")
    adapt.ok("add", "./new", "--name", "new", *options)
    expected, digest = state_of(stand), build_of(stand, "new").manifest.digest
    manifest = build_of(stand, "new").folder / "adapterhub.json"
    if has_card:
        flip(manifest)
    else:
        write(manifest, b"")
        shutil.rmtree(stand / "new")

    adapt.ok("doctor", "--repair")

    assert build_of(stand, "new").manifest.digest == digest
    assert (state_of(stand), damage_in(stand)) == (expected, [])
    assert adapt("verify", "--all").exit_code == (0 if "--base" in options else 17)


def test_a_manifest_with_a_card_that_is_gone_stays_named(stand, adapt):
    (stand / "new" / "README.md").write_text("# Mine\n\nMade by hand.\n")
    adapt.ok("add", "./new", "--name", "new", "--base", "base-7b")
    flip(build_of(stand, "new").folder / "adapterhub.json")
    shutil.rmtree(stand / "new")

    done = adapt("doctor", "--repair")

    assert (done.exit_code, "not mended" in done.stdout) == (3, True)


def test_a_writable_object_is_warned_of_and_made_read_only(stand, adapt):
    blob_of(stand).chmod(0o644)

    found = adapt("verify", "--all")
    adapt.ok("doctor", "--repair")

    assert (found.exit_code, "W_WRITABLE" in found.stdout) == (0, True)
    assert blob_of(stand).stat().st_mode & 0o222 == 0


def test_a_damaged_object_is_never_linked_into_an_install(stand, adapt):
    adapt.ok("remove", "three@base-7b", "--yes")
    [blob] = [p for p in (stand / "home" / "blobs" / "sha256").glob("*/*") if p.read_bytes() == (stand / "three" / "adapter_model.safetensors").read_bytes()]  # fmt: skip
    flip(blob)

    adapt.ok("install", "three@base-7b", "--from", "./published")

    assert damage_in(stand) == []
    assert len(list((stand / "home" / "quarantine").iterdir())) == 1


def page_flipped(path):
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(255 - b for b in data[4096:8192])
    path.write_bytes(data)


@pytest.mark.parametrize(
    "hurt",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        page_flipped,
    ],
    ids=["deleted", "zeroed", "truncated", "page flipped"],
)
def test_a_damaged_index_is_made_again(stand, adapt, hurt):
    expected = state_of(stand)
    hurt(stand / "home" / "index.db")

    adapt.ok("doctor", "--repair")

    assert (state_of(stand), damage_in(stand)) == (expected, [])


def test_a_wrong_row_of_the_index_is_found(stand, adapt):
    with sqlite3.connect(stand / "home" / "index.db") as connection:
        connection.execute("UPDATE builds SET rank = 9 WHERE name = 'one'")
    connection.close()

    found = adapt("verify", "--all")
    adapt.ok("doctor", "--repair")

    assert (found.exit_code, "E_INDEX" in found.stdout) == (3, True)
    assert adapt("verify", "--all").exit_code == 0


def newer(stand):
    with sqlite3.connect(stand / "home" / "index.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    return (stand / "home" / "index.db").read_bytes()


def test_an_index_of_a_newer_version_is_left_alone_and_the_folders_answer(stand, adapt):
    expected = state_of(stand)
    theirs = newer(stand)

    answers = state_of(stand)
    adapt.ok("add", "./new", "--name", "new")
    names = {row["name"] for row in adapt.json("list")}
    told = adapt("doctor", "--offline").stdout

    assert answers == expected
    assert names == {"one", "two", "three", "new"}
    assert (stand / "home" / "index.db").read_bytes() == theirs
    assert (stand / "home" / "index.stale").exists()  # so that the newer version makes its own again
    assert "schema 99, written by a newer adapterhub" in told


def test_rebuilding_on_request_sets_a_newer_index_aside_unchanged(stand, adapt):
    theirs = newer(stand)

    adapt.ok("doctor", "--rebuild-index", "--offline")

    assert (stand / "home" / "index.schema-99.db").read_bytes() == theirs
    assert damage_in(stand) == []


def test_an_index_written_just_before_the_machine_started_is_not_trusted(stand, monkeypatch):
    from adapterhub.library.store import index

    library = Adapt(stand).library
    written = library.catalog.index.path.stat().st_mtime
    assert library.catalog.index.is_current

    for age_s, trusted in ((60, False), (3600, True), (-60, True)):
        monkeypatch.setattr(index, "_started_at", lambda age_s=age_s: written + age_s)
        assert library.catalog.index.is_current is trusted


def test_where_it_came_from_is_noted(stand, adapt):
    library = adapt.library

    places = {name: library.origins.of(build_of(stand, name).manifest.digest).place for name in ("one", "three")}

    assert places == {"one": str(stand / "one"), "three": str(stand / "published")}


def test_repair_of_a_whole_store_does_nothing(stand, adapt):
    before = sorted((p, p.stat().st_mtime) for p in (stand / "home" / "adapters").rglob("*"))

    said = adapt.ok("doctor", "--repair")

    assert said == "nothing is damaged\n"
    assert sorted((p, p.stat().st_mtime) for p in (stand / "home" / "adapters").rglob("*")) == before

"""Which bases of adapters a registry knows to be one model, from manifests alone, and to whom it says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
from adapterhub_registry import kin
from adapterhub_registry.database.db import adapters, base_claims, base_pairs
from adapterhub_registry.operations.commands import registry as commands
from adapterhub_registry.upkeep.space import free_space
from click.testing import CliRunner
from safetensors.torch import load_file
from sqlalchemy import select

import adapterhub
from adapterhub.api.searching import search_server
from adapterhub.core.specs import BaseSpec, parse_name
from adapterhub.distribution.hub import Hub, Search
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.release import Release
from adapterhub.library.bases.record import BaseRecord
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.registry.running import Running, running
from tests.support.copies import in_float8, saved
from tests.support.tiny import make_adapter, make_base

FORMS = ("source", "half", "fp8")


class World:
    """A base, the same in float16 and in float8, and another model; nothing is compared before `compare`."""

    def __init__(self, server: Running, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.library = Library(folder / "home")
        make_base(folder / "source")
        make_base(folder / "half", dtype="f2")
        make_base(folder / "other", seed=9)
        saved(folder / "fp8", in_float8(load_file(folder / "source" / "model.safetensors")))
        self.bases = {name: self.library.bases.add(folder / name, name) for name in (*FORMS, "other")}
        self.reader = server.registry.tokens.create("rita", "read", namespaces=["acme/*"])

    def push(self, repo: str, base: str | BaseRecord, *, private: bool = False) -> None:
        record = self.bases[base] if isinstance(base, str) else base
        made = self.folder / "made" / repo
        made = made if made.exists() else make_adapter(made, seed=len(repo))
        name = parse_name(repo.partition("/")[2])
        build = self.library.add(made, Description(name=name, version="1.0.0"), base=record).build
        hub = Hub(endpoint=self.server.url, token=self.server.token)
        release = Release(manifest=build.manifest, namespace=None, origin="home", base_hub_id="org/base")
        copy(release, self.library, hub.to(repo, private=private))

    def push_all(self) -> None:
        for name in self.bases:
            self.push(f"acme/for-{name}", name)

    def compare(self) -> int:
        return kin.make(self.server.registry.db, self.server.registry.blobs)

    def sha256(self, base: str) -> str:
        return self.bases[base].fingerprint.weights.removeprefix("sha256:")

    def found(self, base: str, token: str | None = None, digits: int = 64) -> set[str]:
        """What three ways to ask answer, which must agree: the API, the page, and the feed."""
        sha256 = self.sha256(base)[:digits]
        listed = self.server.get(f"/api/adapt/v1/adapters?base_sha256={sha256}", token=token).json()["adapters"]
        page = self.server.get(f"/?base={sha256}&format=json", token=token).json()["adapters"]
        feed = self.server.get(f"/feed?base={sha256}", token=token).text
        repos = {one["repo"] for one in page}
        assert {one["repo"] for one in listed} == repos
        assert all((f"<title>{repo} " in feed) for repo in repos)
        assert feed.count("<entry>") == len(repos)
        return repos

    def related(self, base: str, token: str | None = None) -> dict[str, tuple[str, int]]:
        answer = self.server.get(f"/base/{self.sha256(base)}?format=json", token=token)
        related = answer.json()["related"] if answer.status_code == 200 else []
        names = {f"/base/{self.sha256(name)}": name for name in self.bases}
        return {
            names[one["url"]]: (one["relation"], one["adapters"])
            for one in related
            if "same name" not in one["relation"]
        }

    def rows(self) -> int:
        with self.server.registry.db.read() as connection:
            return len(connection.execute(select(base_pairs)).all())


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    is_shared = getattr(request, "param", "sqlite") == "postgresql"
    database = {"database_url": request.getfixturevalue("pg").new_registry()} if is_shared else {}
    with running(tmp_path / "registry", derives=False, **database) as server:
        yield World(server, tmp_path)


@pytest.mark.parametrize("world", ["sqlite", "postgresql"], indirect=True)
def test_the_adapters_of_every_form_of_a_base_are_found(world: World) -> None:
    world.push_all()
    assert world.found("source") == {"acme/for-source"}  # a push waits for nothing

    assert (world.compare(), world.compare()) == (4, 0)

    for name in FORMS:
        assert world.found(name) == world.found(name, digits=12) == {f"acme/for-{form}" for form in FORMS}
    assert world.found("other") == {"acme/for-other"}
    assert world.related("source") == {
        "half": ("same weights in another precision", 1),
        "fp8": ("fp8-channel copy of it", 1),
    }
    assert world.related("fp8") == dict.fromkeys(("source", "half"), ("source of this fp8-channel copy", 1))
    also = world.server.get("/acme/for-source?format=json").json()["also"]
    assert {one["relation"] for one in also} == {"same weights in another precision", "fp8-channel copy of it"}
    page = world.server.get("/acme/for-source", token=None).text
    assert "Also fits" in page
    assert "fp8-channel copy of it" in page


def test_a_worker_compares_once_and_anew_on_request(world: World) -> None:
    world.push_all()
    world.push("acme/again", "fp8")
    here = ["worker", "--root", str(world.server.root), "--once", "--json"]

    done = [json.loads(CliRunner().invoke(commands, [*here, *more]).output) for more in ([], [], ["--rebuild"])]

    assert [one["bases"] for one in done] == [5, 0, 5]
    assert world.rows() == 6  # three pairs of forms, in both directions


@pytest.mark.parametrize("how", ["private", "gated"])
def test_who_may_not_read_an_adapter_learns_nothing_of_its_base(world: World, how: str) -> None:
    world.push("acme/open", "source")
    world.push("acme/closed", "fp8", private=how == "private")
    world.push("acme/open-too", "other")
    if how == "gated":
        world.server.send("PUT", "/api/models/acme/closed/settings", {"gated": "auto"}).raise_for_status()
    world.compare()

    assert world.found("source") == {"acme/open"}
    assert world.found("fp8") == (set() if how == "private" else {"acme/closed"})
    assert world.related("source") == world.related("fp8") == {}
    assert "Also fits" not in world.server.get("/acme/open", token=None).text
    assert world.found("source", world.reader) == world.found("fp8", world.reader) == {"acme/open", "acme/closed"}
    assert world.related("source", world.reader) == {"fp8": ("fp8-channel copy of it", 1)}


def forged(world: World, base: str, samples_of: str) -> BaseRecord:
    """A base that has the digest of one and the numbers of another."""
    weights = world.bases[base].fingerprint.weights
    return replace(world.bases[samples_of], fingerprint=replace(world.bases[samples_of].fingerprint, weights=weights))


@pytest.mark.parametrize("private", [True, False])
def test_a_false_claim_joins_no_bases(world: World, *, private: bool) -> None:
    """It can only make what is said of that base unclear, to those who may read it."""
    world.push_all()
    world.push("evil/liar", forged(world, "other", "half"), private=private)
    world.compare()

    liar = set() if private else {"evil/liar"}
    for name in FORMS:
        assert world.found(name) == {f"acme/for-{form}" for form in FORMS}
    assert world.found("other") == {"acme/for-other"} | liar
    assert world.related("other") == {}

    world.push("evil/liar-too", forged(world, "source", "other"), private=private)
    world.compare()

    assert world.found("source") == (
        {"acme/for-source", "evil/liar-too"} if not private else {f"acme/for-{f}" for f in FORMS}
    )
    assert "other" not in world.related("source")


@pytest.mark.parametrize("world", ["sqlite", "postgresql"], indirect=True)
def test_what_is_gone_is_forgotten_and_compared_again_when_it_comes_back(world: World) -> None:
    world.push("acme/a", "source")
    world.compare()
    world.server.remove("acme/a")
    world.push("acme/b", "fp8")
    world.compare()
    assert world.rows() == 0

    world.push("acme/a", "source")
    assert world.compare() == 1
    assert world.found("fp8") == {"acme/a", "acme/b"}

    world.server.remove("acme/b")
    free_space(world.server.registry)
    with world.server.registry.db.read() as connection:
        assert len(connection.execute(select(base_claims)).all()) == 1
    assert world.rows() == 0


def test_a_library_finds_what_was_made_for_its_other_forms_of_a_base(world: World) -> None:
    """The registry has adapters of one form alone, so only the library can know."""
    world.push("acme/for-fp8", "fp8")
    world.push("acme/for-other", "other")
    world.compare()

    def listed(base: str, *bases: str) -> list[tuple[str, str]]:
        home = adapterhub.Library(world.folder / "-".join((base, *bases)))
        for name in (base, *bases):
            home.add_base(world.folder / name, name)
        found = search_server(home.session, Hub(endpoint=world.server.url, token=None), BaseSpec.parse(base), Search())
        return [(one.hit.repo, one.fits) for one in found]

    assert listed("source") == []
    assert listed("source", "fp8", "other") == listed("half", "fp8") == [("acme/for-fp8", "another form")]
    assert listed("fp8", "source") == [("acme/for-fp8", "by weights")]


def test_two_workers_that_add_bases_at_once_miss_no_pair(world: World) -> None:
    """The second adds its base while the first compares."""
    world.push("acme/a", "source")
    world.push("acme/b", "fp8")
    world.push("acme/c", "other")
    database, blobs = world.server.registry.db, world.server.registry.blobs
    with database.read() as connection:
        found = {row.base_sha256: row.digest for row in connection.execute(select(adapters)).all()}
    fingerprints = {found[world.sha256(name)]: world.bases[name].fingerprint for name in ("source", "fp8", "other")}
    a, b, c = (found[world.sha256(name)] for name in ("source", "fp8", "other"))
    kin._add(database, c, fingerprints.get)

    def read(digest: str) -> BaseFingerprint | None:
        if digest == c:  # the first compares with it
            kin._add(database, b, fingerprints.get)
        return fingerprints[digest]

    kin._add(database, a, read)

    assert kin.make(database, blobs) == 0
    assert world.found("fp8") == {"acme/a", "acme/b"}

"""A namespace that the user gave to a remote belongs to it: no project, lock file, folder or older build takes it over.

Two registries run on loopback: `ours`, which Ben gave the namespace `acme`, and Eve's, which has another build of
`acme/legal-qa`. Whatever a cloned project says, Eve's build never answers for `acme/…`, and her server is not asked.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapterhub.core.errors import NamespaceBound, SignatureRefused
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader import attach
from adapterhub.inference.serving import AdapterProvider
from adapterhub.library.library import Library
from adapterhub.projects.lock.lockfile import read_lock
from adapterhub.projects.places import ProjectSources
from adapterhub.projects.project import read_project
from adapterhub.projects.session import Session
from adapterhub.projects.sync import BuildSources, plan_sync, run_sync, syncing, wanted_entries
from adapterhub.vllm_plugin.resolver import AdapterHubResolver
from tests.registry.proxy import Proxy, proxy_of
from tests.registry.running import Running, running
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base
from tests.support.tiny_models import llama

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SPEC = "acme/legal-qa"
SHARED = "acme/tables"
"""The same build on both servers; signed on `ours` alone."""


@dataclass(frozen=True)
class Servers:
    """Both registries with what is published there; Eve's is reached through a proxy that counts requests."""

    folder: Path
    ours: Running
    eve: Proxy


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, server: Running) -> Iterator[Servers]:
    import huggingface_hub.constants

    folder = tmp_path_factory.mktemp("publishers")
    with pytest.MonkeyPatch.context() as patch, running(tmp_path_factory.mktemp("eve")) as other:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        make_base(folder / "models" / "base-7b")
        ann, eve = Adapt(folder, "ann"), Adapt(folder, "eve")
        for home in (ann, eve):
            home.ok("base", "add", "./models/base-7b", "--as", "base-7b")
            for name, one in (("ours", server), ("theirs", other)):
                home.ok("remote", "add", name, one.url)
                home.ok("remote", "login", name, "--token", one.token)
        ann.ok("key", "new", "ann", "--unencrypted")
        build(ann, "legal-qa", "1.0.0", seed=1)
        build(eve, "legal-qa", "2.0.0", seed=2)
        build(ann, "tables", "1.0.0", seed=3)
        ann.ok("push", "tables", "--to", SHARED, "--remote", "theirs")
        for name in ("legal-qa", "tables"):
            ann.ok("push", name, "--to", f"acme/{name}", "--remote", "ours", "--sign")
        eve.ok("push", "legal-qa", "--to", SPEC, "--remote", "theirs")
        with proxy_of(other.url) as proxy:
            yield Servers(folder, server, proxy)


def build(home: Adapt, name: str, version: str, *, seed: int) -> None:
    made = make_adapter(home.folder / "out" / f"{name}-{seed}", seed=seed)
    home.ok("add", made, "--name", name, "--version", version, "--base", "base-7b")


@dataclass(frozen=True)
class World:
    servers: Servers
    ben: Adapt
    work: Adapt

    def bind(self) -> None:
        """Ben gives `acme` to `ours`, as the attack assumes."""
        url = self.servers.ours.url
        self.ben.ok("remote", "add", "ours", url, "--namespaces", "acme", "--signatures", "require")

    def write(self, text: str) -> None:
        (self.work.folder / "adapters.toml").write_text(f'[project]\nbase = "base-7b"\n{text}')

    def trust(self) -> None:
        self.ben.ok("remote", "trust", self.work.folder)

    def eves_lock(self, more: str = "") -> None:
        """A project whose lock file, made by Eve, names her server; its project file does not."""
        self.write(f'{more}[adapters]\nqa = "{SPEC}"\n')
        eve = Adapt(self.work.folder, self.servers.folder / "eve-locks")
        eve.ok("base", "add", self.servers.folder / "models" / "base-7b", "--as", "base-7b")
        eve.ok("remote", "add", "theirs", self.servers.eve.url, "--namespaces", "acme")
        eve.ok("lock")
        self.servers.eve.seen.clear()

    def versions(self) -> set[str]:
        return {b.manifest.version for b in self.ben.library.builds_named("legal-qa", "acme")}

    def refused(self, *command: str) -> str:
        """What a command says that is refused with both sides, having asked Eve nothing and taken nothing."""
        told = self.work.fails(14, *command)
        assert self.servers.ours.url in told
        assert "acme" in told or "`ours`" in told
        assert self.servers.eve.seen == []
        assert "2.0.0" not in self.versions()
        assert not (self.work.folder / "adapters" / "qa").exists()
        return told


@pytest.fixture
def world(tmp_path: Path, servers: Servers, online: None) -> World:
    ben = Adapt(tmp_path, "ben")
    ben.ok("base", "add", servers.folder / "models" / "base-7b", "--as", "base-7b")
    ben.ok("key", "trust", "ann", servers.folder / "ann" / "keys" / "ann.pub")
    (tmp_path / "work").mkdir()
    servers.eve.seen.clear()
    return World(servers, ben, Adapt(tmp_path / "work", "../ben"))


# ---------------------------------------------------------------- the four ways of a cloned project
def claims_the_namespace(world: World) -> None:
    world.write(f'[remotes.x]\nurl = "{world.servers.eve.url}"\nnamespaces = ["acme"]\n[adapters]\nqa = "{SPEC}"\n')


def takes_the_name(world: World) -> None:
    world.write(f'[remotes.ours]\nurl = "{world.servers.eve.url}"\n[adapters]\nqa = "{SPEC}"\n')


def names_its_remote(world: World) -> None:
    world.write(f'[remotes.x]\nurl = "{world.servers.eve.url}"\n[adapters]\nqa = {{ spec = "{SPEC}", remote = "x" }}\n')


@pytest.mark.parametrize("attack", [claims_the_namespace, takes_the_name, names_its_remote], ids=lambda a: a.__name__)
@pytest.mark.parametrize("command", ["sync", "lock", "trusted sync"])
def test_a_project_that_claims_what_is_a_remotes_is_refused(world, attack, command, monkeypatch):
    attack(world)
    world.bind()
    if command == "trusted sync":
        monkeypatch.setenv("ADAPTERHUB_TRUST_PROJECT", "1")

    told = world.refused(command.split()[-1])

    assert "`adapt remote" in told


@pytest.mark.parametrize("attack", [claims_the_namespace, takes_the_name], ids=lambda a: a.__name__)
def test_no_trust_is_given_to_a_project_that_claims_what_is_a_remotes(world, attack):
    attack(world)
    world.bind()

    world.refused("remote", "trust")
    world.refused("install", f"{SPEC}@base-7b")


def test_a_remote_without_namespaces_is_not_asked_for_a_namespace_of_another(world):
    world.write(f'[remotes.x]\nurl = "{world.servers.eve.url}"\n[adapters]\nqa = "{SPEC}"\n')
    world.bind()
    world.trust()

    world.work.ok("sync")

    assert world.versions() == {"1.0.0"}
    assert world.servers.eve.seen == []


@pytest.mark.parametrize("is_trusted", [False, True])
def test_a_lock_file_that_names_another_server_is_refused(world, is_trusted):
    world.eves_lock()
    world.bind()
    if is_trusted:
        world.trust()

    told = world.refused("sync", "--frozen")

    assert "`adapt lock --upgrade qa`" in told
    world.work.ok("lock", "--upgrade", "qa")
    world.work.ok("sync")
    assert world.versions() == {"1.0.0"}


def test_a_directory_of_the_project_is_not_asked_for_a_namespace_of_a_remote(world):
    Adapt(world.servers.folder, "eve").ok("push", "legal-qa", "--to", world.work.folder / "team")
    world.write(f'[remotes.team]\npath = "./team"\n[adapters]\nqa = "{SPEC}"\n')
    world.bind()

    world.work.ok("sync")

    assert world.versions() == {"1.0.0"}


def test_a_folder_of_the_clone_that_has_the_locked_bytes_is_no_place_either(world):
    world.eves_lock()
    eve = Adapt(world.work.folder, world.servers.folder / "eve-locks")
    eve.ok("sync")
    world.servers.eve.seen.clear()
    world.bind()

    told = world.work.fails(14, "sync", "--frozen")

    assert world.servers.ours.url in told
    assert world.versions() == set()
    assert world.servers.eve.seen == []


def test_a_lock_cannot_give_bytes_of_another_namespace_the_name(world):
    """The store has Eve's objects from an install under another name, so nothing needs to be fetched."""
    world.eves_lock()
    place = world.work.folder.parent / "eves"
    Adapt(world.servers.folder, "eve").ok("push", "legal-qa", "--to", place)
    world.ben.ok("install", "evil/legal-qa@base-7b", "--from", place)
    world.bind()

    world.refused("sync", "--frozen")


def test_python_is_refused_as_the_command_is(world):
    world.eves_lock()
    world.bind()
    library, folder = world.ben.library, world.work.folder
    session = Session(library.root)
    sources, lock = ProjectSources(session, read_project(folder)), read_lock(folder)

    with syncing(library, folder) as target, pytest.raises(NamespaceBound, match="acme"):
        run_sync(
            library,
            lock,
            plan_sync(target, wanted_entries(lock)),
            BuildSources(places=sources.of_locked, rebuild=lambda _: pytest.fail("nothing is merged")),
        )


# ---------------------------------------------------------------- builds that came before the binding
@pytest.fixture
def late(world: World) -> World:
    """Eve's build was installed as `acme/legal-qa`, and only then Ben gave `acme` to `ours`."""
    world.ben.ok("install", f"{SPEC}@base-7b", "--remote", world.servers.eve.url)
    world.bind()
    world.ben.ok("key", "policy", "default", "--remote", "ours")
    world.servers.eve.seen.clear()
    return world


@pytest.mark.parametrize(
    "command",
    [
        ("info", SPEC, "--path"),
        ("info", "legal-qa", "--path"),
        ("install", SPEC),
        ("install", f"{SPEC}@base-7b", "--remote", "EVE"),
        ("pull", f"{SPEC}@base-7b", "./given", "--remote", "EVE"),
        ("push", SPEC, "--to", "./given"),
        ("export", SPEC, "--format", "peft", "-o", "./given"),
        ("list", "--format", "vllm"),
    ],
    ids=" ".join,
)
def test_what_came_from_elsewhere_answers_for_the_namespace_no_more(late, command):
    command = [late.servers.eve.url if word == "EVE" else word for word in command]
    if command == ["install", SPEC]:
        command.append("--offline")

    told = late.ben.fails(14, *command)

    assert late.servers.ours.url in told
    assert late.servers.eve.url in told
    assert not (late.ben.folder / "given").exists()


def with_attach(library: Library) -> None:
    attach(llama(), SPEC, library=library)


def with_bank(library: Library) -> None:
    with AdapterBank(llama(), library=library) as bank:
        bank.load(SPEC)


def with_counter(library: Library) -> None:
    provider = AdapterProvider(library, library.bases.list()[0], engine="vllm@0.32", max_rank=16)
    try:
        provider.find(SPEC)
    finally:
        provider.close()


def with_vllm(library: Library) -> None:
    environ = {"ADAPTERHUB_HOME": str(library.root), "ADAPTERHUB_SERVE_OFFLINE": "1"}
    resolver = AdapterHubResolver(environ, ["vllm"])
    resolver.base_model = str(library.bases.list()[0].path)
    asyncio.run(resolver.leased(SPEC))


@pytest.mark.parametrize("use", [with_attach, with_bank, with_counter, with_vllm], ids=lambda use: use.__name__)
def test_python_uses_no_build_that_came_from_elsewhere(late, use: Callable[[Library], None]):
    with pytest.raises(NamespaceBound, match="acme"):
        use(late.ben.library)


def test_the_owners_build_is_taken_beside_the_strangers(late):
    late.ben.ok("install", f"{SPEC}@base-7b")

    assert late.versions() == {"1.0.0", "2.0.0"}
    assert "1.0.0" in late.ben.ok("info", f"{SPEC}==1.0.0", "--path")
    late.ben.fails(14, "info", f"{SPEC}==2.0.0", "--path")
    late.ben.ok("remove", f"{SPEC}==2.0.0", "--yes")
    assert "1.0.0" in late.ben.ok("info", SPEC, "--path")


def test_the_same_build_of_the_owner_makes_it_admissible_with_the_owners_signature(world):
    world.ben.ok("install", f"{SHARED}@base-7b", "--remote", world.servers.eve.url)
    world.bind()
    told = world.ben.fails(14, "info", SHARED, "--path")
    assert "`adapt install 'acme/tables==1.0.0" in told

    [installed] = world.ben.json("install", SHARED)

    assert (installed["present"], installed["copy_bytes"]) == (True, 0)
    world.ben.ok("info", SHARED, "--path")


def test_a_build_without_a_note_of_origin_is_refused_until_the_owner_has_it(world):
    world.bind()
    world.ben.ok("install", f"{SPEC}@base-7b")
    shutil.rmtree(world.ben.folder / "ben" / "origins")

    told = world.ben.fails(14, "info", SPEC, "--path")

    assert "no recorded origin" in told
    world.ben.ok("install", SPEC)
    world.ben.ok("info", SPEC, "--path")


def test_sync_asks_the_owner_for_a_build_that_came_from_elsewhere(world):
    world.bind()
    world.write(f'[adapters]\nqa = "{SPEC}"\n')
    world.work.ok("sync")
    shutil.rmtree(world.ben.folder / "ben" / "origins")
    world.work.fails(14, "sync", "--offline")

    world.work.ok("sync", "--frozen")

    world.ben.ok("info", SPEC, "--path")


def test_a_note_under_another_name_makes_no_build_admissible(late):
    """The same bytes come from the owner under another namespace: that is no word on `acme`."""
    url = late.servers.ours.url
    late.ben.ok("remote", "add", "ours", url, "--namespaces", "acme,eves")
    late.servers.ours.post("/api/orgs", {"name": "eves"})
    eve = Adapt(late.servers.folder, "eve")
    eve.ok("push", "legal-qa", "--to", "eves/legal-qa", "--remote", "ours")
    late.ben.ok("install", "eves/legal-qa@base-7b")

    late.ben.ok("info", "eves/legal-qa", "--path")
    late.ben.fails(14, "info", SPEC, "--path")


def test_what_only_looks_reaches_a_build_from_elsewhere(late):
    late.ben.ok("info", SPEC)
    late.ben.ok("verify", SPEC)
    late.ben.ok("list")
    late.ben.ok("remove", SPEC, "--yes")


# ---------------------------------------------------------------- what a user types
def test_a_directory_that_is_typed_does_not_answer_for_a_namespace_of_a_remote(world):
    place = world.work.folder.parent / "eves"
    Adapt(world.servers.folder, "eve").ok("push", "legal-qa", "--to", place)
    world.bind()

    world.ben.ok("install", f"{SPEC}@base-7b", "--from", place)

    assert world.versions() == {"1.0.0"}
    world.ben.ok("install", "legal-qa@base-7b", "--from", place, "--signatures", "off")


@pytest.mark.parametrize("option", ["--remote", "--from"])
def test_a_place_that_is_typed_and_may_not_answer_is_refused_rather_than_passed_over(world, option):
    place = world.servers.eve.url
    if option == "--from":
        place = str(world.work.folder.parent / "eves")
        Adapt(world.servers.folder, "eve").ok("push", "legal-qa", "--to", place)
    world.bind()

    told = world.ben.fails(
        14, "install", f"{SPEC}@base-7b", option, place, *(["--offline"] if option == "--from" else [])
    )

    assert place in told
    assert world.servers.ours.url in told
    assert world.servers.eve.seen == []


def test_what_the_user_saves_from_a_server_that_he_typed_stays_trusted(world):
    world.write("[adapters]\n")
    world.work.ok("install", f"{SPEC}@base-7b", "--remote", world.servers.eve.url, "--save")

    [one] = world.work.json("remote", "trust", "--list")

    assert one["sources"] == [world.servers.eve.url]
    second = Adapt(world.work.folder, "../second")
    second.ok("base", "add", world.servers.folder / "models" / "base-7b", "--as", "base-7b")
    shutil.rmtree(world.work.folder / "adapters", ignore_errors=True)
    assert "adapt remote trust" in second.fails(14, "sync", "--frozen")
    second.having(ADAPTERHUB_TRUST_PROJECT="1").ok("sync", "--frozen")


def test_the_command_that_a_refusal_names_gives_the_namespace_up(late):
    late.ben.ok("remote", "add", "ours", late.servers.ours.url)

    late.ben.ok("info", SPEC, "--path")


def test_mirror_copies_nothing_under_a_namespace_of_another_server(world):
    world.bind()
    eve = world.servers.eve.url
    world.ben.ok("remote", "login", "ours", "--token", world.servers.ours.token)

    told = world.ben.fails(14, "mirror", f"{SPEC}@base-7b", "--from", eve, "--to", "ours")

    assert world.servers.ours.url in told
    assert world.servers.eve.seen == []
    other = ("mirror", "other/legal-qa@base-7b", "--from", "ours", "--to", eve, "--namespace", "acme")
    assert world.servers.ours.url in world.ben.fails(14, *other)
    world.ben.ok("mirror", f"{SPEC}@base-7b", "--from", "ours", "--to", eve, "--dry-run")
    world.ben.ok("mirror", f"{SPEC}@base-7b", "--from", eve, "--to", "ours", "--dry-run", "--ignore-bindings")


def test_a_signature_is_required_of_the_owners_build_although_it_was_installed_before(world):
    world.ben.ok("install", f"{SHARED}@base-7b", "--remote", world.servers.eve.url)
    world.ben.ok("remote", "add", "theirs", world.servers.eve.url, "--namespaces", "acme", "--signatures", "require")

    with pytest.raises(SignatureRefused, match="the policy of remote `theirs`"):
        attach(llama(), SHARED, library=world.ben.library)

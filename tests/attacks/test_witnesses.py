"""A registry that shows two pasts, and cosignatures that are no witness's word on the head at hand."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import pytest

from adapterhub.core.errors import LogMismatch, NotAllowed
from adapterhub.distribution.hub import Hub
from adapterhub.distribution.hub._log import MOST_AGE_S
from adapterhub.formats.release import Release
from adapterhub.formats.treelog import Head, LogSigner, new_seed, opened_note, witness_key
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.registry.running import Running, running
from tests.registry.test_log_client import log_in, rebuild
from tests.support.command_line import Adapt

_ROUTE = "/api/adapt/v1/tlog"


@dataclass(frozen=True)
class World:
    server: Running
    witness: Adapt
    client: Adapt
    push: Callable[[str], None]

    @property
    def signer(self) -> LogSigner:
        return self.witness.library.heads.witness()

    def note(self) -> tuple[str, Head]:
        """Return the checkpoint of the registry without cosignatures, and its head."""
        note = self.server.get(f"{_ROUTE}/checkpoint").text
        head = opened_note(note, self.server.registry.log.signer().key)
        return "".join(note.splitlines(keepends=True)[:5]), head

    def cosign(self) -> None:
        """Let the witness look, as `adapt mirror --witness` does after its copies."""
        Hub(endpoint=self.server.url, token=None).cosign(self.signer, (), self.witness.library.heads)

    def send(self, note: str) -> int:
        return self.server.post(f"{_ROUTE}/cosignatures", {"checkpoint": note}).status_code

    def refused(self, name: str = "acme/a0") -> str:
        done = self.client("install", name, "--remote", "ours")
        assert done.exit_code == 12, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def world(tmp_path: Path, online: None, library: Library, add: Callable[..., Added]) -> Iterator[World]:
    """A registry that lists the witness, and a client that trusts it; two releases are there."""
    witness, client = Adapt(tmp_path, home="witness"), Adapt(tmp_path, home="client")
    key = witness_key(witness.library.heads.witness().seed)
    with running(tmp_path / "registry", witnesses=(key,)) as server:

        def push(name: str) -> None:
            release = Release(
                manifest=add(name, seed=len(name) * 97 + ord(name[-1])).build.manifest, namespace=None, origin="home"
            )
            copy(release, library, Hub(endpoint=server.url, token=server.token).to(f"acme/{name}"))

        push("a0")
        push("a1")
        witness.ok("remote", "add", "ours", server.url)
        client.ok("remote", "add", "ours", server.url, "--witness", str(key))
        client.ok("remote", "add", "ours", server.url, "--namespaces", "acme")  # keeps the witness
        yield World(server, witness, client, push)


def test_only_what_the_witness_saw_is_taken(world: World, tmp_path: Path) -> None:
    key = str(witness_key(world.signer.seed))
    with running(tmp_path / "copy") as copy_of:
        world.witness.ok("remote", "add", "copy", copy_of.url)
        world.witness.ok("remote", "login", "copy", "--token", copy_of.token)
        mirror = ("mirror", "acme/*", "--from", "ours", "--to", "copy", "--witness")
        unseen = world.refused()
        previewed = world.witness(*mirror, "--dry-run").stderr
        still_unseen = world.refused()
        done = world.witness(*mirror)
        world.client.ok("install", "acme/a0", "--remote", "ours")
        world.push("a2")
        later = world.refused("acme/a2")
        world.client.ok("install", "acme/a1", "--remote", "ours")  # the head from before `a2` has it
        world.witness.ok(*mirror)
        world.client.ok("install", "acme/a2", "--remote", "ours")
        elsewhere = world.client("install", "acme/a2", "--remote", copy_of.url)

    assert all("has not co-signed" in said for said in (unseen, still_unseen))
    assert "`acme/a2`" in later
    assert "co-signed" not in previewed
    assert all(said in done.stderr for said in (key, "co-signed the log"))
    assert f"co-signed by {key.partition('+')[0]} at 2" in world.client.ok("audit", "--log", "--notes")
    assert json.loads(world.client.ok("remote", "list", "--json"))[0]["witness"] == key
    assert elsewhere.exit_code == 0  # another server has no witness


def test_a_registry_that_shows_two_heads_is_refused_by_client_and_witness(world: World) -> None:
    world.cosign()
    whole = log_in(world.server.registry.db)
    rows = rebuild(world.server.registry.db, [*whole[:1], whole[1].replace(b"a1", b"b1")])

    assert "not co-signed" in world.refused()
    with pytest.raises(LogMismatch, match="another past"):
        world.cosign()
    rebuild(world.server.registry.db, whole, rows)
    world.cosign()
    world.client.ok("install", "acme/a0", "--remote", "ours")


def test_only_a_known_witness_on_this_very_head_counts(world: World) -> None:
    note, head = world.note()
    now, stranger = int(time.time()), LogSigner(new_seed())
    other = Head(head.origin, head.size - 1, bytes(32))
    mine, theirs = world.signer.cosign(head, now), stranger.cosign(head, now)
    forged = theirs.replace(witness_key(stranger.seed).name, witness_key(world.signer.seed).name)
    statuses = [
        world.send(note),
        world.send(note + theirs),
        world.send(note + forged),
        world.send(note + world.signer.cosign(other, now)),
        world.send(note.replace(note.split("\n")[2], "A" * 43 + "=") + mine),
        world.send(note + "— x y\n" * 900),
    ]

    assert statuses == [403, 403, 403, 403, 400, 422]
    assert "not co-signed" in world.refused()
    assert world.send(note + theirs + mine) == 200
    world.client.ok("install", "acme/a0", "--remote", "ours")
    with pytest.raises(NotAllowed, match="no witness"):
        Hub(endpoint=world.server.url, token=None).cosign(stranger, (), world.witness.library.heads)


def test_an_older_cosignature_that_somebody_sends_again_takes_no_place_of_a_newer_one(world: World) -> None:
    note, head = world.note()
    now = int(time.time())
    old, new = world.signer.cosign(head, now - MOST_AGE_S - 60), world.signer.cosign(head, now)
    statuses = [world.send(note + one) for one in (old, new, old)]

    assert statuses == [200, 200, 200]
    world.client.ok("install", "acme/a0", "--remote", "ours")


def test_an_old_cosignature_and_one_of_the_future_are_refused(world: World) -> None:
    note, head = world.note()
    now = int(time.time())
    for at, status in ((now - MOST_AGE_S - 60, 200), (now + 3600, 403)):
        assert world.send(note + world.signer.cosign(head, at)) == status
        assert "not co-signed" in world.refused()
    assert world.send(note + world.signer.cosign(head, now + 3600) + world.signer.cosign(head, now)) == 200
    world.push("a2")
    _, grown = world.note()
    world.cosign()

    assert grown.size == head.size + 1
    assert world.send(note + world.signer.cosign(head, now)) == 403  # a smaller head takes no place
    world.client.ok("install", "acme/a2", "--remote", "ours")


def test_two_first_witnesses_at_once_make_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, gate = Library(tmp_path / "home"), Barrier(2, timeout=5)

    def together() -> bytes:
        with suppress(BrokenBarrierError):  # with the lock, nobody else comes here
            time.sleep(gate.wait(1) / 2)  # the second one writes after the first has read
        return new_seed()

    monkeypatch.setattr("adapterhub.library.heads.new_seed", together)
    with ThreadPoolExecutor(2) as pool:
        seeds = {pool.submit(library.heads.witness) for _ in range(2)}

    assert len({one.result().seed for one in seeds}) == 1

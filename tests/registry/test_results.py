"""Signed results of tests at the registry: two libraries, real keys, real HTTP, and a namespace that asks for a PASS."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.access import audit
from adapterhub_registry.access.audit import LogSearch
from adapterhub_registry.database.db import Database, adapters, releases, repos, results
from adapterhub_registry.testing import MOST_CLAIMS, MOST_OF_KEY, results_for_base, rule_of, signer_of, unneeded
from sqlalchemy import delete, func, insert, select, true

import adapterhub as ah
from adapterhub.core.digests import digest_of, hex_of
from adapterhub.formats.signature import Bundle, pre_authentication
from adapterhub.library.results import ResultFiles
from adapterhub.library.store.catalog import Installed
from adapterhub.trust.signing.keys import KeyFolder
from tests.registry.running import Running, running
from tests.registry.test_searching import BASE, fill
from tests.support.command_line import Adapt
from tests.support.results import signed, with_contract
from tests.support.signing_homes import Homes, make_homes

V1 = "/api/adapt/v1"
OTHER = digest_of(b"another")
FAR = 1 << 50
"""A time far ahead, in milliseconds."""


@dataclass(frozen=True)
class World:
    """Ann writes to `team`, where her `legal-qa` 1.0.1 has a contract; Ben has a token that reads."""

    homes: Homes
    server: Running
    team: str
    reader: str

    @property
    def repo(self) -> str:
        return f"{self.team}/legal-qa"

    @property
    def number(self) -> int:
        with self.server.registry.db.read() as connection:
            return int(connection.scalars(select(repos.c.id).where(repos.c.full_name == self.repo)).one())

    @property
    def build(self) -> Installed:
        [build] = [one for one in self.homes.ann.library.installed() if one.manifest.version == "1.0.1"]
        return build

    def push(self, *options: str) -> tuple[str, ...]:
        return ("push", "legal-qa==1.0.1", "--to", self.repo, *options)

    def key(self, name: str = "ann") -> Path:
        return self.homes.ann.folder / self.homes.ann.home / "keys" / f"{name}.pub"

    def rule(self, **changes: Any) -> httpx.Response:
        return self.server.post(f"{V1}/namespaces/{self.team}/tests", changes)

    def ask_for_a_pass(self, *keys: str) -> None:
        trust = [{"name": name, "pem": self.key(name).read_text()} for name in keys or ("ann",)]
        assert self.rule(asks="passed", trust=trust).status_code == 200

    def put(self, raw: bytes, *, token: str | None = "", version: str = "1.0.1") -> httpx.Response:
        given = self.server.token if token == "" else token
        headers = {"Authorization": f"Bearer {given}"} if given else {}
        return httpx.put(f"{self.server.url}{V1}/adapters/{self.repo}/tests/{version}", content=raw, headers=headers)

    def listed(self, query: str = "", *, token: str | None = "") -> list[dict[str, Any]]:
        answer = self.server.get(f"{V1}/adapters/{self.repo}/tests/1.0.1{query}", token=token)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["results"])

    def sign(self, verdict: Any = "PASS", key: str = "ann", **changed: Any) -> bytes:
        """A result that Ann's library forgets again, so that no push takes it along."""
        path = signed(self.homes.ann.library, self.build, key, verdict, **changed)
        raw = path.read_bytes()
        path.unlink()
        return raw

    def signed_again(self, raw: bytes, change: Callable[[dict[str, Any]], None], key: str = "ann") -> bytes:
        """Another statement, under a true signature of the key."""
        statement = json.loads(Bundle.parse(raw).payload)
        change(statement)
        opened = KeyFolder(self.homes.ann.library.root).open(key, None)
        payload = json.dumps(statement).encode()
        signature = opened.sign(pre_authentication(payload))
        return Bundle(hint=opened.public.fingerprint, payload=payload, signature=signature).to_bytes()


def numbered(sequence: int) -> Callable[[dict[str, Any]], None]:
    return lambda statement: statement["predicate"]["adapterhub"].update(sequence=sequence)


@pytest.fixture
def world(tmp_path: Path, server: Running, online: None, request: pytest.FixtureRequest) -> World:
    homes = make_homes(tmp_path)
    homes.add("1.0.0")
    with_contract(homes.ann.library, next(homes.ann.library.installed()))
    team = f"t{zlib.crc32(request.node.name.encode())}"
    for home in (homes.ann, homes.ben):
        home.ok("remote", "add", "ours", server.url, "--namespaces", team)
    homes.ann.ok("remote", "login", "ours", "--token", server.token)
    reader = server.registry.tokens.create("ben", "read", namespaces=["ben/*"])
    return World(homes, server, team, reader)


# ------------------------------------------------------------ the way of a result
def test_a_result_goes_along_with_a_push_and_comes_with_an_install(world: World) -> None:
    signed(world.homes.ann.library, world.build, "ann")
    world.homes.ann.ok(*world.push())
    world.homes.trust()
    world.homes.ben.ok("install", f"{world.repo}@base-7b")

    [there] = world.listed(token=None)
    [here] = world.homes.ben.json("contract", "results", world.repo)[0]["results"]

    assert (there["verdict"], there["sequence"], there["signer"], there["digest"]) == (
        "PASS", 1, None, world.build.manifest.digest
    )  # fmt: skip
    assert (here["standing"], here["signer"], here["statement"]) == ("trusted", "ann", there["statement"])
    world.homes.ann.ok(*world.push())
    assert len(world.listed()) == 1


def test_a_later_result_reaches_a_project_and_a_mirror(world: World, tmp_path: Path) -> None:
    world.homes.ann.ok(*world.push())
    (tmp_path / "adapters.toml").write_text(
        f'[project]\nbase = "base-7b"\n\n[remotes.reg]\nurl = "{world.server.url}"\nnamespaces = ["{world.team}"]\n\n'
        f'[adapters]\nqa = "{world.repo}"\n\n[policy]\ntests = "require"\n'
    )
    world.homes.trust()
    assert "has no PASS on this base" in world.homes.ben.fails(14, "sync")

    signed(world.homes.ann.library, world.build, "ann")
    world.homes.ann.ok(*world.push("--results"))
    world.homes.ben.ok("sync")

    (tmp_path / "adapters.toml").unlink()
    with running(tmp_path / "second") as second:
        world.homes.ann.ok("remote", "add", "second", second.url)
        world.homes.ann.ok("remote", "login", "second", "--token", second.token)
        mirror = ("mirror", f"{world.team}/*", "--from", "ours", "--to", "second")
        place = f"{V1}/adapters/{world.repo}/tests/1.0.1"
        world.homes.ann.ok(*mirror)
        assert second.get(place).json()["results"] == []
        world.homes.ann.ok(*mirror, "--tests")
        assert [one["verdict"] for one in second.get(place).json()["results"]] == ["PASS"]


def test_a_tester_without_the_right_to_write_sends_a_result_by_a_key_of_the_namespace(world: World) -> None:
    world.homes.ann.ok(*world.push())
    world.homes.ben.ok("install", f"{world.repo}@base-7b")
    world.homes.ben.ok("key", "new", "ben", "--unencrypted")
    world.homes.ben.ok("remote", "login", "ours", "--token", world.reader)
    [build] = world.homes.ben.library.installed()
    send = ("push", f"{world.repo}@base-7b", "--to", world.repo, "--results")
    assert "there is no signed result" in world.homes.ben.fails(10, *send)
    signed(world.homes.ben.library, build, "ben", "CHANGED")
    assert "is not a key of" in world.homes.ben.fails(14, *send)

    pem = (world.homes.ben.library.root / "keys" / "ben.pub").read_text()
    world.rule(trust=[{"name": "ben", "pem": pem}])

    assert world.homes.ben.json(*send)["sent_results"] == 1
    assert (
        ah.Library(world.homes.ben.library.root).push(f"{world.repo}@base-7b", to=world.repo, results=True).sent_results
        == 1
    )
    assert [(one["signer"], one["verdict"]) for one in world.listed()] == [("ben", "CHANGED")]
    elsewhere = Adapt(world.homes.folder, "ben-2")
    elsewhere.ok("base", "add", "./models/base-7b", "--as", "base-7b")
    elsewhere.ok("remote", "add", "ours", world.server.url, "--namespaces", world.team)
    elsewhere.ok("install", f"{world.repo}@base-7b")
    [document] = elsewhere.json("contract", "results", world.repo)
    assert [one["sequence"] for one in document["results"]] == [1]
    assert [world.listed(query) for query in ("?verdict=PASS", f"?base={OTHER[7:]}", "?dtype=int8")] == [[], [], []]
    assert len(world.listed(f"?base={build.base.fingerprint.weights[7:]}&dtype=float32&verdict=CHANGED")) == 1  # type: ignore[union-attr]


def test_of_several_results_on_one_question_only_the_latest_goes_out(world: World) -> None:
    for verdict in ("PASS", "CHANGED", "PASS"):
        signed(world.homes.ann.library, world.build, "ann", verdict)

    done = world.homes.ann(*world.push())

    assert (done.exit_code, "was not taken" in done.stderr) == (0, False), done.stderr
    assert [one["sequence"] for one in world.listed()] == [3]


def test_what_passed_elsewhere_moves_on_into_the_namespace_that_asks(world: World) -> None:
    ann, ben = world.homes.ann, world.homes.ben
    ann.ok(*world.push())
    ben.ok("install", f"{world.repo}==1.0.1", "--base", "base-7b")
    gated, keys = f"{world.team}-gated", [{"name": "ann", "pem": world.key().read_text()}]
    world.server.post(f"{V1}/namespaces/{gated}/tests", {"asks": "passed", "trust": keys})
    ben.ok("remote", "login", "ours", "--token", world.server.token)
    move = ("push", f"{world.repo}==1.0.1", "--to", f"{gated}/legal-qa", "--remote", "ours")
    assert "has none. Nothing was sent" in ben.fails(14, *move)

    signed(ann.library, world.build, "ann")
    ann.ok(*world.push("--results"))
    assert ben.json("contract", "results", world.repo)[0]["results"] == []
    [found] = ben.json("contract", "results", world.repo, "--fetch")[0]["results"]
    assert (found["verdict"], found["standing"]) == ("PASS", "unknown_key")

    ben.ok(*move)
    assert len(world.server.get(f"{V1}/adapters/{gated}/legal-qa/versions").json()["versions"]) == 1


def test_pages_name_the_signer_and_the_testers_that_the_namespace_knows(world: World) -> None:
    ann, query = world.homes.ann, f"/?q={world.team}&format=json&tested="

    def verdicts() -> set[tuple[str, str]]:
        page = world.server.get(f"/{world.repo}?format=json").json()
        return {(one["text"], one["detail"].split(", ")[-1]) for one in page["head"]["verdicts"]}

    def found(verdict: str) -> list[str]:
        return [line["repo"] for line in world.server.get(query + verdict).json()["adapters"]]

    ann.ok(*world.push("--sign", "--key", "ann"))
    assert world.put(world.sign()).status_code == 200
    unknown = ("Attached, key unknown", "Keys that are known here")
    assert unknown in verdicts()
    assert (found("passed"), found("changed")) == ([], [])  # a claim, until the namespace knows the key

    world.rule(trust=[{"name": "ann", "pem": world.key().read_text()}])
    fingerprint = world.build.manifest.base.fingerprint
    assert fingerprint is not None
    on = f"run by ann on base {fingerprint.weights.removeprefix('sha256:')[:12]}"
    assert {("Valid", "by ann"), ("PASS", on)} <= verdicts()
    assert (found("passed"), found("changed")) == ([world.repo], [])

    assert world.put(world.signed_again(world.sign("CHANGED"), numbered(2))).status_code == 200
    assert ("CHANGED", on) in verdicts()
    assert (found("passed"), found("changed")) == ([], [world.repo])
    world.rule(distrust=["ann"])
    assert (found("changed"), unknown in verdicts()) == ([], True)


def test_the_page_of_a_base_shows_which_builds_work_on_which_base(world: World) -> None:
    fingerprint = world.build.manifest.base.fingerprint
    assert fingerprint is not None
    mine = hex_of(fingerprint.weights)

    def outcomes(token: str | None = "") -> dict[str, tuple[str, str]]:
        answer = world.server.get(f"/base/{mine}?format=json", token=world.server.token if token == "" else token)
        table = (answer.json()["outcomes"] if answer.status_code == 200 else None) or {"bases": [], "rows": []}
        found = {}
        for row in table["rows"]:
            if row["name"] == world.repo:
                assert (row["version"], row["url"]) == ("1.0.1", f"/{world.repo}")
                cells = [cell and (cell["outcome"], cell["detail"][:24]) for cell in row["cells"]]
                found = {base["url"]: cell for base, cell in zip(table["bases"], cells, strict=True) if cell}
        return found

    world.homes.ann.ok(*world.push("--private"))
    for raw in (
        world.sign(drift=0.01),
        world.sign("CHANGED", base_weights=OTHER, retention=0.7, drift=0.4, dtype="bfloat16"),
    ):
        assert world.put(raw).status_code == 200
    assert outcomes() == {}  # claims, until the namespace knows the key

    world.rule(trust=[{"name": "ann", "pem": world.key().read_text()}])
    assert outcomes() == {
        f"/base/{mine}": ("works", "drift 0.01, float32, 202"),
        "": ("drifts", "drift 0.40, bfloat16, 20"),
    }
    assert (outcomes(None), outcomes(world.reader)) == ({}, {})  # no word of a private repository
    headers = {"Accept": "text/html", "Authorization": f"Bearer {world.server.token}"}
    html = httpx.get(f"{world.server.url}/base/{mine}", headers=headers).text
    assert ("Which adapters work on which base" in html, ">drifts</strong>" in html) == (True, True)

    later = world.sign("CHANGED", base_weights=OTHER, dtype="bfloat16")
    assert world.put(world.signed_again(later, numbered(2))).status_code == 200
    assert outcomes()[""][0] == "broken"
    world.rule(distrust=["ann"])
    assert outcomes() == {}


def test_the_table_of_a_base_reads_by_indexes(tmp_path: Path) -> None:
    database, read = Database(f"sqlite:///{tmp_path / 'registry.db'}"), []
    fill(database, 300)
    row = {"manifest": "0", "sha256": "0", "key": "k", "sent_by": "b", "created_at": 1, "body": b""}
    with database.begin() as connection:
        connection.execute(insert(results), [row | {"repo_id": 1 + n % 300, "question": str(n)} for n in range(3000)])
    with database.read() as connection:
        raw: Any = connection.connection.driver_connection
        raw.set_trace_callback(read.append)
        found = results_for_base(connection, BASE, true())
        raw.set_trace_callback(None)
        [sql] = [one for one in read if one.startswith("SELECT")]
        steps = [step[-1] for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}").all()]
    database.close()

    assert found == []
    tables = ("adapters", "results", "repos", "test_keys")
    assert [step for step in steps if step.startswith(tuple(f"SCAN {name}" for name in tables))] == []


def test_a_signature_over_other_bytes_names_no_signer(world: World) -> None:
    world.homes.ann.ok(*world.push("--sign", "--key", "ann"))
    world.rule(trust=[{"name": "ann", "pem": world.key().read_text()}])
    with world.server.registry.db.read() as connection:
        rule = rule_of(connection, world.team)
    raw = httpx.get(f"{world.server.url}/{world.repo}/resolve/main/model.sig", follow_redirects=True).content
    files = {path: hex_of(digest) for path, digest in world.build.manifest.digests.items()}

    assert signer_of(raw, files, rule) == "ann"
    assert signer_of(raw, files | {"adapter_config.json": "0" * 64}, rule) is None
    assert signer_of(raw, {}, rule) is None
    assert signer_of(raw[:-9], files, rule) is None
    assert signer_of(raw, files, replace(rule, keys=())) is None
    forged = Bundle(hint=Bundle.parse(raw).hint, payload=b"{}", signature=Bundle.parse(raw).signature).to_bytes()
    assert signer_of(forged, files, rule) is None


# ------------------------------------------------------------ the gate
def test_a_namespace_that_asks_for_a_pass_publishes_nothing_without_one(world: World) -> None:
    """Row 16 of the acceptance table."""
    ann = world.homes.ann
    world.ask_for_a_pass()

    assert "publishes only versions with a contract" in ann.fails(14, "push", "legal-qa==1.0.0", "--to", world.repo)
    refused = ann.fails(14, *world.push())
    assert ("publishes only versions with a PASS by `ann`" in refused, "Nothing was sent" in refused) == (True, True)
    assert "adapt test legal-qa --sign" in refused
    assert world.server.get(f"/api/models/{world.repo}").status_code == 404

    signed(ann.library, world.build, "ann", base_weights=OTHER)
    refused = ann.fails(14, *world.push())  # the server looks closer than the client
    assert "1.0.1 has no PASS by `ann` on its base" in refused
    assert world.server.get(f"{V1}/adapters/{world.repo}/versions").json()["versions"] == []
    assert world.server.get(f"{V1}/adapters?q=legal&base={world.team}").json()["adapters"] == []
    assert "no version tag" in world.homes.ben.fails(10, "install", f"{world.repo}@base-7b")

    signed(ann.library, world.build, "ann")
    ann.ok(*world.push())
    world.homes.ben.ok("install", f"{world.repo}@base-7b")
    assert {one["verdict"] for one in world.listed()} == {"PASS"}


def test_a_weaker_pass_opens_no_gate_that_a_stronger_check_closed(world: World) -> None:
    world.ask_for_a_pass()
    signed(world.homes.ann.library, world.build, "ann", "CHANGED", base_alone=True)
    signed(world.homes.ann.library, world.build, "ann")
    assert "has no PASS by `ann`" in world.homes.ann.fails(14, *world.push())

    signed(world.homes.ann.library, world.build, "ann", base_alone=True)
    world.homes.ann.ok(*world.push())


def test_a_stock_client_gets_422_for_the_tag_of_a_version_without_a_pass(world: World) -> None:
    world.homes.ann.ok(*world.push())
    world.server.send("DELETE", f"/api/models/{world.repo}/tag/v1.0.1")
    world.ask_for_a_pass()
    place = f"/api/models/{world.repo}/tag/main"

    refused = world.server.post(place, {"tag": "v1.0.1"})
    assert (refused.status_code, refused.headers["X-Error-Code"]) == (422, "TestsRequired")
    assert "it was not published" in refused.json()["error"]

    assert world.put(world.sign("CHANGED")).status_code == 200
    assert world.server.post(place, {"tag": "v1.0.1"}).status_code == 422
    later = world.signed_again(world.sign(), numbered(2))
    assert world.put(later).status_code == 200
    assert world.server.post(place, {"tag": "v1.0.1"}).status_code == 200


def test_a_repository_moves_into_a_namespace_only_with_what_that_asks(world: World) -> None:
    world.homes.ann.ok(*world.push())
    raw = world.sign()
    assert world.put(raw).status_code == 200
    gated = f"{world.team}-gated"
    move = {"fromRepo": world.repo, "toRepo": f"{gated}/legal-qa", "type": "model"}
    rule = f"{V1}/namespaces/{gated}/tests"
    world.server.post(rule, {"asks": "contract"})
    keys = [{"name": "ann", "pem": world.key().read_text()}]
    world.homes.new_key("eve")
    eve = [{"name": "eve", "pem": world.key("eve").read_text()}]

    world.server.post(rule, {"asks": "passed", "trust": eve})
    assert world.server.post("/api/repos/move", move).status_code == 422
    world.server.post(rule, {"trust": keys, "distrust": ["eve"]})
    assert world.server.post("/api/repos/move", move).status_code == 200
    moved = world.server.get(f"{V1}/adapters/{gated}/legal-qa/tests/1.0.1").json()
    assert [one["signer"] for one in moved["results"]] == ["ann"]


def test_the_command_shows_and_changes_the_rule_from_afar_and_on_the_machine(world: World) -> None:
    ann, team = world.homes.ann.having(ADAPTERHUB_TOKEN=world.server.token), world.team
    far = ("registry", "tests", team, "--url", world.server.url)
    here = ("registry", "tests", team, "--root", str(world.server.root))

    assert "no key of a tester" in ann.fails(2, *far, "--require", "passed")
    changed = ann.json(*far, "--require", "passed", "--trust", f"ann={world.key()}", "--keys-only")
    assert ann.json(*here) == changed == ann.json(*far)
    assert (changed["asks"], changed["keys_only"], [key["name"] for key in changed["keys"]]) == (
        "passed", True, ["ann"]
    )  # fmt: skip
    assert "asks of a new version: a contract, and a PASS" in ann.ok(*here)
    assert "no key of a tester" in ann.fails(2, *here, "--distrust", "ann")
    assert "expected NAME=FILE" in ann.fails(2, *here, "--trust", "ann.pub")
    assert "has no key `eve`" in ann.fails(10, *far, "--distrust", "eve")
    assert ann.json(*here, "--require", "off", "--distrust", "ann", "--any-key")["keys"] == []
    with world.server.registry.db.read() as connection:
        log = audit.entries(connection, LogSearch(namespace=team))
    assert [entry.action for entry in log] == ["tests", "tests"]


# ------------------------------------------------------------ who may
def test_only_an_administrator_of_the_whole_namespace_changes_its_rule(world: World) -> None:
    tokens, place = world.server.registry.tokens, f"{V1}/namespaces/{world.team}/tests"
    may_not = [
        None,
        world.reader,
        tokens.create("ci", "write", namespaces=[world.team]),
        tokens.create("one", "admin", namespaces=[world.repo]),
        tokens.create("other", "admin", namespaces=["other"]),
    ]
    may = tokens.create("owner", "admin", namespaces=[world.team])

    answers = [world.server.post(place, {"asks": "contract"}, token=token).status_code for token in [*may_not, may]]

    assert answers == [401, 403, 403, 403, 403, 200]


def test_a_private_repository_and_its_namespace_disclose_nothing(world: World) -> None:
    signed(world.homes.ann.library, world.build, "ann")
    world.homes.ann.ok(*world.push("--private"))
    world.ask_for_a_pass()
    raw = world.sign(dtype="bfloat16")
    missing = world.server.get(f"{V1}/adapters/{world.team}/none/tests/1.0.1", token=None)

    for token in (None, world.reader):
        there = world.server.get(f"{V1}/adapters/{world.repo}/tests/1.0.1", token=token)
        assert there.status_code == missing.status_code == 404
        assert there.text.replace("legal-qa", "none") == missing.text
        assert world.put(raw, token=token).status_code == (401 if token is None else 404)
        rule = world.server.get(f"{V1}/namespaces/{world.team}/tests", token=token).json()
        assert (rule["asks"], rule["keys"]) == ("off", [])
    assert len(world.listed()) == 1


# ------------------------------------------------------------ forged results (hostile case 29)
def forged(world: World, raw: bytes) -> bytes:
    bundle, eve = Bundle.parse(raw), KeyFolder(world.homes.ann.library.root).open("eve", None)
    signature = eve.sign(pre_authentication(bundle.payload))
    return Bundle(hint=bundle.hint, payload=bundle.payload, signature=signature).to_bytes()


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[World, bytes], bytes]:
    return lambda world, raw: world.signed_again(raw, change)


def other_contract(statement: dict[str, Any]) -> None:
    statement["predicate"]["configuration"][0]["digest"]["sha256"] = OTHER[7:]


HOSTILE: dict[str, tuple[Callable[[World, bytes], bytes], int]] = {
    "forged": (forged, 403),
    "another manifest": (changed(lambda s: s["subject"][0]["digest"].update(sha256=OTHER[7:])), 422),
    "passed and failed": (changed(lambda s: s["predicate"].update(failedTests=["golden-1"])), 400),
    "the future": (changed(lambda s: s["predicate"]["adapterhub"].update(time="2999-01-01T00:00:00Z")), 422),
    "sequence 0": (changed(numbered(0)), 400),
    "no JSON": (lambda *_: b"\x80\x02", 400),
    "too large": (lambda _, raw: raw + b" " * (64 << 10), 413),
    "the key of another namespace": (lambda world, raw: world.signed_again(raw, numbered(1), "eve"), 200),
    "another contract": (changed(other_contract), 200),
    "another base": (lambda world, _: world.sign(base_weights=OTHER), 200),
}


def test_a_false_result_is_refused_or_does_not_open_the_gate(world: World) -> None:
    world.homes.ann.ok(*world.push())
    world.server.send("DELETE", f"/api/models/{world.repo}/tag/v1.0.1")
    world.ask_for_a_pass()
    world.homes.new_key("eve")
    number, said = world.number, {}

    for name, (make, _) in HOSTILE.items():
        answer = world.put(make(world, world.sign()))
        tagged = world.server.post(f"/api/models/{world.repo}/tag/main", {"tag": "v1.0.1"})
        said[name] = (answer.status_code, len(world.listed()), tagged.status_code)
        with world.server.registry.db.begin() as connection:
            connection.execute(delete(results).where(results.c.repo_id == number))

    assert said == {name: (status, int(status == 200), 422) for name, (_, status) in HOSTILE.items()}
    assert world.rule(keys_only=True).status_code == 200
    assert world.put(world.sign(key="eve", dtype="int8")).status_code == 403


def test_an_earlier_sequence_does_not_come_back(world: World) -> None:
    world.homes.ann.ok(*world.push())
    world.ask_for_a_pass()
    passed = world.sign()
    changed = world.signed_again(world.sign("CHANGED"), numbered(2))
    same_number = world.signed_again(passed, numbered(2))

    answers = [world.put(raw).status_code for raw in (passed, changed, passed, same_number, changed)]

    assert answers == [200, 200, 409, 409, 200]
    assert [(one["verdict"], one["sequence"]) for one in world.listed()] == [("CHANGED", 2)]


def test_a_claim_that_came_before_its_key_was_known_keeps_no_true_result_out(world: World) -> None:
    world.homes.ann.ok(*world.push())
    world.homes.new_key("eve")
    raw = world.sign()
    high = forged(world, world.signed_again(raw, numbered(2**53)))
    assert world.put(high).status_code == 200
    world.ask_for_a_pass()
    assert [one["signer"] for one in world.listed()] == [None]

    assert world.put(raw).status_code == 200
    assert [(one["signer"], one["sequence"]) for one in world.listed()] == [("ann", 1)]


# ------------------------------------------------------------ many results (hostile case 30)
def test_ten_thousand_results_leave_a_bounded_number_and_room_for_testers(
    world: World, amount: Callable[[int, int], int]
) -> None:
    """One request of each kind goes over HTTP; the rest is the function behind the route."""
    number_sent = amount(200, 10_000)
    from adapterhub_registry.errors import HttpRefusal
    from adapterhub_registry.testing import take

    world.homes.ann.ok(*world.push())
    world.ask_for_a_pass()
    first = Bundle.parse(world.sign())
    statement = json.loads(first.payload)
    statuses = []
    with world.server.registry.db.begin() as connection:
        repo = connection.execute(select(repos).where(repos.c.full_name == world.repo)).one()
        for number in range(number_sent):
            hint = digest_of(str(number % 500).encode())
            statement["predicate"]["configuration"][1]["annotations"]["dtype"] = f"d{number // 500}"
            claim = Bundle(hint=hint, payload=json.dumps(statement).encode(), signature=b"none").to_bytes()
            try:
                take(connection, repo, "1.0.1", claim, by="ann", may_write=True)
                statuses.append(200)
            except HttpRefusal as refusal:
                statuses.append(refusal.status)
    assert (len(world.listed()), statuses) == (MOST_CLAIMS, [200] * MOST_CLAIMS + [413] * (number_sent - MOST_CLAIMS))
    claim = Bundle(hint=OTHER, payload=first.payload, signature=b"none").to_bytes()
    assert world.put(claim).status_code == 413

    answers = [world.put(world.sign(dtype=f"d{number}")).status_code for number in range(MOST_OF_KEY + 1)]
    assert answers == [200] * MOST_OF_KEY + [413]
    assert world.put(world.signed_again(world.sign(dtype="d0"), numbered(2))).status_code == 200


# ------------------------------------------------------------ life
def test_results_outlive_yanking_deletion_and_gc_and_go_with_their_repository(world: World) -> None:
    signed(world.homes.ann.library, world.build, "ann")
    world.homes.ann.ok(*world.push())
    place = f"{V1}/adapters/{world.repo}/yank"
    assert world.server.post(place, {"version": "1.0.1", "reason": "leaked labels"}).status_code == 200
    assert world.server.send("DELETE", f"/api/models/{world.repo}/tag/v1.0.1").status_code == 200
    with world.server.registry.db.begin() as connection:
        connection.execute(delete(results).where(unneeded(FAR).gone))
    assert len(world.listed()) == 1

    mine = select(func.count()).where(results.c.repo_id == world.number)
    gone = {"type": "model", "name": "legal-qa", "organization": world.team}
    with world.server.registry.db.read() as connection:
        assert connection.scalar(mine) == 1
    assert world.server.send("DELETE", "/api/repos/delete", gone).status_code == 200
    with world.server.registry.db.read() as connection:
        assert connection.scalar(mine) == 0


def test_gc_removes_results_on_a_build_that_was_never_released(world: World) -> None:
    world.homes.ann.ok(*world.push())
    assert world.put(world.sign()).status_code == 200
    number = world.number
    mine = select(func.count()).where(results.c.repo_id == number)
    counts = []
    with world.server.registry.db.begin() as connection:
        connection.execute(delete(releases).where(releases.c.repo_id == number))
        for table, before_ms in ((None, FAR), (adapters, 0), (None, FAR)):
            if table is not None:
                connection.execute(delete(table).where(table.c.repo_id == number))
            connection.execute(delete(results).where(unneeded(before_ms).gone))
            counts.append(connection.scalar(mine))
    assert counts == [1, 1, 0]


def test_a_published_folder_still_keeps_results_beside_it(world: World) -> None:
    signed(world.homes.ann.library, world.build, "ann")
    world.homes.ann.ok("push", "legal-qa==1.0.1", "--to", "./published")
    folder = world.homes.build("1.0.1")

    assert len(ResultFiles.beside(folder, world.build.manifest.digest).read()) == 1
    assert "is a directory" in world.homes.ann.fails(2, "push", "legal-qa==1.0.1", "--to", "./published", "--results")

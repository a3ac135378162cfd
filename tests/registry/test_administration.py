"""Tokens and users, administered on the server's machine and from afar; each change is logged with who made it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.operations.commands import registry
from adapterhub_registry.operations.far import FarTokens
from click.testing import CliRunner, Result

from adapterhub.core.errors import AdapterHubError, NotAllowed, NotFound, RemoteUnreachable, UsageProblem
from tests.registry.conftest import ROOT, serving
from tests.registry.running import Running, running

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def far(server: Running) -> FarTokens:
    return FarTokens(server.url, server.token)


def run(*arguments: object, token: str | None = None) -> Result:
    """`adapt registry …` in this process."""
    return CliRunner().invoke(registry, [*map(str, arguments)], env={"ADAPTERHUB_TOKEN": token})


# ------------------------------------------------------------ from afar
def test_tokens_are_created_listed_and_revoked_from_afar(server: Running, far: FarTokens) -> None:
    text = far.create("ana", "write", namespaces=["acme/*", "beta"], label="ci", days=1)
    made = next(record for record in far.records() if record.user == "ana")
    works = server.get("/api/whoami-v2", token=text).status_code

    gone = far.revoke(made.id)

    assert (made.role, made.namespaces, made.label) == ("write", ("acme/*", "beta/*"), "ci")
    assert gone.revoked_at is not None
    assert (works, server.get("/api/whoami-v2", token=text).status_code) == (200, 401)


def test_all_tokens_of_a_user_are_revoked_at_once(server: Running, far: FarTokens) -> None:
    texts = [far.create("leaver", "write") for _ in range(3)]
    before = {user.name: user.tokens for user in far.users()}

    gone = far.revoke_user("leaver")

    after = {user.name: user.tokens for user in far.users()}
    assert (before["leaver"], after["leaver"], len(gone)) == (3, 0, 3)
    assert {server.get("/api/whoami-v2", token=text).status_code for text in texts} == {401}
    assert server.get("/api/whoami-v2").status_code == 200


def test_the_log_says_who_did_it(server: Running, far: FarTokens) -> None:
    other = far.create("boss", "admin")
    number = next(record.id for record in far.records() if record.user == "boss")
    FarTokens(server.url, other).create("new", "read")
    done = run("token", "create", "--root", server.root, "--user", "here")
    far.revoke_user("boss")

    entries = list(far.log())

    assert done.exit_code == 0, done.output
    created = {
        entry.subject.split(": ")[0].split(" of ")[1]: entry.actor for entry in entries if entry.action == "create"
    }
    assert created["boss"].startswith("ann (token ")
    assert created["new"] == f"boss (token {number})"
    assert created["here"] == "a command on the server's machine"
    assert (entries[-1].action, entries[-1].subject) == ("revoke", f"token {number} of boss")
    assert all(entry.created_at > 1_700_000_000_000 for entry in entries)


def test_only_an_administrator_administers(server: Running) -> None:
    writer = server.registry.tokens.create("carl", "write")
    paths = [("GET", "users"), ("GET", "log"), ("DELETE", "users/ann")]
    answers = {server.send(method, f"/api/adapt/v1/{path}", token=writer).status_code for method, path in paths}

    assert answers == {403}
    assert server.get("/api/adapt/v1/users", token=None).status_code == 401
    for method in (FarTokens.users, FarTokens.log, lambda far: far.revoke_user("ann")):
        with pytest.raises(NotAllowed, match="administrator"):
            list(method(FarTokens(server.url, writer)))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda far: far.revoke(999_999), NotFound),
        (lambda far: far.revoke_user("nobody-of-that-name"), NotFound),
        (lambda far: far.create("no name", "write"), UsageProblem),
        (lambda far: far.create("ana", "king"), UsageProblem),
        (lambda far: far.create("ana", "read", namespaces=["a b/*"]), UsageProblem),
    ],
)
def test_what_the_server_refuses_is_a_plain_error(
    far: FarTokens, call: Callable[[FarTokens], object], error: type[AdapterHubError]
) -> None:
    with pytest.raises(error):
        call(far)


def test_a_server_that_is_away_or_something_else_is_told(server: Running, tmp_path: Path) -> None:
    with pytest.raises(RemoteUnreachable, match="could not be reached"):
        FarTokens("http://127.0.0.1:9", "adp_x").records()
    with pytest.raises(NotFound):
        FarTokens(f"{server.url}/somewhere", server.token).records()
    for url, token in (("ftp://x", "t"), ("registry", "t"), (server.url, None), (server.url, "a\nb")):
        with pytest.raises(UsageProblem):
            FarTokens(url, token)


# ------------------------------------------------------------ the commands
def test_the_commands_work_from_afar(server: Running) -> None:
    place = ("--url", server.url)
    made = run("token", "create", "--user", "cli", "--role", "write", *place, "--json", token=server.token)
    listed = json.loads(run("token", "list", *place, "--json", token=server.token).output)
    users = json.loads(run("token", "list", "--users", *place, "--json", token=server.token).output)
    number = next(row["id"] for row in listed if row["user"] == "cli")
    revoked = run("token", "revoke", number, *place, token=server.token)
    everything = run("token", "revoke", "--user", "cli", *place, token=server.token)
    log = run("token", "log", *place, token=server.token)

    assert json.loads(made.output)["token"].count("_") == 3
    assert {"user": "cli", "created": next(r["created"] for r in users if r["user"] == "cli"), "tokens": 1} in users
    assert revoked.output == f"revoked token {number} of cli\n"
    assert everything.output == "revoked the only token of cli\n"
    assert f"revoke\ttoken {number} of cli" in log.output


def test_a_repeated_option_keeps_all_values(server: Running) -> None:
    done = run(
        "token", "create", "--root", server.root, "--user", "many", "--namespaces", "acme", "--namespaces", "b/*,c"
    )

    record = next(record for record in server.registry.tokens.records() if record.user == "many")
    assert done.exit_code == 0, done.output
    assert record.namespaces == ("acme/*", "b/*", "c/*")


@pytest.mark.parametrize(
    "command",
    [
        ("token", "list"),
        ("token", "create", "--user", "a"),
        ("token", "revoke", "1"),
        ("token", "log"),
        ("token", "list", "--users"),
    ],
)
def test_a_folder_without_a_registry_stays_as_it_is(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = run(*command, "--root", tmp_path / "nowhere")

    assert isinstance(done.exception, NotFound)
    assert "is not a registry; nothing was created" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_token_on_a_plain_line_is_warned_of(server: Running) -> None:
    assert FarTokens("http://registry.example.org", "adp_x").is_plain_text
    assert not FarTokens("https://registry.example.org", "adp_x").is_plain_text
    assert not FarTokens(server.url, "adp_x").is_plain_text


def test_two_places_are_one_too_many(server: Running) -> None:
    done = run("token", "list", "--url", server.url, "--root", server.root, token=server.token)

    assert isinstance(done.exception, UsageProblem)


# ------------------------------------------------------------ on the server's machine
def test_the_operators_token_passes_no_proxy(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)

    assert run("token", "list", "--users", "--root", server.root).exit_code == 0


def test_a_folder_has_one_server_whose_operator_needs_no_token(tmp_path: Path) -> None:
    root = tmp_path / "root"
    command = [sys.executable, "-m", "adapterhub_registry", "--root", str(root), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "registry")])}
    with serving(tmp_path, ()) as served:
        made = run("token", "create", "--root", root, "--user", "ana")
        (place,) = (root / "servers").iterdir()
        url, _, operator = json.loads(place.read_text())["what"].partition(" ")
        head = {"Authorization": f"Bearer {operator}"}
        paths = ("adapt/v1/users", "whoami-v2", "models", "adapt/v1/adapters", "adapt/v1/releases")
        answers = [httpx.get(f"{url}/api/{path}", headers=head).status_code for path in paths]
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (place.parent, place)]
        second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        os.kill(served.pid, signal.SIGKILL)
    ended = run("token", "list", "--root", root)
    again = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert again.stdout is not None
    there = again.stdout.readline().removeprefix("url: ").strip()
    old = httpx.get(f"{there}/api/adapt/v1/users", headers=head).status_code
    me = httpx.get(f"{there}/api/whoami-v2", headers={"Authorization": f"Bearer {served.token}"}).json()["name"]
    again.terminate()

    assert made.exit_code == 0, made.output
    assert (url, modes) == (served.url, [0o700, 0o600])
    assert answers == [200, 401, 401, 401, 401]  # it only administers
    assert (second.returncode, second.stdout) == (15, "")
    assert f"is served by process {served.pid} (since " in second.stderr
    assert "hint: stop that server first" in second.stderr
    assert isinstance(ended.exception, RemoteUnreachable)
    assert "no server of " in str(ended.exception)
    assert (old, me, again.communicate(timeout=60)[0]) == (401, "admin", "")  # a second start prints no token

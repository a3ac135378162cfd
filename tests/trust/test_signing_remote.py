"""Signed adapters by way of a real registry on loopback: sign, push, install elsewhere, by the policy of the remote."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.registry.proxy import proxy_of
from tests.registry.running import Running, running
from tests.support.signing_homes import SIGNATURE, Homes, make_homes, statement_of

pytestmark = pytest.mark.slow


@pytest.fixture
def homes(tmp_path: Path, server: Running, online: None, request: pytest.FixtureRequest) -> Homes:
    """Both know the server as `ours`; the namespace `acme` is this test's own."""
    homes = make_homes(tmp_path)
    for home in (homes.ann, homes.ben):
        home.ok("remote", "add", "ours", server.url, "--namespaces", team(request))
    homes.ann.ok("remote", "login", "ours", "--token", server.token)
    homes.trust()
    return homes


def team(request: pytest.FixtureRequest) -> str:
    return f"t{zlib.crc32(request.node.name.encode())}"


def send(homes: Homes, version: str, to: str, *options: str) -> None:
    homes.add(version)
    homes.ann.ok("push", f"legal-qa=={version}", "--to", to, *options)


def test_a_signed_adapter_goes_to_a_registry_and_comes_back_signed(homes, request, tmp_path):
    mine = team(request)
    send(homes, "1.0.0", f"{mine}/legal-qa", "--sign")
    homes.ben.ok("key", "policy", "require", "--remote", "ours")

    [installed] = homes.ben.json("install", f"{mine}/legal-qa@base-7b")
    homes.ben.ok("pull", f"{mine}/legal-qa@base-7b", "./plain", "--remote", "ours")

    signature = Path(installed["path"]) / SIGNATURE
    assert statement_of(signature)["predicate"]["adapter"]["namespace"] == mine
    assert signature.read_bytes() == (tmp_path / "plain" / SIGNATURE).read_bytes()
    assert "is signed by `ann`" in homes.ben.ok("verify", "legal-qa")
    assert homes.ben.json("remote", "list")[0]["signatures"] == "require"


def test_an_unsigned_one_is_refused_where_the_remote_requires_it(homes, request):
    mine = team(request)
    send(homes, "1.0.0", f"{mine}/legal-qa")
    homes.ben.ok("key", "policy", "require", "--remote", "ours")

    told = homes.ben.fails(14, "install", f"{mine}/legal-qa@base-7b")
    assert "is not signed" in told
    homes.ben.fails(14, "pull", f"{mine}/legal-qa@base-7b", "./plain")
    assert not (homes.folder / "plain").exists()

    homes.ben.ok("key", "policy", "off", "--namespace", mine)
    homes.ben.ok("install", f"{mine}/legal-qa@base-7b")


def test_naming_a_remote_again_keeps_its_policy(homes, request, server):
    homes.ben.ok("key", "policy", "require", "--remote", "ours")
    homes.ben.ok("remote", "add", "ours", server.url, "--namespaces", f"{team(request)},more")

    assert homes.ben.json("remote", "list")[0]["signatures"] == "require"

    homes.ben.ok("key", "policy", "default", "--remote", "ours")
    assert homes.ben.json("remote", "list")[0]["signatures"] is None


def test_a_key_may_be_trusted_for_one_remote_alone(homes, request):
    mine = team(request)
    send(homes, "1.0.0", f"{mine}/legal-qa", "--sign")
    wanted = ("install", f"{mine}/legal-qa@base-7b", "--signatures", "require")

    homes.ben.ok("key", "trust", "ann", "--remote", "theirs")
    assert "not trusted for" in homes.ben.fails(14, *wanted)

    homes.ben.ok("key", "trust", "ann", "--remote", "ours")
    homes.ben.ok(*wanted)


def test_a_published_version_takes_another_signature_only_when_it_is_signed_again(homes, request):
    mine = team(request)
    send(homes, "1.0.0", f"{mine}/legal-qa")
    homes.ann.ok("key", "sign", "legal-qa", "--namespace", mine)
    assert "without a signature" in homes.ann.fails(15, "push", "legal-qa", "--to", f"{mine}/legal-qa")
    homes.ann.ok("push", "legal-qa", "--to", f"{mine}/legal-qa", "--sign")

    send(homes, "1.1.0", f"{mine}/legal-qa", "--sign")
    again = homes.ann.json("push", "legal-qa==1.1.0", "--to", f"{mine}/legal-qa", "--sign")
    assert (again["created"], again["signed"]) == (False, True)

    homes.new_key("other")
    homes.ann.ok("key", "sign", "legal-qa==1.1.0", "--namespace", mine, "--key", "other")
    told = homes.ann.fails(15, "push", "legal-qa==1.1.0", "--to", f"{mine}/legal-qa")
    assert "with another signature" in told


def test_an_unsigned_version_after_a_signed_one_has_no_signature_of_the_old_one(homes, request):
    mine = team(request)
    send(homes, "1.0.0", f"{mine}/legal-qa", "--sign")
    send(homes, "1.1.0", f"{mine}/legal-qa")

    done = homes.ben("install", f"{mine}/legal-qa@base-7b")

    assert (done.exit_code, done.stderr) == (0, "")
    assert "signed" not in homes.ben.ok("verify", "legal-qa")


def test_a_mirror_that_hides_the_newest_version_or_its_signature_is_found_out(homes, request, server):
    mine = team(request)
    send(homes, "1.0.0", f"{mine}/legal-qa", "--sign")
    send(homes, "1.1.0", f"{mine}/legal-qa", "--sign")
    homes.ben.ok("install", f"{mine}/legal-qa@base-7b")
    homes.ben.ok("remove", "legal-qa", "--yes")
    homes.ben.ok("remote", "add", "ours", server.url)  # which gives the namespace up, so that a mirror may answer

    with proxy_of(server.url) as mirror:
        homes.ben.ok("remote", "add", "mirror", mirror.url)
        wanted = ("install", f"{mine}/legal-qa@base-7b", "--remote", "mirror")

        mirror.fault = lambda r: _without("1.1.0") if "/legal-qa/versions?" in r.path else None
        assert "offers 1.0.0, but 1.1.0 is known here" in homes.ben.fails(14, *wanted)

        gone = lambda r: ("redirect", mirror.url + r.path.replace(SIGNATURE, "no.sig"))  # noqa: E731
        mirror.fault = lambda r: gone(r) if r.path.endswith(SIGNATURE) else None
        assert "until now it was signed by `ann`" in homes.ben.fails(14, *wanted)

        mirror.fault = lambda _: None
        homes.ben.ok(*wanted)


def _without(version: str) -> Callable[[bytes], bytes]:
    """The list of versions without one, as long as before: the proxy keeps the length that was announced."""

    def change(body: bytes) -> bytes:
        told = json.loads(body)
        told["versions"] = [v for v in told["versions"] if v["version"] != version]
        return json.dumps(told).encode().ljust(len(body))

    return change


def test_mirror_takes_signatures_along(homes, request, server, tmp_path):
    mine = team(request)
    send(homes, "1.0.0", f"{mine}/legal-qa", "--sign")
    with running(tmp_path / "second") as second:
        homes.ben.ok("remote", "add", "second", second.url)
        homes.ben.ok("remote", "login", "second", "--token", second.token)
        homes.ben.ok("mirror", f"{mine}/legal-qa@base-7b", "--from", "ours", "--to", "second")
        homes.ben.ok("remote", "add", "ours", server.url)

        homes.ben.ok("install", f"{mine}/legal-qa@base-7b", "--remote", "second", "--signatures", "require")

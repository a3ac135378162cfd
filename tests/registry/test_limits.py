"""Rates and quotas of tokens, addresses and namespaces; proxies are believed only as configured."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.access.telemetry import Rates, address_of
from adapterhub_registry.database.db import repos, uploads
from adapterhub_registry.repos import quotas
from adapterhub_registry.repos.commits import ATTRIBUTES_SHA256
from adapterhub_registry.settings import ServerLimits, parse_networks
from sqlalchemy import select

from adapterhub.core.errors import UsageProblem
from tests.registry.pushing import Push
from tests.registry.running import Running, running
from tests.registry.xet_wire import shard_bytes, xorb_bytes, xorb_name
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

KILO = 1000


def limited(tmp_path: Path, **limits: int) -> Any:
    return running(tmp_path, limits=ServerLimits(**limits))


def paths(server: Running, repo: str) -> list[str]:
    return [entry["path"] for entry in server.get(f"/api/models/{repo}/tree/main").json()]


# ------------------------------------------------------------ rates
def test_a_minutes_worth_comes_at_once_and_then_at_an_even_pace() -> None:
    now = [0.0]
    rates = Rates(lambda: now[0])

    assert [rates.wait_s("ann", 3) for _ in range(5)] == [0, 0, 0, 20, 20]
    now[0] = 19.0
    assert rates.wait_s("ann", 3) == 1
    now[0] = 20.5
    assert [rates.wait_s("ann", 3), rates.wait_s("ann", 3)] == [0, 20]
    assert rates.wait_s("bob", 3) == 0
    now[0] = 10_000.0
    assert [rates.wait_s("ann", 3) for _ in range(4)] == [0, 0, 0, 20]


def test_no_bound_is_no_bound() -> None:
    assert {Rates().wait_s("ann", 0) for _ in range(1000)} == {0}


def test_one_token_over_its_rate_is_told_when_to_come_back_and_others_go_on(tmp_path: Path) -> None:
    with limited(tmp_path, token_requests_per_minute=5) as server:
        other = server.registry.tokens.create("bob", "read")
        answers = [server.get("/api/whoami-v2") for _ in range(7)]

        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 12
        assert answers[-1].headers["x-error-code"] == "TooMany"
        assert server.get("/api/whoami-v2", token=other).status_code == 200
        assert server.get("/api/models", token=None).status_code == 200


def test_an_address_without_a_good_token_has_a_rate_of_its_own(tmp_path: Path) -> None:
    with limited(tmp_path, address_requests_per_minute=4) as server:
        guesses = [server.get("/api/whoami-v2", token=f"guess-{n}").status_code for n in range(3)]
        anonymous = [server.get("/api/models", token=None).status_code for _ in range(3)]

        assert guesses == [401] * 3
        assert anonymous == [200, 429, 429]
        assert server.get("/api/whoami-v2").status_code == 200


@pytest.mark.parametrize("trusts", [True, False])
def test_a_proxy_is_believed_only_when_it_is_trusted(tmp_path: Path, *, trusts: bool) -> None:
    proxies = parse_networks(("127.0.0.1",)) if trusts else ()
    with running(tmp_path, limits=ServerLimits(address_requests_per_minute=1), trusted_proxies=proxies) as server:
        seen = [
            httpx.get(f"{server.url}/api/models", headers={"X-Forwarded-For": f"203.0.113.{n}"}).status_code
            for n in range(3)
        ]

    assert seen == ([200, 200, 200] if trusts else [200, 429, 429])


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("198.51.100.7", ["203.0.113.1"], "198.51.100.7"),  # not a proxy of ours: what it says is nothing
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.1"], "203.0.113.1"),
        ("10.0.0.1", ["1.2.3.4, 203.0.113.1"], "203.0.113.1"),  # the client wrote the first one itself
        ("10.0.0.1", ["1.2.3.4", "203.0.113.1, 10.0.0.2"], "203.0.113.1"),
        ("10.0.0.1", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", ["203.0.113.1"], "203.0.113.1"),
        (None, ["203.0.113.1"], "unknown"),
    ],
)
def test_whose_address_counts(peer: str | None, forwarded: list[str], address: str) -> None:
    assert address_of(peer, forwarded, [ipaddress.ip_network("10.0.0.0/8")]) == address


@pytest.mark.parametrize("text", ["proxy.example.org", "10.0.0.0/99", ""])
def test_a_proxy_is_an_address_or_a_network(text: str) -> None:
    with pytest.raises(UsageProblem, match="expected an address or a network"):
        parse_networks((text,))


def test_a_host_that_a_proxy_forwards_is_not_believed(tmp_path: Path) -> None:
    with running(tmp_path, trusted_proxies=parse_networks(("127.0.0.1",))) as server:
        forged = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "Forwarded": "host=evil.example"}
        headers = forged | {"Authorization": f"Bearer {server.token}"}
        made = httpx.post(f"{server.url}/api/repos/create", json={"name": "x"}, headers=headers)

    assert made.json()["url"].startswith(server.url)


# ------------------------------------------------------------ quotas
def test_a_namespace_takes_what_fits_and_counts_each_file_once(tmp_path: Path) -> None:
    with limited(tmp_path, namespace_bytes=100 * KILO) as server, server.client() as ann:
        Push(repo="acme/one", weights=os.urandom(60 * KILO)).run(ann)
        again = Push(repo="acme/one", weights=os.urandom(60 * KILO))

        with pytest.raises(httpx.HTTPStatusError) as refused:
            again.commit(ann)

        assert refused.value.response.status_code == 400
        assert refused.value.response.headers["x-error-code"] == "QuotaExceeded"
        Push(repo="other/one", weights=again.weights).run(ann)  # another namespace has a quota of its own
        Push(repo="acme/two", weights=os.urandom(30 * KILO)).run(ann)


def test_what_a_repository_takes_at_most_is_never_below_what_it_takes(tmp_path: Path) -> None:
    with limited(tmp_path, namespace_bytes=150 * KILO) as server, server.client() as ann:

        def at_most_and_exactly() -> tuple[int | None, int]:
            with server.registry.db.read() as connection:
                [row] = connection.execute(select(repos).where(repos.c.full_name == "acme/one")).all()
                return row.most_bytes, quotas.bytes_of(connection, "acme")[row.id]

        weights = os.urandom(40 * KILO)
        for _ in range(3):  # the same bytes again and again are counted anew, not refused
            Push(repo="acme/one", weights=weights).run(ann)
            most, exactly = at_most_and_exactly()
            assert most is not None
            assert most >= exactly > 40 * KILO
        Push(repo="acme/one", weights=os.urandom(40 * KILO)).run(ann)
        most, exactly = at_most_and_exactly()
        assert most is not None
        assert most >= exactly > 80 * KILO
        with pytest.raises(httpx.HTTPStatusError, match="400"):
            Push(repo="acme/one", weights=os.urandom(80 * KILO)).commit(ann)


def test_small_files_count_too(tmp_path: Path) -> None:
    with limited(tmp_path, namespace_bytes=1 * KILO) as server, server.client() as ann:
        server.create("acme/x")
        text = "a" * 4 * KILO  # 3,000 bytes of base64
        lines = '{"key":"header","value":{"summary":"x"}}\n{"key":"file","value":{"path":"a","content":"' + text + '"}}'

        answer = ann.post("/api/models/acme/x/commit/main", content=lines)

        assert (answer.status_code, answer.headers["x-error-code"]) == (400, "QuotaExceeded")
        assert paths(server, "acme/x") == [".gitattributes"]


def test_a_namespace_has_so_many_repositories(tmp_path: Path) -> None:
    with limited(tmp_path, namespace_repos=2) as server:
        names = [("acme", "one"), ("acme", "two"), ("acme", "three"), ("other", "one")]
        made = [server.post("/api/repos/create", {"organization": ns, "name": name}) for ns, name in names]

        assert [answer.status_code for answer in made] == [200, 200, 400, 200]
        assert made[2].headers["x-error-code"] == "QuotaExceeded"


def test_a_token_sends_so_much_in_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with limited(tmp_path, token_upload_bytes_per_day=100 * KILO) as server:
        other = server.registry.tokens.create("bob", "admin")
        with server.client() as ann, server.client(other) as bob:
            Push(repo="acme/one", weights=os.urandom(60 * KILO)).run(ann)
            more = Push(repo="acme/two", weights=os.urandom(60 * KILO))
            server.create("acme/two")

            with pytest.raises(httpx.HTTPStatusError) as refused:
                more.commit(ann)

            assert refused.value.response.status_code == 400
            assert refused.value.response.headers["x-error-code"] == "QuotaExceeded"
            more.commit(bob)
            day = 86_400_000
            monkeypatch.setattr(
                "adapterhub_registry.repos.quotas.now_ms", lambda: __import__("time").time_ns() // 10**6 + day
            )
            Push(repo="acme/three", weights=os.urandom(60 * KILO)).run(ann)


def send_by_xet(ann: httpx.Client, repo: str, data: bytes) -> httpx.Response:
    """Send a file as the hub client does: a token, its bytes as a xorb, and the shard that names it; the last answer."""
    given = ann.get(f"/api/models/{repo}/xet-write-token/main")
    if given.is_error:
        return given
    address, headers = given.json()["casUrl"], {"Authorization": f"Bearer {given.json()['accessToken']}"}
    chunks = [(data[:20_000], 0), (data[20_000:], 0)]
    xorb = xorb_name(chunks)
    sent = httpx.post(f"{address}/v1/xorbs/default/{xorb}", headers=headers, content=xorb_bytes(chunks))
    shard = shard_bytes([(hashlib.sha256(data).hexdigest(), [(xorb, len(data), 0, 2)])])
    return httpx.post(f"{address}/v1/shards", headers=headers, content=shard) if sent.is_success else sent


def test_what_comes_by_xet_is_counted_once_and_what_does_not_fit_is_not_kept(tmp_path: Path) -> None:
    first, second, third = (os.urandom(size * KILO) for size in (60, 60, 40))
    with limited(tmp_path, namespace_bytes=100 * KILO) as server, server.client() as ann:
        for name in ("one", "two"):
            server.create(f"acme/{name}")

        taken = send_by_xet(ann, "acme/one", first)
        refused = send_by_xet(ann, "acme/two", second)
        again = send_by_xet(ann, "acme/one", first)
        commit = ann.post("/api/models/acme/two/commit/main", content=naming(second))
        filled = send_by_xet(ann, "acme/two", third)
        full = send_by_xet(ann, "acme/one", b"x" * 30_000)

        assert (taken.status_code, again.status_code, filled.status_code) == (200, 200, 200)
        assert (refused.status_code, refused.headers["x-error-code"]) == (400, "QuotaExceeded")
        assert refused.json()["error"] == (
            "quota reached: `acme` has 60.0 kB of 100.0 kB; 60.0 kB more do not fit, so nothing was published;"
            " delete what is not needed, or ask the operator for a higher `--limit`"
        )
        assert (full.status_code, full.headers["x-error-code"]) == (400, "QuotaExceeded")
        assert "has 100.0 kB of 100.0 kB" in full.json()["error"]
        assert commit.status_code == 400
        assert paths(server, "acme/two") == [".gitattributes"]
        held = {path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file()} - {ATTRIBUTES_SHA256}
        assert held == {hashlib.sha256(data).hexdigest() for data in (first, third)}
        assert [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()] == []
        with server.registry.db.read() as connection:
            assert set(connection.scalars(select(uploads.c.sha256))) == held


def naming(data: bytes) -> str:
    """The lines of a commit that names a file which was sent."""
    value = {"path": "w.bin", "algo": "sha256", "oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "lfsFile", "value": value}]
    return "\n".join(json.dumps(line) for line in lines)


def preupload(ann: httpx.Client, repo: str, size: int) -> httpx.Response:
    """Announce one file, as the hub client does before it sends a byte."""
    body = {"files": [{"path": "w.bin", "size": size, "sample": ""}]}
    return ann.post(f"/api/models/{repo}/preupload/main", json=body)


@pytest.mark.parametrize("limit", ["namespace_bytes", "token_upload_bytes_per_day"])
def test_what_does_not_fit_is_refused_before_it_is_sent(tmp_path: Path, limit: str) -> None:
    with limited(tmp_path, **{limit: 100 * KILO}) as server, server.client() as ann:
        server.create("acme/one")
        sent = Push(repo="acme/one", weights=os.urandom(60 * KILO))
        sent.send(ann)

        refused, fits = preupload(ann, "acme/one", 60 * KILO + 1), preupload(ann, "acme/one", 30 * KILO)
        again = preupload(ann, "acme/one", 60 * KILO)  # perhaps the file that came before a lost commit

        assert (refused.status_code, refused.headers["x-error-code"]) == (400, "QuotaExceeded")
        assert (fits.status_code, again.status_code) == (200, 200)
        sent.commit(ann)


def test_a_push_beyond_a_quota_is_one_sentence_and_publishes_nothing(tmp_path: Path, online: None) -> None:
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "qa")
    adapt = Adapt(tmp_path)
    adapt.ok("base", "add", "./base", "--as", "base")
    adapt.ok("add", "./qa", "--name", "qa", "--base", "base")
    with limited(tmp_path / "registry", namespace_bytes=1 * KILO) as server:
        adapt = adapt.having(ADAPTERHUB_TOKEN=server.token)
        said = adapt.fails(14, "push", "qa", "--to", "acme/qa", "--remote", server.url)

        assert "quota reached: `acme` has 0 B of 1.0 kB; " in said
        assert said.count("\n") == 2  # the error and its hint
        assert server.get("/api/models/acme/qa").status_code == 404  # nor does an empty repository count

        server.create("acme/own")
        adapt.fails(14, "push", "qa", "--to", "acme/own", "--remote", server.url)
        assert paths(server, "acme/own") == [".gitattributes"]  # which was there before


def test_a_token_that_sent_its_share_by_xet_waits_for_tomorrow(tmp_path: Path) -> None:
    with limited(tmp_path, token_upload_bytes_per_day=100 * KILO) as server, server.client() as ann:
        server.create("acme/one")
        taken, refused = (send_by_xet(ann, "acme/one", os.urandom(60 * KILO)) for _ in range(2))
        other = server.registry.tokens.create("bob", "admin")

        with server.client(other) as bob:
            bobs = send_by_xet(bob, "acme/one", os.urandom(60 * KILO))

        assert (taken.status_code, refused.status_code, bobs.status_code) == (200, 400, 200)
        assert refused.headers["x-error-code"] == "QuotaExceeded"
        assert "this token sent 60.0 kB of 100.0 kB in a day; 60.0 kB more do not fit" in refused.json()["error"]


@pytest.mark.parametrize(
    "text",
    [
        *("files", "files=", "files=-1", "files=1.5", "=", "files=१"),
        "part_bytes=0",
        "namespace_bytes=-1",
        "namespace_bytes=",
        "no_such=1",
        "files=1kB",
        "namespace_bytes=1XB",
        "namespace_bytes=1.5GB",
    ],
)
def test_a_limit_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageProblem):
        ServerLimits().with_values((text,))


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("10GB", 10_000_000_000), ("512MiB", 512 << 20), ("2tb", 2 * 10**12), ("7", 7)]
)
def test_a_size_may_have_a_unit(text: str, size_bytes: int) -> None:
    assert ServerLimits().with_values((f"namespace_bytes={text}",)).namespace_bytes == size_bytes


def test_a_bound_can_be_taken_away() -> None:
    assert ServerLimits(namespace_bytes=5).with_values(("namespace_bytes=0",)).namespace_bytes == 0

"""Jobs of a CI publish without a secret: a real issuer, a real registry, and everything that must not get a token."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.access import issuers as issuing_module
from adapterhub_registry.access.issuers import FETCHES_A_MINUTE, FRESH_S, Issuers, audience_of
from adapterhub_registry.access.trusted import _fits
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.operations.far import FarPublishers, FarTokens
from joserfc.jwk import ECKey, OctKey, RSAKey

from adapterhub.core.errors import Conflict, NotAllowed, NotFound, UsageProblem
from adapterhub.inference.serving.process import free_port
from tests.registry.issuer import REQUEST_TOKEN, Issuer, issuing
from tests.registry.running import Running, running, typed
from tests.support.command_line import Adapt
from tests.support.results import signed, with_contract
from tests.support.tiny import make_adapter, make_base

CLAIMS = {"repository": "acme/training", "ref": "refs/heads/main", "environment": "release"}
numbers = count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    port = free_port("127.0.0.1")
    with running(tmp_path_factory.mktemp("registry"), port=port, public_url=f"http://127.0.0.1:{port}") as server:
        yield server


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub_registry.api.trusted_api.A_MINUTE", 10_000)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as issuer:
        issuer.claims = dict(CLAIMS)
        yield issuer


@pytest.fixture
def far(server: Running) -> FarPublishers:
    return FarPublishers(server.url, server.token)


@pytest.fixture
def repo(far: FarPublishers, issuer: Issuer) -> str:
    """A repository that the jobs of the issuer may publish to."""
    name = f"acme{next(numbers)}/legal-qa"
    far.add(name, issuer.url, CLAIMS)
    return name


def exchange(server: Running, repo: str, token: str) -> httpx.Response:
    return server.post("/api/adapt/v1/publish-token", {"repo": repo, "token": token}, token=None)


def refusal(answer: httpx.Response) -> str:
    assert answer.status_code == 403, answer.text
    assert answer.headers["X-Error-Code"] == "IdentityRefused"
    return str(answer.json()["error"])


# ------------------------------------------------------------ what a job gets
@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_job_gets_a_token_for_its_repository_alone(
    server: Running, issuer: Issuer, repo: str, algorithm: str
) -> None:
    issuer.rotate(algorithm)

    made = exchange(server, repo, issuer.token(server.url))

    assert made.status_code == 201, made.text
    token = made.json()["token"]
    who = server.get("/api/whoami-v2", token=token).json()
    named = dict(zip(("organization", "name"), repo.split("/"), strict=True))
    assert who["name"].startswith("publisher:")
    assert server.post("/api/repos/create", named | {"name": "other"}, token=token).status_code == 403
    assert server.post("/api/repos/create", named, token=token).status_code == 200
    assert server.get("/api/adapt/v1/users", token=token).status_code == 403
    lasts_s = next(one for one in server.registry.tokens.records() if one.user == who["name"]).expires_at
    assert lasts_s is not None
    assert 14 * 60 < lasts_s / 1000 - time.time() <= 15 * 60


def test_a_release_records_the_job_that_made_it(server: Running, issuer: Issuer, repo: str, online: None) -> None:
    issuer.claims |= {"sha": "a" * 40, "user_email": "ana@example.org", "run_id": "77"}
    token = exchange(server, repo, issuer.token(server.url)).json()["token"]
    job = Running(server.url, token, server.root, server.registry, server.app)
    server.create(repo)

    job.push(repo, b"w" * 40)
    server.push(repo, b"v" * 40, "v2.0.0")

    told = {
        one["version"]: one["publisher"]
        for one in server.get(f"/api/adapt/v1/adapters/{repo}/versions").json()["versions"]
    }
    assert told["2.0.0"] is None
    assert told["1.0.0"]["issuer"] == issuer.url
    assert told["1.0.0"]["claims"].items() >= {**CLAIMS, "sha": "a" * 40, "run_id": "77"}.items()
    assert "ana@example.org" not in json.dumps(told)


def test_removing_a_publisher_ends_the_tokens_of_its_jobs(server: Running, far: FarPublishers, issuer: Issuer) -> None:
    made = far.add("acme/gone", issuer.url, CLAIMS)
    token = exchange(server, "acme/gone", issuer.token(server.url)).json()["token"]
    before = server.get("/api/whoami-v2", token=token).status_code

    far.remove(made.id)

    assert (before, server.get("/api/whoami-v2", token=token).status_code) == (200, 401)
    assert "not on the list" in refusal(exchange(server, "acme/gone", issuer.token(server.url)))
    with pytest.raises(NotFound):
        far.remove(made.id)


def test_the_log_has_every_publisher_and_every_exchange(server: Running, far: FarPublishers, issuer: Issuer) -> None:
    made = far.add("acme/logged", issuer.url, CLAIMS)
    exchange(server, "acme/logged", issuer.token(server.url))
    far.remove(made.id)

    told = [f"{one.action} {one.subject}" for one in FarTokens(server.url, server.token).log()][-4:]

    assert told[0].startswith(f"create publisher {made.id} of acme/logged: {issuer.url}, environment=release")
    assert f"publisher:{made.id}: write in acme/logged, for repository=acme/training" in told[1]
    assert told[2].startswith("revoke token ")
    assert told[3].startswith(f"revoke publisher {made.id} of acme/logged")


def test_numbers_of_publishers_tell_no_count(far: FarPublishers, issuer: Issuer) -> None:
    made = [far.add(f"acme/numbered{n}", issuer.url, CLAIMS) for n in range(4)]

    assert min(abs(one.id - other.id) for one in made for other in made if one is not other) > len(made)
    assert [one.repo for one in far.records() if one in made] == [one.repo for one in made]


# ------------------------------------------------------------ who gets none
def flipped(token: str) -> str:
    """The token with another subject, under the old signature."""
    head, middle, end = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(middle + "=="))
    other = base64.urlsafe_b64encode(json.dumps(claims | {"sub": "x"}).encode()).decode().rstrip("=")
    return f"{head}.{other}.{end}"


def by_public_key(token: str, issuer: Issuer) -> str:
    """The token signed by HMAC, with the public key of the issuer as if it were a secret that both know."""
    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": issuer.keys[-1].kid}).encode()).decode()
    signed = f"{head.rstrip('=')}.{token.split('.')[1]}"
    end = hmac.digest(issuer.keys[-1].as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(end).decode().rstrip('=')}"


MINUTE = 60
REFUSED: dict[str, tuple[Callable[[Issuer, str], str], str]] = {
    "another audience": (lambda i, _: i.token("https://pypi.org"), "audience"),
    "two audiences": (lambda i, here: i.token([here, "https://pypi.org"]), "audience"),
    "no audience": (lambda i, _: i.token(None), "audience"),
    "a longer audience": (lambda i, here: i.token(f"{here}/"), "audience"),
    "expired": (lambda i, here: i.token(here, exp=int(time.time()) - 2 * MINUTE), "expired"),
    "no end": (lambda i, here: i.token(here, exp=None), "exp"),
    "an end that is no number": (lambda i, here: i.token(here, exp="9999999999"), "exp"),
    "not yet valid": (lambda i, here: i.token(here, nbf=int(time.time()) + 2 * MINUTE), "not yet"),
    "made in the future": (lambda i, here: i.token(here, iat=int(time.time()) + 2 * MINUTE), "future"),
    "another issuer": (lambda i, here: i.token(here, iss="https://evil.example"), "not on the list"),
    "the issuer with a slash": (lambda i, here: i.token(here, iss=f"{i.url}/"), "not on the list"),
    "no issuer": (lambda i, here: i.token(here, iss=None), "names no issuer"),
    "an issuer that is no text": (lambda i, here: i.token(here, iss=[i.url]), "names no issuer"),
    "no algorithm": (lambda i, here: i.token(here, header={"alg": "none"}, key=OctKey.import_key("x" * 32)), "none"),
    "a secret": (lambda i, here: i.token(here, header={"alg": "HS256"}, key=OctKey.import_key("x" * 32)), "HS256"),
    "its public key as a secret": (lambda i, here: by_public_key(i.token(here), i), "HS256"),
    "a key of someone else": (lambda i, here: i.token(here, key=ECKey.generate_key("P-256")), "signature"),
    "a key of another kind": (
        lambda i, here: i.token(here, key=RSAKey.generate_key(2048), header={"alg": "RS256"}),
        "not one of those",
    ),
    "an unknown key": (lambda i, here: i.token(here, header={"kid": "other"}), "not one of those"),
    "changed after signing": (lambda i, here: flipped(i.token(here)), "signature"),
    "a header that demands more": (lambda i, here: i.token(here, header={"b64": True}), "header"),
    "a huge token": (lambda i, here: i.token(here, big="x" * 13_000), "characters"),
    "no token": (lambda _, __: "hello", "not a signed token"),
    "three empty parts": (lambda _, __: "..", "not a signed token"),
    "a list": (lambda _, __: ".".join(base64.b64encode(b"[]").decode() for _ in range(3)), "not a signed token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_token_that_is_not_for_here_is_refused(server: Running, issuer: Issuer, repo: str, case: str) -> None:
    make, why = REFUSED[case]

    answer = exchange(server, repo, make(issuer, server.url))

    if answer.status_code != 422:
        assert why.lower() in refusal(answer).lower()
    assert (case == "a huge token") == (answer.status_code == 422)
    assert not [one for one in server.registry.tokens.records() if repo in one.namespaces]


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
def test_clocks_may_differ_by_less_than_a_minute(server: Running, issuer: Issuer, repo: str, claim: str) -> None:
    skew = -45 if claim == "exp" else 45

    assert exchange(server, repo, issuer.token(server.url, **{claim: int(time.time()) + skew})).status_code == 201


@pytest.mark.parametrize(
    "changed",
    [
        {"repository": "acme/training2"},
        {"repository": "ACME/training"},
        {"ref": "refs/heads/main2"},
        {"ref": "refs/heads/main\n"},
        {"environment": None},
        {"environment": ["release"]},
        {"environment": ""},
    ],
)
def test_a_job_that_states_something_else_gets_nothing(
    server: Running, issuer: Issuer, repo: str, changed: dict[str, Any]
) -> None:
    assert "has no publisher that fits" in refusal(exchange(server, repo, issuer.token(server.url, **changed)))


def test_a_token_is_for_the_repository_of_its_publisher(server: Running, issuer: Issuer, repo: str) -> None:
    for other in (f"{repo}x", "acme/never", "acme/le*"):
        answer = exchange(server, other, issuer.token(server.url))
        assert answer.status_code in {403, 422}
    assert exchange(server, repo, issuer.token(server.url)).status_code == 201


def test_a_token_is_exchanged_once(server: Running, issuer: Issuer, repo: str) -> None:
    token, same_number = issuer.token(server.url, jti="7"), issuer.token(server.url, jti="7", sub="again")
    unnumbered = issuer.token(server.url, jti=None)

    assert exchange(server, repo, token).status_code == 201
    assert "exchanged before" in refusal(exchange(server, repo, token))
    assert "exchanged before" in refusal(exchange(server, repo, same_number))
    assert exchange(server, repo, unnumbered).status_code == 201
    assert "exchanged before" in refusal(exchange(server, repo, resigned(unnumbered)))


def resigned(token: str) -> str:
    """The same token with the other of the two signatures that an elliptic curve admits."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    signed, _, end = token.rpartition(".")
    raw = base64.urlsafe_b64decode(end + "==")
    other = raw[:32] + (order - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    return f"{signed}.{base64.urlsafe_b64encode(other).decode().rstrip('=')}"


def test_a_server_without_a_public_url_exchanges_nothing(tmp_path: Path, issuer: Issuer) -> None:
    with running(tmp_path / "registry") as server:
        answer = exchange(server, "acme/x", issuer.token("http://evil.example"))

    assert answer.status_code == 409
    assert issuer.asked == []


def test_a_stranger_sends_32_kilobytes_and_thirty_times_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "registry") as server:  # whose counts no other test has
        large = httpx.post(f"{server.url}/api/adapt/v1/publish-token", content=b" " * 33_000)
        monkeypatch.setattr("adapterhub_registry.api.trusted_api.A_MINUTE", 3)
        answers = [exchange(server, "acme/x", "x") for _ in range(8)]

    assert large.status_code == 413
    assert {one.status_code for one in answers} == {409, 429}
    assert [one.headers["Retry-After"] for one in answers if one.status_code == 429]


# ------------------------------------------------------------ what is fetched
def test_nothing_is_fetched_for_an_issuer_that_is_not_listed(server: Running, issuer: Issuer) -> None:
    refusal(exchange(server, "acme/x", issuer.token(server.url)))

    assert issuer.asked == []


def test_a_rotated_key_is_found_and_the_old_one_ends(server: Running, issuer: Issuer, repo: str) -> None:
    assert exchange(server, repo, issuer.token(server.url)).status_code == 201
    old, old_keys = issuer.token(server.url), issuer.keys
    issuer.rotate()

    assert exchange(server, repo, issuer.token(server.url)).status_code == 201
    assert "not one of those" in refusal(exchange(server, repo, old))
    assert old_keys != issuer.keys


def test_strangers_cannot_make_the_server_fetch_without_end(server: Running, issuer: Issuer, repo: str) -> None:
    assert exchange(server, repo, issuer.token(server.url)).status_code == 201

    answers = [exchange(server, repo, issuer.token(server.url, header={"kid": f"k{n}"})) for n in range(12)]

    assert issuer.asked.count("/jwks") == 1 + FETCHES_A_MINUTE
    assert {one.status_code for one in answers} == {403, 429}
    assert all(int(one.headers["Retry-After"]) <= 61 for one in answers if one.status_code == 429)
    assert exchange(server, repo, issuer.token(server.url)).status_code == 201  # a known key needs no fetch


def test_an_issuer_that_calls_itself_otherwise_is_refused(server: Running, issuer: Issuer, repo: str) -> None:
    issuer.called = "https://token.actions.githubusercontent.com"

    assert "calls itself" in refusal(exchange(server, repo, issuer.token(server.url)))


def test_an_issuer_cannot_sign_for_another(server: Running, far: FarPublishers, issuer: Issuer, repo: str) -> None:
    with issuing() as other:
        far.add("acme/others", other.url, CLAIMS)
        forged = other.token(server.url, iss=issuer.url, header={"kid": issuer.keys[-1].kid})

        assert "signature" in refusal(exchange(server, repo, forged))
        assert "has no publisher" in refusal(exchange(server, repo, other.token(server.url, **CLAIMS)))


DISCOVERY = "/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/jwks", (302, {"Location": "http://127.0.0.1:9/jwks"}, b"")),
        (DISCOVERY, (302, {"Location": "/other"}, b"")),
        ("/jwks", (200, {}, b'{"keys": ' + b" " * 300_000 + b"[]}")),
        ("/jwks", (200, {}, b"no JSON")),
        ("/jwks", (200, {}, b'{"keys": 1}')),
        ("/jwks", (200, {}, json.dumps({"keys": [{}] * 65}).encode())),
        ("/jwks", (500, {}, b"{}")),
        (DISCOVERY, (200, {}, b"[]")),
        ("/jwks", (200, {"Content-Encoding": "gzip"}, b"\x00")),
    ],
)
def test_an_issuer_that_answers_badly_gives_no_keys(
    server: Running, issuer: Issuer, repo: str, path: str, answer: tuple[int, dict[str, str], bytes]
) -> None:
    issuer.answers[path] = answer

    got = exchange(server, repo, issuer.token(server.url))

    assert (got.status_code, got.headers["Retry-After"]) == (503, "10")


@pytest.mark.parametrize("place", ["file:///etc/passwd", "http://192.0.2.1/jwks", "https://a@b/jwks", 7, None])
def test_keys_are_read_from_the_web_only(server: Running, issuer: Issuer, repo: str, place: object) -> None:
    body = json.dumps({"issuer": issuer.url, "jwks_uri": place}).encode()
    issuer.answers[DISCOVERY] = (200, {}, body)

    assert "no location of its keys" in refusal(exchange(server, repo, issuer.token(server.url)))


@pytest.mark.filterwarnings("ignore:Key size should be")
def test_weak_keys_and_keys_for_other_uses_are_left_out(issuer: Issuer) -> None:
    strong = issuer.keys[0].as_dict(private=False)
    weak = RSAKey.generate_key(1024, {"kid": "weak"}).as_dict(private=False)
    listed = [
        weak,
        strong | {"kid": "enc", "use": "enc"},
        ECKey.generate_key("P-384", {"kid": "curve"}).as_dict(private=False),
        OctKey.generate_key(256, {"kid": "oct"}).as_dict(private=True),
        issuer.keys[0].as_dict(private=True) | {"kid": "private"},
        strong | {"kid": ["list"]},
        strong | {"kid": "bad", "x": "!"},
        "text",
        strong,
    ]

    assert list(issuing_module._keys_of({"keys": listed}, issuer.url)) == [(strong["kid"], "ES256")]
    with pytest.raises(HttpRefusal, match="two keys"):
        issuing_module._keys_of({"keys": [strong, strong]}, issuer.url)


def test_keys_are_read_again_after_an_hour(issuer: Issuer) -> None:
    now = [0.0]
    known = Issuers(allows_loopback=True, clock=lambda: now[0])
    for at in (0.0, FRESH_S - 1, FRESH_S + 1):
        now[0] = at
        known.identity(issuer.token("x"), listed=[issuer.url], audience="x")

    assert issuer.asked.count("/jwks") == 2


# ------------------------------------------------------------ administration
@pytest.mark.parametrize(
    ("repo", "url", "claims"),
    [
        ("acme/x", "http://gitlab.example.org", CLAIMS),
        ("acme/x", "https://gitlab.example.org/?a=b", CLAIMS),
        ("acme/x", "https://a:b@gitlab.example.org", CLAIMS),
        ("acme/x", "gitlab.example.org", CLAIMS),
        ("acme/x", "https://gitlab.example.org", {"environment": "release"}),
        ("acme/x", "https://gitlab.example.org", {"repository": "*/*"}),
        ("acme/x", "https://gitlab.example.org", {"sub": "**"}),
        ("acme/x", "https://gitlab.example.org", {"repository": "acme/x", "aud": "x"}),
        ("acme/x", "https://gitlab.example.org", {"repository": "acme/x\n"}),
        ("acme/x", "https://gitlab.example.org", {}),
        ("acme/*", "https://gitlab.example.org", CLAIMS),
        ("acme", "https://gitlab.example.org", CLAIMS),
        ("api/x", "https://gitlab.example.org", CLAIMS),
    ],
)
def test_a_publisher_that_would_fit_anyone_or_nothing_is_refused(
    far: FarPublishers, repo: str, url: str, claims: dict[str, str]
) -> None:
    before = far.records()
    with pytest.raises(UsageProblem):
        far.add(repo, url, claims)
    assert far.records() == before


def test_who_administers_a_namespace_names_its_publishers_and_no_others(
    server: Running, issuer: Issuer, far: FarPublishers, repo: str
) -> None:
    space = repo.partition("/")[0]
    token = server.registry.tokens.create(f"{space}-boss", "admin", namespaces=[space])
    mine = FarPublishers(server.url, token)
    elsewhere = far.add("other/x", issuer.url, CLAIMS)
    made = mine.add(f"{space}/new", issuer.url, CLAIMS)  # the issuer of a publisher that is there
    listed = mine.records(space)
    refused = (
        mine.records,
        lambda: mine.records("other"),
        lambda: mine.remove(elsewhere.id),
        lambda: mine.add("other/x", issuer.url, CLAIMS | {"ref": "x"}),
        lambda: mine.add(f"{space}/new", "https://ci.example", CLAIMS),
    )
    for call in refused:
        with pytest.raises(NotAllowed):
            call()
    with pytest.raises(NotFound):
        mine.remove(elsewhere.id, space)

    assert {one.repo for one in listed} == {repo, f"{space}/new"}
    assert exchange(server, f"{space}/new", issuer.token(server.url)).status_code == 201
    assert mine.remove(made.id, space) == made
    assert far.remove(elsewhere.id) == elsewhere


def test_only_an_administrator_names_publishers(server: Running, issuer: Issuer, repo: str) -> None:
    job = exchange(server, repo, issuer.token(server.url)).json()["token"]
    for token in (server.registry.tokens.create("carl", "write"), job):
        far = FarPublishers(server.url, token)
        for call in (far.records, lambda far=far: far.remove(1), lambda far=far: far.add("a/b", issuer.url, CLAIMS)):
            with pytest.raises(NotAllowed):
                call()


def test_the_command_shows_adds_and_removes_publishers(server: Running, issuer: Issuer) -> None:
    here = ("--root", server.root, "--json")
    pins = [part for name, value in CLAIMS.items() for part in ("--claim", f"{name}={value}")]
    (made,) = json.loads(typed("publishers", "acme/typed", "--issuer", issuer.url, *pins, *here).stdout)
    again = typed("publishers", "acme/typed", "--issuer", issuer.url, *pins, *here)
    listed = json.loads(typed("publishers", *here).stdout)
    (gone,) = json.loads(typed("publishers", "--remove", made["id"], *here).stdout)

    assert made in listed
    assert again.exit_code == Conflict.exit_code
    assert gone == made
    assert made["claims"] == "environment=release ref=refs/heads/main repository=acme/training"
    assert made["id"] not in {one["id"] for one in json.loads(typed("publishers", "acme", *here).stdout)}
    assert typed("publishers", "--issuer", issuer.url, *here).exit_code == UsageProblem.exit_code


@pytest.mark.parametrize(
    ("pin", "value", "fits"),
    [
        ("refs/tags/*", "refs/tags/v1", True),
        ("refs/tags/*", "refs/tags/a/b", False),
        ("refs/tags/**", "refs/tags/a/b", True),
        ("refs/tags/v*.0", "refs/tags/v1.0.0", True),
        ("refs/tags/v*.0", "refs/tags/v1.1", False),
        ("*", "", True),
        ("*", "a/b", False),
        ("a.c", "abc", False),
        ("[ab]", "a", False),
        ("a?", "ab", False),
        ("true", True, True),
        ("7", 7, True),
        ("7", "07", False),
        ("*", None, False),
        ("*a*a*a*a*a*b", "a" * 4000, False),
    ],
)
def test_stars_stay_within_a_part_of_a_path(pin: str, value: object, *, fits: bool) -> None:
    assert _fits({"x": pin}, {"x": value}) is fits


@pytest.mark.parametrize(
    ("url", "audience"),
    [
        ("https://Registry.Example.org:443/", "https://registry.example.org"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://example.org:8443/Hub", "https://example.org:8443/Hub"),
    ],
)
def test_the_audience_is_the_url_as_clients_write_it(url: str, audience: str) -> None:
    assert audience_of(url) == audience


# ------------------------------------------------------------ `adapt push` in a job
@pytest.fixture
def job(tmp_path: Path, server: Running, issuer: Issuer, online: None) -> Adapt:
    """A job of a workflow on GitHub, which has an adapter and no token."""
    make_base(tmp_path / "models" / "base-7b")
    make_adapter(tmp_path / "out" / "legal-qa", seed=1)
    made = Adapt(tmp_path)
    made.ok("base", "add", "./models/base-7b", "--as", "base-7b")
    made.ok("add", "out/legal-qa", "--name", "legal-qa", "--base", "base-7b", "--license", "mit")
    made.ok("remote", "add", "ours", server.url)
    address = f"{issuer.url}/job/id?api-version=2.0"
    return made.having(ACTIONS_ID_TOKEN_REQUEST_URL=address, ACTIONS_ID_TOKEN_REQUEST_TOKEN=REQUEST_TOKEN)


@pytest.mark.slow
def test_push_publishes_from_a_workflow_to_its_repository_and_to_no_other(
    server: Running, issuer: Issuer, repo: str, job: Adapt
) -> None:
    there = ("push", "legal-qa@base-7b", "--remote", "ours", "--to")
    planned = job(*there, repo, "--dry-run")
    asked_before = list(issuer.asked)
    refused = job.fails(NotAllowed.exit_code, *there, f"{repo}-other")
    job.ok(*there, repo)

    told = server.get(f"/api/adapt/v1/adapters/{repo}/versions").json()["versions"]
    assert planned.exit_code == 0
    assert asked_before == []
    assert "adapt registry publishers" in refused
    assert server.get(f"/api/models/{repo}-other").status_code == 404
    assert [one["publisher"]["claims"]["repository"] for one in told] == ["acme/training"]


@pytest.mark.slow
def test_push_takes_the_identity_that_gitlab_gives(server: Running, issuer: Issuer, repo: str, job: Adapt) -> None:
    there = ("push", "legal-qa@base-7b", "--remote", "ours", "--to", repo)
    other = job.having(ADAPTERHUB_ID_TOKEN=issuer.token("https://elsewhere.example"))
    refused = other.fails(UsageProblem.exit_code, *there)
    asked_before = list(issuer.asked)
    job.having(ADAPTERHUB_ID_TOKEN=issuer.token(server.url)).ok(*there)

    assert "Nothing was sent" in refused
    assert asked_before == []
    assert "/job/id" not in issuer.asked


@pytest.mark.slow
def test_a_token_that_is_configured_comes_before_the_identity(
    server: Running, issuer: Issuer, repo: str, job: Adapt
) -> None:
    job.having(ADAPTERHUB_TOKEN=server.token).ok("push", "legal-qa@base-7b", "--remote", "ours", "--to", repo)

    assert issuer.asked == []


@pytest.mark.slow
def test_push_of_results_takes_the_identity_too(server: Running, issuer: Issuer, repo: str, job: Adapt) -> None:
    job.ok("key", "new", "tester", "--unencrypted")
    build = with_contract(job.library, next(job.library.installed()))
    there = ("push", f"legal-qa=={build.manifest.version}", "--remote", "ours", "--to")
    job.ok(*there, repo)
    signed(job.library, build, "tester")

    refused = job.fails(NotAllowed.exit_code, *there, f"{repo}-other", "--results")
    sent = job.json(*there, repo, "--results")

    (result,) = server.get(f"/api/adapt/v1/adapters/{repo}/tests/{build.manifest.version}").json()["results"]
    assert sent["sent_results"] == 1
    assert result["sent_by"].startswith("publisher:")
    assert "adapt registry publishers" in refused


@pytest.mark.slow
def test_mirror_takes_the_identity_for_each_repository(
    tmp_path: Path, server: Running, far: FarPublishers, issuer: Issuer, job: Adapt
) -> None:
    namespace = f"mirrored{next(numbers)}"
    for name in ("one", "two"):
        far.add(f"{namespace}/{name}", issuer.url, CLAIMS)
    with running(tmp_path / "from") as origin:
        job.ok("remote", "add", "origin", origin.url)
        given = job.having(ADAPTERHUB_TOKEN=origin.token)
        for seed, name in enumerate(("one", "two", "three")):
            make_adapter(tmp_path / "out" / name, seed=seed)
            job.ok("add", f"out/{name}", "--name", name, "--base", "base-7b")
            given.ok("push", name, "--remote", "origin", "--to", f"{namespace}/{name}")
        between = ("--from", "origin", "--to", "ours")
        planned = job.ok("mirror", f"{namespace}/*", *between, "--dry-run")
        asked_before = list(issuer.asked)
        job.ok("mirror", f"{namespace}/one", f"{namespace}/two", *between)
        asked = issuer.asked.count("/job/id")
        refused = job.fails(NotAllowed.exit_code, "mirror", f"{namespace}/*", *between)
        again = job.ok("mirror", f"{namespace}/one", *between, "--tests")

    def publisher(name: str) -> object:
        told = server.get(f"/api/adapt/v1/adapters/{namespace}/{name}/versions").json()
        return [one["publisher"]["claims"]["repository"] for one in told.get("versions", [])]

    assert planned.count("would copy") == 3
    assert (asked_before, asked) == ([], 2)
    assert publisher("one") == publisher("two") == ["acme/training"]
    assert publisher("three") == []
    assert "adapt registry publishers" in refused
    assert again

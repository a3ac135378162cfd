"""Tenants of a server: their file, keys and quotas, and what one cannot do to another (vLLM's side, without vLLM)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import AdapterHubError, Malformed, StoreLocked, UsageProblem
from adapterhub.inference.serving.access.tenants import Quotas, Tenant, Tenants, new_key
from adapterhub.inference.serving.refusal import RequestRefused
from adapterhub.inference.serving.vllm import engine_room, ensure_room
from adapterhub.library.aliasing import point
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.vllm_plugin import guard
from adapterhub.vllm_plugin.resolver import AdapterHubResolver
from tests.inference.test_model_names import Engine
from tests.support.standin_vllm import importable

Add = Callable[..., Added]
KEYS = {name: f"adapt-{name}" for name in ("acme", "beta")}
FILE = f"""
[tenants.acme]
keys = ["{digest_of(b"adapt-acme")}"]
adapters = ["acme/*", "shared"]
max-loaded = 2
max-requests = 2

[tenants.beta]
keys = ["{digest_of(b"adapt-beta")}"]
adapters = ["beta-qa", "shared"]
base = false
max-loaded = 1
"""


def parsed(text: str) -> Tenants:
    return Tenants.parse(text.encode(), Path("tenants.toml"))


def tenant(**limits: Any) -> Tenant:
    return Tenant(name="acme", keys=(), adapters=frozenset({"*"}), **limits)


# ---------------------------------------------------------------- the file
def test_a_key_finds_its_tenant_and_only_its_digest_is_stored() -> None:
    key, digest = new_key()
    tenants = parsed(f'[tenants.acme]\nkeys = ["{digest}"]\nadapters = ["*"]\n')

    assert tenants.of(f"Bearer {key}".encode()).name == "acme"
    assert tenants.of(f"bearer  {key} ".encode()).name == "acme"
    assert len(key) > 40
    assert key != new_key()[0]


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic adapt-acme", "adapt-acme", "Bearer adapt-acm", "Bearer \xff\x00", "Bearer *"],
)
def test_no_other_key_is_let_in(header: str) -> None:
    digest = digest_of(b"adapt-acme")
    tenants = parsed(FILE)

    for given in (header, f"Bearer {digest}"):
        with pytest.raises(RequestRefused) as caught:
            tenants.of(given.encode("latin-1"))
        assert (caught.value.status, caught.value.headers["WWW-Authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "tenants: missing"),
        ("[tenants]\n", "no tenant"),
        ("[tenants.acme]\nkeys = []\n", "line 1: tenants.acme.adapters: missing"),
        ('[tenants.acme]\nkeys = ["sesame"]\nadapters = []\n', "line 2: tenants.acme.keys[0]: expected the digest"),
        ('[tenants.acme]\nkeys = "sesame"\nadapters = []\n', "line 2: tenants.acme.keys: expected a list"),
        ('[tenants.acme]\nkeys = []\nadapters = ["../x"]\n', "line 3: tenants.acme.adapters[0]"),
        ('[tenants.acme]\nkeys = []\nadapters = ["*/x"]\n', "line 3: tenants.acme.adapters[0]"),
        ('[tenants.acme]\nkeys = []\nadapters = ["acme/x*"]\n', "line 3: tenants.acme.adapters[0]"),
        ("[tenants.acme]\nkeys = []\nadapters = []\nmax-loaded = 0\n", "line 4: tenants.acme.max-loaded"),
        ("[tenants.acme]\nkeys = []\nadapters = []\nmax-loaded = true\n", "line 4: tenants.acme.max-loaded"),
        ("[tenants.acme]\nkeys = []\nadapters = []\nmax-load = 1\n", "did you mean `max-loaded`"),
        (f"[tenants.acme]\nkeys = []\nadapters = []\nmax-requests = {10**30}\n", "line 4: tenants.acme.max-requests"),
        ('[tenants."a b"]\nkeys = []\nadapters = []\n', "tenants.a b"),
        ("[tenants.acme]\nkeys = [\n", "not TOML"),
        ("tenants = 3\n", "line 1: tenants: expected a table"),
        ("[tenants]\nacme = 3\n", "line 2: tenants.acme: expected a table"),
        ("a" + ".a" * 5000 + " = 1\n", "line 1: more than 500 dots"),
        ("\x00", "not TOML"),
        (FILE.replace(digest_of(b"adapt-beta"), digest_of(b"adapt-acme")), "`acme` has this key, too"),
    ],
)
def test_a_bad_file_is_refused_with_its_line_and_no_key(text: str, told: str) -> None:
    with pytest.raises(Malformed) as caught:
        parsed(text)

    assert "tenants.toml" in caught.value.message
    assert told in caught.value.message
    assert "sesame" not in caught.value.message


def test_a_file_with_too_many_tenants_is_refused() -> None:
    with pytest.raises(Malformed, match="1001 tenants"):
        parsed("".join(f"[tenants.t{at}]\nkeys = []\nadapters = []\n" for at in range(1001)))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("acme/legal-qa", "acme/legal-qa"), ("acme/legal-qa>=1#sha256:aaaaaaaa", "acme/legal-qa>=1#sha256:aaaaaaaa"),
        ("shared@base-7b", "shared@base-7b"), ("legal-qa", "acme/legal-qa"), ("legal-qa==1.0", "acme/legal-qa==1.0"),
        ("beta/legal-qa", 403), ("ACME/legal-qa", 403), ("acme2/legal-qa", 403), ("../acme/x", 403),
        ("acme/../beta/x", 403), ("", 403), ("acme/*", 403), ("*", 403),
    ],
)  # fmt: skip
def test_a_tenant_may_ask_for_names_that_its_list_allows(name: str, found: str | int) -> None:
    acme = parsed(FILE).by_name["acme"]

    if isinstance(found, str):
        assert acme.name_for(name) == found
        return
    with pytest.raises(RequestRefused) as caught:
        acme.name_for(name)
    assert caught.value.status == found


def test_a_bare_name_in_several_namespaces_of_a_tenant_is_refused() -> None:
    two = Tenant(name="two", keys=(), adapters=frozenset({"a/*", "b/legal-qa", "c/other"}))

    with pytest.raises(RequestRefused, match="write one of `a/legal-qa`, `b/legal-qa`"):
        two.name_for("legal-qa")


def test_the_shares_must_fit_into_the_memory_for_adapters() -> None:
    ensure_room(8, 6, 2)
    with pytest.raises(
        UsageProblem, match="may have 7 adapters in memory together, and 2 are pinned, but vLLM keeps 8"
    ):
        ensure_room(8, 7, 2)

    assert engine_room(["--max-loras", "2"]) == 2
    assert engine_room(["--max-loras=2", "--max-cpu-loras=9"]) == 9


# ---------------------------------------------------------------- quotas
class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refused_for(quotas: Quotas, of: Tenant) -> int | None:
    """The seconds of `Retry-After`; None if the request is let in."""
    try:
        quotas.enter(of)
    except RequestRefused as refusal:
        return int(refusal.headers["Retry-After"])
    return None


def test_requests_at_once_are_bounded() -> None:
    quotas, two = Quotas(), tenant(max_requests=2)

    told = [refused_for(quotas, two) for _ in range(3)]
    quotas.leave(two, 0)

    assert told == [None, None, 1]
    assert refused_for(quotas, two) is None


def test_requests_a_minute_fill_up_again() -> None:
    clock = Clock()
    quotas, three = Quotas(clock), tenant(requests_per_minute=3)

    told = [refused_for(quotas, three) for _ in range(4)]
    clock.now += 20
    later = [refused_for(quotas, three) for _ in range(2)]
    clock.now += 3600
    full = [refused_for(quotas, three) for _ in range(4)]

    assert (told, later, full) == ([None, None, None, 20], [None, 20], [None, None, None, 20])


def test_tokens_a_minute_may_be_overdrawn_once_and_are_waited_for() -> None:
    clock = Clock()
    quotas, sixty = Quotas(clock), tenant(tokens_per_minute=60)

    first = refused_for(quotas, sixty)
    quotas.leave(sixty, 100)
    second = refused_for(quotas, sixty)
    clock.now += 41
    third = refused_for(quotas, sixty)

    assert (first, second, third) == (None, 41, None)


# ---------------------------------------------------------------- in the server
@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tenants.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def make(
    tmp_path: Path, library: Library, base: BaseRecord, file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Engine]]:
    """A server with the tenants, and more settings: `make(PRELOAD="legal-qa")`."""
    with importable(tmp_path / "standin", monkeypatch):
        monkeypatch.setenv("ADAPTERHUB_SERVE_ADMIN_KEY", "admin")

        def made(room: int = 4, **settings: str) -> Engine:
            given = {"TENANTS": str(file), "OFFLINE": "1", "AUDIT_LOG": str(tmp_path / "audit")} | settings
            environ = {"ADAPTERHUB_HOME": str(library.root)} | {f"ADAPTERHUB_SERVE_{k}": v for k, v in given.items()}
            resolver = AdapterHubResolver(environ, ["vllm", "--max-cpu-loras", str(room)])
            monkeypatch.setattr(guard, "registered_resolver", lambda: resolver)
            return Engine(base, resolver, has_key=False)

        yield made


async def ask(engine: Engine, who: str, name: object, **more: Any) -> tuple[int, dict[str, str], Any]:
    value = {"model": name, "prompt": "a secret"} | more
    return await engine.send("POST", "/v1/completions", value, authorization=f"Bearer {KEYS.get(who, who)}")


def names(engine: Engine) -> list[str]:
    return [name.partition("=")[0] for name in engine.lora_requests]


def test_a_tenant_uses_its_own_adapters_and_no_others(make: Callable[..., Engine], add: Add) -> None:
    add("legal-qa", namespace="acme")
    digest = add("beta-qa", seed=1).build.manifest.digest
    add("other", namespace="gamma", seed=2)
    engine = make()

    async def run() -> list[tuple[int, str]]:
        asked = [
            ("acme", "acme/legal-qa"), ("beta", "beta-qa"), ("acme", "base-7b"), ("acme", "legal-qa"),
            ("acme", "beta-qa"), ("acme", f"beta-qa==1.0.0#{digest[:19]}"), ("beta", "acme/legal-qa"),
            ("beta", "base-7b"), ("beta", None), ("acme", "other"), ("acme", "nothing"), ("beta", ["beta-qa"]),
            ("nobody", "beta-qa"),
        ]  # fmt: skip
        answers = [await ask(engine, *one) for one in asked]
        return [(status, body.get("error", {}).get("type", "")) for status, _, body in answers]

    told = asyncio.run(run())

    assert told[:4] == [(200, "")] * 4
    assert told[4:6] == told[9:11] == [(404, "NotFoundError")] * 2  # nothing of that name in its namespace
    assert told[6:9] == [(403, "PermissionDeniedError")] * 3
    assert told[11:] == [(400, "BadRequestError"), (401, "AuthenticationError")]
    assert names(engine) == ["acme/legal-qa", "beta-qa"]
    assert len(engine.bodies) == 4  # of those that vLLM was given


def test_another_tenants_name_and_a_name_that_nobody_has_get_one_answer(make: Callable[..., Engine], add: Add) -> None:
    add("other", namespace="gamma")
    engine = make()

    async def run() -> list[Any]:
        return [(await ask(engine, "acme", name))[2] for name in ("other", "nothing", "gamma/other", "gamma/nothing")]

    told = [
        body["error"]["message"] if isinstance(body["error"], dict) else body["error"] for body in asyncio.run(run())
    ]

    assert told[0].replace("other", "nothing") == told[1]
    assert told[2].replace("other", "nothing") == told[3]


def test_cached_prompts_belong_to_one_tenant(make: Callable[..., Engine], add: Add) -> None:
    add("shared")
    engine = make()

    async def run() -> None:
        for name in ("acme", "acme", "beta"):
            assert (await ask(engine, name, "shared"))[0] == 200

    asyncio.run(run())

    salts = [body["cache_salt"] for body in engine.bodies]
    assert salts[0] == salts[1] != salts[2]


def test_each_prompt_and_choice_counts_against_a_quota(make: Callable[..., Engine], file: Path) -> None:
    file.write_text(FILE.replace("max-requests = 2", "requests-per-minute = 10\ntokens-per-minute = 1000"))
    engine = make()

    async def run() -> list[int]:
        return [(await ask(engine, "acme", "base-7b", prompt=["a"] * 5, max_tokens=1))[0] for _ in range(3)]

    assert asyncio.run(run()) == [200, 200, 429]


def test_a_tenant_sees_its_own_models_alone(make: Callable[..., Engine], add: Add) -> None:
    add("legal-qa", namespace="acme")
    add("beta-qa", seed=1)
    engine = make()

    async def run() -> tuple[list[list[str]], list[int]]:
        for who, name in (("acme", "acme/legal-qa"), ("beta", "beta-qa")):
            await ask(engine, who, name)
        listed, status = [], []
        for key in KEYS.values():
            headers = {"authorization": f"Bearer {key}"}
            value = (await engine.send("GET", "/v1/models", **headers))[2]
            listed.append([card["id"].partition("=")[0] for card in value["data"]])
            status.append((await engine.send("GET", "/v1/models/beta-qa", **headers))[0])
        return listed, status

    assert asyncio.run(run()) == ([["base-7b", "acme/legal-qa"], ["beta-qa"]], [404, 200])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/audio/transcriptions", 404),
        ("POST", "/invocations", 404),
        ("POST", "/sleep", 404),
        ("GET", "/v1/responses/resp_1", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/server_info", 404),
        ("GET", "/load", 404),
        ("DELETE", "/adapters/legal-qa", 403),
        ("POST", "//v1/completions", 404),
        ("POST", "/v1/load_lora_adapter", 403),
        ("POST", "/v1/unload_lora_adapter", 403),
        ("GET", "/v1/models", 200),
    ],
)
def test_routes_that_do_not_tell_the_adapter_are_closed(
    make: Callable[..., Engine], method: str, path: str, status: int
) -> None:
    engine = make()

    with_key = asyncio.run(engine.send(method, path, {}, authorization="Bearer adapt-acme"))
    without = asyncio.run(engine.send(method, path, {}, authorization=""))

    assert with_key[0] == status
    assert without[0] == (403 if "adapter" in path else 401)


def test_a_browser_asks_for_the_rules_of_origins_without_a_key(make: Callable[..., Engine], tmp_path: Path) -> None:
    status = asyncio.run(make().send("OPTIONS", "/v1/completions", authorization=""))[0]

    assert status == 405  # of the routes; vLLM's CORS rules answer before them
    assert not (tmp_path / "audit").read_text()


def test_a_body_that_is_not_json_reaches_no_engine(make: Callable[..., Engine]) -> None:
    engine = make()
    headers = {"authorization": "Bearer adapt-acme"}

    form = asyncio.run(engine.send("POST", "/v1/completions", {}, content_type="multipart/form-data", **headers))
    number = asyncio.run(engine.send("POST", "/v1/completions", 3, **headers))

    assert (form[0], number[0], engine.bodies) == (415, 400, [])


def test_after_a_fault_no_bare_name_reaches_the_engine(
    make: Callable[..., Engine], add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("legal-qa", namespace="gamma")
    engine = make()
    find = AdapterHubResolver.found

    async def fail_once(*given: Any) -> Any:
        monkeypatch.setattr(AdapterHubResolver, "found", find)
        raise RuntimeError("a fault")

    monkeypatch.setattr(AdapterHubResolver, "found", fail_once)

    status, _, body = asyncio.run(ask(engine, "acme", "legal-qa"))

    assert (status, body["error"]["type"], engine.bodies) == (424, "FailedDependency", [])


def test_an_adapter_of_the_operator_is_asked_for_by_its_whole_name(make: Callable[..., Engine], add: Add) -> None:
    add("static", namespace="gamma")
    engine = make()
    engine.lora_requests["acme/static"] = SimpleNamespace(lora_path="/static", lora_int_id=1)

    assert asyncio.run(ask(engine, "acme", "static"))[0] == 200
    assert [body["model"] for body in engine.bodies] == ["acme/static"]


def test_an_alias_means_what_its_tenant_may_use(make: Callable[..., Engine], library: Library, add: Add) -> None:
    ours, theirs = add("legal-qa", namespace="acme").build, add("legal-qa", namespace="gamma", seed=1).build
    for build in (ours, theirs):
        point(library, "prod", [(build, 1.0)])
    engine = make()

    async def run() -> list[tuple[int, str | None]]:
        asked = [
            ("acme", "legal-qa@prod"),
            ("acme", "acme/legal-qa@prod"),
            ("acme", "gamma/legal-qa@prod"),
            ("beta", "legal-qa@prod"),
        ]
        answers = [await ask(engine, *one) for one in asked]
        return [(status, told.get("x-adapter-name")) for status, told, _ in answers]

    assert asyncio.run(run()) == [(200, "acme/legal-qa==1.0.0")] * 2 + [(403, None)] * 2


def test_without_the_plug_in_tenants_are_not_served_at_all(
    make: Callable[..., Engine], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    monkeypatch.setattr(guard, "registered_resolver", lambda: None)
    monkeypatch.setenv("ADAPTERHUB_SERVE_TENANTS", str(file))

    assert asyncio.run(ask(engine, "acme", "base-7b"))[0] == 503


# ---------------------------------------------------------------- memory
def test_a_new_adapter_takes_the_place_of_one_of_its_own_tenant(
    make: Callable[..., Engine], library: Library, add: Add
) -> None:
    builds = [add(f"qa-{at}", namespace="acme", seed=at).build for at in range(3)]
    add("beta-qa", seed=9)
    add("shared", seed=10)
    engine = make()

    async def run() -> None:
        for who, name in (("beta", "beta-qa"), *(("acme", f"acme/qa-{at}") for at in (0, 1, 0, 2))):
            assert (await ask(engine, who, name))[0] == 200

    asyncio.run(run())

    assert names(engine) == ["beta-qa", "acme/qa-0", "acme/qa-2"]
    assert engine.removed == [3]
    library.remove([builds[1]])
    with pytest.raises(StoreLocked):
        library.remove([builds[0]])


def test_an_adapter_that_two_tenants_use_stays_for_the_other(make: Callable[..., Engine], add: Add) -> None:
    add("shared")
    add("beta-qa", seed=1)
    engine = make()

    async def run() -> None:
        for who, name in (("acme", "shared"), ("beta", "shared"), ("beta", "beta-qa")):
            assert (await ask(engine, who, name))[0] == 200

    asyncio.run(run())

    assert names(engine) == ["shared", "beta-qa"]


def test_a_tenant_whose_adapters_all_run_waits_and_no_other_does(make: Callable[..., Engine], add: Add) -> None:
    for at, name in enumerate(("beta-qa", "shared")):
        add(name, seed=at)
    engine = make()

    async def run() -> tuple[Any, int, int]:
        engine.may_answer.clear()
        running = asyncio.create_task(ask(engine, "beta", "beta-qa"))
        await engine.has_loaded.wait()
        refused = await ask(engine, "beta", "shared")
        other = asyncio.create_task(ask(engine, "acme", "shared"))
        engine.may_answer.set()
        return refused, (await other)[0], (await running)[0]

    refused, *others = asyncio.run(run())

    assert (refused[0], refused[1]["retry-after"]) == (429, "1")
    assert refused[2]["error"]["message"] == "all 1 adapters that this key may have in memory are in use"
    assert others == [200, 200]


def test_requests_beyond_the_quota_get_429(make: Callable[..., Engine]) -> None:
    engine = make()

    async def run() -> list[int]:
        engine.may_answer.clear()
        running = [asyncio.create_task(ask(engine, "acme", "base-7b")) for _ in range(2)]
        await engine.has_loaded.wait()
        refused = await ask(engine, "acme", "base-7b")
        engine.may_answer.set()
        return [refused[0], *[(await one)[0] for one in running], (await ask(engine, "acme", "base-7b"))[0]]

    assert asyncio.run(run()) == [429, 200, 200, 200]


def test_what_is_pinned_is_loaded_before_any_request_and_stays(make: Callable[..., Engine], add: Add) -> None:
    for at in range(3):
        add(f"qa-{at}", namespace="acme", seed=at)
    add("shared", seed=5)
    engine = make(room=4, PIN="shared", PRELOAD="acme/qa-0")

    async def run() -> tuple[list[str], list[str]]:
        async with engine.life():
            before = names(engine)
            for at in (1, 2, 0):
                assert (await ask(engine, "acme", f"acme/qa-{at}"))[0] == 200
        return before, names(engine)

    before, after = asyncio.run(run())

    assert before == ["shared", "acme/qa-0"]
    assert sorted(after) == ["acme/qa-0", "acme/qa-2", "shared"]


@pytest.mark.parametrize(
    ("settings", "room", "told"),
    [
        ({"PRELOAD": "nothing"}, 4, "no adapter `nothing`"),
        ({"TENANTS": "/nowhere"}, 4, "no such file: `/nowhere`"),
        ({"AUDIT_LOG": "/nowhere/log"}, 4, "cannot write the audit log"),
        ({"DENY": "../x"}, 4, "--deny"),
        ({}, 2, "tenants may have 3 adapters in memory together"),
    ],
)
def test_a_server_that_cannot_keep_its_promises_does_not_start(
    make: Callable[..., Engine], settings: dict[str, str], room: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make(room, **settings)
    messages = []

    async def run() -> None:
        async def receive() -> dict[str, str]:
            return {"type": "lifespan.startup"}

        async def send(message: dict[str, str]) -> None:
            messages.append(message)

        await engine.app({"type": "lifespan", "asgi": {}}, receive, send)

    asyncio.run(run())

    assert messages[0]["type"] == "lifespan.startup.failed"
    assert told in messages[0]["message"]
    assert told in caplog.text


# ---------------------------------------------------------------- reload
def test_a_changed_file_counts_and_a_bad_one_does_not(
    make: Callable[..., Engine], file: Path, add: Add, caplog: pytest.LogCaptureFixture
) -> None:
    add("beta-qa")
    engine = make()
    gate = gate_of(engine)

    def changed(text: str) -> int:
        file.write_text(text)
        gate.refresh()
        return asyncio.run(ask(engine, "beta", "beta-qa"))[0]

    told = [
        changed(FILE.replace('"beta-qa", "shared"', '"shared"')),
        changed("[tenants.beta"),
        changed(FILE.replace("max-loaded = 2", "max-loaded = 200")),
        changed(FILE),
        changed(FILE.replace(digest_of(b"adapt-beta"), digest_of(b"another"))),
    ]

    assert told == [403, 403, 403, 200, 401]
    assert "tenants may have 201 adapters" in caplog.text
    assert "not TOML" in caplog.text


def gate_of(engine: Engine) -> Any:
    """The gate of a server, which its first request builds."""
    asyncio.run(engine.send("GET", "/health"))
    middleware = engine.app.middleware_stack
    while not isinstance(middleware, guard.Guard):
        middleware = middleware.app  # type: ignore[union-attr]
    return middleware.gate


def test_the_error_tree_knows_no_traceback() -> None:
    for data in (
        b"\xff\xfe",
        b"[" * 10_000,
        b'a = "' + b"x" * 100_000 + b'"',
        b"[tenants.a]\nkeys=[1,2]\nadapters={}\n",
    ):
        with pytest.raises(AdapterHubError):
            Tenants.parse(data, Path("x"))


# ---------------------------------------------------------------- the record
def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]


def test_each_request_has_one_line_that_says_who_answered(
    make: Callable[..., Engine], tmp_path: Path, library: Library, add: Add
) -> None:
    manifest = add("legal-qa", namespace="acme").build.manifest
    engine = make()

    async def run() -> list[Any]:
        async with engine.life():
            answers = [
                await ask(engine, "acme", "acme/legal-qa>=1"),
                await ask(engine, "acme", "acme/legal-qa", stream=True),
                await ask(engine, "acme", "base-7b", stream=True, stream_options={"include_usage": True}),
                await ask(engine, "beta", "acme/legal-qa"),
                await ask(engine, "nobody", "base-7b"),
                await ask(engine, "acme", "acme/nothing"),
            ]
            await engine.send("GET", "/health")
        return answers

    answers = asyncio.run(run())
    told = lines(tmp_path)

    assert [(one["tenant"], one["model"], one["status"], one["refusal"]) for one in told] == [
        ("acme", "acme/legal-qa>=1", 200, None),
        ("acme", "acme/legal-qa", 200, None),
        ("acme", "base-7b", 200, None),
        ("beta", "acme/legal-qa", 403, "PermissionDeniedError"),
        (None, None, 401, "AuthenticationError"),
        ("acme", "acme/nothing", 404, "NotFoundError"),
    ]
    assert manifest.base.fingerprint is not None
    of_adapter = ("acme/legal-qa==1.0.0", manifest.digest, manifest.base.fingerprint.weights)
    assert [(one["adapter"], one["digest"], one["base"]) for one in told] == [of_adapter] * 2 + [(None, None, None)] * 4
    assert [(one["prompt_tokens"], one["completion_tokens"]) for one in told] == [(3, 2)] * 3 + [(None, None)] * 3
    assert [one["request_id"] for one in told] == [headers["x-request-id"] for _, headers, _ in answers]
    assert "secret" not in (tmp_path / "audit").read_text()
    assert {one["route"] for one in told} == {"/v1/completions"}
    assert '"usage"' not in answers[1][2]  # the client did not ask for it
    assert '"usage"' in answers[2][2]


def test_the_first_event_of_a_stream_says_who_answers(make: Callable[..., Engine], add: Add) -> None:
    manifest = add("legal-qa", namespace="acme").build.manifest
    engine = make()

    _, headers, text = asyncio.run(ask(engine, "acme", "acme/legal-qa", stream=True))
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-2]]

    assert events[0]["adapter"]["digest"] == headers["x-adapter-digest"] == manifest.digest
    assert events[0]["adapter"]["name"] == "acme/legal-qa==1.0.0"
    assert ["adapter" in event for event in events] == [True, False]
    assert [event["choices"][0]["text"] for event in events] == ["a", "b"]


def test_the_id_of_a_request_is_the_clients_if_it_is_plain(make: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make()
    given = ["abc-1", "x" * 200, 'quo"te', "esc\x1bape", ""]

    async def run() -> None:
        async with engine.life():
            for one in given:
                value = {"model": "base-7b"}
                await engine.send("POST", "/v1/completions", value, authorization="Bearer adapt-acme", x_request_id=one)

    asyncio.run(run())
    told = [one["request_id"] for one in lines(tmp_path)]

    assert [one for one in told if one in given] == ["abc-1", 'quo"te']
    assert len(set(told)) == len(given)

"""What a running server must not serve any more: lists, files that change, and yanks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import (
    AdapterDenied,
    AdapterHubError,
    Malformed,
    NotFound,
    RemoteUnreachable,
    StoreLocked,
    UsageProblem,
)
from adapterhub.inference.serving import AdapterProvider, UnreachableRemotes, refusal_of
from adapterhub.inference.serving.access.denied import Denied
from adapterhub.inference.serving.access.gate import Gate
from adapterhub.inference.serving.following import Upkeep
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.store.origins import Origin
from tests.inference.test_model_names import Engine, engine  # noqa: F401 - a fixture

Add = Callable[..., Added]
DIGEST = parse_digest("sha256:" + 64 * "a")


def provider_of(library: Library, base: BaseRecord, denied: Denied) -> AdapterProvider:
    return AdapterProvider(library, base, engine="vllm@0.32", max_rank=16, denied=denied)


# ---------------------------------------------------------------- rules
@pytest.mark.parametrize(
    ("rule", "is_denied"),
    [
        ("legal-qa", True),
        ("acme/legal-qa", True),
        ("other/legal-qa", False),
        ("legal-qa==1.2", True),
        ("legal-qa<1.2", False),
        ("acme/legal-qa>=1,<2#sha256:aaaaaaaa", True),
        ("acme/legal-qa#sha256:bbbbbbbb", False),
        ("sha256:aaaaaaaa", True),
        ("sha256:" + 64 * "a", True),
        ("sha256:bbbbbbbb", False),
        ("summarize", False),
    ],
)
def test_a_rule_names_a_spec_or_a_digest(rule: str, *, is_denied: bool) -> None:
    denied = Denied([f"{rule}   leaks names"])

    assert denied.reason("acme/legal-qa==1.2.0", DIGEST) == ("leaks names" if is_denied else None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "../x",
        "sha256:zz",
        "legal-qa@base-7b",
        "a/b/c",
        "legal-qa==x",
        "https://x.org",
        "sha256:" + 65 * "a",
        "a x\n../y",
    ],
)
def test_a_text_that_is_no_rule_is_refused_before_anything_starts(text: str) -> None:
    with pytest.raises(UsageProblem, match="--deny: "):
        Denied([text])


def test_a_file_is_read_again_and_a_bad_one_keeps_the_last_good_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "denied"
    file.write_text("# ours\n\nlegal-qa<1.3  leaks names\n")
    denied = Denied(file=file)
    changes: list[int] = []
    denied.on_change(lambda: changes.append(denied.edition))
    seen = [denied.reason("legal-qa==1.2", DIGEST)]

    for text in ("summarize\n", "../../x\nlegal-qa@b\n", "legal-qa\n"):
        file.write_text(text)
        denied.refresh()
        seen.append(denied.reason("legal-qa==1.2", DIGEST))
    file.unlink()
    denied.refresh()
    denied.refresh()

    assert seen == ["leaks names", None, None, "no reason given"]
    assert denied.reason("legal-qa==1.2", DIGEST) == "no reason given"
    assert changes == [1, 2]
    assert "line 1: `../../x`" in caplog.text
    assert "line 2: `legal-qa@b`" in caplog.text
    assert caplog.text.count("no such file") == 1


def test_a_file_that_cannot_be_read_at_the_start_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\xff\x00\n")
    (tmp_path / "large").write_bytes(b"# \n" * (1 << 19))

    for name, error, words in (
        ("nothing", NotFound, "no such file: `.*nothing`"),
        ("bad", Malformed, "line 1"),
        ("large", Malformed, "larger than"),
    ):
        with pytest.raises(error, match=words):
            Denied(file=tmp_path / name)
    with pytest.raises(NotFound):
        Denied(file=tmp_path)


def test_a_reason_is_safe_to_show(tmp_path: Path) -> None:
    denied = Denied()
    denied.deny(DIGEST, "\x1b[31m" + 10_000 * "x")

    reason = denied.reason("legal-qa==1.0", DIGEST)

    assert reason is not None
    assert len(reason) <= 500
    assert reason.isprintable()


# ---------------------------------------------------------------- names
def refusal(provider: AdapterProvider, name: str) -> tuple[int, str]:
    with pytest.raises(AdapterHubError) as caught:
        provider.find(name)
    told = refusal_of(caught.value)
    return int(told.status), told.message


def test_a_withdrawn_build_is_refused_in_every_spelling_and_an_older_one_takes_its_place(
    library: Library, base: BaseRecord, add: Add
) -> None:
    add("legal-qa", version="1.0.0")
    new = add("legal-qa", version="1.1.0", seed=1).build.manifest
    only = add("summarize", seed=2).build.manifest
    denied = Denied()
    provider = provider_of(library, base, denied)
    before = [provider.find(name).label for name in ("legal-qa", "legal-qa==1.1", "summarize")]

    denied.deny(new.digest, "leaks names")
    denied.deny(only.digest, "")
    told = [refusal(provider, name) for name in ("legal-qa==1.1", f"legal-qa#{new.digest[:19]}", "summarize")]

    assert before == ["legal-qa==1.1.0", "legal-qa==1.1.0", "summarize==1.0.0"]
    assert told == [
        (410, "`legal-qa==1.1.0` is not served any more: leaks names"),
        (410, "`legal-qa==1.1.0` is not served any more: leaks names"),
        (410, "`summarize==1.0.0` is not served any more: no reason given"),
    ]
    assert provider.find("legal-qa").label == "legal-qa==1.0.0"
    denied.allow(new.digest)
    assert provider.find("legal-qa>=1.1").label == "legal-qa==1.1.0"
    provider.close()


def test_a_denied_name_is_searched_on_no_remote(library: Library, base: BaseRecord, add: Add) -> None:
    add("legal-qa")

    def sources(_: object) -> Any:
        raise AssertionError("searched")

    provider = AdapterProvider(library, base, engine="vllm@0.32", sources=sources, denied=Denied(["legal-qa"]))

    assert refusal(provider, "legal-qa")[0] == 410


# ---------------------------------------------------------------- in the server
def test_a_loaded_adapter_is_refused_at_once_and_its_slot_and_lease_are_given_back(
    engine: Engine,  # noqa: F811 - the fixture
    library: Library,
    add: Add,
) -> None:
    build = add("legal-qa").build
    digest = build.manifest.digest
    names = ["legal-qa", f"legal-qa==1.0.0#{digest[:19]}", "legal-qa@base-7b"]

    async def run() -> tuple[list[Any], Any]:
        engine.may_answer.clear()
        running = asyncio.create_task(engine.send("POST", "/v1/completions", {"model": "legal-qa"}))
        await engine.has_loaded.wait()
        async with engine.life():
            await asyncio.to_thread(engine.resolver.denied.deny, digest, "leaks names")
            refused = [await engine.send("POST", "/v1/completions", {"model": name}) for name in names]
            with pytest.raises(StoreLocked):
                library.remove([build])
            engine.may_answer.set()
            return refused, await running

    refused, finished = asyncio.run(run())

    assert {status for status, _, _ in refused} == {410}
    assert {body["error"]["message"] for _, _, body in refused} == {
        "`legal-qa==1.0.0` is not served any more: leaks names"
    }
    assert {(body["error"]["type"], body["error"]["code"]) for _, _, body in refused} == {("AdapterDenied", 410)}
    assert (finished[0], finished[1]["x-adapter-digest"]) == (200, digest)
    assert (engine.lora_requests, len(engine.removed), len(engine.bodies)) == ({}, 1, 1)
    library.remove([build])


def test_an_idle_adapter_goes_when_it_is_denied_without_a_request(
    engine: Engine,  # noqa: F811 - the fixture
    library: Library,
    add: Add,
) -> None:
    build = add("legal-qa").build

    async def run() -> None:
        async with engine.life():
            await engine.send("POST", "/v1/completions", {"model": "legal-qa"})
            engine.resolver.denied.deny(build.manifest.digest)
            await asyncio.wait_for(engine.has_removed.wait(), 60)
            await asyncio.sleep(0)

    asyncio.run(run())

    assert engine.lora_requests == {}
    library.remove([build])


# ---------------------------------------------------------------- yanks
def upkeep_of(provider: AdapterProvider, find_source: Any) -> Upkeep:
    return Upkeep(
        library=provider.library,
        denied=provider.denied,
        gate=Gate(),
        served=provider.leased,
        find_source=find_source,
        remotes=UnreachableRemotes(),
    )


def test_a_yank_that_a_command_saw_counts_without_asking_and_until_it_is_taken_back(
    library: Library, base: BaseRecord, add: Add
) -> None:
    manifest = add("legal-qa", namespace="acme").build.manifest
    place = "http://127.0.0.1:1"
    library.origins.record(Origin(adapter=manifest.digest, name="acme/legal-qa", place=place))
    denied = Denied()
    provider = provider_of(library, base, denied)
    provider.find("acme/legal-qa")
    look = upkeep_of(provider, None).look_for_yanks

    look()
    assert provider.find("acme/legal-qa")
    library.yanks.note(manifest.digest, place, "wrong labels")
    look()
    assert refusal(provider, "acme/legal-qa")[1].endswith("wrong labels")
    provider.release(manifest.digest)
    library.yanks.note(manifest.digest, place, None)
    look()

    assert provider.find("acme/legal-qa>=1")
    provider.close()


def test_a_server_that_does_not_answer_is_left_alone_and_changes_nothing(
    library: Library, base: BaseRecord, add: Add
) -> None:
    manifest = add("legal-qa", namespace="acme").build.manifest
    library.origins.record(Origin(adapter=manifest.digest, name="acme/legal-qa", place="http://127.0.0.1:1"))
    asked = []
    provider = provider_of(library, base, Denied())
    provider.find("acme/legal-qa")

    def find_source(place: str) -> Any:
        asked.append(place)
        raise RemoteUnreachable("no answer")

    upkeep = upkeep_of(provider, find_source)
    for _ in range(3):
        upkeep.look_for_yanks()

    assert len(asked) == 1
    assert provider.find("acme/legal-qa")
    provider.close()


def test_a_denied_adapter_is_refused_at_the_start(library: Library, base: BaseRecord, add: Add) -> None:
    add("legal-qa")

    with pytest.raises(AdapterDenied, match="is not served any more: old"):
        provider_of(library, base, Denied(["legal-qa old"])).find("legal-qa")

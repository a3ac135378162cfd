"""A hostile network between a home and a real registry: one clear line each, resumed or refused, nothing half-stored."""

from __future__ import annotations

import json
import resource
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.errors import SpecError
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.http.wire import git_sha1
from adapterhub.distribution.hub import Hub
from adapterhub.formats.release import Release
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.bad_inputs.names import LISTING, REFERENCES
from tests.registry.running import Running, running
from tests.support import faulty_proxy as net
from tests.support.command_line import Adapt, Done
from tests.support.tiny import make_adapter, make_base

WEIGHTS, MANIFEST, CONFIG = "adapter_model.safetensors", "adapterhub.json", "adapter_config.json"
BUILT, PLAIN = "acme/poem", "acme/plain"
PATIENT_S = "20"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry with one build (weights of 1 MB) and one plain PEFT repository."""
    folder = tmp_path_factory.mktemp("registry")
    with running(folder / "root") as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        made = make_adapter(folder / "made", width=512, rank=64)
        adapt = Adapt(folder)
        make_base(folder / "base", width=512)
        adapt.ok("base", "add", "base", "--as", "b")
        adapt.ok("add", "made", "--name", "poem", "--base", "b")
        build = next(adapt.library.installed())
        hub = Hub(endpoint=server.url, token=server.token)
        copy(Release(manifest=build.manifest, namespace=None, origin="x"), adapt.library, hub.to(BUILT))
        from huggingface_hub import HfApi

        api = HfApi(endpoint=server.url, token=server.token)
        api.create_repo(PLAIN)
        api.upload_folder(repo_id=PLAIN, folder_path=made)
        yield server


@pytest.fixture
def proxy(server: Running) -> Iterator[net.Proxy]:
    with net.faulty(server.url) as proxy:
        yield proxy


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Adapt:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("adapterhub.distribution.http.stream.PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr("adapterhub.distribution.http.wire.LONGEST_PAUSE_S", 0.01)
    monkeypatch.setenv("ADAPTERHUB_TIMEOUT_S", PATIENT_S)
    return Adapt(tmp_path)


def lose_patience(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Where silence is the fault, and nowhere else: on a busy machine an honest server may be silent for a second."""
    if "silent" in fault or "one byte" in fault:
        # what is silent once must succeed afterwards, so every other answer has to come in time
        monkeypatch.setenv("ADAPTERHUB_TIMEOUT_S", "3" if fault.endswith("once") else "0.3")


@pytest.fixture
def ask(home: Adapt, proxy: net.Proxy, server: Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    said: list[str] = []
    monkeypatch.setenv("ADAPTERHUB_TOKEN", server.token)

    def install(spec: str = BUILT) -> Done:
        done = home("install", spec, "--remote", proxy.url)
        said.append(done.stdout + done.stderr)
        return done

    yield install
    files = b"".join(p.read_bytes() for p in home.folder.rglob("*") if p.is_file())
    assert server.token not in "".join(said)
    assert server.token.encode() not in files


def stored(library: Library) -> list[str]:
    """Everything of the library but locks, and the beginnings of files that the next try goes on from."""
    found = [p.relative_to(library.root) for p in library.root.rglob("*") if p.is_file()]
    return [str(p) for p in found if p.parts[0] not in ("locks", "index.db") and not p.name.startswith("part-")]


def refused(done: Done, *codes: int) -> str:
    """The one line of a refusal, or of its first reason; a hint may follow."""
    assert done.exit_code in codes, f"exit {done.exit_code}: {done.stderr}"
    assert "Traceback" not in done.stderr
    assert "a bug in" not in done.stderr
    assert all(c.isprintable() or c == "\n" for c in done.stderr)
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("hint: ", "warning: ", "  ["))]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def whole(home: Adapt) -> bool:
    return home("verify", "--all").exit_code in (0, 17) and len(list(home.library.installed())) == 1


# ---------------------------------------------------------------- gone through all the same
RESUMED = {
    "cut once": net.cut(300_000),
    "cut at the first byte": net.cut(0),
    "reset once": net.reset(300_000),
    "reset before an answer": net.reset(),
    "silent once": net.silent,
    "longer than told once": net.miscounted(1000),
    "429 once": net.status(429, retry_after="1000"),
    "503 once": net.status(503),
}


@pytest.mark.parametrize("fault", RESUMED)
def test_what_passes_is_waited_out_or_taken_up_where_it_was(fault, ask, home, proxy, monkeypatch):
    lose_patience(monkeypatch, fault)
    faults = {"longer than told once": net.cut(1_000_000)}
    proxy.faults[WEIGHTS] = net.once(faults.get(fault, RESUMED[fault]))

    done = ask()

    assert done.exit_code == 0, done.stderr
    assert whole(home)
    ranges = [r.headers.get("range") for r in proxy.seen if r.path.endswith(WEIGHTS)]
    assert len(ranges) == 2
    if fault in ("cut once", "reset once"):
        assert ranges[1] is not None


def test_a_server_without_ranges_sends_it_all_again(ask, home, proxy):
    def no_ranges(request: net.Request, answer: net.Answer) -> Any:
        if "range" not in request.headers:
            return net.cut(300_000)(request, answer)
        body = whole_weights(proxy, request)
        return [net.Answer(200, answer.headers, body).head(content_range=None), body]

    proxy.faults[WEIGHTS] = no_ranges

    assert ask().exit_code == 0
    assert whole(home)


def whole_weights(proxy: net.Proxy, request: net.Request) -> bytes:
    import httpx

    proxy.faults.pop(WEIGHTS)
    headers = {k: v for k, v in request.headers.items() if k in ("authorization", "accept")}
    return httpx.get(proxy.url + request.path, headers=headers).content


# ---------------------------------------------------------------- refused
REFUSED: dict[str, tuple[str, net.Fault, tuple[int, ...], str]] = {
    "cut again and again": (WEIGHTS, net.cut(0), (13,), "stopped after"),
    "reset again and again": (WEIGHTS, net.reset(), (13,), "stopped after"),
    "one byte at a time": (WEIGHTS, net.slow, (13,), "stopped after"),
    "one byte at a time, of a listing": ("/refs", net.slow, (13,), "bytes came in"),
    "silent": ("/info", net.silent, (13,), "could not be reached"),
    "silent, of a manifest": (MANIFEST, net.silent, (13,), "could not be reached"),
    "longer than told": (WEIGHTS, net.miscounted(1000), (12,), "expected"),
    "shorter than told": (WEIGHTS, net.miscounted(-3), (12,), "expected"),
    "wrong bytes": (WEIGHTS, net.wrong_bytes, (12,), "digest"),
    "wrong bytes of a config": (CONFIG, net.wrong_bytes, (12,), "digest"),
    "wrong bytes of a manifest": (MANIFEST, net.wrong_bytes, (12,), "digest"),
    "an endless file": (WEIGHTS, net.endless, (12, 16), ""),
    "an endless manifest": (MANIFEST, net.endless, (13,), "more than"),
    "an endless listing": ("/refs", net.endless, (13,), "more than"),
    "an endless list of versions": ("/versions", net.endless, (13,), "more than"),
    "an endless error": (MANIFEST, net.endless_error, (13,), "500"),
    "an endless error for a file": (WEIGHTS, net.endless_error, (13,), "500"),
    "a packed bomb": (WEIGHTS, net.bomb, (13,), "compressed"),
    "a packed bomb as a manifest": (MANIFEST, net.bomb, (13,), "compressed"),
    "a packed bomb as a listing": ("/refs", net.bomb, (13,), "compressed"),
    "a redirect loop": (WEIGHTS, net.redirect("/acme/poem/resolve/x/adapter_model.safetensors"), (13,), "5 times"),
    "a redirect to a file": (WEIGHTS, net.redirect("file:///etc/passwd"), (13,), "not a web address"),
    "a redirect to a file, of a listing": ("/refs", net.redirect("file:///etc/passwd"), (13,), "not a web address"),
    "a redirect to no port": (WEIGHTS, net.redirect("http://127.0.0.1:99999/"), (13,), "not a web address"),
    "a redirect to no host": (MANIFEST, net.redirect("http://[::1/x"), (13,), "not a web address"),
    "a redirect to control characters": (WEIGHTS, net.redirect("http://a\x1b[31m/"), (13,), "not a web address"),
    "401": (WEIGHTS, net.status(401), (10, 14), ""),
    "403": (WEIGHTS, net.status(403), (14,), "403"),
    "404": (WEIGHTS, net.status(404), (10, 13), ""),
    "416": (WEIGHTS, net.status(416), (13,), "416"),
    "418": (WEIGHTS, net.status(418), (13,), "418"),
    "429": (WEIGHTS, net.status(429), (13,), "429"),
    "500": (WEIGHTS, net.status(500), (13,), "500"),
    "503": (WEIGHTS, net.status(503, retry_after="99999"), (13,), "503"),
    "401 for a manifest": (MANIFEST, net.status(401), (10, 14), ""),
    "403 for a listing": ("/refs", net.status(403), (14,), "403"),
    "429 for a manifest": (MANIFEST, net.status(429), (13,), "wait"),
    "500 for a listing": ("/refs", net.status(500), (13,), "500"),
    "503 for a manifest": (MANIFEST, net.status(503), (13,), "503"),
    "a listing nested 100,000 deep": (
        "/refs",
        lambda _r, a: [a.head(content_length=200_000), b"[" * 200_000],
        (13,),
        "JSON",
    ),
    "a listing of another kind": ("/refs", net.changed_json(lambda _: {"branches": 7}), (13,), "no valid list"),
    "a commit that is a path": (
        "/refs",
        net.changed_json(lambda v: {**v, "tags": [{"name": "v1", "targetCommit": "../../x"}]}),
        (13,),
        "no valid list",
    ),
    "control characters for a digest": (
        "/versions",
        net.changed_json(lambda v: {"versions": [{**i, "digest": "\x1b[2J"} for i in v["versions"]]}),
        (13,),
        "no list",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_does_not_pass_is_refused_in_one_line_and_works_afterwards(fault, ask, home, proxy, monkeypatch):
    part, what, codes, word = REFUSED[fault]
    if part == "/refs":  # our own registry lists versions itself; other servers have refs only
        monkeypatch.setattr(Hub, "features", frozenset())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    proxy.faults[part] = what
    lose_patience(monkeypatch, fault)

    line = refused(ask(), *codes)

    assert word in line
    assert stored(home.library) == []
    assert proxy.sent_bytes < 100 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000, "kB of memory"
    proxy.faults.clear()
    monkeypatch.setenv("ADAPTERHUB_TIMEOUT_S", PATIENT_S)
    assert ask().exit_code == 0
    assert whole(home)


def test_a_file_that_is_changed_between_two_parts_is_refused(ask, home, proxy):
    def changed(request: net.Request, answer: net.Answer) -> Any:
        if "range" not in request.headers:
            return net.cut(300_000)(request, answer)
        return [answer.head(etag='"another"', x_linked_etag='"another"'), answer.body]

    proxy.faults[WEIGHTS] = changed

    assert "expected" in refused(ask(), 12)
    assert stored(home.library) == []


def test_a_beginning_that_has_gone_bad_is_asked_for_again(ask, home, proxy):
    def wrong_and_cut(request: net.Request, answer: net.Answer) -> Any:
        return [net.RESET] if "range" in request.headers else [answer.head(), b"\0" * 300_000]

    proxy.faults[WEIGHTS] = wrong_and_cut
    refused(ask(), 13)
    assert stored(home.library) == []
    proxy.faults.clear()

    assert ask().exit_code == 0
    assert whole(home)


def test_a_part_that_begins_elsewhere_is_refused(ask, home, proxy):
    def elsewhere(request: net.Request, answer: net.Answer) -> Any:
        if "range" not in request.headers:
            return net.cut(300_000)(request, answer)
        size = 300_000 + len(answer.body)
        return [answer.head(content_range=f"bytes 299000-{size - 1}/{size}"), answer.body]

    proxy.faults[WEIGHTS] = elsewhere

    assert "from 299000" in refused(ask(), 12)
    assert stored(home.library) == []


def test_no_token_goes_to_another_host(ask, home, proxy, server):
    with net.faulty(server.url) as stranger:
        for part in (WEIGHTS, MANIFEST):
            proxy.faults[part] = lambda r, a: [net.redirect(stranger.url + r.path)(r, a)[0]]  # type: ignore[index]

        done = ask()

        assert done.exit_code == 0, done.stderr
        assert len(stranger.seen) >= 2
        assert server.token not in str([r.headers for r in stranger.seen])
        assert [
            (r.method, r.path) for r in proxy.seen if r.headers.get("authorization") != f"Bearer {server.token}"
        ] == []


def test_a_question_that_is_led_elsewhere_is_refused_and_takes_no_token_along(ask, home, proxy, server):
    with net.faulty(server.url) as stranger:
        proxy.faults["paths-info"] = lambda r, a: [net.redirect(stranger.url + r.path)(r, a)[0]]  # type: ignore[index]

        line = refused(ask(PLAIN), 13)

        assert "redirected a POST request" in line
        assert stranger.seen == []


# ---------------------------------------------------------------- what a listing may hold
def listed(name: str) -> net.Fault:
    more = {"type": "file", "path": name, "size": 3, "oid": git_sha1(b"bad")}
    return net.changed_json(
        lambda files: [*[f for f in files if f["path"] != name], more] if name not in (WEIGHTS, "README.md") else files
    )


def test_names_in_a_listing_are_refused_passed_over_or_taken(ask, home, proxy):
    wrong = []
    for name, verdict in LISTING.items():
        proxy.faults["paths-info"] = listed(name)
        done = ask(PLAIN)
        if done.exit_code != (16 if verdict == "refuse" else 0):
            wrong.append((name, verdict, done.exit_code, done.stderr))
        if verdict == "refuse":
            assert "E_NAME" in done.stderr
            refused(done, 16)
            assert stored(home.library) == []
        else:
            names = {p.name for p in home.library.root.joinpath("adapters").rglob("*") if p.is_file()}
            assert names == {WEIGHTS, CONFIG, MANIFEST, "README.md"}
            home.ok("remove", PLAIN, "--yes")
            shutil.rmtree(home.library.root)
        assert {p.name for p in home.folder.iterdir()} <= {"home"}

    assert wrong == []


def test_a_listing_that_names_a_file_twice_is_refused(ask, home, proxy):
    proxy.faults["paths-info"] = net.changed_json(lambda files: [*files, files[0]])

    refused(done := ask(PLAIN), 16)

    assert "listed twice" in done.stderr
    assert stored(home.library) == []


def test_a_listing_with_a_size_that_nobody_has_is_refused(ask, home, proxy):
    for size in (10**15, -1, "7", 1.5, None):
        proxy.faults["paths-info"] = net.changed_json(
            lambda files, size=size: [{**f, "size": size} if f["path"] == WEIGHTS else f for f in files]
        )

        refused(ask(PLAIN), 13, 16)

        assert stored(home.library) == []


def reads(text: str) -> bool:
    try:
        AdapterSpec.parse(text)
    except SpecError:
        return False
    return True


def test_references_that_a_user_may_type(home, proxy):
    for text, verdict in REFERENCES.items():
        done = home("install", "--remote", proxy.url, "--", text)

        assert reads(text) == (verdict == "accept"), text
        assert done.exit_code in ((2,) if verdict == "refuse" else (0, 2, 10, 11)), (text, done.stderr)
        assert all(c.isprintable() or c == "\n" for c in done.stderr)
        assert "a bug in" not in done.stderr
    assert all("169.254" not in r.path and ".." not in r.path for r in proxy.seen)


def test_a_timeout_that_is_no_number_is_said(home, proxy, monkeypatch):
    for text in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("ADAPTERHUB_TIMEOUT_S", text)

        assert "ADAPTERHUB_TIMEOUT_S" in home.fails(2, "install", BUILT, "--remote", proxy.url)


def test_the_answers_of_a_server_that_says_only_nonsense(home, proxy, monkeypatch):
    """Each small answer replaced by each kind of JSON value: a line, never a bug."""
    monkeypatch.setattr(Hub, "features", frozenset())
    for part in ("/refs", "/api/models?", "paths-info", CONFIG):
        for value in (None, 7, "text", [], {}, [None], [[]], {"a": 1}, [{"path": 1}], [{"id": 1}]):
            proxy.faults = {part: net.changed_json(lambda _, value=value: value)}
            done = home("install", PLAIN, "--remote", proxy.url)

            assert done.exit_code in (0, 10, 12, 13, 16), (part, value, done.stderr)
            if done.exit_code == 0:
                home.ok("remove", PLAIN, "--yes")
    assert json.dumps(stored(home.library)).count("adapters/") == 0


# ---------------------------------------------------------------- push
def of_the_repository(fault: net.Fault) -> net.Fault:
    """Only where the repository itself is asked for, and none of its refs, files and commits."""
    return lambda r, a: (fault if r.path.partition("?")[0].endswith("/poem") else net.whole)(r, a)


def endless_redirect(request: net.Request, answer: net.Answer) -> Any:
    for step in net.endless(request, answer):
        yield step.replace(b"HTTP/1.1 200 Told", b"HTTP/1.1 302 Told\r\nlocation: /api/nowhere", 1)


def packed_error(request: net.Request, answer: net.Answer) -> Any:
    head, body = net.bomb(request, answer)
    return [head.replace(b"HTTP/1.1 200", b"HTTP/1.1 500", 1), body]


PUSHES: dict[str, tuple[str, net.Fault, int | tuple[int, ...], str]] = {
    "no right to commit": ("/commit/", net.status(403), 14, "403"),
    "token not known": ("/preupload/", net.status(401), (10, 14), "401"),
    "overloaded for good": ("/commit/", net.status(503), 13, "503"),
    "broken": ("/preupload/", net.status(500), 13, "500"),
    "silent on a commit": ("/commit/", net.silent, 13, ""),
    "silent on an upload": ("/info/lfs/", net.silent, 13, ""),
    "reset on a commit": ("/commit/", net.reset(), 13, ""),
    "reset on a tag": ("/tag/", net.reset(), 13, ""),
    "cut answer to a commit": ("/commit/", net.cut(3), 13, ""),
    "nonsense for a commit": ("/commit/", net.changed_json(lambda _: []), 13, "cannot read"),
    "nonsense for a preupload": ("/preupload/", net.changed_json(lambda _: {"files": 7}), 13, ""),
    "nonsense for an upload": ("/info/lfs/", net.changed_json(lambda _: {"objects": "all"}), 13, "Malformed"),
    "an endless answer to a new repository": ("/repos/create", net.endless, 13, "more than"),
    "an endless repository": ("/api/models/", of_the_repository(net.endless), 13, "more than"),
    "an endless preupload": ("/preupload/", net.endless, 13, "more than"),
    "an endless answer to an upload": ("/info/lfs/", net.endless, 13, "more than"),
    "an endless answer to a commit": ("/commit/", net.endless, 13, "more than"),
    "an endless answer to a tag": ("/tag/", net.endless, 13, "more than"),
    "an endless error for a commit": ("/commit/", net.endless_error, 13, "500"),
    "an endless way elsewhere": ("/preupload/", endless_redirect, 13, ""),
    "a packed bomb for a repository": ("/api/models/", of_the_repository(net.bomb), 13, "compressed"),
    "a packed bomb for an upload": ("/info/lfs/", net.bomb, 13, "compressed"),
    "a packed bomb as an error": ("/commit/", packed_error, 13, "500"),
}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client
@pytest.mark.parametrize("fault", PUSHES)
def test_a_push_into_a_fault_is_one_line_and_the_next_push_ends_it(fault, home, proxy, server, monkeypatch, tmp_path):
    from types import SimpleNamespace

    import huggingface_hub.utils
    import huggingface_hub.utils._http as theirs

    huggingface_hub.utils.disable_progress_bars()  # as for a program whose stderr is no terminal
    monkeypatch.setattr(theirs, "time", SimpleNamespace(sleep=lambda _: None, time=theirs.time.time))
    part, what, codes, word = PUSHES[fault]
    repo = f"t{zlib.crc32(fault.encode())}/poem"
    make_base(tmp_path / "base", width=512)
    make_adapter(tmp_path / "made", width=512, rank=4)
    home.ok("base", "add", "base", "--as", "b")
    home.ok("add", "made", "--name", "poem", "--base", "b")
    monkeypatch.setenv("ADAPTERHUB_TOKEN", server.token)
    push = ("push", "poem", "--to", repo, "--remote")
    proxy.faults[part] = what
    lose_patience(monkeypatch, fault)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    done = home(*push, proxy.url)
    took = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    told = refused(done, *([codes] if isinstance(codes, int) else codes))
    proxy.faults.clear()
    monkeypatch.setenv("ADAPTERHUB_TIMEOUT_S", PATIENT_S)
    shown = home("install", repo, "--remote", server.url, "--root", tmp_path / "other")
    again = home(*push, proxy.url)
    home.ok("install", repo, "--remote", server.url, "--root", tmp_path / "third")

    assert word in told
    assert proxy.sent_bytes < 100 << 20
    assert took < 150_000, "kB of memory"
    assert server.token not in done.stderr
    assert shown.exit_code == 10 or "tag" in fault
    assert again.exit_code == 0, again.stderr


# ---------------------------------------------------------------- search of a server without our index
def test_a_search_by_tags_finds_what_is_there(home, proxy, monkeypatch):
    monkeypatch.setattr(Hub, "features", frozenset())

    [found] = home.json("search", "poem", "--remote", proxy.url, "--rank", "8-")
    none = home.json("search", "poem", "--remote", proxy.url, "--rank", "-2")

    assert (found["repository"], found["name"], found["rank"]) == (BUILT, "poem", 64)
    assert none == []
    [asked] = {r.path for r in proxy.seen}
    assert "filter=peft&sort=lastModified&" in asked


SEARCHES: dict[str, tuple[net.Fault, str]] = {
    "endless": (net.endless, "more than"),
    "one byte at a time": (net.slow, "bytes came in"),
    "a packed bomb": (net.bomb, "compressed"),
    "an endless error": (net.endless_error, "500"),
    "of another kind": (net.changed_json(lambda _: {"models": 7}), "no list"),
    "of things that are no repositories": (net.changed_json(lambda _: [{"tags": []}]), "no list"),
    "of tags that are none": (net.changed_json(lambda _: [{"id": "a/b", "tags": 7}]), ""),
}


@pytest.mark.parametrize("fault", SEARCHES)
def test_a_search_that_is_answered_with_nonsense_is_refused_in_one_line(fault, home, proxy, monkeypatch):
    monkeypatch.setattr(Hub, "features", frozenset())
    proxy.faults["/api/models?"], word = SEARCHES[fault]
    lose_patience(monkeypatch, fault)

    done = home("search", "poem", "--remote", proxy.url)

    assert proxy.sent_bytes < 100 << 20
    if word:
        assert word in refused(done, 13)
    else:
        assert done.exit_code == 0


# ---------------------------------------------------------------- bases
BASE_REPO, BASE_WEIGHTS = "acme/base", "model.safetensors"


@pytest.fixture(scope="module")
def with_base(server: Running, tmp_path_factory: pytest.TempPathFactory) -> int:
    """A base on the server; how many bytes its weights have."""
    from huggingface_hub import HfApi

    folder = make_base(tmp_path_factory.mktemp("models") / "base", width=256)
    api = HfApi(endpoint=server.url, token=server.token)
    api.create_repo(BASE_REPO)
    api.upload_folder(repo_id=BASE_REPO, folder_path=folder)
    return (folder / BASE_WEIGHTS).stat().st_size


@pytest.fixture
def add_base(home: Adapt, proxy: net.Proxy, with_base: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`adapt base add` of a base whose weights are larger than any words may be."""
    import huggingface_hub.utils

    huggingface_hub.utils.disable_progress_bars()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home.folder / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("adapterhub.distribution.http.wire.MAX_SMALL_BYTES", 64 << 10)
    assert with_base > 64 << 10
    return lambda: home("base", "add", BASE_REPO, "--as", "b", "--remote", proxy.url)


def test_the_files_of_a_base_come_whole_whatever_leads_to_them(add_base, home, proxy, server):
    with net.faulty(server.url) as store:
        proxy.faults[BASE_WEIGHTS] = lambda r, a: [net.redirect(store.url + r.path)(r, a)[0]]  # type: ignore[index]
        done = add_base()
        assert done.exit_code == 0, done.stderr
        assert [r.method for r in store.seen] == ["GET"]
    home.ok("base", "remove", "b")
    shutil.rmtree(home.folder / "hub")
    proxy.faults[BASE_WEIGHTS] = lambda r, a: [a.head(content_length=None), a.body] if r.method == "GET" else [a.head()]

    done = add_base()

    assert done.exit_code == 0, done.stderr


def longer(request: net.Request, answer: net.Answer) -> Any:
    """More than was announced, and said so."""
    body = answer.body * 3 if request.method == "GET" else answer.body
    head = {} if request.method == "HEAD" else {"content_length": len(body)}
    return [answer.head(**head), body]


BASES: dict[str, tuple[str, net.Fault, str]] = {
    "an endless listing": ("/api/models/", net.endless, "more than"),
    "a packed bomb as a listing": ("/api/models/", net.bomb, "compressed"),
    "endless weights": (BASE_WEIGHTS, lambda r, a: net.endless(r, a) if r.method == "GET" else [a.head()], "more than"),
    "weights longer than announced": (BASE_WEIGHTS, longer, "more than"),
    "weights as a packed bomb": (
        BASE_WEIGHTS,
        lambda r, a: net.bomb(r, a) if r.method == "GET" else [a.head()],
        "compressed",
    ),
}


@pytest.mark.parametrize("fault", BASES)
def test_a_base_with_more_than_was_announced_is_refused_in_one_line_and_comes_afterwards(fault, add_base, home, proxy):
    part, proxy.faults[part], word = BASES[fault][0], *BASES[fault][1:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    done = add_base()

    assert word in refused(done, 13)
    assert proxy.sent_bytes < 100 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000, "kB of memory"
    assert home.library.bases.list() == ()
    proxy.faults.clear()
    done = add_base()
    assert done.exit_code == 0, done.stderr

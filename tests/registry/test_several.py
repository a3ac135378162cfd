"""Several installs in one command from a server, and a push that keeps the weights where they are."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request as Question
from urllib.request import urlopen

import pytest

from adapterhub.distribution.hub import Hub
from adapterhub.formats.release import Release
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy, together
from tests.registry.proxy import Proxy, Request
from tests.registry.running import Running
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter

numbers = count(1)
NAMES = ("one", "two", "three")
PATIENCE_S = 30.0


@pytest.fixture
def team(online: None, server: Running, library: Library, add: Callable[..., Added]) -> str:
    """A namespace on the shared server with three adapters."""
    namespace = f"several{next(numbers)}"
    hub = Hub(endpoint=server.url, token=server.token)
    for seed, name in enumerate(NAMES):
        release = Release(manifest=add(name, seed=seed).build.manifest, namespace=None, origin="home")
        copy(release, library, hub.to(f"{namespace}/{name}"))
    return namespace


@pytest.fixture
def far(tmp_path: Path) -> Adapt:
    return Adapt(tmp_path, home="far")


def weights_of(request: Request, *names: str) -> bool:
    return request.path.endswith(".safetensors") and any(f"/{name}/" in request.path for name in names)


def test_several_are_fetched_at_the_same_time_and_reported_in_order(proxy, far, team):
    both = threading.Barrier(2)

    def meet(request: Request) -> None:  # the answer to one waits for the request of the other
        if weights_of(request, "one", "three"):
            both.wait(PATIENCE_S)

    proxy.fault = meet
    names = [f"{team}/{name}" for name in NAMES]
    documents = far.json("install", *names, "--remote", proxy.url)
    again = far.json("install", *names, names[0], "--remote", proxy.url)

    assert [one["name"] for one in documents] == names
    assert [one["present"] for one in documents] == [False] * 3
    assert [one["present"] for one in again] == [True] * 4
    assert {one.full_name for one in far.library.installed()} == set(names)


def test_nothing_is_fetched_where_one_of_several_is_not_there(proxy, far, team):
    said = far.fails(10, "install", f"{team}/one", f"{team}/none", f"{team}/two", "--remote", proxy.url)

    assert f"{team}/none" in said
    assert [request for request in proxy.seen if weights_of(request, *NAMES)] == []
    assert list(far.library.installed()) == []


def test_the_first_refusal_in_order_is_told_and_what_arrived_is_kept(proxy, far, team, monkeypatch):
    monkeypatch.setattr("adapterhub.distribution.http.stream.PAUSES_S", (0.0,))
    proxy.fault = lambda request: "drop" if weights_of(request, "two", "three") else None
    names = [f"{team}/{name}" for name in NAMES]

    said = far.fails(13, "install", *names, "--remote", proxy.url)
    proxy.fault = lambda _request: None
    documents = far.json("install", *names, "--remote", proxy.url)

    assert f"{team}/two" in said
    assert f"{team}/three" not in said
    assert [one["present"] for one in documents] == [True, False, False]


def test_an_interrupt_ends_what_is_under_way_and_begins_no_more():
    begun, ended, late = [], [], time.monotonic() + PATIENCE_S

    def work(item: int, progress: Callable[[int], None]) -> int:
        begun.append(item)
        try:
            while item and time.monotonic() < late:
                progress(1)
        except KeyboardInterrupt:
            ended.append(item)
            raise
        return item

    answers = together(range(100), work, at_once=2)
    first = next(answers)
    answers.close()

    assert first == 0
    assert ended
    assert sorted(ended) == sorted(begun)[1:]
    assert len(begun) < 100


@pytest.mark.usefixtures("online")
def test_a_push_writes_no_second_copy_of_the_weights(
    server: Running, proxy: Proxy, library, add, tmp_path, monkeypatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    added = add("wide", known=False, width=65_536, rank=4)
    sizes: list[int] = []
    proxy.fault = lambda _request: sizes.extend(p.stat().st_size for p in temporary.rglob("*") if p.is_file())
    release = Release(manifest=added.build.manifest, namespace=None, origin="home")

    copy(release, library, Hub(endpoint=proxy.url, token=server.token).to(f"several{next(numbers)}/wide"))

    assert added.build.manifest.size_bytes > 2_000_000
    assert sizes
    assert max(sizes) < 100_000


# ---------------------------------------------------------------- answers ahead
@pytest.fixture
def plain(online: None, server: Running, tmp_path: Path) -> list[str]:
    """Repositories of other tools on the shared server: no manifest, no version."""
    api = server.api
    names = [f"several{next(numbers)}/plain-{n}" for n in range(2)]
    for seed, name in enumerate(names):
        api.create_repo(name)
        weights = make_adapter(tmp_path / f"plain-{seed}", seed=len(NAMES) + seed)  # others than those of `team`
        api.upload_folder(repo_id=name, folder_path=weights)
    return names


def test_what_several_need_comes_in_one_request_and_only_weights_after_it(proxy, far, team, plain):
    names = [*(f"{team}/{name}" for name in NAMES), *plain]

    far.json("install", *names, "--remote", proxy.url)

    asked = sorted(request.path.partition("?")[0] for request in proxy.seen)
    weights = [path for path in asked if path.endswith(".safetensors")]
    assert len(weights) == len(names)
    assert sorted(set(asked) - set(weights)) == ["/api/adapt/v1/ahead", "/api/adapt/v1/info"]


def test_the_same_arrives_where_the_server_answers_nothing_ahead(proxy, far, team, plain, tmp_path):
    names = [*(f"{team}/{name}" for name in NAMES), *plain]
    ahead = far.json("install", *names, "--remote", proxy.url)
    proxy.fault = lambda request: "drop" if "/ahead" in request.path else None

    usual = Adapt(tmp_path, home="third").json("install", *names, "--remote", proxy.url)

    facts = ("name", "version", "digest", "namespace", "rank", "task")
    assert [[one.get(fact) for fact in facts] for one in usual] == [[one.get(fact) for fact in facts] for one in ahead]


def test_an_answer_ahead_is_checked_like_any_other(proxy, far, team):
    def bend(body: bytes) -> bytes:
        answers = json.loads(body)
        for one in answers["answers"]:
            if one["path"].endswith("adapter_config.json"):
                one["body"] = base64.b64encode(base64.b64decode(one["body"]).replace(b'"r"', b'"s"')).decode()
        return json.dumps(answers, separators=(",", ":")).encode()

    proxy.fault = lambda request: bend if "/ahead" in request.path else None

    far.fails(12, "install", *(f"{team}/{name}" for name in NAMES), "--remote", proxy.url)

    assert list(far.library.installed()) == []


def test_answers_ahead_show_nothing_that_the_caller_may_not_read(server, team, plain):
    api = server.api
    api.update_repo_settings(f"{team}/one", private=True)
    api.update_repo_settings(plain[0], gated="auto")
    hidden, gated, open_ = f"{team}/one", plain[0], plain[1]

    def told(token: str | None) -> dict[str, str | None]:
        query = urlencode({"adapter": [hidden, gated, open_, f"{team}/never"]}, doseq=True)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with urlopen(Question(f"{server.url}/api/adapt/v1/ahead?{query}", headers=headers)) as answer:
            return {one["path"]: one["error"] for one in json.load(answer)["answers"]}

    stranger, owner = told(None), told(server.token)

    assert {path: error for path, error in stranger.items() if f"/{hidden}/" in path} == {
        path.replace("never", "one"): error for path, error in stranger.items() if "/never/" in path
    }
    assert not [path for path in stranger if path.startswith(f"{gated}/resolve/")]
    assert [path for path in stranger if path.startswith(f"{open_}/resolve/")]
    assert all([path for path in owner if path.startswith(f"{name}/resolve/")] for name in (hidden, gated, open_))


def requests_of(proxy: Proxy) -> list[str]:
    """The paths that were asked for, without the weights; the list begins anew."""
    paths = [request.path.partition("?")[0] for request in proxy.seen]
    proxy.seen.clear()
    return sorted(path for path in paths if not path.endswith(".safetensors"))


def test_a_project_is_locked_and_synced_with_one_request_each_for_all_that_it_needs(proxy, far, team, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    wanted = "".join(f'{name} = "{team}/{name}"\n' for name in NAMES)
    remote = f'[remotes.team]\nurl = "{proxy.url}"\nnamespaces = ["{team}"]\n'
    (project / "adapters.toml").write_text(f"{remote}\n[adapters]\n{wanted}")

    far = far.having(ADAPTERHUB_TRUST_PROJECT="1")
    far.ok("lock", "--project", "project")
    locking = requests_of(proxy)
    far.ok("sync", "--project", "project", "--frozen")

    assert locking == ["/api/adapt/v1/ahead", "/api/adapt/v1/info"]
    assert requests_of(proxy) == ["/api/adapt/v1/ahead", "/api/adapt/v1/info"]

"""The client end against the real registry on loopback: two homes, one server between them, and things that break."""

from __future__ import annotations

import io
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.errors import (
    AdapterNotFound,
    DigestMismatch,
    NoCompatibleRelease,
    NotAllowed,
    ReleaseExists,
    RemoteUnreachable,
)
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.hub import Hub, Search
from adapterhub.distribution.install import plan_install, run_install
from adapterhub.formats.release import Release
from adapterhub.library.bases.requested import requested_base
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.registry.proxy import Proxy, Request, flip_a_byte, proxy_of
from tests.registry.running import Running
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

ROOT = Path(__file__).resolve().parent.parent.parent
numbers = count(1)


@pytest.fixture(autouse=True)
def _without_pauses(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub.distribution.http.stream.PAUSES_S", (0.0, 0.0, 0.0))


@pytest.fixture
def team() -> str:
    """A namespace of this test's own on the shared server."""
    return f"team{next(numbers)}"


@pytest.fixture
def far(tmp_path: Path, base: Any) -> Library:
    """Another home, which knows the same base by another name."""
    library = Library(tmp_path / "far")
    library.catalog.put_base(library.bases.add(tmp_path / "base", "their-base"))
    return library


def hub_of(place: Running | Proxy, token: str | None = None) -> Hub:
    return Hub(endpoint=place.url, token=token)


def push(library: Library, added: Added, hub: Hub, repo: str, **options: Any) -> Any:
    release = Release(manifest=added.build.manifest, namespace=None, origin="home")
    return copy(release, library, hub.to(repo, **options))


def install(library: Library, text: str, source: Any) -> Added | None:
    spec = AdapterSpec.parse(text)
    return run_install(library, plan_install(library, spec, [source], wanted=requested_base(spec.base, library.bases)))


def stored(library: Library) -> list[Path]:
    return [p for d in ("blobs", "manifests", "adapters") for p in (library.root / d).rglob("*") if p.is_file()]


# ---------------------------------------------------------------- round trip
def test_what_one_home_pushes_the_other_finds_and_installs_byte_for_byte(server, library, far, add, base, team):
    build = add("legal-qa", task="legal", rank=4).build
    add("legal-qa", task="legal", rank=16, version="2.0.0")
    push(library, add("other", task="legal", rank=16), hub_of(server, server.token), f"{team}/other")
    hub = hub_of(server, server.token)
    copy(Release(manifest=build.manifest, namespace=None, origin="x"), library, hub.to(f"{team}/legal-qa"))

    found = hub_of(server).search(
        Search(base_weights=base.fingerprint.weights, ranks=RankRange(high=8), task="legal", text=team)
    )
    added = install(far, f"{team}/legal-qa@their-base", hub_of(server))

    assert [(f.repo, f.rank, f.version, f.digest) for f in found] == [
        (f"{team}/legal-qa", 4, "1.0.0", build.manifest.digest)
    ]
    assert added.build.manifest.digest == build.manifest.digest
    assert {e.path: (added.build.folder / e.path).read_bytes() for e in build.manifest.files} == {
        e.path: (build.folder / e.path).read_bytes() for e in build.manifest.files
    }
    assert far.verify_build(added.build).status == "ok"


def test_tags_alone_find_the_same_on_a_hub_without_our_index(server, library, add, base, team, monkeypatch):
    for rank in (4, 16):
        push(library, add(f"qa-r{rank}", rank=rank, task=team), hub_of(server, server.token), f"{team}/qa-r{rank}")
    hub = hub_of(server)
    monkeypatch.setattr(Hub, "features", frozenset())

    by_weights = hub.search(Search(base_weights=base.fingerprint.weights, task=team))
    by_rank = hub.search(Search(base_weights=base.fingerprint.weights, task=team, ranks=RankRange(low=5, high=20)))

    assert {f.repo for f in by_weights} == {f"{team}/qa-r4", f"{team}/qa-r16"}
    assert [(f.repo, f.rank, f.name) for f in by_rank] == [(f"{team}/qa-r16", 16, "qa-r16")]


def test_pushing_the_same_again_sends_nothing_and_makes_no_commit(server, library, add, team):
    added, repo = add("legal-qa"), f"{team}/legal-qa"
    push(library, added, hub_of(server, server.token), repo)
    before = [c.commit_id for c in server.api.list_repo_commits(repo)]

    again = push(library, added, hub_of(server, server.token), repo)

    assert (again.sent_files, again.sent_bytes) == (0, 0)
    assert [c.commit_id for c in server.api.list_repo_commits(repo)] == before


def test_a_version_with_other_bytes_is_refused(server, library, add, tmp_path, team):
    push(library, add("legal-qa", seed=1), hub_of(server, server.token), f"{team}/legal-qa")
    other = Library(tmp_path / "third")

    with pytest.raises(ReleaseExists):
        push(other, add("legal-qa", seed=2, into=other), hub_of(server, server.token), f"{team}/legal-qa")

    assert [t.name for t in server.api.list_repo_refs(f"{team}/legal-qa").tags] == ["v1.0.0"]


def test_a_tag_holds_the_files_of_its_build_and_none_of_an_earlier_one(server, library, add, base, tmp_path, team):
    from adapterhub.core.specs import parse_name
    from adapterhub.library.intake.description import Description

    folder = make_adapter(tmp_path / "licensed")
    (folder / "LICENSE").write_text("free")
    first = library.add(folder, Description(name=parse_name("legal-qa"), version="1.0.0"), base=base)
    push(library, first, hub_of(server, server.token), f"{team}/legal-qa")
    push(library, add("legal-qa", version="1.1.0", seed=5), hub_of(server, server.token), f"{team}/legal-qa")

    files = {tag: set(server.api.list_repo_files(f"{team}/legal-qa", revision=tag)) for tag in ("v1.0.0", "v1.1.0")}

    assert files["v1.0.0"] - files["v1.1.0"] == {"LICENSE"}


# ---------------------------------------------------------------- pushes that are cut
STEPS = {
    "repository": ("POST", "/api/repos/create"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/info/lfs/objects/batch"),
    "bytes": ("PUT", ""),
    "commit": ("POST", "/commit/main"),
    "tag": ("POST", "/tag/"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("is_answered", [False, True], ids=["before", "after"])
def test_a_push_cut_anywhere_shows_no_version_and_can_be_run_again(  # noqa: PLR0913, PLR0917 - what it is about
    server, proxy, library, far, add, team, step, is_answered, monkeypatch
):
    monkeypatch.setattr("time.sleep", lambda _s: None)  # the hub client waits long between its tries
    method, part = STEPS[step]
    # bytes that the server has not seen, or it would not ask for them
    added, repo = add("legal-qa", seed=100 + next(numbers)), f"{team}/legal-qa"
    # before: the request is lost; after: the server did it, and its answer is lost
    fault = "lose" if is_answered else "drop"
    proxy.fault = lambda r: fault if r.method == method and part in r.path else None

    with pytest.raises(RemoteUnreachable):
        push(library, added, hub_of(proxy, server.token), repo)
    if not (step == "tag" and is_answered):
        with pytest.raises(AdapterNotFound):
            install(far, f"{repo}@their-base", hub_of(server))
    proxy.fault = lambda _r: None
    push(library, added, hub_of(proxy, server.token), repo)

    assert install(far, f"{repo}@their-base", hub_of(server)).build.manifest.digest == added.build.manifest.digest
    commits = [c.title for c in server.api.list_repo_commits(repo)]
    assert commits.count("legal-qa 1.0.0") == 1


# ---------------------------------------------------------------- plain repositories
def upload_plain(server: Running, repo: str, folder: Path, tag: str | None = None) -> None:
    api = server.api
    api.create_repo(repo)
    api.upload_folder(repo_id=repo, folder_path=folder)
    if tag:
        api.create_tag(repo, tag=tag)


def test_an_install_counts_as_one_download(server, library, far, add, team):
    repo = f"{team}/counted"
    push(library, add("counted"), hub_of(server, server.token), repo)

    def downloads() -> int:
        server.registry.downloads.flush()
        return int(server.get(f"/api/models/{repo}").json()["downloads"])

    assert downloads() == 0
    install(far, f"{team}/counted", hub_of(server).within(team))
    assert downloads() == 1


def test_a_plain_peft_repository_installs_without_a_manifest(server, proxy, far, base, tmp_path, team):
    folder = make_adapter(tmp_path / "plain", rank=8)
    upload_plain(server, f"{team}/summarize", folder)
    commit = server.api.model_info(f"{team}/summarize").sha

    added = install(far, f"{team}/summarize@their-base", hub_of(proxy))

    manifest = added.build.manifest
    assert (manifest.version, manifest.rank, manifest.base.fingerprint) == (f"0+{commit[:12]}", 8, None)
    weights = "adapter_model.safetensors"
    assert (added.build.folder / weights).read_bytes() == (folder / weights).read_bytes()


def test_a_plain_repository_with_a_tag_has_its_version(server, far, base, tmp_path, team):
    upload_plain(server, f"{team}/summarize", make_adapter(tmp_path / "plain"), tag="v1.5")

    assert install(far, f"{team}/summarize@their-base", hub_of(server)).build.manifest.version == "1.5"


# ---------------------------------------------------------------- refusals
def test_a_private_repository_is_not_found_without_a_token(server, library, far, add, team):
    push(library, add("secret"), hub_of(server, server.token), f"{team}/secret", private=True)

    with pytest.raises(AdapterNotFound) as refusal:
        install(far, f"{team}/secret@their-base", hub_of(server))

    assert "\n" not in refusal.value.message
    assert install(far, f"{team}/secret@their-base", hub_of(server, server.token)).created


def test_private_never_publishes_to_a_repository_that_is_public(server, library, add, team):
    server.api.create_repo(f"{team}/open")

    with pytest.raises(NotAllowed, match="public"):
        push(library, add("open"), hub_of(server, server.token), f"{team}/open", private=True)

    assert server.api.list_repo_refs(f"{team}/open").tags == []


def test_a_token_without_the_right_is_refused_in_one_line(server, library, add, team):
    reader = server.registry.tokens.create("bob", "read")

    with pytest.raises(NotAllowed) as refusal:
        push(library, add("legal-qa"), hub_of(server, reader), f"{team}/legal-qa")

    assert "\n" not in refusal.value.message


def test_the_token_stays_with_its_server(server, proxy, library, far, add, team):
    push(library, add("legal-qa"), hub_of(server, server.token), f"{team}/legal-qa")
    with proxy_of(server.url) as stranger:
        # weights lie on another host, as a hub keeps them in a bucket
        proxy.fault = lambda r: ("redirect", stranger.url + r.path) if r.path.endswith(".safetensors") else None

        install(far, f"{team}/legal-qa@their-base", hub_of(proxy, server.token))

        assert {r.headers.get("authorization") for r in proxy.seen} == {f"Bearer {server.token}"}
        assert [r.path for r in stranger.seen] == proxy.paths(".safetensors")
        assert all(server.token not in str(r.headers) for r in stranger.seen)


# ---------------------------------------------------------------- bytes that are wrong or missing
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "adapterhub.json"])
def test_wrong_bytes_of_the_right_length_are_refused_and_nothing_is_stored(
    server, proxy, library, far, add, team, name
):
    push(library, add("legal-qa"), hub_of(server, server.token), f"{team}/legal-qa")
    proxy.fault = lambda r: flip_a_byte if r.path.endswith(name) else None

    with pytest.raises(DigestMismatch):
        install(far, f"{team}/legal-qa@their-base", hub_of(proxy))

    assert stored(far) == []


def test_wrong_bytes_of_a_plain_repository_are_refused(server, proxy, far, base, tmp_path, team):
    upload_plain(server, f"{team}/summarize", make_adapter(tmp_path / "plain"))
    # the header's request names an end; the one for the whole file does not
    proxy.fault = lambda r: flip_a_byte if r.path.endswith(".safetensors") and "range" not in r.headers else None

    with pytest.raises(DigestMismatch):
        install(far, f"{team}/summarize@their-base", hub_of(proxy))

    assert stored(far) == []


@pytest.fixture
def large(add) -> Added:
    """An adapter of 17 MB, for a base that nobody here knows."""
    return add("large", known=False, width=1024, rank=512)


def test_a_cut_connection_is_taken_up_where_it_ended(server, proxy, library, far, large, team):
    push(library, large, hub_of(server, server.token), f"{team}/large")
    cuts = iter([("cut", 6_000_000), ("cut", 2_000_000)])
    proxy.fault = lambda r: next(cuts, None) if r.path.endswith(".safetensors") else None

    added = install(far, f"{team}/large", hub_of(proxy))

    assert added.build.manifest.digest == large.build.manifest.digest
    asked = [r.headers.get("range") for r in proxy.seen if r.path.endswith(".safetensors")]
    assert asked == [None, "bytes=6000000-", "bytes=8000000-"]


def test_a_connection_that_stays_broken_is_refused_and_the_next_run_goes_on(server, proxy, library, far, large, team):
    push(library, large, hub_of(server, server.token), f"{team}/large")
    state: dict[str, Any] = {"cut": ("cut", 6_000_000)}

    def fault(request: Request) -> Any:
        if not request.path.endswith(".safetensors"):
            return None
        return state.pop("cut", "drop")

    proxy.fault = fault
    with pytest.raises(RemoteUnreachable, match="6,000,000 of"):
        install(far, f"{team}/large", hub_of(proxy))
    assert stored(far) == []
    proxy.fault = lambda _r: None
    proxy.seen.clear()

    added = install(far, f"{team}/large", hub_of(proxy))

    assert added.build.manifest.digest == large.build.manifest.digest
    assert [r.headers["range"] for r in proxy.seen if r.path.endswith(".safetensors")] == ["bytes=6000000-"]


# ---------------------------------------------------------------- yanked
def test_a_yanked_version_is_passed_over_and_installs_when_pinned(server, library, far, add, team):
    for number, version in enumerate(("1.0.0", "1.1.0")):
        push(library, add("qa", version=version, seed=number), hub_of(server, server.token), f"{team}/qa")
    server.yank(f"{team}/qa", "leaked labels", "1.1.0")

    with pytest.raises(NoCompatibleRelease, match="yanked: leaked labels"):
        install(far, f"{team}/qa@their-base>=1.1", hub_of(server))
    newest = install(far, f"{team}/qa@their-base", hub_of(server))
    pinned = install(far, f"{team}/qa@their-base==1.1.0", hub_of(server))

    assert [b.build.manifest.version for b in (newest, pinned)] == ["1.0.0", "1.1.0"]


# ---------------------------------------------------------------- what is not fetched
def test_contents_are_read_without_the_weights(server, proxy, library, large, team):
    push(library, large, hub_of(server, server.token), f"{team}/large")
    hub = hub_of(proxy)
    [release] = hub.releases(AdapterSpec.parse(f"{team}/large"))

    contents = hub.contents(release)

    assert sum(t.elements for t in contents.weights.tensors) == large.build.manifest.parameters
    assert contents.config.r == 512
    assert hub.received_bytes < 100_000 < large.build.manifest.size_bytes


# ---------------------------------------------------------------- the command line
@pytest.fixture
def homes(tmp_path, online) -> tuple[Adapt, Adapt]:
    make_base(tmp_path / "models" / "base-7b")
    make_adapter(tmp_path / "out" / "legal-qa", seed=1)
    pair = Adapt(tmp_path, "ann"), Adapt(tmp_path, "bob")
    for home in pair:
        home.ok("base", "add", "./models/base-7b", "--as", "base-7b")
    return pair


@pytest.mark.slow
def test_the_whole_way_by_hand(server, homes, team, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{server.token}\n"))
    ann, bob = homes
    ann.json("add", "out/legal-qa", "--name", "legal-qa", "--base", "base-7b", "--task", "legal-qa")
    ann.json("remote", "add", "ours", server.url, "--namespaces", team)
    who = ann.json("remote", "login", "ours")
    pushed = ann.json("push", "legal-qa@base-7b", "--to", f"{team}/legal-qa-base-7b")
    again = ann.json("push", "legal-qa@base-7b", "--to", f"{team}/legal-qa-base-7b")
    bob.json("remote", "add", "ours", server.url, "--namespaces", team)
    [found] = bob.json("search", team, "--remote", "ours", "--base", "base-7b", "--rank", "4")
    looked = bob.json("info", "legal-qa@base-7b")
    [installed] = bob.json("install", "legal-qa@base-7b")
    pulled = bob.json("pull", f"{team}/legal-qa@base-7b", "./plain", "--remote", "ours")

    assert (who["who"], (tmp_path / "ann" / "credentials.json").stat().st_mode & 0o777) == ("signed in as ann", 0o600)
    assert (pushed["created"], again["created"]) == (True, False)
    assert (found["repository"], found["fits"], found["base"]) == (f"{team}/legal-qa-base-7b", "by weights", "base-7b")
    assert pushed["digest"] == looked["digest"] == installed["digest"] == pulled["digest"]
    assert installed["name"] == f"{team}/legal-qa"
    assert looked["received_bytes"] < 20_000
    assert (bob("verify", "legal-qa").exit_code, bob("verify", "./plain", "--base", "base-7b").exit_code) == (0, 0)
    assert {p.name for p in (tmp_path / "plain").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "adapterhub.json"
    }  # fmt: skip


@pytest.mark.slow
def test_refusals_are_one_plain_line_with_their_exit_code(server, homes, team, monkeypatch):
    _, bob = homes
    bob.json("remote", "add", "ours", server.url, "--namespaces", team)

    assert "library" in bob.fails(10, "install", "legal-qa@base-7b", "--offline")
    assert f"`{team}`" in bob.fails(10, "install", "legal-qa@base-7b")
    assert "offline" in bob.fails(13, "info", f"{team}/legal-qa", "--offline")
    assert "nowhere" in bob.fails(10, "info", f"{team}/legal-qa", "--remote", "nowhere")
    assert "refuses this token" in bob.fails(14, "remote", "login", "ours", "--token", "adp_wrong")
    assert bob.json("remote", "list")[0]["token"] is False
    assert "could not be reached" in bob.fails(13, "info", "a/b", "--remote", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in bob.fails(13, "install", f"{team}/legal-qa@base-7b")


@pytest.mark.slow
def test_each_token_goes_to_the_server_it_is_for(server, homes, team, tmp_path):
    _, bob = homes
    with proxy_of(server.url) as ours, proxy_of(server.url) as theirs:
        bob.json("remote", "add", "ours", ours.url, "--namespaces", team)
        bob.json("remote", "add", "theirs", theirs.url, "--namespaces", f"{team}-b", "--default")
        bob.json("remote", "login", "ours", "--token", server.token)
        environ = {"ADAPTERHUB_TOKEN": "environment", "HF_TOKEN": "public-hub"}

        bob.having(**environ).fails(14, "install", "nothing@base-7b")  # the second does not know that token

        assert {r.headers.get("authorization") for r in ours.seen} == {f"Bearer {server.token}"}
        assert {r.headers.get("authorization") for r in theirs.seen} == {"Bearer environment"}

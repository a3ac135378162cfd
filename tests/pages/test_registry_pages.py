"""What the pages of a registry say, and that the API's answers stay: by HTTP alone."""

from __future__ import annotations

import gc
import json
import re
import shlex
from xml.etree import ElementTree as ET

import httpx
import pytest
from adapterhub_registry.operations.server import warm_up

from adapterhub.core.errors import UsageProblem
from adapterhub.distribution.hub import Hub, Search
from adapterhub.pages import rendering
from tests.pages.conftest import World
from tests.support.command_line import Adapt

HTML = {"Accept": "text/html,application/xhtml+xml"}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/?q=legal",
        "/sign-in",
        "/acme/legal-qa",
        "/acme/legal-qa/tree/main",
        "/acme/legal-qa/blob/main/adapter_config.json",
        "/acme/legal-qa/commit/main",
    ],
)
def test_each_page_has_a_json_twin_and_loads_nothing_from_elsewhere(world, path):
    page = world.get(path, headers=HTML)
    join = "&" if "?" in path else "?"
    twin = world.get(f"{path}{join}format=json")

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert (twin.status_code, twin.headers["content-type"]) == (200, "application/json")
    assert isinstance(twin.json(), dict)
    assert page.headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "'unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"


def found(world: World, query: str, **options: object) -> list[str]:
    answer = world.get(f"/?{query}&format=json", **options)
    assert answer.status_code == 200, answer.text
    return sorted(line["repo"] for line in answer.json()["adapters"])


def test_the_address_that_a_push_prints_shows_the_commit(world):
    first, second = world.commits
    twin = world.get(f"/acme/legal-qa/commit/{second}?format=json&before={first}").json()
    values = {f["path"]: {c["key"]: (c["before"], c["after"]) for c in f["changes"]} for f in twin["files"]}

    assert twin["id"] == second
    assert values["adapter_config.json"]["r"] == ("4", "8")
    assert values["README.md"] == {}
    assert twin["versions"] == ["1.1.0"]


@pytest.mark.parametrize(
    ("query", "repos"),
    [
        ("", ["acme/legal-qa", "acme/signed"]),
        ("q=LEGAL", ["acme/legal-qa"]),
        ("q=egal+a", ["acme/legal-qa"]),
        ("q=qa", ["acme/legal-qa"]),
        ("q=%22egal", []),
        ("q=legal+signed", ["acme/legal-qa", "acme/signed"]),
        ("q=legal+signed&sort=newest", []),
        ("base={base}", ["acme/legal-qa", "acme/signed"]),
        ("base=sha256:{base}", ["acme/legal-qa", "acme/signed"]),
        ("base=0123456789abcdef", []),
        ("base=test/tiny&rank=8-", ["acme/legal-qa"]),
        ("base={base}&task=legal", ["acme/legal-qa"]),
        ("base={base}&task=legal&sort=downloads", ["acme/legal-qa"]),
        ("base={base}&task=legal&license=gpl-3.0&sort=changed", []),
        ("q=legal+qa&task=legal&sort=changed", ["acme/legal-qa"]),
        ("rank=1-7", ["acme/signed"]),
        ("task=legal", ["acme/legal-qa"]),
        ("license=mit", ["acme/legal-qa", "acme/signed"]),
        ("license=gpl-3.0", []),
        ("method=LORA", ["acme/legal-qa", "acme/signed"]),
        ("method=LOHA", []),
        ("signed=yes", ["acme/signed"]),
        ("signed=no", ["acme/legal-qa"]),
        ("yanked=yes", ["acme/legal-qa"]),
        ("yanked=no", ["acme/signed"]),
        ("contract=no&sort=downloads", ["acme/legal-qa"]),
        ("contract=yes", ["acme/signed"]),
        ("tested=passed", []),
    ],
)
def test_each_facet_finds_what_it_names(world, query, repos, monkeypatch):
    asked = query.format(base=world.base_sha256)

    assert found(world, asked) == repos
    monkeypatch.setattr("adapterhub_registry.repos.search.FEW", 0)  # as where many adapters meet a condition
    assert found(world, asked) == repos


def facets(world: World, query: str) -> dict[str, dict[str, tuple[int, bool, bool]]]:
    page = world.get(f"/?{query}&format=json").json()
    return {
        facet["label"]: {one["text"]: (one["count"], one["more"], one["is_chosen"]) for one in facet["values"]}
        for facet in page["facets"]
    }


@pytest.mark.parametrize("few", [1000, 0])
def test_facets_count_each_value_under_the_other_filters(world, monkeypatch, few):
    monkeypatch.setattr("adapterhub_registry.repos.search.FEW", few)
    monkeypatch.setattr("adapterhub_registry.repos.search._PAGE", min(few, 25))
    every = facets(world, "")
    legal = facets(world, "task=legal")

    assert every["Task"] == {"legal": (1, False, False)}
    assert every["Verified"] == {"Signature attached": (1, False, False), "Contract recorded": (1, False, False)}
    assert every["Rank"] == {"1 to 8": (2, False, False)}
    assert every["Licence"] == {"mit": (2, False, False)}
    assert (legal["Task"], legal["Licence"]) == ({"legal": (1, False, True)}, {"mit": (1, False, False)})
    assert "Verified" not in legal
    assert facets(world, "task=legal&license=mit&rank=9-16")["Rank"]["1 to 8"] == (1, False, False)
    assert facets(world, "q=legal+signed")["Task"] == {"legal": (1, False, False)}  # of a list by relevance


def test_of_more_adapters_than_are_counted_a_facet_says_at_least(world, monkeypatch):
    monkeypatch.setattr("adapterhub_registry.pages.facets.MOST_COUNTED", 1)
    page = world.get("/?format=json").json()

    assert (page["total"], page["more"]) == (2, False)  # all of the public ones, which the registry keeps
    assert facets(world, "")["Licence"] == {"mit": (1, True, False)}
    assert "1+" in world.get("/", headers=HTML).text


def test_the_number_of_few_is_whole_where_their_facets_tell_of_some(world, monkeypatch):
    monkeypatch.setattr("adapterhub_registry.pages.facets.MOST_COUNTED", 1)
    page = world.get("/?license=mit&sort=downloads&format=json").json()

    assert (page["total"], page["more"]) == (2, False)
    assert facets(world, "license=mit&sort=downloads")["Method"] == {"LoRA": (1, True, False)}


@pytest.mark.parametrize(("looked_at", "counted"), [(1, 1), (100, 2)])
def test_of_many_with_words_the_newest_are_counted(world, monkeypatch, looked_at, counted):
    monkeypatch.setattr("adapterhub_registry.repos.search.FEW", 0)
    monkeypatch.setattr("adapterhub_registry.repos.search._PAGE", 0)
    monkeypatch.setattr("adapterhub_registry.pages.facets.MOST_WITH_WORDS", looked_at)
    page = world.get("/?q=acme&sort=downloads&format=json").json()

    assert (page["total"], page["more"]) == (2, True)  # as many as the page shows
    assert facets(world, "q=acme&sort=downloads")["Licence"] == {"mit": (counted, True, False)}


def test_a_private_adapter_counts_for_those_who_see_it(world):
    def licences(**options: object) -> list[int]:
        page = world.get("/?format=json", **options).json()
        return [one["count"] for facet in page["facets"] if facet["name"] == "license" for one in facet["values"]]

    assert licences() == [2]
    assert licences(headers={"Authorization": f"Bearer {world.reader}"}) == [3]


def test_each_filter_in_use_has_a_link_without_it_and_an_empty_list_says_what_that_gives(world):
    found = world.get("/?task=legal&license=mit&format=json").json()
    empty = world.get("/?q=signed&task=legal&rank=1-7&format=json").json()

    assert [(one["text"], one["url"]) for one in found["conditions"]] == [
        ("legal", "/?license=mit"),
        ("mit", "/?task=legal"),
    ]
    assert {one["text"]: (one["url"], one["count"]) for one in empty["conditions"]} == {
        "signed": ("/?task=legal&rank=1-7", 0),
        "legal": ("/?q=signed&rank=1-7", 1),
        "Rank 1-7": ("/?q=signed&task=legal", 0),
    }
    assert "No adapter matches" in world.get("/?q=signed&task=legal", headers=HTML).text


@pytest.mark.parametrize("query", ["rank=x", "rank=8-64-2", "base=sha256:zz", "cursor=x", "q=" + "+a" * 17])
def test_a_query_that_makes_no_sense_gets_a_sentence(world, query):
    answer = world.get(f"/?{query}", headers=HTML)

    assert answer.status_code in {200, 400, 404}  # a base that is no digest is a name
    assert "Traceback" not in answer.text


def test_the_list_is_read_to_its_end_page_by_page(world, monkeypatch):
    monkeypatch.setattr("adapterhub_registry.pages.search.PAGE_ROWS", 1)
    seen, url = [], "/?sort=changed"
    while url:
        twin = world.get(f"{url}{'&' if '?' in url else '?'}format=json").json()
        seen += [line["repo"] for line in twin["adapters"]]
        url = twin["next_url"]

    assert sorted(seen) == ["acme/legal-qa", "acme/signed"]


def test_a_config_finds_the_adapters_of_its_base(world):
    manifest = world.get("/acme/legal-qa/raw/main/adapterhub.json").content
    expected = {
        manifest: ("by its content", world.base_sha256),
        b'{"_name_or_path": "test/tiny"}': ("by name", "test/tiny"),
        b'{"model_type": "llama"}': ("says nothing about weights", ""),
        b"[1": ("not JSON", None),
    }
    with httpx.Client(base_url=world.url, headers=HTML) as client:
        for config, (words, base) in expected.items():
            token = re.findall(r'name="form_token" value="(\w+)"', client.get("/").text)[0]
            answer = client.post("/", data={"form_token": token}, files={"config": ("config.json", config)})
            assert words in answer.text
            assert not base or f'name="base" value="{base}"' in answer.text


def test_a_feed_has_versions_and_yanks_of_a_namespace_or_a_base(world):
    for query in ("namespace=acme", f"base={world.base_sha256[:16]}"):
        answer = world.get(f"/feed?{query}")
        atom = "{http://www.w3.org/2005/Atom}"
        root = ET.fromstring(answer.text)  # noqa: S314 - of our own server
        titles = {
            entry.findtext(f"{atom}title"): entry.findtext(f"{atom}summary") for entry in root.iter(f"{atom}entry")
        }

        assert answer.headers["content-type"] == "application/atom+xml"
        assert titles["acme/legal-qa 1.0.0 was yanked"] == "leaks names"
        assert {"acme/legal-qa 1.0.0", "acme/legal-qa 1.1.0", "acme/signed 1.0.0"} < set(titles)
        assert "hidden" not in answer.text
    assert world.get("/feed").status_code == 400


def test_raw_gives_the_bytes_and_cannot_be_a_page(world):
    text, weights = (
        world.get(f"/acme/legal-qa/raw/main/{name}") for name in ("README.md", "adapter_model.safetensors")
    )

    assert (text.headers["content-type"], weights.headers["content-type"]) == (
        "text/plain; charset=utf-8",
        "application/octet-stream",
    )
    assert weights.headers["content-disposition"].startswith("attachment")
    for answer, name in ((text, "README.md"), (weights, "adapter_model.safetensors")):
        assert answer.content == world.get(f"/acme/legal-qa/resolve/main/{name}").content
        assert answer.headers["content-security-policy"].startswith("sandbox")
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_recorded_answers_stand_beside_the_bases_and_downloads_have_their_day(world):
    twin = world.get("/acme/signed?format=json").json()
    asked = {line["question"]: (line["answer"], line["base_answer"], line["base_loss"]) for line in twin["answers"]}

    assert asked == {"hi": (" yo", None, 2.5), "z": ("k", "k", 0.5)}
    assert [day["count"] for day in twin["days"]] == [*[0] * 89, twin["downloads"]]
    assert twin["downloads"] == 1
    assert {one["name"]: (one["text"], one["tone"]) for one in twin["head"]["verdicts"]}.items() >= {
        ("Signature", ("Attached, key unknown", "plain")),
        ("Contract", ("Recorded, not run", "plain")),
        ("Base", ("Recognised", "good")),
    }


def test_a_comparison_shows_the_contracts_of_both(world):
    page = world.get("/compare?a=acme/legal-qa&b=acme/signed@main&format=json").json()
    text = world.get("/compare?a=acme/legal-qa&b=acme/signed@main", headers=HTML).text

    none, words = (side["contract"] for side in page["sides"])
    assert (none, words[0].endswith(" recorded answers")) == ([], True)
    assert ("none recorded" in text, words[0] in text) == (True, True)


def test_copied_lines_work_as_they_stand(world, tmp_path, online):
    page = world.get("/acme/legal-qa?format=json").json()
    lines = {s["program"]: s["text"] for s in page["snippets"]}
    adapt = Adapt(tmp_path)

    assert list(lines) == ["PEFT", "vLLM", "llama.cpp", "hf", "Python"]
    assert adapt.ok(*shlex.split(page["head"]["install"])[1:])
    exported = shlex.split(lines["llama.cpp"].splitlines()[0])[1:]
    assert "no such option" not in adapt(*exported).stderr.lower()
    assert "legal-qa" in adapt.ok("list")
    assert "--max-lora-rank 8 " in lines["vLLM"]
    assert all(world.commits[1] in lines[program] for program in ("hf", "PEFT", "vLLM"))


def test_clients_of_the_api_get_what_they_got(world):
    """A client names no `text/html`; errors stay JSON with the code that it reads, and a path that is none stays one."""
    missing = world.get("/acme/legal-qa/nothing/of/this/kind")
    assert (missing.status_code, missing.json()["error"], missing.headers["x-error-code"]) == (
        404,
        "Not Found",
        "NotFound",
    )
    browser = world.get("/acme/legal-qa/resolve/main/nothing.txt", headers=HTML)
    assert (browser.status_code, browser.headers["x-error-code"]) == (404, "EntryNotFound")
    assert json.loads(browser.text)["error"] == "no file `nothing.txt`"
    assert "<h1>Not found</h1>" in world.get("/acme/legal-qa/nothing/of/this/kind", headers=HTML).text


def test_metrics_name_the_page_and_not_the_adapter(world):
    world.get("/acme/legal-qa")
    said = world.server.get("/metrics").text

    assert 'route="/{namespace}/{name}"' in said
    assert "legal-qa" not in said


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"signed": True}, ["acme/signed"]),
        ({"tested": True, "text": "what does signed do"}, ["acme/signed"]),
        ({"license": "MIT"}, ["acme/legal-qa", "acme/signed"]),
        ({"license": "apache-2.0"}, []),
    ],
)
def test_a_client_chooses_by_licence_signature_and_tests(world, wanted, found):
    asked = Search(**wanted)
    hub = Hub(endpoint=world.url, token=None)

    assert sorted(hit.repo for hit in hub.search(asked)) == found
    hub._features = hub.features - {"filters"}
    with pytest.raises(UsageProblem, match="is older"):  # it would answer as if nothing were asked
        hub.search(asked)


def test_a_server_has_its_templates_before_its_first_page():
    rendering._environment.cache_clear()
    warm_up()

    environment = rendering._environment()
    assert {name for _, name in environment.cache} == set(environment.list_templates())
    assert gc.get_freeze_count() > 0


def test_a_namespace_has_its_adapters_its_activity_and_its_keys(world):
    page = world.get("/acme?format=json").json()
    events = world.get("/acme?tab=activity&format=json").json()["events"]

    assert [line["repo"] for line in page["list"]["adapters"]] == ["acme/signed", "acme/legal-qa"]
    assert [(tab["text"], tab["count"]) for tab in page["tabs"]] == [("Adapters", 2), ("Activity", None), ("Keys", 0)]
    assert (page["total"], page["downloads"] >= 1) == (2, True)
    assert "acme/legal-qa 1.0.0 was yanked" in {event["title"] for event in events}
    assert [line["repo"] for line in world.get("/acme?base=nothing&format=json").json()["list"]["adapters"]] == []
    assert world.get("/hidden", headers=HTML).status_code == world.get("/nobody", headers=HTML).status_code == 404


def test_the_bases_of_all_adapters_lead_to_their_pages(world):
    page = world.get("/bases?format=json").json()

    assert [(base["name"], base["is_known"], base["adapters"]) for base in page["bases"]] == [("test/tiny", True, 2)]
    assert world.get(page["bases"][0]["url"]).status_code == 200


def test_the_menu_has_the_newest_versions_on_a_page_of_older_ones(world: World) -> None:
    newest, older = (world.get(f"/acme/legal-qa?format=json{more}").json() for more in ("", "&below=1.1.0"))

    assert [one["version"] for one in older["versions"]] == ["1.0.0"]
    assert older["head"]["versions"] == newest["head"]["versions"]

"""`adapt ui`: the pages of a library, its playground with a real model, and what others on this machine may not do."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

import adapterhub
from adapterhub.core.errors import NotAllowed
from adapterhub.core.specs import parse_name
from adapterhub.formats.prompts.form import PromptForm
from adapterhub.library.intake.description import Description
from tests.support.browser import press, quiet, reach
from tests.support.page_checks import WIDE, look_at, problems_after_use, unreached, watched
from tests.support.real_base import smollm2_base
from tests.support.tiny import make_adapter, make_base

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SHIPPED = Path(adapterhub.__file__).parent / "cli" / "start" / "demo_run" / "adapters"
WEIGHTS = ("/-/pirate/1.0.0", "/compare?a=pirate&b=json", "/lineage/-/pirate", "/make/-/pirate")
PLACES = ("/", "/search?q=pirate", "/projects", "/updates", "/contracts", "/playground")
PATHS = (*PLACES, "/-/pirate", *WEIGHTS, "/-/missing")
PROMPT = "Hello girl, my map is on the boat."
HOSTILE = '<img src=x onerror=alert(1)>{{7*7}}\u202e"'
HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> adapterhub.Library:
    """SmolLM2 with the two adapters of `adapt demo`."""
    library = adapterhub.Library(tmp_path_factory.mktemp("ui") / "home")
    record = library.add_base(smollm2_base(), "smollm2")
    for name in ("json", "pirate"):
        text = HOSTILE if name == "json" else "Talks like a pirate"
        about = Description(
            name=parse_name(name), version="1.0.0", task=text[:60], description=text, prompt=PromptForm(form="chat")
        )
        library.add(SHIPPED / name, about, base=record)
    folder = make_base(tmp_path_factory.mktemp("away") / "base-7b")
    away = library.add_base(folder, "base-7b")
    library.add(make_adapter(folder.parent / "away"), name="away", version="1.0.0", base=away)
    shutil.rmtree(folder)
    return library


@pytest.fixture(scope="module")
def ui(library, tmp_path_factory) -> Iterator[object]:
    project = adapterhub.Project.create(tmp_path_factory.mktemp("project"), base="smollm2", library=library)
    with library.ui(project=project) as ui:
        yield ui


@pytest.fixture
def client(ui) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{ui.port}", headers=HTML, timeout=120) as client:
        client.get(ui.url)
        yield client


def choose(page, label: str, name: str) -> None:
    field = page.get_by_label(label, exact=True)
    field.select_option(field.locator(f"option[value^='{name}==']").get_attribute("value"))


def form_of(client: httpx.Client, **more: str) -> dict[str, str]:
    """The form of the playground, with the pirate in its only column."""
    page = client.get("/playground").text
    token = re.search(r'name="form_token" value="(\w+)"', page)
    pick = re.search(r'value="(pirate==[^"]+)"', page)
    return {"form_token": token[1], "base": "smollm2", "prompt": PROMPT, "tokens": "6", "pick-1": pick[1]} | more


# ---------------------------------------------------------------- in a browser
def test_every_page_is_held_to_all_checks(browser, ui):
    url = f"http://127.0.0.1:{ui.port}"
    found = look_at(browser, url, PLACES, first=ui.url, schemes=["light"])
    found |= look_at(browser, url, (*PATHS, "/-/json"), first=ui.url, schemes=["dark"], wide=False)
    assert found == {}


def test_the_library_has_a_group_for_each_base_and_columns_at_the_same_places(page, ui, library):
    with quiet(page, f"http://127.0.0.1:{ui.port}"):
        page.goto(ui.url)
        page.wait_for_url("**/")
        assert page.get_by_role("region", name="Adapters of smollm2").get_by_role("row").count() == 3
        away = page.locator("section").filter(has=page.get_by_role("heading", name="base-7b"))
        assert "adapt base add PATH --as base-7b" in away.inner_text()
        places = page.evaluate(
            "[...document.querySelectorAll('table')].map(t => [...t.rows[0].cells].map(c => c.offsetLeft))"
        )
        assert len(places) == 2
        assert places[0] == places[1]
        page.get_by_role("link", name="Try in the playground").click()
        page.wait_for_url("**/playground?base=smollm2")
        offered = page.get_by_label("Adapter of column 1").locator("option").all_inner_texts()
        assert offered == ["json 1.0.0", "pirate 1.0.0", "Only the base", "A sum of adapters…"]  # `away` does not fit


def test_adapters_answer_side_by_side_and_a_merge_is_saved(browser, ui, library):
    (expected,) = library.run("pirate", PROMPT, max_new_tokens=6)
    page = browser.new_page()
    with quiet(page, f"http://127.0.0.1:{ui.port}"):
        page.goto(ui.url)
        page.wait_for_url("**/")
        page.get_by_role("link", name="Playground", exact=True).click()
        page.get_by_role("button", name="Add a column").press("Enter")
        for number, name in enumerate(("pirate", "json"), 1):
            choose(page, f"Adapter of column {number}", name)
            page.get_by_role("heading", name=f"{name} 1.0.0").wait_for()
        assert page.get_by_role("slider").count() == 0  # only a sum has weights
        page.get_by_label("Adapter of column 3").select_option("sum")
        choose(page, "Adapter 1 of the sum in column 3", "pirate")
        choose(page, "Adapter 2 of the sum in column 3", "json")
        page.get_by_role("slider").first.press("ArrowRight")
        page.get_by_role("spinbutton", name="Weight of").nth(1).fill("0.3")
        for _ in range(3):
            page.get_by_role("slider").first.press("ArrowRight")
        page.get_by_label("Max new tokens").fill("6")
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.get_by_label("Prompt", exact=True).press("Control+Enter")
        page.get_by_text("Done.").wait_for(timeout=120_000)
        texts = [page.get_by_role("region", name=f"Answer of column {n}").inner_text() for n in (1, 2, 3)]
        assert texts[0] == expected.text
        assert len({text for text in texts if text}) == 3
        assert re.match(r"6 tokens in [\d.]+ s · [\d.]+ tokens/s", page.locator("[data-about='1']").inner_text())
        marked = page.get_by_role("region", name="Answer of column 2").locator("mark")
        assert marked.count()
        page.get_by_role("switch").uncheck()
        assert marked.count() == 0
        assert problems_after_use(page) == []

        page.get_by_text("Save as a merge").click()
        page.get_by_label("Name of the merge of column 3").fill("mixed")
        page.get_by_role("button", name="Save column 3 as a merge").click()
        page.get_by_text("Saved as").wait_for()
        page.get_by_role("button", name="Remove column 2").click()
        page.get_by_role("button", name="Remove column 2").wait_for()
        kept = [page.get_by_role("region", name=f"Answer of column {n}").inner_text() for n in (1, 2)]
        assert kept == [texts[0], texts[2]]
        assert page.get_by_label("Prompt", exact=True).input_value() == PROMPT
        page.goto(f"http://127.0.0.1:{ui.port}/-/mixed")
        assert re.search(r"pirate 1\.0\.0.* times 0\.7, json", page.locator("main").inner_text())
    page.close()
    assert "0.7" in library.info("mixed", only="recipe")
    library.remove("mixed")


def test_stop_ends_a_long_answer_and_without_scripts_the_form_waits(browser, ui):
    page = browser.new_page()
    page.goto(ui.url)
    page.wait_for_url("**/")
    page.goto(f"http://127.0.0.1:{ui.port}/playground")
    page.get_by_label("Prompt", exact=True).fill("Once upon a time")
    page.get_by_label("Max new tokens").fill("500")
    page.get_by_role("button", name="Answer").click()
    page.locator("[data-column='1']").filter(has_text=re.compile(r"\w{2}")).wait_for(timeout=120_000)
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    cookies = page.context.cookies()
    page.close()

    plain = browser.new_context(java_script_enabled=False)
    plain.add_cookies(cookies)
    page = plain.new_page()
    page.goto(f"http://127.0.0.1:{ui.port}/playground")
    assert not page.get_by_role("button", name="Copy").count()
    page.get_by_label("Prompt", exact=True).fill(HOSTILE)
    page.get_by_label("Max new tokens").fill("4")
    page.get_by_role("button", name="Answer").click()
    assert "4 tokens" in page.locator("[data-about='1']").inner_text()
    text = page.get_by_role("region", name="Answer of column 1").inner_text()
    page.get_by_label("Adapter of column 2").select_option("sum")
    page.get_by_role("button", name="Add a column").click()
    assert page.get_by_role("region", name="Answer of column 1").inner_text() == text
    assert page.locator("#asked").inner_text() == HOSTILE.replace("\u202e", "\\u202e")
    assert page.get_by_role("spinbutton", name="Weight of").count() == 2
    plain.close()


def test_the_keyboard_alone_finds_copies_compares_and_asks(page, ui, library):
    (expected,) = library.run("pirate", PROMPT, max_new_tokens=6)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    with quiet(page, f"http://127.0.0.1:{ui.port}"):
        page.goto(ui.url)
        page.wait_for_url("**/")
        page.keyboard.press("/")
        page.keyboard.type("pirate")
        page.keyboard.press("Enter")
        press(page, page.locator(".hit").get_by_role("link", name="pirate"))
        reach(page, page.get_by_label("adapt", exact=True))
        page.keyboard.press("ArrowRight")
        press(page, page.get_by_role("button", name="Copy: Lines for Python"), "Space")
        page.get_by_text("Copied to the clipboard").wait_for()
        assert page.evaluate("navigator.clipboard.readText()").startswith('adapterhub.attach(model, "pirate')
        press(page, page.get_by_role("link", name="Compare").last)
        reach(page, page.get_by_role("combobox", name="Second adapter"))
        page.keyboard.press("ArrowDown")
        page.get_by_role("heading", name="Merge forecast").wait_for()
        press(page, page.get_by_role("region", name="Contracts").get_by_role("link", name="pirate"))
        press(page, page.get_by_role("link", name="Try it"))
        reach(page, page.get_by_label("Prompt", exact=True))
        page.keyboard.type(PROMPT)
        reach(page, page.get_by_label("Max new tokens"))
        page.keyboard.press("Control+A")
        page.keyboard.type("6")
        page.keyboard.press("Enter")
        page.get_by_text("Done.").wait_for(timeout=120_000)
        answer = page.get_by_role("region", name="Answer of column 1")
        reach(page, answer)
        assert answer.inner_text() == expected.text


def test_tab_reaches_every_control_and_shows_where_it_is(browser, ui):
    found = {}
    with watched(browser, WIDE, "light") as page:
        page.goto(ui.url)
        page.wait_for_url("**/")
        for path in PATHS:
            page.goto(f"http://127.0.0.1:{ui.port}{path}")
            if wrong := unreached(page):
                found[path] = wrong
    assert found == {}


# ---------------------------------------------------------------- by HTTP alone
@pytest.mark.parametrize("path", [path for path in PATHS if path != "/-/missing"])
def test_each_page_has_a_json_twin(client, path):
    twin = client.get(path, params={"format": "json"} | dict(httpx.URL(path).params))

    assert (twin.status_code, twin.headers["content-type"]) == (200, "application/json")


def test_a_build_is_judged_on_its_registered_base_and_audited(client):
    page = client.get("/-/pirate?format=json").json()

    build = client.get(f"/-/pirate/{page['commit']}", params={"format": "json"}).json()

    assert "W_UNSIGNED" in {code for code, _ in build["findings"]}
    assert "the base is unknown" not in str(build["engines"])
    layers = [int(name.split(".")[2]) for name in (module["name"] for module in build["modules"])]
    assert layers == sorted(layers)
    assert max(layers) >= 10


def test_files_are_those_of_the_build_alone(client):
    page = client.get("/-/pirate?format=json").json()
    for file in page["files"]:
        raw = client.get(file["url"].replace("/blob/", "/raw/"))
        assert (client.get(file["url"]).status_code, raw.status_code, len(raw.content)) == (200, 200, file["size"])
    assert client.get(f"/-/pirate/tree/{page['commit']}").status_code == 200
    assert client.get(f"/-/pirate/commit/{page['commit']}").status_code == 200
    for trick in (
        "..%2f..%2findex.db",
        "../../index.db",
        "%2fetc%2fpasswd",
        "a%00b",
        "adapterhub.json/",
    ):
        answer = client.get(f"/-/pirate/raw/{page['commit']}/{trick}")
        assert answer.status_code in {400, 404}, trick
    for repo in ("..%2f..", "-/..", "../etc", "-/%2e%2e"):
        assert client.get(f"/{repo}").status_code in {200, 404}
        assert "index.db" not in client.get(f"/{repo}").text


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"prompt": "x" * 200_000}, "200,000 characters"),
        ({"pick-1": "/etc/passwd"}, "is not a build for the base"),
        ({"pick-1": "./home"}, "is not a build for the base"),
        ({"base": "/etc"}, "is not a build for the base"),
        ({"tokens": "100000"}, "100,000 new tokens"),
        ({"tokens": "many"}, "expected a whole number"),
        ({"pick-1": "sum", "term-1-1": "none", "weight-1-1": "nan"}, "weight"),
        ({"temperature": "99"}, "temperature 99"),
        ({"do": "save-1", "name-1": "../x"}, "name"),
        ({"do": "save-9", "name-9": "x"}, "needs adapters and a name"),
    ],
)
def test_what_the_form_may_not_ask_is_said(client, wish, said):
    page = client.post("/playground", data=form_of(client, **wish))

    found = re.findall(r'(?:role="alert"><p|class="small bad" data-about="1")>(.*?)</', page.text, re.DOTALL)
    assert page.status_code == 200
    assert any(said in problem for problem in found), found


def test_few_tabs_wait_and_a_closed_one_makes_room(client):
    form = form_of(client, tokens="500", prompt="Once upon a time")
    with ExitStack() as tabs:
        opened = [tabs.enter_context(client.stream("POST", "/playground-stream", data=form)) for _ in range(4)]
        crowded = client.post("/playground", data=form)
        begun = next(opened[0].iter_lines())
    again = client.post("/playground", data=form | {"tokens": "2"})
    while again.status_code == 503:  # until the server has seen that the tabs are closed
        again = client.post("/playground", data=form | {"tokens": "2"})

    assert ([tab.status_code for tab in opened], crowded.status_code) == ([200] * 4, 503)
    assert crowded.headers["retry-after"] == "5"
    assert '"kind": "begun"' in begun
    assert "2 tokens in" in again.text


def test_a_prompt_of_a_megabyte_is_refused_before_it_is_read(client):
    assert client.post("/playground", data=form_of(client, prompt="x" * (1 << 20))).status_code == 413


def test_other_hosts_and_strangers_stay_outside(client, ui):
    here = f"http://127.0.0.1:{ui.port}"
    hosts = [client.get("/projects", headers={"Host": host}).status_code for host in ("evil.example", "127.0.0.1", "")]
    stranger = httpx.get(f"{here}/projects")
    guess = httpx.get(f"{here}/?token=x")
    forged = [
        client.post("/playground", data=form_of(client) | {"form_token": "x"}),
        client.post("/playground", data=form_of(client), headers={"Origin": "http://evil.example"}),
        client.post("/playground-stream", data=form_of(client), headers={"Sec-Fetch-Site": "cross-site"}),
    ]

    assert hosts == [421, 421, 421]
    assert (stranger.status_code, guess.status_code) == (403, 403)
    assert "set-cookie" not in {**stranger.headers, **guess.headers}
    assert [answer.status_code for answer in forged] == [403] * 3
    cookie = httpx.get(ui.url).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    for answer in (client.get("/projects"), stranger):
        assert answer.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_it_listens_on_this_machine_alone_and_says_when_a_port_is_taken(ui, library):
    with pytest.raises(NotAllowed, match=str(ui.port)):
        library.ui(port=ui.port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", ui.port), timeout=5)

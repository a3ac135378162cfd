"""Texts of strangers on every page in Chromium: no script runs, no request leaves, nothing is wider than a phone."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import quote

import httpx
import pytest
from adapterhub_registry.database import db, people
from adapterhub_registry.database.account_tables import abouts
from sqlalchemy import delete, insert, update

from adapterhub.core.digests import canonical_json
from adapterhub.pages.rendering import MAX_MARKS, card_html, visible
from tests.pages.conftest import World
from tests.pages.test_administration import sign_in
from tests.registry.running import Running, running
from tests.support.browser import PHONE, overflow, quiet
from tests.support.contracts import small_contract
from tests.support.hostile_texts import ALL, MARKUP

PAGE_ROWS = 25
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
)
NAMES = ("adapter_config.json", "adapter_model.safetensors", "adapterhub.json")


def written(path: str, content: bytes) -> dict[str, object]:
    return {"key": "file", "value": {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}}


def push(client: httpx.Client, repo: str, files: dict[str, bytes], title: str) -> None:
    namespace, _, name = repo.partition("/")
    client.post("/api/repos/create", json={"organization": namespace, "name": name}).raise_for_status()
    header = {"key": "header", "value": {"summary": title, "description": title}}
    lines = "\n".join(json.dumps(line) for line in [header, *(written(*item) for item in files.items())])
    client.post(f"/api/models/{repo}/commit/main", content=lines.encode()).raise_for_status()


def whole(world: World, name: str) -> bytes:
    return world.get(f"/acme/signed/resolve/main/{name}").content


def files_with(world: World, text: str, version: str) -> dict[str, bytes]:
    """An adapter whose every word is `text`, with a manifest that describes it as this version."""
    config, weights, manifest = (whole(world, name) for name in NAMES)
    odd = {"base_model_name_or_path": text, "target_modules": [text], "auto_mapping": {text: text}}
    config = json.dumps(json.loads(config) | odd).encode("utf-8", "surrogatepass")
    facts = json.loads(manifest) | {"version": version, "description": text[:4000], "task": text[:200]}
    for entry in facts["files"]:
        if entry["path"] == NAMES[0]:
            entry |= {"sha256": f"sha256:{hashlib.sha256(config).hexdigest()}", "size_bytes": len(config)}
    golden = replace(small_contract().goldens[0], asked=text, answer=text)
    said = json.dumps(text[:200])
    widget = f"instance_prompt: {said}\nwidget: [{{text: {said}, output: {{url: x.png}}}}]"
    card = f"---\nlicense: mit\ntags: [{said}]\n{widget}\n---\n{text}\n"
    return dict(zip(NAMES, (config, weights, canonical_json(facts)), strict=True)) | {
        "README.md": card.encode(),
        "evals.jsonl": replace(small_contract(), goldens=(golden,)).to_bytes(),
        "x.png": PIXEL,
    }


def file_name(text: str) -> str:
    kept = "".join(c for c in text if c.isprintable() or ord(c) > 0x2000)
    return kept.replace("/", "_").replace("\\", "")[:60].strip(". ") or "x"


@pytest.fixture(scope="module")
def hostile(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry of its own with an adapter for each text, and `acme/signed` as it is in the other one."""
    with (
        running(tmp_path_factory.mktemp("hostile")) as server,
        server.client() as client,
    ):
        push(client, "acme/signed", {name: whole(world, name) for name in NAMES}, "a plain one")
        for number, text in enumerate(ALL):
            repo, version = f"zoo/t{number}", f"2.0.{number}"
            push(client, repo, files_with(world, text, version), text[:2000])
            if number % 8 == 0:
                client.post(f"/api/models/{repo}/tag/main", json={"tag": f"v{version}"}).raise_for_status()
                yank = {"version": version, "reason": "".join(c for c in text[:80] if c.isprintable())}
                client.post(f"/api/adapt/v1/adapters/{repo}/yank", json=yank).raise_for_status()
        push(client, "zoo/long", {"README.md": b"W" * 1_000_000}, "a word of 1 MB")
        broken = dict.fromkeys(
            ("README.md", "adapter_config.json", "adapterhub.json", "evals.jsonl"), b"\xff\xfe<script>"
        )
        push(client, "zoo/broken", broken | {"adapter_model.safetensors": b"\xff" * 64}, "no UTF-8")
        names = {f"f/{number}{file_name(text)}.txt": text.encode() for number, text in enumerate(ALL)}
        push(client, "zoo/names", names, "names")
        yield server


def look(page, url: str, path: str) -> None:
    page.goto(f"{url}{path}")
    state = page.evaluate(
        "[typeof window.pwned, location.origin, document.title.length > 0, getComputedStyle(document.body).display]"
    )
    assert state == ["undefined", url, True, "block"], path
    assert overflow(page) <= 0, f"{path} is wider than the screen"
    assert (
        page.locator(
            "main :is(iframe, script, style, object, embed, base, img:not([src^='/zoo/'][src*='/picture/']))"
        ).count()
        == 0
    )
    assert page.locator("main :is([style], [onload], [onerror], [data-hx-on-htmx-load])").count() == 0
    forms = page.evaluate("[...document.forms].map(f => new URL(f.getAttribute('action') ?? '', location).origin)")
    assert set(forms) <= {url}, path


def test_no_text_takes_over_the_pages_of_its_adapter(page, hostile, amount):
    page.set_viewport_size(PHONE)
    with quiet(page, hostile.url):
        for number in random.Random().sample(range(len(ALL)), amount(len(ALL) // 2, len(ALL))):
            look(page, hostile.url, f"/zoo/t{number}")
            if number % 8 == 0:
                look(page, hostile.url, f"/zoo/t{number}/commit/main")
                look(page, hostile.url, f"/zoo/t{number}/main")
                look(page, hostile.url, f"/lineage/zoo/t{number}")
                look(page, hostile.url, f"/compare?a=zoo/t{number}&b=acme/signed")


def test_no_text_takes_over_a_list_a_file_or_a_query(page, hostile):
    page.set_viewport_size(PHONE)
    with quiet(page, hostile.url):
        for start in range(0, len(ALL), PAGE_ROWS):
            words = ALL[start][:300]
            look(page, hostile.url, f"/?q={quote(words.replace(chr(0), ''))}")
        urls, said = ["/?q=zoo/", "/?q=zoo/&yanked=yes"], set()
        while urls:
            look(page, hostile.url, urls[0])
            twin = httpx.get(f"{hostile.url}{urls.pop(0)}&format=json").json()
            urls += filter(None, [twin["next_url"]])
            said |= {line["description"] for line in twin["adapters"]}
        assert {text[:4000] for text in ALL} - said == set()
        look(page, hostile.url, "/zoo/names/tree/main/f")
        look(page, hostile.url, "/zoo/names/commit/main")
        for line in httpx.get(f"{hostile.url}/zoo/names/tree/main/f?format=json").json()["entries"][::12]:
            look(page, hostile.url, line["url"])
        for repo in ("zoo/long", "zoo/broken"):
            for place in ("", "/tree/main", "/blob/main/README.md", "/commit/main"):
                look(page, hostile.url, f"/{repo}{place}")
        look(page, hostile.url, f"/sign-in?then={quote(MARKUP[0])}")
        look(page, hostile.url, f"/{quote(MARKUP[0], safe='')}/{quote(MARKUP[7], safe='')}")


def name_everyone(server: Running, texts: tuple[str, ...]) -> None:
    """Give people, teams, their patterns, an invitation, a publisher and a key of `zoo` the names that no form takes.

    A copy of a database that someone else wrote has them.
    """
    registry = server.registry
    for number, _ in enumerate(texts):
        registry.tokens.create(f"user{number}", "read")
        registry.members.put_team("zoo", f"team{number}", "read", ["*"])
        registry.members.add("zoo", f"user{number}", role="read")
        registry.members.add("zoo", f"user{number}", team=f"team{number}")
        registry.members.invite("zoo", team=f"team{number}", user=f"user{number}")
    now = {"created_at": 1}
    with registry.db.begin() as connection:
        for number, text in enumerate(texts):
            old, new = f"team{number}", f"{text[:80]}{number}"
            for table, values in (
                (people.members, {"team": new, "created_by": new}),
                (people.invitations, {"team": new, "user_name": new, "created_by": new}),
            ):
                connection.execute(update(table).where(table.c.team == old).values(**values))
            connection.execute(update(people.teams).where(people.teams.c.name == old).values(name=new, repos=new))
            connection.execute(update(db.users).where(db.users.c.name == f"user{number}").values(name=new))
            key = {"namespace": "zoo", "fingerprint": f"{number:064x}", "name": new, "pem": new}
            connection.execute(insert(db.test_keys).values(**key, **now))
            job = {"repo": "zoo/names", "issuer": new, "claims": json.dumps({"sub": new}), "created_by": new}
            connection.execute(insert(db.publishers).values(**job, **now))


def test_no_line_about_a_namespace_takes_over_its_pages(page, hostile):
    """A copy of a database that someone else wrote has lines that no form takes."""
    boss = hostile.registry.tokens.create("boss", "admin")
    with quiet(page, hostile.url):
        sign_in(page, hostile, boss)
        page.wait_for_url("**/admin")
        for text in (*MARKUP, *ALL[-8:]):
            with hostile.registry.db.begin() as connection:
                connection.execute(delete(abouts))
                connection.execute(insert(abouts).values(namespace="zoo", about=text[:200].replace("\0", "")))
            for path in ("/zoo", "/zoo?tab=keys", "/zoo/-/settings"):
                look(page, hostile.url, path)


def test_no_name_of_a_member_or_a_team_takes_over_the_pages_of_a_namespace(page, hostile):
    texts = tuple(text for text in (*MARKUP, *ALL[-8:]) if text.isprintable())
    name_everyone(hostile, texts)
    boss = hostile.registry.tokens.create("boss", "admin")
    page.set_viewport_size(PHONE)
    with quiet(page, hostile.url):
        sign_in(page, hostile, boss)
        page.wait_for_url("**/admin")
        for path in ("/zoo", "/zoo?tab=keys", "/zoo?tab=activity", "/zoo/-/settings", "/zoo/-/log", "/settings"):
            look(page, hostile.url, path)
        for path in ("/admin", "/admin-users", "/admin-members", "/admin-log"):
            look(page, hostile.url, path)
        look(page, hostile.url, "/zoo/-/settings")
        members = page.get_by_role("region", name="Members")
        first = members.get_by_role("row").count() - 1
        look(page, hostile.url, page.get_by_role("link", name="Next page").first.get_attribute("href"))
        # a cursor ends a name at its slash, which no form takes: one member may stand on both pages
        assert 2 * len(texts) <= first + members.get_by_role("row").count() - 1 <= 2 * len(texts) + 1
        look(page, hostile.url, "/zoo/-/settings")
        assert page.get_by_role("region", name="Teams").get_by_text(f"{MARKUP[0][:80]}0").count() >= 1
        for button in page.get_by_role("button", name="Remove", exact=False).all()[: 2 * len(texts) : 5]:
            button.press("Enter")
            page.get_by_role("dialog").wait_for()
            assert page.evaluate("typeof window.pwned") == "undefined"
            page.keyboard.press("Escape")


@pytest.mark.parametrize("text", ["![[" * 30_000, "<div>" * 25_000, "[a](" * 30_000, "*a _b " * 20_000])
def test_a_card_that_takes_seconds_to_read_is_shown_as_it_is_written(text):
    assert card_html(text).startswith('<pre tabindex="0">')
    assert not card_html(text[: MAX_MARKS // 2]).startswith('<pre tabindex="0">')


def test_marks_that_turn_text_around_are_seen():
    assert visible("\u202eevil\u2066\x1b[31m\ud800\u200b") == "\\u202eevil\\u2066\\x1b[31m\ufffd\\u200b"
    assert visible("שלום\r\nعربى\t日本") == "שלום\nعربى\t日本"

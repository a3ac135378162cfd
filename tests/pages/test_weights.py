"""The pages about weights, against a registry filled by real pushes: what they say, to whom, and that JSON says the same."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.worker import Once
from huggingface_hub import CommitOperationAdd

from adapterhub.pages.figures import MOST_LOST
from adapterhub.weights.compare.similarity import compare_adapters
from adapterhub.weights.lowrank.factors import AdapterFactors, WeightedAdapter
from tests.registry.running import Running, running
from tests.support.adapter_folders import write_folder
from tests.support.browser import PHONE, overflow, quiet, violations

SHAPES = {f"model.layers.{layer}.self_attn.{name}": (24, 16) for layer in range(3) for name in ("q_proj", "v_proj")}
BASE = "5" * 64
CUT = {"method": "svd", "options": {"rank": 2}, "inputs": []}
HTML = {"Accept": "text/html"}


class Weights:
    """`acme/a` and `acme/b` for one base, `acme/merged` from both, `acme/copy` of `a`, `acme/near`, which is `a` in
    bfloat16, and `acme/other` on another base, all at 1.0.0. `secret/child` from `a` is private, `acme/b` was yanked."""

    def __init__(self, server: Running, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.digests: dict[str, str] = {}
        self.push("acme/a", seed=1)
        self.push("acme/b", seed=2, ranks=3)
        self.push("acme/merged", seed=3, parents=("acme/a", "acme/b"))
        self.push("acme/copy", seed=1)
        self.push("acme/other", seed=4, base="6" * 64, name="a")
        self.push("acme/near", seed=1, dtype=torch.bfloat16)
        self.push("secret/child", seed=5, parents=("acme/a",), weight=1.0, recipe=CUT, private=True)
        server.yank("acme/b", "leaks names")
        until = time.monotonic() + 120
        while self.get("/secret/child/1.0.0").json()["state"] == "waiting" and time.monotonic() < until:
            time.sleep(0.05)

    def push(
        self,
        repo: str,
        *,
        base: str = BASE,
        parents: tuple[str, ...] = (),
        weight: float = 0.5,
        recipe: dict[str, Any] | None = None,
        private: bool = False,
        name: str = "",
        **made: Any,
    ) -> None:
        from adapterhub.core.digests import digest_of
        from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseHints
        from adapterhub.formats.manifest import MEDIA_TYPES, BaseRef, FileEntry, Manifest, Parent

        own = repo.partition("/")[2]
        folder = write_folder(self.folder / own, SHAPES, **made)
        fingerprint = BaseFingerprint(
            weights=f"sha256:{base}", tensors=f"sha256:{'7' * 64}", structure=f"sha256:{'8' * 64}", samples={}
        )
        manifest = Manifest(
            name=name or own,
            version="1.0.0",
            base=BaseRef(fingerprint=fingerprint, hints=BaseHints(hub_id="org/base")),
            method=("LORA",),
            files=tuple(
                FileEntry(
                    path=p.name,
                    sha256=digest_of(p.read_bytes()),
                    size_bytes=p.stat().st_size,
                    media_type=MEDIA_TYPES[p.name],
                )
                for p in sorted(folder.iterdir())
            ),
            parents=tuple(Parent(digest=self.digests[one], spec=one, weight=weight) for one in parents),
            recipe=recipe or {},
        )
        self.digests[repo] = manifest.digest
        (folder / "adapterhub.json").write_bytes(json.dumps(manifest.to_json()).encode())
        (folder / "README.md").write_text(f"---\nlicense: {'cc-by-nc-4.0' if own == 'b' else 'mit'}\n---\n")
        api = self.server.api
        api.create_repo(repo, private=private)
        files = [CommitOperationAdd(path_in_repo=p.name, path_or_fileobj=p) for p in folder.iterdir()]
        api.create_commit(repo, files, commit_message="push")
        api.create_tag(repo, tag="v1.0.0")

    def get(self, path: str, *, token: str | None = "", html: bool = False) -> httpx.Response:
        given = self.server.token if token == "" else token
        headers = ({"Authorization": f"Bearer {given}"} if given else {}) | (HTML if html else {})
        join = "&" if "?" in path else "?"
        return httpx.get(self.server.url + path + ("" if html else f"{join}format=json"), headers=headers, timeout=60)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weights]:
    import huggingface_hub.constants

    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch, running(folder / "registry") as server:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield Weights(server, folder)


def test_a_build_shows_its_modules_heat_and_spectra(weights: Weights) -> None:
    page = weights.get("/acme/a/1.0.0").json()
    text = weights.get("/acme/a/1.0.0", html=True).text

    assert (page["state"], len(page["modules"]), {m["rank"] for m in page["modules"]}) == ("made", 6, {4})
    heat = page["heats"][0]
    assert (heat["columns"], [label for label, _ in heat["rows"]]) == (["q_proj", "v_proj"], ["0", "1", "2"])
    assert max(abs(cell["shade"]) for _, cells in heat["rows"] for cell in cells) == 1
    assert {engine["engine"]: engine["reads"] for engine in page["engines"]}.items() >= {("vllm", True), ("peft", True)}
    assert [line["values"][0] for line in page["spectra"]] == [1, 1]
    assert all(
        title in text
        for title in ("Norm of the update, modules down", "q_proj of layer 2", "Singular values as a table")
    )


@pytest.mark.parametrize("given", [(0.5, 0.5), (1.0, -0.35), (0.0, 2.0)])
def test_a_comparison_has_the_figures_of_adapt_compare(weights: Weights, given: tuple[float, float]) -> None:
    page = weights.get(f"/compare?a=acme/a==1.0.0&b=acme/b@v1.0.0&wa={given[0]}&wb={given[1]}").json()

    with ExitStack() as stack:
        sides = [
            WeightedAdapter(label=n, factors=stack.enter_context(AdapterFactors(weights.folder / n)), weight=w)
            for n, w in zip("ab", given, strict=True)
        ]
        expected = compare_adapters(sides)
    [pair] = expected.pairs
    assert expected.forecast is not None
    told = page["found"]
    assert told["pairs"][0]["cosine"] == pytest.approx(pair.cosine, abs=1e-9)
    assert told["pairs"][0]["opposite"]["share"] == pytest.approx(pair.opposite.estimate.share, abs=1e-9)
    assert told["forecast"]["norm"] == pytest.approx(expected.forecast.norm, rel=1e-9)
    assert told["forecast"]["cancelled"]["share"] == pytest.approx(expected.forecast.cancelled.estimate.share, abs=1e-9)
    for shown, choice in zip(told["forecast"]["choices"], expected.forecast.choices, strict=True):
        assert (shown["options"], shown["size_bytes"]) == (choice.options, choice.size_bytes)
        assert shown["relative_error"] == pytest.approx(choice.relative_error, abs=1e-9)
    ways = {way["options"]: way for way in page["ways"]}
    assert ways["cat"]["notes"][:1] == ["Exact"]
    [best] = [way for way in page["ways"] if "Suggested" in way["notes"]]
    assert best["error"] <= MOST_LOST
    assert page["command"].startswith("adapt merge ")
    assert page["command"].endswith(f" --method {best['options']} -o merged")
    assert page["same_base"] is True
    assert {"key": "r", "before": "4", "after": "3"} in page["config"]


def test_the_form_alone_asks_for_builds_and_bad_weights_are_refused(weights: Weights) -> None:
    assert weights.get("/compare").json()["sides"] == []
    assert weights.get("/compare?a=acme/a&b=acme").status_code == 400
    first, second = weights.get("/compare?a=acme/a").json()["lists"]
    listed = {group["label"]: [choice["value"] for choice in group["choices"]] for group in second}
    assert list(listed) == ["Same base, most alike", "Same base"]
    assert "acme/a==1.0.0" not in str(listed)  # beside itself
    assert "acme/near==1.0.0" in listed["Same base, most alike"]
    assert "acme/merged==1.0.0" in listed["Same base"]
    assert "acme/b==1.0.0" not in str(listed)  # it was yanked
    assert [c["value"] for group in first for c in group["choices"] if c["chosen"]] == ["acme/a==1.0.0"]
    for weight in ("nan", "1e9", "x"):
        assert weights.get(f"/compare?a=acme/a&b=acme/b&wa={weight}").status_code == 400


def test_lineage_shows_relatives_and_what_comes_down(weights: Weights) -> None:
    merged = weights.get("/lineage/acme/merged").json()
    of_a = weights.get("/lineage/acme/a?version=1.0.0").json()

    assert [(p["name"], p["relation"], p["weight"]) for p in merged["parents"]] == [
        ("acme/a==1.0.0", "merged from", 0.5),
        ("acme/b==1.0.0", "merged from", 0.5),
    ]
    assert {p["name"]: (p["license"], p["yanked"]) for p in merged["inherited"]} == {
        "acme/a==1.0.0": ("mit", None),
        "acme/b==1.0.0": ("cc-by-nc-4.0", "leaks names"),
    }
    [whole] = weights.get("/lineage/secret/child").json()["parents"]
    assert (whole["name"], whole["relation"]) == ("acme/a==1.0.0", "resized from")
    assert {c["name"] for c in of_a["children"]} == {"acme/merged==1.0.0", "secret/child==1.0.0"}
    assert {(o["name"], o["relation"]) for o in of_a["others"]} == {
        ("acme/copy==1.0.0", "same weights"),
        ("acme/near==1.0.0", "nearly the same update: cosine about 1.00"),
        ("acme/other==1.0.0", "same name on another base"),
    }


def test_a_base_has_its_names_relatives_and_a_map(weights: Weights) -> None:
    page = weights.get(f"/base/{BASE[:12]}").json()

    assert (page["sha256"], page["names"]) == (BASE, ["org/base"])
    assert [(one["url"], one["adapters"]) for one in page["related"]] == [(f"/base/{'6' * 64}", 1)]
    near = {p["name"]: (p["nearest"], p["cosine"]) for p in page["points"]}
    assert near["acme/a"] in {("acme/copy", 1.0), ("acme/near", 1.0)}
    places = {p["name"]: (p["x"], p["y"]) for p in page["points"]}
    assert places["acme/a"] == pytest.approx(places["acme/copy"], abs=1e-3)


def test_private_builds_show_through_no_page(weights: Weights) -> None:
    pages = [weights.get(path, token=None) for path in ("/lineage/acme/a", f"/base/{BASE}", "/acme/a/1.0.0")]
    gone = [
        weights.get(path, token=None)
        for path in ("/secret/child/1.0.0", "/lineage/secret/child", "/compare?a=acme/a&b=secret/child")
    ]
    never = [
        weights.get(path, token=None)
        for path in ("/secret/none/1.0.0", "/lineage/secret/none", "/compare?a=acme/a&b=secret/none")
    ]

    assert [page.status_code for page in pages] == [200] * 3
    assert not [page for page in pages if "secret" in page.text]
    assert len(pages[1].json()["points"]) == pages[1].json()["count"] == 4
    assert [g.status_code for g in gone] == [404] * 3
    assert [g.text.replace("child", "none") for g in gone] == [n.text for n in never]


PATHS = ("/acme/a/1.0.0", "/compare", "/compare?a=acme/a&b=acme/b==1.0.0", "/lineage/acme/merged", f"/base/{BASE}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_nothing_to_object_and_no_page_is_wider_than_a_phone(page: Any, weights: Weights, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(PHONE)
    found = {}
    with quiet(page, weights.server.url):
        for path in PATHS:
            page.goto(weights.server.url + path)
            found[path] = [*violations(page), *(["wider than the screen"] if overflow(page) else [])]

    assert {path: problems for path, problems in found.items() if problems} == {}


@pytest.mark.parametrize("script", [True, False])
def test_the_sliders_change_the_forecast_and_its_command(browser: Any, weights: Weights, *, script: bool) -> None:
    context = browser.new_context(java_script_enabled=script, viewport=PHONE)
    page = context.new_page()
    with quiet(page, weights.server.url):
        page.goto(f"{weights.server.url}/compare?a=acme/copy")
        page.get_by_label("Second adapter").select_option("acme/a==1.0.0")  # with the script, this compares
        if not script:
            page.get_by_role("button", name="Compare").click()
        page.get_by_text("adapt merge acme/copy==1.0.0 acme/a==1.0.0 --weights=0.5,0.5 --method").wait_for()
        page.get_by_role("button", name="Swap the two adapters").click()
        page.get_by_text("adapt merge acme/a==1.0.0 acme/copy==1.0.0 --weights=0.5,0.5 --method").wait_for()
        page.wait_for_load_state()  # the script has found the form
        if script:
            page.get_by_role("slider", name="Weight of acme/copy").press("Home")  # the least weight
        else:
            page.get_by_role("spinbutton", name="Weight of acme/copy").fill("-2")
            page.get_by_role("button", name="Update").click()
        page.get_by_text("--weights=0.5,-2 --method").wait_for()
        assert page.get_by_role("spinbutton", name="Weight of acme/copy").input_value() in {"-2", "-2.0"}
        page.get_by_role("link", name="acme/a 1.0.0").first.click()
        page.get_by_role("link", name="Lineage").click()
        page.get_by_role("link", name="acme/merged==1.0.0").first.click()
        page.wait_for_url(f"{weights.server.url}/acme/merged/1.0.0")
        page.get_by_role("link", name="org/base").click()
        page.get_by_text("Show as a table").click()
        page.get_by_role("table").get_by_role("link", name="acme/copy").click()  # on the map, it lies on `acme/a`
        page.wait_for_url(f"{weights.server.url}/acme/copy")
    context.close()


def test_one_computation_about_a_pair_runs_at_a_time() -> None:
    once, begun, goes_on = Once(), threading.Event(), threading.Event()

    def slow() -> int:
        begun.set()
        goes_on.wait(60)
        return 1

    thread = threading.Thread(target=once.result, args=("pair", 1, slow))
    thread.start()
    begun.wait(60)
    with pytest.raises(HttpRefusal) as refused:
        once.result("pair", 2, lambda: 2)
    other = once.result("other pair", 1, lambda: 3)
    goes_on.set()
    thread.join()

    assert (refused.value.status_code, refused.value.headers["Retry-After"].isdecimal()) == (503, True)
    assert (other, once.result("pair", 1, lambda: 9), once.result("pair", 2, lambda: 2)) == (3, 1, 2)


def test_a_gate_keeps_what_follows_from_the_files_of_an_adapter(weights: Weights) -> None:
    def seen_by(token: str | None) -> tuple[int, str]:
        page = weights.get("/acme/merged", token=token).json()
        [engines] = [one for one in page["head"]["verdicts"] if one["name"] == "Engines"]
        return len(page["parents"]), engines["text"]

    before = seen_by(None)
    weights.server.api.update_repo_settings("acme/merged", gated="manual")
    try:
        assert seen_by(None) == (0, "Not known")
        assert seen_by(weights.server.token) == before
    finally:
        weights.server.api.update_repo_settings("acme/merged", gated=False)

    assert before[0] == 2

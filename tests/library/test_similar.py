"""`adapt compare` of one adapter: copies under disguise, sums, groups; the sketches are only a cache."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import adapterhub
from adapterhub.api.library import Library
from adapterhub.api.pages.source import LibrarySource
from adapterhub.api.pages.weights import lineage_page
from adapterhub.pages.page import PageQuery
from tests.support.adapter_folders import PREFIX, write_folder
from tests.support.command_line import Adapt
from tests.support.disguises import NEGATED, OTHER, SAME, disguise, forged
from tests.support.kills import in_child
from tests.support.tiny import make_adapter, make_base

STRANGERS = ("summarize", "translate", "classify")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """`legal-qa`, three strangers, and `legal-qa` in disguise."""
    adapt = Adapt(tmp_path_factory.mktemp("similar"))
    make_base(adapt.folder / "base")
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    for seed, name in enumerate(("legal-qa", *STRANGERS)):
        make_adapter(adapt.folder / name, seed=seed)
        adapt.ok("add", f"./{name}", "--name", name, "--base", "base-7b")
    for name in ("bfloat16", "refactored", "scaled"):
        disguise(adapt.folder / "legal-qa", adapt.folder / name, SAME[name])
        adapt.ok("add", f"./{name}", "--name", name, "--base", "base-7b")
    for name, change in (("negated", NEGATED["negated"]), ("noisy", OTHER["noise 20 %"])):
        disguise(adapt.folder / "legal-qa", adapt.folder / name, change)
        adapt.ok("add", f"./{name}", "--name", name, "--base", "base-7b")
    return adapt


def kinds(home: Adapt, *arguments: object) -> dict[str, str]:
    return {one["name"]: one["kind"] for one in home.json("compare", *arguments)["similar"]}


def sketch_rows(home: Adapt) -> list[tuple[str, str, int]]:
    with contextlib.closing(sqlite3.connect(home.folder / "home" / "index.db")) as index:
        return list(index.execute("SELECT digest, flags, length(sketch) FROM sketches ORDER BY digest"))


def test_copies_under_disguise_are_the_same_update_and_strangers_are_not_listed(home):
    same = dict.fromkeys(("bfloat16", "refactored", "scaled"), "same update")

    assert kinds(home, "legal-qa") == {**same, "negated": "negated", "noisy": "near"}
    assert kinds(home, "legal-qa", "--above", "0.99") == {**same, "negated": "negated"}
    assert kinds(home, "./bfloat16").pop("legal-qa") == "same update"
    assert set(STRANGERS) <= kinds(home, "legal-qa", "--above", "0").keys()
    assert kinds(home, "summarize") == {}


def test_the_text_and_the_document_say_what_is_different(home):
    text = home.ok("compare", "legal-qa")
    document = home.json("compare", "legal-qa")

    scaled = next(one for one in document["similar"] if one["name"] == "scaled")
    assert "same update\tscaled 1.0.0\t1.0000\t2.5 times as strong\n" in text
    assert (scaled["cosine"], scaled["scale"], scaled["exact"]) == (1.0, 2.5, True)
    assert "same update\tbfloat16 1.0.0\t1.0000\tbfloat16\n" in text
    assert "nothing like it among 8 installed adapters" in home.ok("compare", "summarize")


def test_groups_hold_every_disguise_once(home):
    [group] = home.json("compare")["groups"]

    assert {one["name"] for one in group["members"]} == {"legal-qa", "bfloat16", "refactored", "scaled", "negated"}
    assert "legal-qa 1.0.0" in home.ok("compare")


def test_add_says_whose_weights_they_are_and_leaves_disguises_to_compare(home, tmp_path):
    done = home("add", "./summarize", "--name", "own-work", "--base", "base-7b", "--json")

    assert json.loads(done.stdout)["same_as"] == ["summarize 1.0.0"]
    assert "these are the weights of summarize 1.0.0; `adapt compare own-work` says more" in done.stderr
    home.ok("remove", "own-work", "--yes")
    folder = disguise(home.folder / "summarize", tmp_path / "copy", SAME["float16"])
    done = home("add", folder, "--name", "own-work", "--base", "base-7b", "--json")
    assert json.loads(done.stdout)["same_as"] == []
    assert kinds(home, "own-work") == {"summarize": "same update"}
    home.ok("remove", "own-work", "--yes")


def test_audit_names_copies_under_another_name_or_licence_and_no_others(home):
    found = json.loads(home("audit", "--json", "--offline").stdout)["adapters"]

    copies = {
        one["name"]: sorted(finding["message"] for finding in one["findings"] if finding["code"] == "W_COPY")
        for one in found
    }
    assert len(copies["bfloat16"]) == len(copies["negated"]) == 4
    assert "has the negated update of `legal-qa` 1.0.0 under another name" in copies["negated"]
    assert "has the update of `legal-qa` 1.0.0 under another name" in copies["bfloat16"]
    assert copies["noisy"] == copies["summarize"] == []


def test_audit_passes_over_another_version_of_the_same_adapter(tmp_path):
    adapt = Adapt(tmp_path)
    make_adapter(tmp_path / "one")
    disguise(tmp_path / "one", tmp_path / "two", SAME["bfloat16"])
    disguise(tmp_path / "one", tmp_path / "three", SAME["float16"])
    adapt.ok("add", "./one", "--name", "one", "--license", "MIT")
    adapt.ok("add", "./two", "--name", "one", "--version", "1.1.0", "--license", "MIT")
    adapt.ok("add", "./three", "--name", "one", "--version", "1.2.0", "--license", "Apache-2.0")

    found = json.loads(adapt("audit", "--json", "--offline").stdout)["adapters"]

    copies = [finding for one in found for finding in one["findings"] if finding["code"] == "W_COPY"]
    assert len(copies) == 4
    assert all("under another licence (" in finding["message"] for finding in copies)


def test_identify_knows_an_update_in_other_numbers(home, tmp_path):
    folder = disguise(home.folder / "classify", tmp_path / "orphan", SAME["refactored"])
    noisy = OTHER["noise 20 %"]
    near = disguise(
        home.folder / "classify", tmp_path / "near", lambda *given: SAME["refactored"](*noisy(*given), given[2])
    )

    [match] = [one for one in home.json("identify", folder)["matches"] if one["what"] == "adapter"]
    possible = [one for one in home.json("identify", near)["matches"] if one["what"] == "adapter"]

    assert (match["name"], match["sure"]) == ("classify==1.0.0", "likely")
    assert "its update is that of this adapter in other numbers: cosine 1.0000" in match["how"]
    assert ("classify==1.0.0", "possible") in [(one["name"], one["sure"]) for one in possible]


def test_an_undeclared_merge_tells_its_parents_with_their_weights(home, tmp_path):
    home.ok("merge", "legal-qa", "summarize", "translate", "--weights", "0.5,0.3,-0.4", "-o", tmp_path / "sum")
    home.ok("add", tmp_path / "sum", "--name", "own-work", "--base", "base-7b")

    document = home.json("compare", "own-work")

    told = {one["name"]: (one["weight"], one["declared"]) for one in document["parents"]}
    assert set(told) >= {"summarize", "translate"}
    assert told["summarize"] == (pytest.approx(0.3, abs=0.005), False)
    assert document["unexplained"] < 0.005
    assert "not declared as parents" in home.ok("compare", "own-work")
    assert adapterhub.Library(home.library.root).compare("own-work", parents=False).parents == ()
    home.ok("remove", "own-work", "--yes")


def test_declared_parents_count_as_declared_and_a_child_is_no_parent(home):
    home.ok("merge", "classify", "translate", "--weights", "0.7,0.3", "-o", "both")

    found = home.json("compare", "both")
    turned = home.json("compare", "classify")

    assert [(one["name"], one["declared"]) for one in found["parents"]] == [("classify", True), ("translate", True)]
    assert turned["parents"] == []
    home.ok("remove", "both", "--yes")


def test_a_forged_sketch_is_unlike(home, tmp_path):
    shape = {"seed": 7, "width": 8}
    wanted = make_adapter(tmp_path / "wanted", **shape)
    copy = forged(home.folder / "legal-qa", wanted, tmp_path / "forged")
    home.ok("add", copy, "--name", "forged", "--base", "base-7b")

    assert all(one["name"] != "forged" for one in home.json("compare", wanted)["similar"])
    home.ok("remove", "forged", "--yes")


# ---------------------------------------------------------------- a cache
def test_sketches_come_back_after_their_loss_and_leave_with_their_builds(home):
    before = sketch_rows(home)
    assert len(before) == 9
    with contextlib.closing(sqlite3.connect(home.folder / "home" / "index.db")) as index, index:
        index.execute("DELETE FROM sketches WHERE digest IN (SELECT digest FROM sketches LIMIT 4)")

    assert len(kinds(home, "legal-qa")) == 5
    assert sketch_rows(home) == before
    (home.folder / "home" / "index.db").unlink()
    home.ok("list")
    assert sketch_rows(home) == []  # a list costs no numpy
    home.ok("doctor", "--rebuild-index", "--offline")
    assert sketch_rows(home) == before


def test_a_stale_index_keeps_the_sketches(home):
    before = sketch_rows(home)
    (home.folder / "home" / "index.stale").touch()

    home.ok("list")

    assert not (home.folder / "home" / "index.stale").exists()
    assert sketch_rows(home) == before


def test_a_kill_before_any_change_of_a_name_loses_no_sketch_for_good(home):
    before = sketch_rows(home)

    def rebuild() -> None:
        home.ok("doctor", "--rebuild-index", "--offline")

    steps = in_child(rebuild)
    assert steps
    for stop in range(1, steps + 1):
        assert in_child(rebuild, stops_at=stop) is None
        assert len(kinds(home, "legal-qa")) == 5
        assert sketch_rows(home) == before


def test_the_lineage_page_lists_like_updates(home):
    library = Library(home.folder / "home")

    asked = PageQuery(path={"namespace": "-", "name": "legal-qa"}, query={"version": "1.0.0"})
    page = lineage_page(LibrarySource(library, None), asked)

    relations = {one.name: one.relation for one in page.others}
    assert relations["bfloat16 1.0.0"].startswith("same update: cosine 1.0000")
    assert relations["negated 1.0.0"] == "negated: cosine -1.0000"
    assert "summarize 1.0.0" not in relations


def test_a_damaged_build_is_told_and_gets_its_sketch_when_it_is_mended(home):
    folder = Path(home.json("info", "refactored", "--path")["path"])
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    (home.folder / "home" / "index.db").unlink()
    weights.chmod(0o644)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    document = home.json("compare", "legal-qa")

    assert "refactored" not in {one["name"] for one in document["similar"]}
    assert "not read" in document["without"]["refactored 1.0.0"]
    weights.write_bytes(whole)
    weights.chmod(0o444)
    assert kinds(home, "legal-qa")["refactored"] == "same update"


def test_what_has_no_update_to_compare_says_so(home, tmp_path):
    zero = make_adapter(tmp_path / "zero")
    tensors = load_file(zero / "adapter_model.safetensors")
    tensors = {name: t * 0 if "lora_B" in name else t for name, t in tensors.items()}
    save_file(tensors, zero / "adapter_model.safetensors", metadata={"format": "pt"})

    assert "has no direction" in home.fails(11, "compare", zero)
    assert "not for this method: IA3" in home.fails(11, "compare", make_adapter(tmp_path / "ia3", peft_type="IA3"))


def test_dora_is_compared_by_its_factors_and_says_so(home, tmp_path):
    dora = make_adapter(tmp_path / "dora", use_dora=True)
    tensors = load_file(dora / "adapter_model.safetensors")
    for name in [name for name in tensors if "lora_A" in name]:
        tensors[name.replace("lora_A.weight", "lora_magnitude_vector")] = torch.ones(8)
    save_file(tensors, dora / "adapter_model.safetensors", metadata={"format": "pt"})

    found = home.json("compare", dora)["similar"]

    assert {one["name"] for one in found if one["kind"] == "same update"} >= {"legal-qa", "bfloat16"}
    assert all("of the factors alone, which are not the whole update" in one["notes"] for one in found)


def test_a_loha_gets_its_sketch_when_it_is_first_compared(tmp_path):
    adapt, chance = Adapt(tmp_path), torch.Generator().manual_seed(0)
    shapes = {"w1_a": (12, 2), "w1_b": (2, 8), "w2_a": (12, 2), "w2_b": (2, 8)}
    tensors = {
        f"{PREFIX}layers.{at}.q.hada_{name}": torch.randn(shape, generator=chance)
        for at in range(2)
        for name, shape in shapes.items()
    }
    for name, scale in (("one", 1.0), ("twice", 2.0)):
        made = {key: scale * tensor if "w1_a" in key else tensor for key, tensor in tensors.items()}
        method = {"peft_type": "LOHA", "r": 2, "alpha": 2, "target_modules": ["q"]}
        write_folder(tmp_path / name, {}, extra=made, **method)
        adapt.ok("add", f"./{name}", "--name", name)
    assert sketch_rows(adapt) == []

    assert kinds(adapt, "one") == {"twice": "same update"}


def test_comparing_imports_no_torch(home):
    code = (
        "import sys, contextlib\n"
        "sys.argv = ['adapt', 'compare', 'legal-qa', '--root', 'home']\n"
        "from adapterhub.cli import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "print([m for m in ('torch', 'peft', 'transformers') if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=home.folder, capture_output=True, text=True, check=True)

    assert "same update\tscaled 1.0.0" in done.stdout
    assert done.stderr.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("legal-qa", "--above", "1.1"), 2, "0<=x<=1"),
        (("--above", "0.1"), 2, "expected a cosine from 0.5 to 1"),
        (("nothing",), 10, "nothing"),
        (("./nowhere",), 10, "nowhere"),
    ],
)
def test_what_cannot_be_asked_is_refused(home, arguments, code, said):
    assert said in home.fails(code, "compare", *arguments)


def test_a_library_that_holds_nothing_has_nothing_alike(tmp_path):
    assert Adapt(tmp_path).json("compare") == {"above": 0.99, "groups": []}

"""Recipes: what was merged once can be merged again, anywhere, to the same manifest."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.core.errors import DigestMismatch
from adapterhub.core.specs import AdapterSpec, parse_name
from adapterhub.formats.manifest import Manifest
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.weights import catalogue as merge_methods
from adapterhub.weights.recipes.combination import Ingredient, merge_into_library
from adapterhub.weights.recipes.toml import MAX_WHOLE, MergeStep, parse_recipe
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

pytestmark = pytest.mark.slow

WIDTH = 24
DIGEST = "sha256:" + "a" * 64
NUMBERS = itertools.count()
PARENTS = ("legal-qa", "summarize", "tables")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A base and three adapters for it, published in `published` and added to the library `home`."""
    folder = tmp_path_factory.mktemp("recipes")
    make_base(folder / "base", width=WIDTH)
    adapt = Adapt(folder)
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    for seed, name in enumerate(PARENTS):
        make_adapter(folder / "out" / name, seed=seed, width=WIDTH)
        adapt.ok("add", f"out/{name}", "--name", name, "--base", "base-7b", "--task", name)
        adapt.ok("push", name, "--to", "./published")
    return folder


@pytest.fixture
def adapt(made) -> Adapt:
    return Adapt(made)


@pytest.fixture
def elsewhere(made) -> Adapt:
    """Another library, with the same parents and no base."""
    other = Adapt(made, home=f"home-{next(NUMBERS)}")
    other.ok("install", *PARENTS, "--from", "published")
    return other


def recipe_file(adapt: Adapt, name: str) -> Path:
    path = adapt.folder / f"{name}.toml"
    path.write_text(adapt.ok("show", name, "--recipe"), encoding="utf-8")
    return path


# ---------------------------------------------------------------- the same manifest again
@pytest.mark.parametrize("method", merge_methods.names())
def test_a_merge_by_any_method_is_the_same_in_another_library(adapt, elsewhere, method):
    seed = ["--seed", 5] if merge_methods.describe(method).is_random else []
    name = f"by-{method.replace('_', '-')}"
    merged = adapt.json("merge", "legal-qa", "summarize", "--weights", "0.7,0.3", "--method", method, *seed, "-o", name)

    again = elsewhere.json("merge", "--recipe", recipe_file(adapt, name))

    assert (again["digest"], again["as_recorded"]) == (merged["digest"], True)
    assert again["recipe"] == merged["recipe"]


@pytest.mark.parametrize(
    "options",
    [
        ["--rank", "3"],
        ["--rank", "auto"],
        ["--energy", "0.8", "--dtype", "bfloat16"],
        ["--max-error", "0.3"],
        ["--method", "ties", "-O", "density=0.3", "-O", "majority=frequency", "--rank", "3"],
        ["--method", "dare_linear", "--seed", str(MAX_WHOLE)],
        ["--weights", "1,0,-1"],
    ],
    ids=" ".join,
)
def test_whatever_was_chosen_is_chosen_again(adapt, elsewhere, options):
    name = "chosen-" + "".join(c if c.isalnum() else "-" for c in "-".join(options).replace("--", "")).lower().strip(
        "-"
    )
    name = "-".join(filter(None, name.split("-")))
    merged = adapt.json("merge", *PARENTS, *options, "-o", name, "--version", "2.1", "--task", "all")

    again = elsewhere.json("merge", "--recipe", recipe_file(adapt, name))

    assert (again["digest"], again["as_recorded"]) == (merged["digest"], True)


def test_one_adapter_of_weight_1_is_copied_again(adapt, elsewhere):
    merged = adapt.json("merge", "legal-qa", "-o", "copied", "--description", "a copy", "--license", "mit")

    again = elsewhere.json("merge", "--recipe", recipe_file(adapt, "copied"))

    assert again["digest"] == merged["digest"]
    assert {f["sha256"] for f in adapt.json("show", "copied")["files"]} == {
        f["sha256"] for f in adapt.json("show", "legal-qa")["files"]
    }


def test_the_base_known_otherwise_elsewhere_changes_nothing(adapt, elsewhere):
    make_base(adapt.folder / "bare" / "base", width=WIDTH)
    (adapt.folder / "bare" / "base" / "config.json").unlink()
    elsewhere.ok("base", "add", "./bare/base", "--as", "known-otherwise")
    merged = adapt.json("merge", "legal-qa", "tables", "-o", "for-a-base")

    again = elsewhere.json("merge", "--recipe", recipe_file(adapt, "for-a-base"))

    assert again["digest"] == merged["digest"]


NESTED = """
format = 1
name = "nested"
method = "svd"
options = { rank = 6 }
[[inputs]]
spec = "legal-qa"
weight = 0.5
[[inputs]]
weight = -0.5
[inputs.merge]
method = "ties"
[[inputs.merge.inputs]]
spec = "summarize==1.0.0"
weight = 1
[[inputs.merge.inputs]]
weight = 2
[inputs.merge.inputs.merge]
method = "dare_linear"
seed = 3
options = { density = 0.9 }
[[inputs.merge.inputs.merge.inputs]]
spec = "tables"
weight = 1
[[inputs.merge.inputs.merge.inputs]]
spec = "legal-qa"
weight = 0.25
"""


@pytest.fixture
def nested(adapt):
    (adapt.folder / "nested-by-hand.toml").write_text(NESTED)
    return adapt.json("merge", "--recipe", "nested-by-hand.toml")


def test_merges_inside_merges_are_made_again(adapt, elsewhere, nested):
    again = elsewhere.json("merge", "--recipe", recipe_file(adapt, "nested"))

    assert (again["digest"], again["as_recorded"]) == (nested["digest"], True)


def test_a_nested_merge_is_that_of_its_parts_made_one_by_one(adapt, nested):
    adapt.ok("merge", "tables", "legal-qa", "--weights", "1,0.25", "--method", "dare_linear", "-O", "density=0.9",
             "--seed", "3", "-o", "./steps/one")  # fmt: skip
    adapt.ok("merge", "summarize", "./steps/one", "--weights", "1,2", "--method", "ties", "-o", "./steps/two")
    adapt.ok("merge", "legal-qa", "./steps/two", "--weights", "0.5,-0.5", "--rank", "6", "-o", "./steps/three")

    weights = "adapter_model.safetensors"

    assert (Path(nested["path"]) / weights).read_bytes() == (adapt.folder / "steps" / "three" / weights).read_bytes()


def test_the_manifest_of_a_nested_merge_names_every_parent_with_the_product_of_its_weights(adapt, nested):
    shown = adapt.json("show", "nested")
    digests = {name: adapt.json("show", name)["digest"] for name in PARENTS}

    assert [(p["spec"], p["weight"], p["digest"]) for p in shown["parents"]] == [
        ("legal-qa==1.0.0", 0.5, digests["legal-qa"]),
        ("summarize==1.0.0", -0.5, digests["summarize"]),
        ("tables==1.0.0", -1, digests["tables"]),
        ("legal-qa==1.0.0", -0.25, digests["legal-qa"]),
    ]
    assert shown["metrics"].keys() == {
        "merge_relative_error", "merge_truncation_error", "merge_inner_relative_error",
    }  # fmt: skip


def test_nothing_of_the_inner_merges_is_left(adapt, nested):
    assert list((adapt.folder / "home" / "tmp").iterdir()) == []
    adapt.ok("merge", "--recipe", recipe_file(adapt, "nested"), "-o", "./flat/merged")

    assert [p.name for p in (adapt.folder / "flat").iterdir()] == ["merged"]


def test_another_name_is_another_manifest_and_no_alarm(adapt):
    merged = adapt.json("merge", "legal-qa", "tables", "-o", "first-name")

    other = adapt.json("merge", "--recipe", recipe_file(adapt, "first-name"), "-o", "second-name", "--version", "2")

    assert (other["name"], other["version"]) == ("second-name", "2")
    assert other["digest"] != merged["digest"]
    assert "as_recorded" not in other


def test_a_result_that_is_not_the_recorded_one_is_said(adapt):
    adapt.ok("merge", "legal-qa", "tables", "-o", "said")
    path = recipe_file(adapt, "said")
    path.write_text(path.read_text().replace(adapt.json("show", "said")["digest"], DIGEST))

    done = adapt("merge", "--recipe", path)

    assert done.exit_code == 0
    assert f"the recipe records {DIGEST}" in done.stderr


def test_metrics_of_the_author_stay_and_measured_ones_are_measured(adapt, elsewhere):
    (adapt.folder / "own.toml").write_text(
        'format = 1\nname = "with-metrics"\n[metrics]\nloss_after = 1.25\nexamples = "sha256:0"\n'
        '[[inputs]]\nspec = "legal-qa"\nweight = 0.5\n'
    )
    merged = adapt.json("merge", "--recipe", "own.toml")

    again = elsewhere.json("merge", "--recipe", recipe_file(adapt, "with-metrics"))

    metrics = elsewhere.json("show", "with-metrics")["metrics"]
    assert again["digest"] == merged["digest"]
    assert {k: v for k, v in metrics.items() if not k.startswith("merge_")} == {
        "loss_after": 1.25, "examples": "sha256:0",
    }  # fmt: skip


def test_measured_errors_are_recorded_with_three_digits(adapt):
    merged = adapt.json("merge", "legal-qa", "tables", "--rank", "3", "-o", "three-digits")

    recorded = adapt.json("show", "three-digits")["metrics"]["merge_relative_error"]

    assert recorded == float(f"{merged['relative_error']:.3g}") != merged["relative_error"]


# ---------------------------------------------------------------- inputs that are not there, or not the same
def test_a_missing_parent_is_fetched_from_a_place_that_has_it(adapt, made):
    merged = adapt.json("merge", *PARENTS, "-o", "fetched")
    empty = Adapt(made, home="home-fetching")

    again = empty.json("merge", "--recipe", recipe_file(adapt, "fetched"), "--from", "published", "--offline")

    assert again["digest"] == merged["digest"]
    assert {row["name"] for row in empty.json("list")} == {*PARENTS, "fetched"}


def test_missing_parents_are_all_named_with_the_command_that_brings_them(adapt, made):
    adapt.ok("merge", "legal-qa", "tables", "-o", "missing")
    path = recipe_file(adapt, "missing")
    empty = Adapt(made, home="home-empty")

    said = empty.fails(10, "merge", "--recipe", path, "--offline")

    for position, name in enumerate(("legal-qa", "tables")):
        digest = adapt.json("show", name)["digest"]
        assert f"inputs[{position}]: `adapt install '{name}==1.0.0#{digest}'`" in said
    assert empty.json("list") == []


def test_the_command_that_is_named_brings_the_parent_in(adapt, made):
    adapt.ok("merge", "legal-qa", "-o", "one-parent")
    path = recipe_file(adapt, "one-parent")
    empty = Adapt(made, home="home-by-command")
    said = empty.fails(10, "merge", "--recipe", path, "--offline")
    command = said.partition("`adapt install '")[2].partition("'")[0]

    empty.ok("install", command, "--from", "published")

    assert empty.json("merge", "--recipe", path, "--offline")["as_recorded"] is True


def test_a_parent_with_other_content_is_refused_by_name(adapt, made):
    adapt.ok("merge", "legal-qa", "tables", "-o", "changed")
    other = Adapt(made, home="home-changed")
    make_adapter(made / "retrained", seed=77, width=WIDTH)
    other.ok("add", "retrained", "--name", "legal-qa")
    other.ok("install", "tables", "--from", "published")

    said = other.fails(12, "merge", "--recipe", recipe_file(adapt, "changed"), "--offline")

    assert "`legal-qa==1.0.0`" in said
    assert adapt.json("show", "legal-qa")["digest"] in said
    assert other.json("show", "legal-qa")["digest"] in said
    assert {row["name"] for row in other.json("list")} == {"legal-qa", "tables"}


def test_parents_are_found_by_digest_in_whatever_namespace_they_are(adapt, made):
    merged = adapt.json("merge", "legal-qa", "tables", "-o", "by-digest")
    library = Library(made / "home-namespaced")
    for name in ("legal-qa", "tables"):
        manifest = Manifest.parse(Path(adapt.ok("info", name, "--path").strip(), "adapterhub.json").read_bytes())
        about = Description(name=parse_name(name), version="1.0.0", task=name, base=manifest.base)
        library.add(made / "out" / name, about, namespace="acme")
    other = Adapt(made, home="home-namespaced")

    again = other.json("merge", "--recipe", recipe_file(adapt, "by-digest"), "--offline")

    assert again["digest"] == merged["digest"]


def test_an_input_without_a_digest_is_what_its_spec_means_today(adapt):
    (adapt.folder / "loose.toml").write_text('format = 1\nname = "loose"\n[[inputs]]\nspec = "tables>=1"\nweight = 2\n')

    merged = adapt.json("merge", "--recipe", "loose.toml")

    assert merged["parents"] == [
        {"adapter": "tables==1.0.0", "weight": 2, "digest": adapt.json("show", "tables")["digest"]}
    ]


def test_folders_stand_beside_the_recipe_and_are_held_to_their_bytes(adapt, made, tmp_path):
    merged = adapt.json("merge", "./out/legal-qa", "./out/tables", "-o", "of-folders")
    text = adapt.ok("show", "of-folders", "--recipe")
    for name in ("legal-qa", "tables"):
        make_adapter(tmp_path / "moved" / "out" / name, seed=PARENTS.index(name), width=WIDTH)
    (tmp_path / "moved" / "merge.toml").write_text(text)
    other = Adapt(tmp_path)

    again = other.json("merge", "--recipe", "moved/merge.toml")
    config = tmp_path / "moved" / "out" / "tables" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 64}))
    said = other.fails(12, "merge", "--recipe", "moved/merge.toml")

    assert again["digest"] == merged["digest"]
    assert "`./out/tables` (config_sha256)" in said


def test_a_folder_that_is_not_there_is_named(adapt, tmp_path):
    (tmp_path / "merge.toml").write_text('format = 1\nname = "x"\n[[inputs]]\nspec = "./gone"\nweight = 1\n')

    assert f"inputs[0]: no folder `{tmp_path / 'gone'}`" in adapt.fails(
        10, "merge", "--recipe", tmp_path / "merge.toml"
    )


def test_a_base_that_was_pinned_has_to_be_pinned_elsewhere(adapt, made):
    make_adapter(made / "no-base", seed=8, width=WIDTH)
    adapt.ok("add", "no-base", "--name", "orphan", "--no-base")
    adapt.ok("push", "orphan", "--to", "./published-orphan")
    adapt.ok("base", "pin", "orphan", "base-7b")
    merged = adapt.json("merge", "orphan", "--weights", "0.5", "-o", "half")
    path = recipe_file(adapt, "half")
    other = Adapt(made, home="home-unpinned")
    other.ok("install", "orphan", "--from", "published-orphan")
    other.ok("base", "add", "./base", "--as", "base-7b")

    said = other.fails(11, "merge", "--recipe", path)
    other.ok("base", "pin", "orphan", "base-7b")

    assert "adapt base pin orphan==1.0.0 BASE" in said
    assert other.json("merge", "--recipe", path)["digest"] == merged["digest"]


def test_what_is_no_merge_has_no_recipe(adapt):
    assert "`legal-qa` is not a merge" in adapt.fails(10, "show", "legal-qa", "--recipe")


def test_the_recipe_as_a_document(adapt):
    adapt.ok("merge", "legal-qa", "tables", "-o", "as-document")

    document = adapt.json("show", "as-document", "--recipe")

    assert document["recipe"] == adapt.ok("show", "as-document", "--recipe")


def test_printing_a_recipe_imports_no_torch(adapt):
    adapt.ok("merge", "legal-qa", "tables", "-o", "quickly")
    code = (
        "import sys; sys.argv = ['adapt', 'show', 'quickly', '--recipe', '--root', 'home']\n"
        "from adapterhub.cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=adapt.folder, capture_output=True, text=True, check=True)

    assert (done.stdout.startswith("format = 1\n"), done.stderr) == (True, "False\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["legal-qa"], "drop the adapters"),
        (["--weights", "1,2"], "drop --weights"),
        (["--method", "svd", "--rank", "2"], "drop --method, --rank"),
        (["--seed", "0"], "drop --seed"),
        (["--tune", "x.jsonl"], "drop --tune"),
        (["--base", "base-7b"], "drop --base"),
    ],
)
def test_a_recipe_says_everything(adapt, arguments, said):
    (adapt.folder / "whole.toml").write_text('format = 1\nname = "w"\n[[inputs]]\nspec = "tables"\nweight = 1\n')

    assert said in adapt.fails(2, "merge", "--recipe", "whole.toml", *arguments)


def test_a_result_without_a_name_is_refused(adapt):
    (adapt.folder / "nameless.toml").write_text('format = 1\n[[inputs]]\nspec = "tables"\nweight = 1\n')

    assert "no name" in adapt.fails(2, "merge", "--recipe", "nameless.toml")
    assert adapt.json("merge", "--recipe", "nameless.toml", "-o", "named")["name"] == "named"


def test_no_file_is_told(adapt):
    assert "nowhere.toml" in adapt.fails(10, "merge", "--recipe", "nowhere.toml")
    assert "out" in adapt.fails(10, "merge", "--recipe", "out")


# ---------------------------------------------------------------- from Python
def test_weights_found_elsewhere_and_their_losses_are_recorded_and_replayed(adapt, elsewhere):
    library = Library(adapt.folder / "home")
    builds = [library.builds_named(name)[0] for name in ("legal-qa", "tables")]
    inputs = tuple(
        Ingredient(folder=b.folder, label=f"{b.full_name}==1.0.0", weight=w, base=b.base, digest=b.manifest.digest)
        for b, w in zip(builds, (0.123456789, -1 / 3), strict=True)
    )
    about = Description(name=parse_name("tuned"), version="1.0.0", metrics={"tune_loss_after": 1.5})
    merged = merge_into_library(library, MergeStep(inputs=inputs), about)

    again = elsewhere.json("merge", "--recipe", recipe_file(adapt, "tuned"))

    assert again["digest"] == merged.added.build.manifest.digest
    assert elsewhere.json("show", "tuned")["metrics"]["tune_loss_after"] == 1.5


def test_a_damaged_manifest_of_a_parent_is_told(adapt, made):
    adapt.ok("merge", "legal-qa", "-o", "of-a-damaged")
    path = recipe_file(adapt, "of-a-damaged")
    other = Adapt(made, home="home-damaged")
    other.ok("install", "legal-qa", "--from", "published")
    [manifest] = (made / "home-damaged" / "manifests" / "sha256").iterdir()
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(b"legal-qa", b"legal-qb"))

    other.fails(DigestMismatch.exit_code, "merge", "--recipe", path)


def test_a_spec_of_a_recipe_is_an_adapter_spec(adapt):
    adapt.ok("merge", "legal-qa", "-o", "spec-of")
    recipe = parse_recipe(recipe_file(adapt, "spec-of").read_bytes())

    assert [str(AdapterSpec.parse(leaf.spec)) for leaf in recipe.step.leaves()] == ["legal-qa==1.0.0"]

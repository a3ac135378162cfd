"""One name, one meaning, as one types it: `add`, `merge`, `resize` and `extract` where the name exists; what `add` guesses."""

from __future__ import annotations

import json

import pytest

import adapterhub
from adapterhub.core.errors import ReleaseExists, UsageProblem
from adapterhub.weights.recipes import combination
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base


@pytest.fixture
def adapt(tmp_path) -> Adapt:
    make_base(tmp_path / "base", width=16)
    for number, (name, rank) in enumerate({"qa": 8, "qa-r4": 4, "tables": 4}.items()):
        make_adapter(tmp_path / "out" / name, rank=rank, seed=number, width=16)
    adapt = Adapt(tmp_path)
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    adapt.ok("add", "out/qa")
    adapt.ok("add", "out/tables")
    return adapt


def builds(adapt: Adapt, name: str) -> list[tuple[str, int]]:
    return sorted((b.manifest.version, b.manifest.rank) for b in adapt.library.builds_named(name))


def test_a_retrain_at_another_rank_is_refused_until_its_version_is_chosen(adapt):
    said = adapt.fails(15, "add", "out/qa-r4", "--name", "qa")

    assert "`qa` 1.0.0 (rank 8) is installed for base-7b; `out/qa-r4` (rank 4) would be another build" in said
    assert "`--bump patch` makes it 1.0.1; `--variant` adds another rank to 1.0.0" in said
    assert adapt.ok("add", "out/qa-r4", "--name", "qa", "--bump", "patch").startswith("added qa 1.0.1 (rank 4)")
    assert adapt.ok("info", "qa", "--path").endswith("1.0.1-r4\n")


def test_a_variant_is_added_on_purpose(adapt):
    adapt.ok("add", "out/qa-r4", "--name", "qa", "--variant")

    assert builds(adapt, "qa") == [("1.0.0", 4), ("1.0.0", 8)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--bump", "patch", "--variant"], "`--bump` and `--variant` exclude each other"),
        (["--bump", "patch", "--version", "2"], "`--bump` and `--version` exclude each other"),
        (["--base", "base-7b", "--no-base"], "`--base` and `--no-base` exclude each other"),
    ],
)
def test_options_that_exclude_each_other_are_refused(adapt, options, said):
    assert said in adapt.fails(2, "add", "out/qa-r4", "--name", "qa", *options)


def test_another_merge_under_the_name_is_refused_before_it_runs(adapt, monkeypatch):
    adapt.ok("merge", "qa", "tables", "-o", "mix")
    ran = []
    monkeypatch.setattr(combination, "merge", lambda *_, **__: ran.append(1))

    for change in (["--weights", "0.6,0.4"], ["--rank", "4"], ["--dtype", "bfloat16"], ["--task", "new"]):
        said = adapt.fails(15, "merge", "qa", "tables", "-o", "mix", *change)
        assert "`mix` 1.0.0 (rank 12) is installed for base-7b; the result of `qa==1.0.0`, `tables==1.0.0`" in said
        assert "`--bump patch` makes it 1.0.1" in said
    assert ran == []


@pytest.mark.parametrize(
    "choice",
    [
        [],
        ["--weights", "0.6,0.4"],
        ["--rank", "auto"],
        ["--dtype", "bfloat16", "--max-error", "0.2"],
        ["--method", "dare_ties_svd", "-O", "density=0.5", "--seed", "3", "--rank", "4"],
        ["--method", "ties_svd", "-O", "majority=frequency", "--rank", "4"],
        ["--method", "della", "--rank", "4", "--task", "both", "--description", "Two tasks"],
    ],
)
def test_the_same_merge_again_changes_nothing(adapt, choice):
    adapt.ok("merge", "qa", "tables", "-o", "mix", *choice)

    assert adapt.ok("merge", "qa", "tables", "-o", "mix", *choice).startswith("already installed: mix 1.0.0")
    assert adapt.ok("merge", "qa", "tables", "-o", "mix", *choice, "--bump", "patch").startswith("already installed")


def test_a_copy_of_one_adapter_and_a_resize_to_its_own_rank_are_the_same_again(adapt):
    for command in (("merge", "qa", "-o", "copy"), ("resize", "qa", "--rank", "8", "-o", "same")):
        adapt.ok(*command)
        assert adapt.ok(*command).startswith("already installed")


def test_folders_that_were_trained_again_are_another_merge(adapt, tmp_path):
    command = ("merge", "./out/qa", "./out/tables", "-o", "mix")
    adapt.ok(*command)
    assert adapt.ok(*command).startswith("already installed")
    (tmp_path / "out" / "qa").rename(tmp_path / "old")
    make_adapter(tmp_path / "out" / "qa", rank=8, seed=77, width=16)

    assert "`mix` 1.0.0 (rank 12) is installed" in adapt.fails(15, *command)


def test_a_merge_takes_the_next_version_or_joins_on_purpose(adapt):
    adapt.ok("merge", "qa", "tables", "-o", "mix")

    assert adapt.ok("merge", "qa", "tables", "--rank", "4", "-o", "mix", "--bump", "minor").startswith(
        "merged mix 1.1.0"
    )
    adapt.ok("merge", "qa", "tables", "--rank", "4", "-o", "mix", "--variant")
    assert "differs in: " in adapt.fails(
        15, "merge", "qa", "tables", "--rank", "4", "-o", "mix", "--variant", "--task", "x"
    )

    assert builds(adapt, "mix") == [("1.0.0", 4), ("1.0.0", 12), ("1.1.0", 4)]


def test_a_recipe_of_another_merge_is_refused_and_bumped(adapt, tmp_path):
    adapt.ok("merge", "qa", "tables", "-o", "mix")
    recipe = adapt.ok("show", "mix", "--recipe")
    (tmp_path / "mix.toml").write_text(recipe.replace("weight = 0.5", "weight = 0.4"))
    (tmp_path / "same.toml").write_text(recipe)

    assert "is installed for base-7b" in adapt.fails(15, "merge", "--recipe", "mix.toml")
    assert adapt.ok("merge", "--recipe", "same.toml").startswith("already installed: mix 1.0.0")
    assert adapt.ok("merge", "--recipe", "mix.toml", "--bump", "patch").startswith("merged mix 1.0.1")


def test_a_search_for_weights_is_refused_before_it_begins(adapt, tmp_path, monkeypatch):
    adapt.ok("merge", "qa", "tables", "--rank", "4", "-o", "mix")
    (tmp_path / "examples.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    monkeypatch.setattr("adapterhub.api.steps.combining.tuned", lambda *_, **__: pytest.fail("it searched"))

    assert "is installed" in adapt.fails(15, "merge", "qa", "tables", "-o", "mix", "--tune", "examples.jsonl")


def test_a_resize_under_the_name_of_its_adapter_is_a_variant(adapt):
    assert "`--variant` adds another rank" in adapt.fails(15, "resize", "qa", "--rank", "2", "-o", "qa")
    adapt.ok("resize", "qa", "--rank", "2", "-o", "qa", "--variant")

    assert builds(adapt, "qa") == [("1.0.0", 2), ("1.0.0", 8)]


def test_a_folder_has_no_version_to_bump(adapt):
    assert "a folder has no version" in adapt.fails(2, "merge", "qa", "tables", "-o", "./mix", "--bump", "patch")
    assert "a folder has no version" in adapt.fails(2, "resize", "qa", "--rank", "2", "-o", "./small", "--variant")


def test_an_extraction_under_a_name_that_exists_is_refused_before_it_runs(adapt, tmp_path, monkeypatch):
    make_base(tmp_path / "tuned", width=16, seed=5)
    make_base(tmp_path / "again", width=16, seed=6)
    command = ("extract", "./tuned", "--base", "base-7b", "-o", "lora", "--rank")
    adapt.ok(*command, "4")
    assert adapt.ok(*command, "4").startswith("already installed: lora 1.0.0")

    monkeypatch.setattr("adapterhub.weights.extract.extract", lambda *_, **__: pytest.fail("it ran"))
    assert "`lora` 1.0.0 (rank 4) is installed for base-7b" in adapt.fails(15, *command, "2")
    other = ("extract", "./again", "--base", "base-7b", "-o", "lora", "--rank", "4")
    assert "the extracted adapter would be another build" in adapt.fails(15, *other)
    monkeypatch.undo()
    assert adapt.ok(*command, "2", "--bump", "patch").startswith("extracted lora 1.0.1 (rank 2)")


def test_python_refuses_bumps_and_adds_variants_as_the_commands_do(adapt, tmp_path):
    library = adapterhub.Library(tmp_path / "home")

    with pytest.raises(ReleaseExists):
        library.add(tmp_path / "out" / "qa-r4", name="qa")
    with pytest.raises(UsageProblem):
        library.add(tmp_path / "out" / "qa-r4", name="qa", version="2", bump="patch")
    assert library.add(tmp_path / "out" / "qa-r4", name="qa", bump="minor").build.manifest.version == "1.1.0"
    assert library.resize("qa==1.0.0", rank=2, output="qa", variant=True).adapter.manifest.label == "1.0.0 (rank 2)"
    library.merge(["qa==1.0.0", "tables"], output="mix")
    with pytest.raises(ReleaseExists):
        library.merge({"qa==1.0.0": 0.7, "tables": 0.3}, output="mix")
    assert (
        library.merge({"qa==1.0.0": 0.7, "tables": 0.3}, output="mix", bump="patch").adapter.manifest.version == "1.0.1"
    )

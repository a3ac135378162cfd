"""`adapt merge`: its options, what it says, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.weights import catalogue as merge_methods
from tests.support.adapter_folders import error_of, updates_in, write_folder
from tests.support.command_line import Adapt
from tests.support.interrupting import adapt_interrupted_at
from tests.support.tiny import make_adapter, make_base

ADAPT = [sys.executable, "-c", "import sys; sys.argv[0] = 'adapt'; from adapterhub.cli import main; main()"]
WIDTH = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("merging")
    make_base(folder / "base", width=WIDTH)
    adapt = Adapt(folder)
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    for seed, name in enumerate(["legal-qa", "summarize", "tables"]):
        make_adapter(folder / "out" / name, seed=seed, width=WIDTH)
        adapt.ok("add", f"out/{name}", "--name", name, "--base", "base-7b")
    return folder


@pytest.fixture
def adapt(made) -> Adapt:
    return Adapt(made)


@pytest.fixture
def merged(adapt, tmp_path):
    """The document of a merge of two folders with these options."""
    numbers = iter(range(100))

    def merge(*options: object) -> dict:
        return adapt.json("merge", "legal-qa", "summarize", "-o", tmp_path / str(next(numbers)), *options)

    return merge


# ---------------------------------------------------------------- how
@pytest.mark.parametrize(
    ("options", "method", "chosen"),
    [
        ([], "cat", {}),
        (["--rank", "3"], "svd", {"rank": 3}),
        (["--rank", "auto"], "svd", {"energy": 0.99}),
        (["--rank", "auto", "--energy", "0.5"], "svd", {"energy": 0.5}),
        (["--rank", "auto", "--max-error", "0.5"], "svd", {"max_error": 0.5}),
        (["--energy", "0.9"], "svd", {"energy": 0.9}),
        (["--max-error", "0"], "svd", {"max_error": 0}),
        (["--method", "ties", "--rank", "3"], "ties", {"density": 0.5, "majority": "total", "rank": 3}),
        (["--method", "ties", "-O", "density=1"], "ties", {"density": 1, "majority": "total"}),
        (["--method", "ties", "-O", "majority=frequency", "-O", "density=0.2"], "ties", {"density": 0.2, "majority": "frequency"}),
        (["--method", "dare_linear"], "dare_linear", {"density": 0.5, "seed": 0}),
        (["--method", "dare_linear", "--seed", "9"], "dare_linear", {"density": 0.5, "seed": 9}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_asked_for_is_what_is_recorded(merged, options, method, chosen):
    recipe = merged(*options)["recipe"]

    assert (recipe["method"], recipe["options"], recipe["dtype"]) == (method, chosen, "float32")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rank", "3", "--energy", "0.9"], "--rank and --energy each choose the rank"),
        (["--rank", "3", "--max-error", "0.1"], "--rank and --max-error each choose the rank"),
        (["--energy", "0.9", "--max-error", "0.1"], "--energy and --max-error each choose the rank"),
        (["--rank", "0"], "0 is not in the range"),
        (["--rank", "automatic"], "automatic"),
        (["--energy", "0"], "0"),
        (["--energy", "1.5"], "1.5"),
        (["--max-error", "1"], "1"),
        (["-O", "density=0", "--method", "ties"], "0"),
        (["-O", "density=nan", "--method", "ties"], "nan"),
        (["--energy", "nan"], "nan"),
        (["--method", "tis"], "did you mean `ties`"),
        (["--method", "DARE_TIES"], "no merge method `DARE_TIES`"),
        (["-O", "density=0.5"], "`cat` has no option `density`"),
        (["--seed", "1"], "`cat` is not random"),
        (["--seed", "-1", "--method", "dare_ties"], "-1"),
        (["--method", "ties", "-O", "majrity=total"], "`ties` has no option `majrity`; did you mean `majority`?"),
        (["--method", "ties", "-O", "majority=most"], "expected `total` or `frequency`"),
        (["--method", "ties", "-O", "density=much"], "option `density` is `much`"),
        (["--method", "ties", "-O", "density"], "expected NAME=VALUE"),
        (["--method", "ties", "-O", "=1"], "expected NAME=VALUE"),
        (["--method", "ties", "-O", "density=0.5", "-O", "density=0.5"], "`density` is given twice"),
        (["-O", "rank=3"], "write `--rank 3`"),
        (["-O", "max-error=0.1"], "write `--max-error 0.1`"),
        (["--method", "ties", "-O", "\x1b[2J=1"], "no option `\\x1b[2J`"),
        (["--from", "."], "only `--recipe` fetches adapters; drop --from"),
        (["--offline"], "drop --offline"),
        (["--tune-budget", "5"], "only `--tune` evaluates; drop --tune-budget"),
        (["--tune", "x.jsonl", "--weights", "1,1"], "`--tune` finds the weights; drop --weights"),
        (["--version", "one"], "not a version"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_contradicts_itself_is_refused_in_one_sentence(adapt, options, said):
    before = adapt.json("list")

    assert said in adapt.fails(2, "merge", "legal-qa", "summarize", "-o", "never", *options)
    assert adapt.json("list") == before


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("merge legal-qa summarize 0.7 0.3 -o x", "legal-qa summarize --weights 0.7,0.3"),
        ("merge 0.7 legal-qa .3 summarize -o x", "legal-qa summarize --weights 0.7,.3"),
        ("merge legal-qa summarize --weights 0.7 0.3 -o x", "legal-qa summarize --weights 0.7,0.3"),
        ("merge legal-qa summarize --weights 0.7, 0.3 -o x", "legal-qa summarize --weights 0.7,0.3"),
        ("compare legal-qa summarize --weights 1 2", "legal-qa summarize --weights 1,2"),
        ("fuse legal-qa summarize 1 -o ./x", "legal-qa summarize --weights 1"),
    ],
)
def test_weights_in_the_wrong_place_are_put_into_the_right_one(adapt, words, meant):
    said = adapt.fails(2, *words.split())

    assert "stand where adapters are expected" in said or "stands where an adapter is expected" in said
    assert f"hint: write `{meant}`" in said


def test_without_adapters_or_a_name_there_is_nothing_to_do(adapt):
    assert "no adapters given" in adapt.fails(2, "merge", "-o", "x")
    assert "the result needs a name" in adapt.fails(2, "merge", "legal-qa")
    assert "the result needs a name" in adapt.fails(2, "merge", *["legal-qa"] * 12)


def test_without_a_name_the_result_has_those_of_its_parents(adapt):
    assert "merged legal-qa-summarize 1.0.0" in adapt.ok("merge", "legal-qa", "summarize")
    assert "merged tables-legal-qa 1.0.0" in adapt.ok("merge", "tables", "./out/legal-qa")


def test_an_option_that_others_have_is_told_with_those_that_have_it(adapt):
    said = adapt.fails(2, "merge", "legal-qa", "summarize", "-o", "x", "--method", "svd", "-O", "density=0.5")

    assert "`ties`" in said.partition("\n")[2]


def test_energy_keeps_that_share_of_the_squared_norm(merged):
    kept = merged("--energy", "0.7")

    assert 0.1 < kept["relative_error"] ** 2 <= 0.3


def test_the_order_of_random_adapters_changes_nothing(adapt, tmp_path):
    for name, pair in (("ab", ["legal-qa", "tables"]), ("ba", ["tables", "legal-qa"])):
        adapt.ok("merge", *pair, "--method", "dare_linear", "--seed", "7", "-o", tmp_path / name)

    assert error_of(updates_in(tmp_path / "ab"), updates_in(tmp_path / "ba")) < 1e-6


# ---------------------------------------------------------------- what is said
def test_the_distance_from_the_sum_is_an_error_only_for_methods_that_are_after_the_sum(adapt, tmp_path):
    exact = adapt.ok("merge", "legal-qa", "summarize", "--weights", "0.7,0.3", "-o", tmp_path / "cat")
    cut = adapt.ok("merge", "legal-qa", "summarize", "--rank", "3", "-o", tmp_path / "svd")
    other = adapt.ok("merge", "legal-qa", "summarize", "--method", "dare_ties", "--rank", "2", "-o", tmp_path / "dare")

    assert re.search(r"relative error against the exact sum: \d.*e-08", exact)
    assert "by " not in exact
    assert "lost by the cut" not in exact
    assert re.search(r"by svd, rank 3\n(.*\n)*  relative error against the exact sum: 0\.\d+, worst in", cut)
    assert "  by dare_ties, density 0.5, majority total, seed 0, rank 2\n" in other
    assert re.search(r"distance from the plain sum: \d", other)
    assert re.search(r"lost by the cut to this rank: \d", other)


def test_a_rank_that_loses_much_warns_with_the_error_and_what_to_do(adapt, tmp_path):
    small = adapt("merge", "legal-qa", "summarize", "--rank", "1", "-o", tmp_path / "small")
    bounded = adapt("merge", "legal-qa", "summarize", "--energy", "0.5", "-o", tmp_path / "bounded")
    whole = adapt("merge", "legal-qa", "summarize", "--rank", "8", "-o", tmp_path / "whole")

    lost = re.search(r"lost by the cut to this rank: (0\.\d+)", small.stdout)
    assert lost is not None
    assert f"warning: the cut to rank 1 loses much: its relative error is {lost[1]}; " in small.stderr
    assert "rank `auto` keeps the error near 0.1" in small.stderr
    assert "loses much" not in bounded.stderr + whole.stderr


def test_what_was_lost_by_cutting_is_what_was_cut_and_not_what_the_method_changed(merged):
    whole, cut = merged("--method", "ties"), merged("--method", "ties", "--rank", "2")

    assert whole["truncation_error"] is None
    assert 0 < cut["truncation_error"] < cut["relative_error"]


def test_the_manifest_has_what_was_measured(adapt):
    adapt.ok("merge", "legal-qa", "tables", "--rank", "3", "-o", "measured", "--license", "mit", "--task", "both")

    manifest = adapt.json("show", "measured")

    assert manifest["metrics"].keys() == {"merge_relative_error", "merge_truncation_error"}
    assert (manifest["license"], manifest["task"]) == ("mit", "both")
    assert "recipe\tsvd, rank 3, float32" in adapt.ok("show", "measured")


def test_folders_alone_keep_the_base_that_their_configs_name(adapt):
    adapt.ok("merge", "./out/legal-qa", "./out/tables", "-o", "from-folders")

    assert adapt.json("show", "from-folders")["base"]["hints"]["hub_id"] == "test/tiny"


# ---------------------------------------------------------------- --methods
def test_methods_are_listed_with_their_options_without_torch(adapt):
    code = (
        "import sys; sys.argv = ['adapt', 'merge', '--methods']\n"
        "from adapterhub.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'numpy', 'peft'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=adapt.folder, capture_output=True, text=True, check=True)
    listed = {m["name"]: m for m in adapt.json("merge", "--methods")}
    rows = [line.split("\t") for line in done.stdout.splitlines()]

    assert done.stderr.splitlines()[-1] == "[]"
    assert tuple(listed) == merge_methods.names()
    assert [row[0] for row in rows[1:]] == list(listed)
    assert {row[0]: row[2] for row in rows}["ties"] == "density=0.5, majority=total|frequency"
    assert all(m["summary"] for m in listed.values())
    assert listed["dare_ties"]["is_random"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("adapt merge a b --method dare_", ["dare_linear", "dare_ties"]),
        ("adapt merge a b --rank a", ["auto"]),
        ("adapt merge a b --method ties -O ma", ["majority="]),
    ],
)
def test_the_shell_completes_methods_and_their_options(adapt, words, offered):
    environ = os.environ | {
        "_ADAPT_COMPLETE": "zsh_complete",
        "ADAPT_LINE": words,
        "ADAPTERHUB_HOME": str(adapt.folder / "home"),
    }
    done = subprocess.run(ADAPT, env=environ, capture_output=True, text=True, check=False)

    found = [line.split("\t")[1] for line in done.stdout.splitlines() if line]
    assert [name for name in found if not name.endswith("_svd")] == offered


# ---------------------------------------------------------------- --tune
@pytest.fixture(scope="module")
def answering(tmp_path_factory) -> Path:
    """A tiny language model as a registered base, two adapters for it, and examples."""
    from peft import LoraConfig

    from tests.inference.test_tuning import tiny_tokenizer, words
    from tests.support.tiny_models import llama, save_adapter

    folder = tmp_path_factory.mktemp("tuning")
    llama().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    adapt = Adapt(folder)
    adapt.ok("base", "add", "./base", "--as", "tiny")
    for seed, name in enumerate(["first", "second"]):
        save_adapter(folder / name, llama, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), seed=seed + 1)
        adapt.ok("add", name, "--name", name, "--base", "tiny")
        adapt.ok("push", name, "--to", "./published")
    lines = [{"prompt": words(i, 4), "completion": " " + words(100 + i, 2)} for i in range(12)]
    (folder / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of much that is meant here
def test_tuned_weights_are_merged_and_their_losses_shown_and_recorded(answering):
    adapt = Adapt(answering)

    said = adapt.ok(
        "merge", "first", "second", "--tune", "examples.jsonl", "--base", "tiny", "--tune-budget", "8", "-o", "tuned"
    )

    rows = dict(line.split("\t") for line in said.splitlines() if "\t" in line)
    shown = adapt.json("show", "tuned")
    assert list(rows) == [
        "model", "the base alone", "first==1.0.0 alone", "second==1.0.0 alone", "equal shares", "tuned weights",
    ]  # fmt: skip
    assert f"{shown['metrics']['tune_loss_after']:.4f}" == rows["tuned weights"]
    assert [p["weight"] for p in shown["parents"]] == [i["weight"] for i in shown["recipe"]["inputs"]]
    assert shown["metrics"].keys() == {
        "merge_relative_error", "tune_loss_base", "tune_loss_before", "tune_loss_after", "tune_examples",
        "tune_evaluations", "tune_searched", "tune_reported",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # as above
def test_shares_stay_equal_where_nothing_does_better_and_that_is_said(answering):
    adapt, told = Adapt(answering), []
    for seed in range(6):
        done = adapt(
            "merge", "first", "second", "--tune", "examples.jsonl", "--tune-budget", "6", "--seed", seed, "-o",
            f"seed-{seed}", "--json",
        )  # fmt: skip
        found = json.loads(done.stdout)["tuning"]
        told.append("no weights did better than equal shares" in done.stderr)
        assert told[-1] is not found["is_better"]
        assert found["loss_after"] < found["loss_before"] or found["weights"] == [0.5, 0.5]

    assert True in told


@pytest.mark.filterwarnings("ignore")  # as above
def test_the_recipe_of_a_tuned_merge_gives_it_again_without_base_or_examples(answering):
    adapt = Adapt(answering)
    tuned = adapt.json("merge", "first", "second", "--tune", "examples.jsonl", "--tune-budget", "6", "-o", "again")
    (answering / "again.toml").write_text(adapt.ok("show", "again", "--recipe"))
    other = Adapt(answering, home="another-home")

    replayed = other.json("merge", "--recipe", "again.toml", "--from", "published", "--offline")

    assert (replayed["digest"], replayed["as_recorded"]) == (tuned["digest"], True)
    assert tuned["tuning"]["weights"] == [p["weight"] for p in tuned["parents"]]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--tune", "nowhere.jsonl", "--base", "tiny"], 10, "nowhere.jsonl"),
        (["--tune", "examples.jsonl", "--base", "unknown"], 10, "unknown"),
        (["--tune", "examples.jsonl", "--base", "other"], 11, "made for another base"),
        (["--tune", "examples.jsonl", "--tune-budget", "1"], 2, "budget 1"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(answering, arguments, code, said):
    adapt = Adapt(answering)
    if "other" in arguments:
        make_base(answering / "other-base", width=32)
        adapt.ok("base", "add", "./other-base", "--as", "other")

    assert said in adapt.fails(code, "merge", "first", "second", "-o", "never", *arguments)
    assert "never" not in {row["name"] for row in adapt.json("list")}


def test_adapters_of_an_unknown_base_are_tuned_on_a_named_one_only(answering):
    said = Adapt(answering).fails(10, "merge", "./first", "./second", "-o", "./x", "--tune", "examples.jsonl")

    assert "name it with `--base`" in said


# ---------------------------------------------------------------- a long one
@pytest.fixture(scope="module")
def long_merge(tmp_path_factory) -> Path:
    """Two adapters whose merge by `svd` takes about a second."""
    folder = tmp_path_factory.mktemp("long")
    shapes = {f"model.layers.{i}.q_proj": (512, 512) for i in range(60)}
    for seed, name in enumerate("ab"):
        write_folder(folder / name, shapes, ranks=64, seed=seed)
    return folder


@pytest.mark.parametrize("output", ["interrupted", "./there/interrupted"])
def test_interrupting_a_merge_leaves_nothing(long_merge, output):
    home = long_merge / "home"
    environ = os.environ | {"ADAPTERHUB_HOME": str(home)}
    places = [home / "tmp", long_merge / "there"]

    done = adapt_interrupted_at(
        "adapterhub.weights.lowrank.factors", "TensorFileWriter.add", signal.SIGINT,
        *("merge", "./a", "./b", "--rank", "8", "-o", output), folder=long_merge, environ=environ,
    )  # fmt: skip

    assert (done.exit_code, "interrupted" in done.stderr) == (130, True)
    assert "Traceback" not in done.stderr
    assert not (home / "adapters").exists()
    assert [p for place in places if place.exists() for p in place.iterdir()] == []


def test_a_terminal_sees_modules_rate_and_the_time_that_is_left(long_merge):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*ADAPT, "merge", "./a", "./b", "--rank", "8", "-o", "./shown"],
        stdout=subprocess.DEVNULL, stderr=follower, stdin=follower, cwd=long_merge,
        env=os.environ | {"ADAPTERHUB_HOME": str(long_merge / "home"), "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(chunks).decode())

    assert process.wait() == 0
    assert re.search(r"merge .*\d/60 modules, [\d.]+/s 0:00:\d\d left", shown), shown

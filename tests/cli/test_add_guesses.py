"""What `add` guesses of a folder, what it says about that, and several folders at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import adapterhub
from adapterhub.core.errors import UsageProblem
from adapterhub.library.identify.guess import guess_name
from tests.support.command_line import Adapt
from tests.support.foreign_files import kohya
from tests.support.tiny import make_adapter, make_base


@pytest.fixture
def adapt(tmp_path) -> Adapt:
    make_base(tmp_path / "base")
    adapt = Adapt(tmp_path)
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    return adapt


def base_of(adapt: Adapt, name: str) -> str:
    [build] = adapt.library.builds_named(name)
    return build.base_name if build.base.fingerprint else ""


# ---------------------------------------------------------------- the name
@pytest.mark.parametrize(
    ("folder", "name"),
    [("legal-qa", "legal-qa"), ("Legal QA (v2)", "legal-qa-v2"), ("checkpoint-500", "checkpoint-500"), ("a--b", "a-b")],
)
def test_the_name_is_the_folders(tmp_path, folder, name):
    assert guess_name(tmp_path / folder) == name


@pytest.mark.parametrize("folder", ["…", "con", "1.0", "0123456789abcdef0123456789abcdef01234567", "main"])
def test_where_no_name_can_be_made_one_is_asked_for(tmp_path, folder):
    with pytest.raises(UsageProblem) as refusal:
        guess_name(tmp_path / folder)
    assert "--name" in refusal.value.hint


def test_a_dot_is_the_folder_one_stands_in(adapt, tmp_path, monkeypatch):
    make_adapter(tmp_path / "here" / "qa")

    assert Adapt(tmp_path / "here" / "qa", "../../home").ok("add", ".").startswith("added qa 1.0.0")


# ---------------------------------------------------------------- the base
def test_the_one_base_that_fits_is_recorded_and_said(adapt, tmp_path):
    make_adapter(tmp_path / "qa")

    done = adapt("add", "qa")

    assert "took base `base-7b` for `qa` (the only registered base that it fits); `--base` names another" in done.stderr
    assert "for base-7b" in done.stdout
    assert base_of(adapt, "qa") == "base-7b"


def test_of_several_that_fit_none_is_taken(adapt, tmp_path):
    make_base(tmp_path / "chat", seed=1)
    adapt.ok("base", "add", "./chat", "--as", "chat-7b")
    make_adapter(tmp_path / "qa")

    said = adapt("add", "qa").stderr

    assert "the base of `qa` stays unknown: it may be for `base-7b` and `chat-7b`" in said
    assert "`adapt base pin qa BASE` records it" in said
    assert base_of(adapt, "qa") == ""


def test_of_several_that_fit_the_one_that_the_config_names_is_taken(adapt, tmp_path):
    make_base(tmp_path / "chat", seed=1)
    adapt.ok("base", "add", "./chat", "--as", "chat-7b")
    make_adapter(tmp_path / "qa", base=str(tmp_path / "chat"))

    assert "took base `chat-7b` for `qa`" in adapt("add", "qa").stderr


def test_a_base_that_fits_is_not_taken_where_the_config_names_another(tmp_path, adapt):
    library = adapt.library
    library.bases.add(make_base(tmp_path / "known", seed=3), "known", hub_id="org/known")
    adapt.ok("base", "remove", "base-7b")
    make_adapter(tmp_path / "qa", base="org/sibling")

    assert "it fits `known` (org/known), but its config names `org/sibling`" in adapt("add", "qa").stderr
    assert base_of(adapt, "qa") == ""


def test_what_fits_none_says_what_to_type(adapt, tmp_path):
    make_adapter(tmp_path / "wide", width=16)

    said = adapt("add", "wide").stderr

    assert "it fits no registered base (`base-7b`)" in said
    assert "`adapt base add PATH` registers one, and `adapt base pin wide BASE` records it" in said


@pytest.mark.parametrize("trained_from", ["./llama", "/home/ana/models/llama", "C:\\models\\llama", "~/llama"])
def test_no_base_takes_a_folder_trained_from_a_local_path_and_later_checks_do_too(adapt, tmp_path, trained_from):
    make_adapter(tmp_path / "qa", base=trained_from)
    make_adapter(tmp_path / "py", base=trained_from, seed=2)
    adapt.ok("base", "remove", "base-7b")

    refused = adapt("add", "qa")
    adapt.ok("add", "qa", "--no-base")
    build = adapterhub.Library(tmp_path / "home").add(tmp_path / "py", guess_base=False).build

    assert (refused.exit_code, "`add --no-base` leaves it unknown" in refused.stderr) == (16, True)
    assert build.manifest.base.hints.hub_id is None
    for checks in (("verify", "qa"), ("verify", "--all"), ("audit", "qa")):
        said = adapt(*checks).stdout
        assert ("[W_BASE_PATH]" in said or checks[0] == "audit", "[E_" in said) == (True, False), said
    adapt.ok("push", "qa", "--to", "./share")
    adapt.ok("remove", "qa", "--yes")
    adapt.ok("install", "qa", "--from", "./share")
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    adapt.ok("base", "pin", "qa", "base-7b")
    assert base_of(adapt, "qa") == "base-7b"


def test_without_any_base_and_with_no_base_nothing_is_guessed(adapt, tmp_path):
    make_adapter(tmp_path / "qa")
    make_adapter(tmp_path / "qb", seed=2)

    assert "`adapt base pin qa BASE`" in adapt("add", "qa", "--no-base").stderr
    adapt.ok("base", "remove", "base-7b")
    assert "no base is registered" in adapt("add", "qb").stderr
    assert (base_of(adapt, "qa"), base_of(adapt, "qb")) == ("", "")


def test_a_damaged_base_record_stops_no_adapter(adapt, tmp_path):
    make_adapter(tmp_path / "qa")
    (tmp_path / "home" / "bases" / "base-7b.json").write_text("{}")

    done = adapt("add", "qa")

    assert (done.exit_code, "the registered bases cannot be read" in done.stderr) == (0, True)


def test_python_guesses_unless_told_otherwise(adapt, tmp_path, caplog):
    library = adapterhub.Library(tmp_path / "home")
    make_adapter(tmp_path / "Legal QA")
    make_adapter(tmp_path / "plain", seed=2)

    with caplog.at_level("INFO", "adapterhub"):
        assert library.add(tmp_path / "Legal QA").build.base_name == "base-7b"
    assert "took base `base-7b` for `legal-qa`" in caplog.text
    assert library.add(tmp_path / "plain", guess_base=False).build.base.fingerprint is None


# ---------------------------------------------------------------- several
@pytest.fixture
def runs(tmp_path):
    for number, name in enumerate(("contracts", "summarize")):
        make_adapter(tmp_path / "runs" / name, seed=number)
    make_adapter(tmp_path / "runs" / "trainer" / "checkpoint-100")
    make_adapter(tmp_path / "runs" / "trainer" / "checkpoint-20", seed=9)
    (tmp_path / "runs" / "logs").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("rank 8 was better")
    return sorted((tmp_path / "runs").iterdir())


def test_several_folders_are_added_and_others_passed_over(adapt, runs):
    done = adapt("add", *runs)

    assert done.exit_code == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()[:-1]] == [
        ["added", "contracts"],
        ["added", "summarize"],
    ]
    assert done.stdout.splitlines()[-1] == "5 given: 2 added, 3 passed over"
    assert "notes.txt`: is a file, not an adapter's folder" in done.stderr
    assert "logs`: holds no `adapter_config.json`\n" in done.stderr
    assert "trainer`: holds no `adapter_config.json`, but `checkpoint-100` and 1 more in it does" in done.stderr
    assert adapt.ok("add", *runs).splitlines()[-1] == "5 given: 2 already installed, 3 passed over"


def test_one_that_is_refused_stops_no_other(adapt, runs, tmp_path):
    (tmp_path / "runs" / "contracts" / "adapter_model.safetensors").write_bytes(b"torn")

    done = adapt("add", *runs, tmp_path / "absent")

    assert done.exit_code == 3
    assert done.stdout.splitlines()[-1] == "6 given: 1 added, 3 passed over, 2 refused"
    assert done.stderr.count("error: `") == 2
    assert [b.manifest.name for b in adapt.library.installed()] == ["summarize"]


def test_the_document_of_several(adapt, runs, tmp_path):
    (tmp_path / "runs" / "contracts" / "adapter_model.safetensors").write_bytes(b"torn")

    done = adapt("add", *runs, "--json")
    document = json.loads(done.stdout)

    assert done.exit_code == 3
    assert [(one["name"], one["base"], one["created"]) for one in document["added"]] == [("summarize", "base-7b", True)]
    assert [one["path"].rpartition("/")[2] for one in document["skipped"]] == ["logs", "notes.txt", "trainer"]
    assert [one["error"]["exit_code"] for one in document["failed"]] == [16]


def test_two_folders_of_one_name_need_a_version_each(adapt, tmp_path):
    for number, name in enumerate(("a", "b")):
        make_adapter(tmp_path / name / "final", seed=number, rank=4 + number)

    done = adapt("add", "a/final", "b/final")

    assert done.exit_code == 3
    assert "`final` 1.0.0 (rank 4) is installed for base-7b; `b/final` (rank 5) would be another build" in done.stderr
    assert (
        adapt.ok("add", "a/final", "b/final", "--bump", "patch").splitlines()[-1]
        == "2 given: 1 added, 1 already installed"
    )


def test_nothing_but_other_things_is_a_mistake(adapt, runs):
    assert "none of the 2 holds an adapter" in adapt.fails(2, "add", runs[1], runs[2])


def test_one_name_is_for_one_folder(adapt, runs):
    assert "there are 5 folders" in adapt.fails(2, "add", *runs, "--name", "qa")


def test_adding_imports_nothing_of_contracts_and_upgrades(tmp_path):
    kohya(tmp_path / "style.safetensors", every=50)
    code = (
        "import sys\n"
        "sys.argv = ['adapt', 'add', 'style.safetensors', '--root', 'home']\n"
        "from adapterhub.cli import main\n"
        "try: main()\n"
        "finally: print(*sorted(sys.modules))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert "adapterhub.formats.foreign.programs.kohya" in done.stdout.split()
    assert not {"adapterhub.api.steps.contracts", "adapterhub.projects.upgrades", "regex"} & set(done.stdout.split())


def test_a_config_without_a_base_is_no_warning_where_the_base_is_known(adapt, tmp_path):
    make_adapter(tmp_path / "out" / "bare", base_model_name_or_path=None)

    unknown = adapt("add", "./out/bare", "--name", "unknown", "--no-base").stderr
    known = adapt("add", "./out/bare", "--name", "known", "--base", "base-7b").stderr

    assert ("W_BASE_MISSING" in unknown, "W_BASE_MISSING" in known) == (True, False)
    assert "W_BASE_MISSING" in adapt("verify", "unknown").stdout
    assert "W_BASE_MISSING" not in adapt("verify", "known").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("merge", "./style.safetensors", "./style.safetensors", "-o", "both"),
        ("merge", "style.safetensors", "other", "-o", "both"),
        ("compare", "./style.safetensors", "./style.safetensors"),
        ("export", "./style.safetensors", "--format", "comfyui", "-o", "out"),
    ],
)
def test_a_file_where_an_adapter_is_expected_is_to_be_added_first(arguments, tmp_path):
    kohya(tmp_path / "style.safetensors", every=100)

    assert "`adapt add FILE` makes an adapter of a LoRA file" in Adapt(tmp_path).fails(10, *arguments)

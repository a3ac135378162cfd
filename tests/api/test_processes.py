"""What the Python interface gives goes into mappings, into copies and to other processes, errors included."""

from __future__ import annotations

import copy
import importlib
import inspect
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest

import adapterhub as ah
from adapterhub.core.errors import AdapterHubError, reworded
from tests.measure_house import MODULES
from tests.support.docs_sandbox import make_sandbox

COPIES: tuple[Callable[[Any], Any], ...] = (lambda one: pickle.loads(pickle.dumps(one)), copy.copy, copy.deepcopy)  # noqa: S301 - our own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_sandbox(folder, filled=True)
    return folder


@pytest.fixture
def library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ah.Library:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ADAPTERHUB_HOME", "home")
    return ah.Library("home")


# ---------------------------------------------------------------- errors
def error_classes() -> list[type[AdapterHubError]]:
    needs_others = ("adapterhub.vllm_plugin", "adapterhub.api.callbacks")  # an engine, a trainer
    for name in MODULES:
        if name.startswith("adapterhub.") and not name.startswith(needs_others) and not name.endswith("__main__"):
            importlib.import_module(name)

    def below(kind: type[AdapterHubError]) -> Iterator[type[AdapterHubError]]:
        for each in kind.__subclasses__():
            if each.__module__.startswith("adapterhub"):
                yield each
                yield from below(each)

    return sorted({AdapterHubError, *below(AdapterHubError)}, key=lambda kind: kind.__name__)


def one_of(kind: type[AdapterHubError]) -> AdapterHubError:
    values: dict[str, Any] = {
        "choices": [("a", "b")], "refusals": [("1.0", "yanked")], "reasons": ["x y"], "problems": ["p"],
        "findings": [("E_NAN", "text")], "packages": ["torch"], "extra": "weights", "status": 404,
    }  # fmt: skip
    values |= {"reasons": [("place", "what")]} if kind.__name__ == "ProjectConflict" else {}
    parameters = list(inspect.signature(kind).parameters.values())
    args = [values.get(p.name, p.name) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return kind(*args, **{p.name: values.get(p.name, p.name) for p in parameters if p.kind is p.KEYWORD_ONLY})


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("again", COPIES, ids=["pickle", "copy", "deepcopy"])
def test_every_error_is_the_same_in_a_copy_and_in_another_process(
    kind: type[AdapterHubError], again: Callable[[Any], Any]
) -> None:
    for error in (one_of(kind), reworded(one_of(kind), "other words", hint="another hint")):
        made = again(error)

        assert (type(made), str(made), made.args, vars(made)) == (kind, str(error), error.args, vars(error))


def refuse(spec: str) -> None:
    ah.AdapterSpec.parse(spec)


def label_of(library: ah.Library, build: Any) -> tuple[str, int]:
    return repr(library[build]), len(library)


def test_a_pool_of_processes_takes_libraries_and_builds_and_gives_errors(library: ah.Library) -> None:
    build = library["legal-qa"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        told = pool.apply_async(label_of, (library, build)).get(120)
        with pytest.raises(ah.AdapterHubError, match="a b"):
            pool.apply_async(refuse, ("a b",)).get(120)

    assert told == (repr(build), 1)


# ---------------------------------------------------------------- results
def results(library: ah.Library) -> dict[str, Any]:
    """What the documented functions return, each once."""
    project = ah.Project.create("assistant", base="base-7b")
    project.install("legal-qa")
    return {
        "build": library["legal-qa"],
        "manifest": library["legal-qa"].manifest,
        "list": library.list(),
        "list_bases": library.list_bases(),
        "base": library.bases.find("base-7b"),
        "library": library,
        "default": ah.Library.default(),
        "project": project,
        "locked": project.locked,
        "sync": project.sync(),
        "tree": project.tree(),
        "outdated": project.upgrade(check=True, offline=True),
        "upgrade": project.upgrade(dry_run=True, offline=True),
        "add": library.add("out/tables", name="tables", base="base-7b"),
        "merge": library.merge(["legal-qa", "tables"], output="both"),
        "resize": library.resize("legal-qa", rank=2, output="small"),
        "fuse": library.fuse("legal-qa", output="fused"),
        "export": library.export("legal-qa", "exported", format="peft"),
        "compare": library.compare("legal-qa", "tables"),
        "diff": library.compare("legal-qa", "tables", diff=True),
        "similar": library.compare("legal-qa"),
        "similar_groups": library.compare(),
        "verify": library.verify("legal-qa"),
        "verify_more": library.verify(),
        "audit": library.audit("legal-qa", offline=True),
        "check": library.verify("legal-qa", engines="peft"),
        "identify": library.identify("out/tables"),
        "lineage": library.tree("both"),
        "why": library.tree("legal-qa", invert=True),
        "info": library.info("legal-qa"),
        "space": library.space().held,
        "gc": library.gc(dry_run=True),
        "doctor": library.doctor(offline=True),
        "push": library.push("legal-qa", to="./published-here"),
        "set_alias": library.set_alias("prod", "legal-qa==1.0.0"),
        "own_tests": library.contracts.policy(),
        "remote": library.remotes.all(),
        "compare_bases": library.compare_bases("base-7b", "base-7b"),
        "fingerprint": ah.fingerprint_folder("models/base-7b", cache_folder=None),
        "explain": ah.explain("E_PICKLE"),
        "key": library.keys.new("ana", "a password"),
        "trusted": library.keys.trust("ana"),
        "spec": ah.AdapterSpec.parse("acme/legal-qa@base-7b>=1"),
    }


def test_every_result_is_hashable_and_is_the_same_in_a_copy_and_in_another_process(library: ah.Library) -> None:
    found = results(library)

    for name, one in found.items():
        for again in COPIES:
            made = again(one)
            assert made == one or repr(made) == repr(one), name
        for each in [one] if isinstance(one, Hashable) else list(one.values() if isinstance(one, dict) else one):
            if isinstance(each, Hashable):
                assert isinstance(hash(each), int), name
    assert list(copy.deepcopy(found["list"])) == list(found["list"])


def test_builds_are_keys_of_weights(library: ah.Library) -> None:
    first = library["legal-qa"]
    second = library.add("out/summarize", name="second", base="base-7b").build

    merged = library.merge({first: 0.7, second: 0.3}, output="weighed")

    assert [one.weight for one in merged.parents] == [0.7, 0.3]


# ---------------------------------------------------------------- places
def test_a_library_and_a_project_stay_where_they_are(
    library: ah.Library, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    project = ah.Project.create("staying", base="base-7b", library="home")

    monkeypatch.chdir(tmp_path)

    assert (library.root, project.folder, project.library.root) == (
        folder / "home",
        folder / "staying",
        folder / "home",
    )
    assert library["legal-qa"].folder.is_dir()
    assert (list(project), list(tmp_path.iterdir())) == ([], [])


def test_a_name_is_no_folder_and_a_word_no_repository(library: ah.Library, folder: Path) -> None:
    (folder / "dir").mkdir()
    before = sorted(folder.iterdir())

    for call in (
        lambda: library.merge(["legal-qa", "./out/tables"], output="q r"),
        lambda: library.push("legal-qa", to="dir"),
        lambda: library.push("legal-qa", to="a/b/c"),
    ):
        with pytest.raises(ah.AdapterHubError) as refused:
            call()
        assert refused.value.exit_code == 2

    assert sorted(folder.iterdir()) == before


# ---------------------------------------------------------------- log
def test_warnings_go_to_the_logger_and_not_to_stderr(folder: Path) -> None:
    code = "import adapterhub; adapterhub.Library('home').reports.warn('a warning of ours')"

    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("", "")

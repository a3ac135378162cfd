"""`adapterhub.Library` and `adapterhub.Project`: values, notebooks, progress, log, threads, what an import costs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import adapterhub as ah
from adapterhub.core.specs import AdapterSpec
from adapterhub.library.library import Library as LocalLibrary
from tests.support.docs_sandbox import make_sandbox

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    make_sandbox(tmp_path, filled=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPTERHUB_HOME", "home")
    return tmp_path


@pytest.fixture
def library(folder) -> ah.Library:
    return ah.Library("home")


def test_what_is_required_of_a_library_installs_the_same_builds_in_another(library, tmp_path):
    required = library.requirements()
    library.push("legal-qa", to="./published")
    other = ah.Library(tmp_path / "other")
    other.add_base(tmp_path / "models" / "base-7b", alias="base-7b")

    other.install(requirements=required, base="base-7b", places="published")

    assert [build.manifest.digest for build in other] == [build.manifest.digest for build in library]


def test_an_alias_means_its_build_until_it_is_removed_and_again_after_a_rollback(library):
    library.set_alias("prod", "legal-qa")
    meant = library.alias("legal-qa@prod").main.digest
    library.remove_alias("legal-qa@prod")

    with pytest.raises(ah.AdapterHubError, match="`legal-qa@prod` was removed"):
        library.alias("legal-qa@prod")
    assert library["legal-qa"].manifest.digest == meant == library.roll_back_alias("legal-qa@prod").main.digest
    assert [move.action for move in library.alias_history("legal-qa@prod")] == ["set", "remove", "rollback"]


# ---------------------------------------------------------------- a collection of values
def test_a_library_is_a_collection_and_one_for_the_functions_below(library):
    assert isinstance(library, LocalLibrary)
    assert (len(library), [build.full_name for build in library]) == (1, ["legal-qa"])
    assert ("legal-qa" in library, "legal-qa@base-7b>=2" in library, "nothing" in library) == (True, False, False)
    assert library["legal-qa"] == library.find(AdapterSpec.parse("legal-qa")) == library.list()[0]


def test_an_empty_library_is_true_and_writes_nothing(tmp_path):
    library = ah.Library(tmp_path / "none")

    assert (bool(library), len(library), list(library), len(library.search("legal"))) == (True, 0, [], 0)
    assert not (tmp_path / "none").exists()


def test_text_that_is_no_spec_is_refused_and_not_absent(library):
    with pytest.raises(ah.AdapterHubError):
        "no spec!" in library  # noqa: B015 - it raises


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_are_text_or_path_objects(folder, kind):
    library = ah.Library(kind(folder / "home"))

    added = library.add(kind(folder / "out" / "tables"), name="tables", base=kind(folder / "models" / "base-7b"))
    merged = library.merge([added.build, kind(folder / "out" / "legal-qa")], output=kind(folder / "sum"))

    assert (added.created, library.verify(kind(folder / "out" / "tables"), base="base-7b").status) == (True, "ok")
    assert (merged.adapter, merged.folder) == (None, folder / "sum")
    assert library.push("tables", to=kind(folder / "shared")).created
    assert library.identify(kind(folder / "out" / "tables")).matches[0].sure == "proven"


def test_a_path_object_is_a_folder_and_text_a_name(library, folder):
    (folder / "legal-qa").symlink_to(folder / "out" / "tables")

    assert library.compare("legal-qa", Path("legal-qa"), diff=True).is_identical is False
    assert library.compare("legal-qa", "./out/legal-qa", diff=True).is_identical


def test_a_whole_description_still_does(library, folder):
    from adapterhub.core.specs import parse_name
    from adapterhub.library.intake.description import Description

    description = Description(name=parse_name("tables"), version="2.0.0")

    assert library.add(folder / "out" / "tables", description).build.manifest.version == "2.0.0"


def test_what_is_refused_leaves_the_library_as_it_was(library):
    before = [build.spec for build in library]

    for call in (
        lambda: library.merge({"legal-qa": 1.0}, output="x", rank=2, energy=0.5),
        lambda: library.merge(["legal-qa"], output="./x", bump="patch"),
        lambda: library.merge({"legal-qa": float("nan")}, output="x"),
        lambda: library.merge(recipe="none.toml", weights=[1]),
        lambda: library.remove("legal-qa", "nothing"),
        lambda: library.resize("legal-qa"),
        lambda: library.install("summarize@base-7b", places="published", rank="-1"),
    ):
        with pytest.raises(ah.AdapterHubError):
            call()

    assert [build.spec for build in library] == before
    assert not Path("x").exists()


# ---------------------------------------------------------------- how values show themselves
def test_every_repr_is_one_line(library):
    merged = library.merge({"legal-qa": 0.7, "./out/tables": 0.3}, output="both")
    base = library.bases.find("base-7b")
    values = [
        library, library["legal-qa"], library.list(), library.verify("both"), library.verify(), merged, base,
        library.tree("both"), library.audit("both", offline=True), library.push("both", to="./shared"),
        library.upgrade("legal-qa", check=True), library.fuse("legal-qa", output="fused"),
    ]  # fmt: skip

    assert repr(library["legal-qa"]) == "<Adapter legal-qa 1.0.0 rank 4 for base-7b, 5.3 kB>"
    assert [text for value in values if "\n" in (text := repr(value)) or len(text) > 400] == []


def test_an_adapter_shows_its_base_even_where_the_bases_cannot_be_read(library):
    build = library["legal-qa"]
    for record in (library.root / "bases").iterdir():
        record.write_bytes(b"{")

    assert repr(build).startswith("<Adapter legal-qa 1.0.0 rank 4 for sha256:")


def test_tables_of_notebooks_are_escaped(library):
    library.add("out/tables", "<script>alert(1)</script>", name="tables", task="<b>", base="base-7b")
    merged = library.merge(["legal-qa", "tables"], output="both")

    shown = [
        v._repr_html_()
        for v in (library, library["tables"], library.search("tables"), library.verify("tables"), merged)
    ]

    assert all(html.startswith("<table>") and "<script>" not in html and "<b>" not in html for html in shown)
    assert "&lt;b&gt;" in shown[0]


def test_a_list_is_lazy_and_can_be_cut(library):
    listed = library.list()

    assert (repr(listed), len(listed), listed[0], [*listed[:1]]) == (
        "<1 adapter: legal-qa>", 1, library["legal-qa"], [library["legal-qa"]],
    )  # fmt: skip
    with pytest.raises(IndexError):
        listed[1]


# ---------------------------------------------------------------- progress, log, threads
def test_progress_goes_to_the_callback_and_nothing_is_printed(folder, capfd):
    events: list[ah.ProgressEvent] = []
    library = ah.Library("home", on_progress=events.append)

    library.add("out/tables", name="tables", base="base-7b")
    library.merge(["legal-qa", "tables"], output="both")
    library.verify()

    last = {event.what: event for event in events}
    assert last["add tables"].done > 0
    assert (last["merge"].done, last["merge"].total, last["merge"].unit) == (6, 6, "modules")
    assert capfd.readouterr() == ("", "")


def test_warnings_go_to_the_log(library, caplog):
    with caplog.at_level(logging.INFO, logger="adapterhub"):
        library.merge(["./out/tables", "./out/legal-qa"], output="./sum")

    assert {record.name for record in caplog.records} == {"adapterhub"}
    assert "has no base fingerprint" in caplog.text


def test_an_error_in_the_callback_stops_the_work_and_nothing_is_stored(folder):
    def stop(_event: ah.ProgressEvent) -> None:
        raise KeyboardInterrupt

    library = ah.Library("home", on_progress=stop)

    with pytest.raises(KeyboardInterrupt):
        library.add("out/tables", name="tables")
    assert "tables" not in library


@pytest.mark.slow
def test_threads_share_a_library(library, folder):
    def work(number: int) -> tuple[str, int, bool]:
        added = library.add("out/tables", name=f"tables-{number}", base="base-7b")
        found = library.search(f"tables-{number}", base="base-7b")
        return found[0].full_name, len(found), library.verify(added.build).status == "ok"

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(work, range(10, 34)))

    assert done == [(f"tables-{number}", 1, True) for number in range(10, 34)]
    assert len(library) == 25
    assert library.verify().status == "ok"


# ---------------------------------------------------------------- default library and projects
def test_the_default_library_is_that_of_the_command_line(folder):
    library = ah.default_library()

    assert isinstance(library, ah.Library)
    assert (library.root, ah.Library.default().root) == (folder / "home", folder / "home")


def test_the_default_library_works_in_the_project_around_it_and_another_does_not(folder, monkeypatch):
    project = ah.Project.create("work", base="base-7b")
    project.install("legal-qa")
    other = ah.Library("home")
    other.add("out/summarize", name="legal-qa", version="3.0.0", base="base-7b")
    monkeypatch.setenv("ADAPTERHUB_HOME", str(folder / "home"))
    monkeypatch.chdir("work")

    assert ah.Library.default()["legal-qa"].manifest.version == "1.0.0"
    assert ah.Library(folder / "home")["legal-qa"].manifest.version == "3.0.0"


def test_a_project_locks_and_syncs_without_the_working_directory(folder, monkeypatch):
    home = ah.Library(folder / "home")
    project = ah.Project.create(folder / "work", base="base-7b", library=home)
    monkeypatch.chdir("out")

    project.install("summarize", places=folder / "published", sync=False)
    with pytest.raises(ah.AdapterHubError):
        project.path("summarize")
    synced = project.sync(frozen=True)

    assert (list(project), "summarize" in project, synced.changed) == (["summarize"], True, ("summarize",))
    assert (project.path("summarize") / "adapter_config.json").is_file()
    assert project.sync(frozen=True).changed == ()


def test_a_stale_lock_is_refused_when_frozen_or_checked(folder):
    project = ah.Project.create("work", base="base-7b")
    project.install("legal-qa")
    file = project.folder / "adapters.toml"
    file.write_text(file.read_text().replace(">=1.0.0", ">=2"))

    for call in (lambda: project.lock(check=True), lambda: project.sync(frozen=True)):
        with pytest.raises(ah.AdapterHubError, match="legal-qa"):
            call()


def test_an_upgrade_takes_what_the_project_allows(folder):
    project = ah.Project.create("work", base="base-7b")
    project.install("summarize>=1", places="published")

    preview = project.upgrade(dry_run=True, places="team")
    before = project.locked.adapters[0].version
    done = project.upgrade("summarize", places="team")

    assert (before, project.locked.adapters[0].version) == ("1.0.0", "1.1.0")
    assert [change.key for change in preview.changes] == [change.key for change in done.changes] == ["summarize"]


def test_outside_of_a_project_none_is_found(tmp_path):
    with pytest.raises(ah.AdapterHubError, match="no project"):
        ah.Project.find(tmp_path)


# ---------------------------------------------------------------- what it costs
def test_opening_and_listing_import_nothing_heavy(folder):
    code = (
        "import sys, json, adapterhub\n"
        "library = adapterhub.Library('home')\n"
        "repr(library), list(library), library.search('legal'), 'legal-qa' in library, library.info('legal-qa', only='path')\n"
        "adapterhub.Project.create('p', base='base-7b').lock()\n"
        "heavy = ('torch', 'numpy', 'huggingface_hub', 'peft', 'transformers', 'click', 'rich')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)

    assert json.loads(done.stdout) == []


def test_help_is_complete():
    text = ah.attach.__doc__

    assert all(part in text for part in ("Args:", "Returns:", "Raises:", "Example:"))


def test_a_server_that_is_opened_to_install_shows_no_bars_of_its_client(library):
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    enable_progress_bars()
    library.session.sources_of(ah.AdapterSpec.parse("acme/legal-qa"), None, token=None)

    assert are_progress_bars_disabled()


def test_what_looks_at_a_library_returns_values_that_are_documents(library):
    added = library.add("out/tables", name="tables", base="base-7b")
    shown, [folder] = library.info("legal-qa"), library.list("legal-*").folders()

    assert (shown.manifest.name, shown.to_json()["signature"]["standing"]) == ("legal-qa", "unsigned")
    assert folder.to_json() | {"path": ""} == {
        "name": "legal-qa", "path": "", "version": "1.0.0", "digest": shown.manifest.digest, "rank": 4,
    }  # fmt: skip
    assert [one.ok for one in library.verify("legal-qa", "tables", engines="peft")] == [True, True]
    assert added.build in library.unused()
    assert len(library.identify("out/tables", "out/legal-qa").files) == 2
    assert library.doctor(repair=True).mended

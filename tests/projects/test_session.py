"""Sessions of Python programs: a project is locked and synced without the commands, and the caller decides on trust."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from adapterhub.core.errors import NotFound, ProjectNotTrusted, UsageProblem
from adapterhub.core.specs import AdapterSpec
from adapterhub.projects.lock.lockfile import read_lock
from adapterhub.projects.places import ProjectSources, Where, build_sources, lock_now, save_lock
from adapterhub.projects.reporting import LogReporter
from adapterhub.projects.session import Session, sources_from
from adapterhub.projects.sync import plan_sync, run_sync, syncing, wanted_entries
from adapterhub.projects.upgrades import project_requests
from adapterhub.projects.values import Project, Servers
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

STRANGER = "http://127.0.0.1:9"
REMOTE = f'[remotes.x]\nurl = "{STRANGER}"\nnamespaces = ["acme"]\n'


class Notes(LogReporter):
    """A reporter that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Answers:
    """A user who answers each question in turn, and remembers what was shown."""

    def __init__(self, *answers: bool) -> None:
        self._answers = list(answers)
        self.shown: list[Sequence[str]] = []

    def __call__(self, _project: Project, servers: Servers) -> bool:
        self.shown.append(servers.needed)
        return self._answers.pop(0)


def make_project(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "adapters.toml").write_text(text)
    return folder


def test_a_program_locks_and_syncs_a_project(tmp_path):
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "out" / "legal-qa")
    adapt = Adapt(tmp_path)
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    adapt.ok("add", "./out/legal-qa", "--name", "legal-qa", "--base", "base-7b")
    folder = make_project(tmp_path / "work", '[project]\nbase = "base-7b"\n[adapters]\nlegal-qa = "*"\n')
    session = Session(tmp_path / "home", out=Notes(), project_dir=folder)
    project = session.need_project()
    sources = ProjectSources(session, project, Where(offline=True))

    outcome = lock_now(session, project, sources, previous=None)
    is_new = save_lock(session, project, outcome.lock)
    with syncing(session.library, folder) as target:
        plan = plan_sync(target, wanted_entries(outcome.lock))
        run_sync(session.library, outcome.lock, plan, build_sources(session, outcome.lock, sources))

    assert is_new
    assert list(read_lock(folder).entries) == ["legal-qa"]
    assert (folder / "adapters" / "legal-qa" / "adapter_config.json").is_file()
    assert [one.key for one in project_requests(session, project, [], Where(offline=True))] == ["legal-qa"]


def test_the_caller_is_asked_once_for_the_servers_of_a_project(tmp_path):
    folder = make_project(tmp_path / "work", f'{REMOTE}[adapters]\nqa = "acme/legal-qa"\n')
    answers = Answers(False, True)
    session = Session(tmp_path / "home", project_dir=folder, agree=answers)
    spec = AdapterSpec.parse("acme/legal-qa")

    def places() -> list[str]:
        sources = ProjectSources(session, session.need_project())
        sources.settle(None)
        return [source.place for source in sources.of_spec(spec)]

    with pytest.raises(ProjectNotTrusted, match=STRANGER):
        places()

    assert places() == [STRANGER]
    assert places() == [STRANGER]
    assert answers.shown == [(STRANGER,), (STRANGER,)]


def test_where_no_one_can_answer_only_trust_for_the_session_counts(tmp_path):
    folder = make_project(tmp_path / "work", f'{REMOTE}[adapters]\nqa = "acme/legal-qa"\n')
    spec = AdapterSpec.parse("acme/legal-qa")

    def place(session: Session) -> str:
        sources = ProjectSources(session, session.need_project())
        sources.settle(None)
        return sources.of_spec(spec)[0].place

    assert place(Session(tmp_path / "home", project_dir=folder, trusts_project=True)) == STRANGER
    with pytest.raises(ProjectNotTrusted):
        place(Session(tmp_path / "home", project_dir=folder))


def test_a_folder_without_a_project_is_refused(tmp_path):
    with pytest.raises(NotFound, match=r"has no `adapters\.toml`"):
        _ = Session(tmp_path, project_dir=tmp_path).project


def test_only_the_variables_that_are_handed_in_count(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTERHUB_REMOTE", "http://127.0.0.1:8")
    monkeypatch.setenv("ADAPTERHUB_SOURCES", str(tmp_path / "published"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    make_adapter(tmp_path / "published")
    bare = Session(tmp_path / "home")
    given = {"ADAPTERHUB_REMOTE": STRANGER, "ADAPTERHUB_SOURCES": str(tmp_path / "published")}

    assert (bare.remote(None).name, sources_from(bare, ())) == ("hub", [])
    told = Session(tmp_path / "home", variables=given)
    assert told.remote(None).url == STRANGER
    assert [Path(source.place) for source in sources_from(told, ())] == [tmp_path / "published"]
    hasty = Session(tmp_path / "home", variables={"ADAPTERHUB_TIMEOUT_S": "never"})
    with pytest.raises(UsageProblem, match="ADAPTERHUB_TIMEOUT_S"):
        hasty.named_hub(STRANGER, token=None, offline=False)


@pytest.mark.parametrize(("variables", "is_disabled"), [({}, True), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, False)])
def test_a_session_stops_the_telemetry_of_the_hub_client_unless_the_user_wants_it(tmp_path, variables, is_disabled):
    code = f"""
from pathlib import Path
from huggingface_hub import constants
from adapterhub.projects.session import Session
Session(Path({str(tmp_path)!r}), variables={variables!r}).named_hub({STRANGER!r}, token=None, offline=False)
print(constants.HF_HUB_DISABLE_TELEMETRY)
"""
    environ = {name: os.environ[name] for name in os.environ if not name.endswith(("TELEMETRY", "DO_NOT_TRACK"))}

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)

    assert done.stdout.strip() == str(is_disabled)


def test_neither_a_session_nor_the_plugin_of_vllm_needs_the_commands():
    names = (
        "projects.session, projects.places, projects.trust, projects.saving, projects.upgrades, vllm_plugin.resolver"
    )
    modules = "; ".join(f"import adapterhub.{name}" for name in names.split(", "))
    code = f"{modules}\nimport sys\nprint([m for m in sys.modules if m.startswith(('click', 'adapterhub.cli'))])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"

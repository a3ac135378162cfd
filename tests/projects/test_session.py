"""Sessions: what a face hands in is all that counts, and no command is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.core.errors import UsageProblem
from adapterhub.projects.session import Session, sources_from
from tests.support.tiny import make_adapter

STRANGER = "http://127.0.0.1:9"


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

"""`adapt mcp`: an agent finds, tests and installs adapters through the commands, and reaches no more than they allow."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from adapterhub.cli.use.mcp import OFFERED, call, tools
from tests.support.command_line import Adapt
from tests.support.docs_sandbox import make_sandbox


@pytest.fixture
def home(tmp_path, monkeypatch):
    make_sandbox(tmp_path, filled=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_tool_answers_with_the_document_of_its_command(home):
    said = call("info", {"spec": "legal-qa"}, root=home, allow_changes=False)
    failed = call("verify", {"adapters": ["./downloads/diverged"], "base": "base-7b"}, root=home, allow_changes=False)
    lost = call("info", {"spec": "legal-aq"}, root=home, allow_changes=False)

    assert said["result"] == Adapt(home.parent).json("info", "legal-qa")
    assert (failed["exit_code"], failed["result"][0]["status"]) == (3, "failed")
    assert (lost["exit_code"], lost["error"]["type"], "legal-qa" in lost["error"]["hint"]) == (
        10,
        "AdapterNotFound",
        True,
    )


def test_what_changes_the_library_or_overrides_a_guard_is_not_offered(home, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # the server's is at its end, too
    before = sorted(home.rglob("*"))
    asked = {"specs": ["summarize@base-7b"], "from": ["./published"]}

    refused = [
        call("install", asked, root=home, allow_changes=False),
        call("remove", {"specs": ["legal-qa"]}, root=home, allow_changes=True),
        call("install", asked | {"allow_base_mismatch": True}, root=home, allow_changes=True),
        call("search", {"text": ["x"], "remote": "https://example.org"}, root=home, allow_changes=True),
        call("info", {"spec": "--root=/tmp"}, root=home, allow_changes=True),  # text is never an option
        call("run", {"words": ["legal-qa"]}, root=home, allow_changes=True),  # no prompt: it must not wait for stdin
    ]

    assert [one["exit_code"] for one in refused] == [14, 2, 2, 2, 2, 2]
    assert "--allow-changes" in refused[0]["error"]["hint"]
    assert sorted(home.rglob("*")) == before
    assert [tool.name for tool in tools(allow_changes=False)] == ["search", "info", "verify", "test", "run"]
    dangerous = {
        "yes",
        "force",
        "allow_base_mismatch",
        "accept_repository",
        "signatures",
        "root",
        "replace",
        "sign",
        "out",
    }
    assert [tool.name for tool in tools(allow_changes=True) if dangerous & set(tool.parameters)] == []


def test_the_skill_has_the_front_matter_of_its_format_and_names_every_tool(home):
    text = Adapt(home.parent).ok("help", "--skill")
    front = re.match(r"---\nname: ([a-z0-9-]{1,64})\ndescription: (.{1,1024})\n---\n", text)
    typed = {line.split()[0] for line in re.findall(r"`adapt ([^`]*)`", text)}  # test_commands_told.py checks them

    assert front is not None
    assert front[1] == "adapt"
    assert typed >= {*OFFERED, "base", "add", "sync", "help"}


@pytest.mark.slow
def test_a_client_finds_tests_and_installs_an_adapter_over_stdio(tmp_path):
    mcp, anyio = pytest.importorskip("mcp"), pytest.importorskip("anyio")
    from tests.support.contracts import recorded_library

    here = recorded_library(tmp_path)
    here.ok("push", "a==1.0.1", "--to", "./shelf")
    here.ok("remove", "a==1.0.1", "a==1.0.0", "--yes")
    code = "from adapterhub.cli import main; main()"
    root = Path(__file__).resolve().parents[2]
    server = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-c", code, "mcp", "--allow-changes", "--root", str(tmp_path / "home")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"},
    )

    async def work():
        async with mcp.Client(mcp.stdio_client(server)) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            install = {"specs": ["a@base-7b"], "from": ["./shelf"], "offline": True}
            found = await client.call_tool("install", install | {"dry_run": True})
            done = await client.call_tool("install", install)
            tested = await client.call_tool("test", {"adapters": ["a"], "require": True})
            searched = await client.call_tool("search", {"text": ["a"]})
            return names, found, done, tested, searched

    names, found, done, tested, searched = anyio.run(work)

    assert names == list(OFFERED)
    assert [one.is_error for one in (found, done, tested, searched)] == [False] * 4
    assert json.loads(tested.content[0].text)[0]["verdict"] == "PASS"
    assert "a" in {one["name"] for one in searched.structured_content["result"]}
    assert "a" in here.ok("list")

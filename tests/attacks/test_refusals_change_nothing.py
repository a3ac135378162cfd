"""Nothing durable before a decision: a refused command and a preview leave every byte of the library as it was.

The cases go over the command table: a new command needs a case here, and an option `--dry-run` needs one, too.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from adapterhub.cli import cli
from tests.attacks.test_links import content_of
from tests.cli.test_cli import leaves
from tests.registry.running import Running, running
from tests.support.command_line import Adapt
from tests.support.docs_sandbox import make_sandbox

pytestmark = pytest.mark.slow

Case = tuple[str, ...]
NOTHING = "http://127.0.0.1:9"

REFUSED: dict[str, list[Case]] = {
    "demo": [("--offline", "--base", "nope")],
    "init": [("project",)],
    "base add": [
        ("nope",), ("out/legal-qa",), ("models/base-7b", "--as", "bad name"), ("models/base-7b-chat", "--as", "base-7b"),
    ],
    "base compare": [("base-7b", "nope"), ("nope", "base-7b")],
    "base family": [("f", "base-7b", "nope"), ("bad name", "base-7b")],
    "base list": [("--nope",)],
    "base pin": [("nope", "base-7b"), ("legal-qa", "nope")],
    "base remove": [("nope",)],
    "base set": [("nope", "--hub-id", "a/b"), ("base-7b", "--hub-id", "../a")],
    "base show": [("nope",)],
    "mcp": [("--nope",)],
    "ui": [("--port", "99999999"), ("--host", "nowhere.invalid")],
    "contract policy": [("maybe",), ("off", "--max-age", "soon")],
    "add": [
        ("nope",), ("models/base-7b",), ("downloads/diverged",), ("out/legal-qa", "--name", "bad name"),
        ("out/tables", "--name", "legal-qa", "--base", "base-7b"), ("out/tables", "--base", "nope"),
        ("out/tables", "--version", "x"), ("out/tables", "--task", "x" * 70_000),
        ("out/tables", "--description", "x" * 700_000), ("out/tables", "--license", "x" * 70_000),
        ("loras/word.safetensors",), ("out/tables", "--base", "other-7b"),
    ],
    "install": [
        ("nope",), ("summarize@base-7b>=9", "--from", "published"), ("summarize@nope", "--from", "published"),
        ("summarize", "--from", "published", "--signatures", "require"), ("acme/summarize@base-7b", "--offline"),
        ("acme/qa@prod", "--signatures", "require"), ("acme/qa==1.0.0", "--signatures", "require"),
        ("acme/nope@prod",), ("acme/qa@nope",), ("acme/qa==1.1.0", "--test"),
        ("summarize", "legal-qa", "nope", "--from", "published"), ("x/y", "--remote", "nope"),
    ],
    "remove": [("nope", "--yes"), ("legal-qa",), ("legal-qa==9", "--yes"), ("held", "--yes")],
    "list": [("--base", "nope")],
    "search": [("x", "--base", "nope"), ("x", "--remote", "nope"), ("x", "--limit", "0")],
    "info": [("nope",), ("nope", "--path"), ("legal-qa@nope",), ("acme/nope", "--remote", "ours")],
    "verify": [("nope",), ("./nope",), ("legal-qa", "--base", "nope"), ("downloads/diverged",),
        ("nope", "--engine", "vllm"), ("legal-qa", "--engine", "nope")],
    "test": [("nope",), ("legal-qa", "--require")],
    "contract record": [("legal-qa",), ("legal-qa", "--examples", "nope")],
    "contract results": [("nope",), ("./out/tables",)],
    "contract export": [("nope", "task"), ("legal-qa", "task"), ("legal-qa", "task", "--tests", "nope")],
    "audit": [("nope", "--offline"), ("legal-qa", "--fail-on", "nope")],
    "identify": [("nope",)],
    "alias history": [("legal-qa@nope",), ("nope",)],
    "alias keep": [("legal-qa@nope",), ("acme/qa@prod", "5", "--remote", "nope"), ("acme/qa@prod", "0"), ("nope", "5")],
    "alias list": [("--nope",), ("legal-qa@nope",)],
    "alias remove": [("legal-qa@nope",)],
    "alias rollback": [("legal-qa@nope",), ("held@kept",)],
    "alias set": [
        ("prod", "nope"), ("base-7b", "legal-qa"), ("bad name", "legal-qa"), ("prod", "legal-qa", "held"),
        ("prod", "legal-qa==9"), ("prod", "acme/qa", "--remote", "ours"),
    ],
    "lock": [("--project", "project", "nope"), ("--project", "nope"), ("--project", "project", "--check")],
    "sync": [("--project", "project", "--frozen"), ("--project", "nope")],
    "upgrade": [("nope",), ("--undo", "nope", "--project", "project"), ("--check", "nope"), ("--project", "nope"), ("summarize", "--from", "team", "--signatures", "require")],
    "tree": [("nope",), ("--invert", "nope"), ("--invert", "nope", "--project", "project")],
    "merge": [
        ("legal-qa", "nope", "-o", "m"), ("legal-qa", "held", "--weights", "1", "-o", "m"),
        ("legal-qa", "held", "--method", "nope", "-o", "m"), ("legal-qa", "held", "-o", "bad name"),
        ("legal-qa", "held", "-o", "held"), ("legal-qa", "held", "--weights", "nan,1", "-o", "m"),
    ],
    "compare": [("legal-qa", "nope"), ("nope",), ("legal-qa", "--above", "7"), ("legal-qa", "nope", "--diff"), ("legal-qa", "./nope", "--diff")],
    "resize": [("nope", "--rank", "2"), ("legal-qa", "--rank", "0"), ("legal-qa", "--rank", "2", "-o", "held")],
    "port": [
        ("nope", "--to", "base-7b"), ("legal-qa", "--to", "nope"), ("legal-qa", "--to", "base-7b"),
        ("legal-qa", "--to", "base-7b", "--method", "nope"),
    ],
    "extract": [
        ("nope", "--base", "base-7b", "--rank", "2", "-o", "m"),
        ("models/other-7b", "--base", "base-7b", "--rank", "2", "-o", "m"),
    ],
    "fuse": [("nope", "-o", "f"), ("legal-qa", "-o", "out"), ("legal-qa", "-o", "home/blobs/f")],
    "run": [("nope", "hello"), ("legal-qa", "hello", "--base", "nope")],
    "route": [("hello",), ("hello", "--base", "nope"), ("--base", "base-7b", "-o", "home/r.json")],
    "serve": [("nope", "--base", "base-7b"), ("legal-qa", "--base", "nope")],
    "export": [("nope", "--format", "peft", "-o", "e"), ("legal-qa", "--format", "peft", "-o", "home/blobs/e")],
    "push": [("nope", "--to", "p"), ("legal-qa", "--to", "acme/x", "--remote", "ours"), ("legal-qa", "--to", "home")],
    "pull": [("nope", "p"), ("legal-qa", "out"), ("acme/qa@prod", "p", "--signatures", "require"), ("legal-qa", "home/blobs/p")],
    "mirror": [("acme/qa", "--from", "ours", "--to", "nope"), ("acme/nope", "--from", "ours", "--to", "ours")],
    "yank": [("acme/qa==1.0.0", "--remote", "ours"), ("acme/nope==1", "--remote", "ours"),
        ("acme/nope==1.0.0", "--remote", "ours", "--undo")],
    "delete": [("acme/qa==1.0.0", "--remote", "ours", "--yes"), ("acme/qa==1.0.0", "--remote", "ours")],
    "key sign": [("nope",), ("legal-qa", "--key", "nope")],
    "key list": [("--nope",)],
    "key new": [("ann", "--unencrypted"), ("bad name", "--unencrypted")],
    "key policy": [("maybe",), ("warn", "--remote", "nope"), ("require", "--namespace", "../x")],
    "key revoke": [("nope",), ("bad name", "adapters.toml"), ("ann", "--reason", "two\nlines")],
    "key rotate": [
        *(("nope", "new", "--unencrypted"), ("ann", "ann"), ("ann", "bad name", "--unencrypted"), ("ann", "new")),
        ("ann", "new", "--unencrypted", "--reason", "x"),
        ("ann", "new", "--unencrypted", "--revoke", "--reason", "two\nlines"),
    ],
    "key show": [("nope",)],
    "key trust": [("nope",), ("x", "adapters.toml"), ("ann", "--not-after", "someday")],
    "key untrust": [("nope",)],
    "remote add": [("ours", "nope"), ("bad name", NOTHING), ("x", NOTHING, "--namespaces", "../x")],
    "remote list": [("--nope",)],
    "remote login": [("nope", "--token", "t"), ("ours", "--token", "bad token")],
    "remote logout": [("nope",)],
    "remote remove": [("nope",)],
    "remote trust": [("nope",)],
    "cache show": [("--nope",)],
    "doctor": [("--nope",)],
    "cache clean": [("--grace", "-1"), ("--unused",)],
}  # fmt: skip
"""By command, what it refuses, in the world of `world`."""

OUTSIDE = ("registry",)
"""Commands that work on a registry's folder; `tests/registry` has their refusals."""

PREVIEWS: dict[str, list[Case]] = {
    "doctor": [("--repair", "--offline")],
    "install": [
        ("summarize", "--from", "published"), ("acme/qa@prod",), ("acme/qa",), ("acme/qa@prod", "--signatures", "require"),
        ("held", "--from", "published"), ("summarize", "--from", "published", "--project", "project", "--save"),
    ],
    "upgrade": [("summary", "--from", "team"), ("--project", "project"), (), ("--undo", "legal-qa", "--project", "project")],
    "port": [("legal-qa", "--to", "./models/base-7b-chat")],
    "serve": [("legal-qa", "--base", "base-7b"), ("acme/qa@prod", "--base", "base-7b")],
    "push": [("legal-qa", "--to", "p"), ("legal-qa", "--to", "acme/x", "--remote", "ours")],
    "mirror": [("acme/qa", "--from", "ours", "--to", "ours")],
    "yank": [("acme/qa==1.0.0", "--remote", "ours")],
    "delete": [("acme/qa==1.0.0", "--remote", "ours")],
    "cache clean": [("--grace", "0"), ("--grace", "0", "--unused", "--yes")],
}  # fmt: skip
"""By command, what its `--dry-run` is tried with; it may be refused, too."""


def commands() -> dict[str, click.Command]:
    found = {}
    for words in leaves(cli):
        command: click.Command = cli
        for word in words:
            assert isinstance(command, click.Group)
            inner = command.get_command(click.Context(command), word)
            assert inner is not None
            command = inner
        if words[0] not in OUTSIDE:
            found[" ".join(words)] = command
    return found


def test_every_command_has_its_refusals_and_every_preview_is_tried() -> None:
    table = commands()
    previews = {name for name, command in table.items() if any("--dry-run" in one.opts for one in command.params)}

    assert set(REFUSED) == set(table)
    assert set(PREVIEWS) == previews


def durable(home: Path) -> dict[str, str]:
    """Every byte of a library but locks, which are empty, and caches, which are made again."""
    passed = ("locks/", "cache/", "tmp/", "intents/")
    return {name: text for name, text in content_of(home).items() if not f"{name}/".startswith(passed)}


@contextlib.contextmanager
def world(folder: Path) -> Iterator[tuple[Adapt, Running]]:
    """A library with builds, an alias, a key and a registry whose `prod` names an unsigned build; a project."""
    make_sandbox(folder, filled=True)
    adapt, author = Adapt(folder), Adapt(folder, "author")
    (folder / "project").mkdir()
    (folder / "project" / "adapters.toml").write_text('[adapters]\nlegal-qa = ""\n')
    adapt.ok("lock", "--project", "project")
    (folder / "project" / "adapters.toml").write_text('[adapters]\nlegal-qa = ""\nheld = ""\n')
    with running(folder / "registry") as server:
        for one in (adapt, author):
            one.ok("remote", "add", "ours", server.url, "--namespaces", "acme")
        author.ok("base", "add", "models/base-7b", "--as", "base-7b")
        author.ok("remote", "login", "ours", "--token", server.token)
        for version, made in (("1.0.0", "out/legal-qa"), ("1.1.0", "out/tables")):
            author.ok("add", made, "--name", "qa", "--version", version, "--base", "base-7b")
            author.ok("push", f"qa=={version}", "--to", "acme/qa")
        author.ok("alias", "set", "prod", "acme/qa==1.0.0", "--remote", "ours")
        adapt.ok("install", "acme/qa@prod")
        author.ok("alias", "set", "prod", "acme/qa==1.1.0", "--remote", "ours")
        adapt.ok("add", "out/summarize", "--name", "held", "--base", "base-7b", "--task", "x")
        adapt.ok("install", "summarize==1.0.0", "--from", "team")
        adapt.ok("alias", "set", "kept", "held")
        adapt.ok("key", "new", "ann", "--unencrypted")
        adapt.ok("list")
        yield adapt, server


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def test_no_refusal_and_no_preview_changes_a_byte_of_the_library(tmp_path: Path, online: None) -> None:
    del online
    with world(tmp_path) as (adapt, _server):
        before, wrong = durable(tmp_path / "home"), []
        tried = [(name, case, False) for name, cases in REFUSED.items() for case in cases]
        tried += [(name, (*case, "--dry-run"), True) for name, cases in PREVIEWS.items() for case in cases]
        for name, case, is_preview in tried:
            done = adapt(*name.split(), *case)
            what = f"adapt {name} {' '.join(text[:40] for text in case)}"
            after = durable(tmp_path / "home")
            if done.exit_code == 1 or "Traceback" in done.stderr:
                wrong.append(f"{what}: {done.stderr[-300:]}")
            elif done.exit_code == 0 and not is_preview:
                wrong.append(f"{what}: is not refused: {done.stdout[:100]}")
            if after != before:
                wrong.append(f"{what} (exit {done.exit_code}): {changes(before, after)}")
                before = after

    assert wrong == [], "\n".join(wrong)


def test_a_refused_or_previewed_install_leaves_the_alias_where_it_was(tmp_path: Path, online: None) -> None:
    del online
    with world(tmp_path) as (adapt, _server):
        was = adapt.json("alias", "history", "acme/qa@prod")

        adapt.ok("install", "acme/qa@prod", "--dry-run")
        adapt.fails(14, "install", "acme/qa@prod", "--signatures", "require")
        assert adapt.ok("pull", "acme/qa@prod", "pulled")
        assert adapt.ok("info", "acme/qa@prod", "--remote", "ours")
        assert adapt.json("alias", "history", "acme/qa@prod") == was
        assert "1.0.0" in adapt.ok("info", "acme/qa@prod", "--path")

        adapt.ok("install", "acme/qa@prod")
        assert len(adapt.json("alias", "history", "acme/qa@prod")) == len(was) + 1
        assert "1.1.0" in adapt.ok("info", "acme/qa@prod", "--path")


def test_an_install_that_its_test_refuses_notes_no_origin(tmp_path: Path, online: None) -> None:
    """The build is here and nothing says from where; the owner of its namespace offers it, too."""
    del online
    with world(tmp_path) as (adapt, _server):
        shutil.rmtree(tmp_path / "home" / "origins")
        before = durable(tmp_path / "home")

        assert "has no contract" in adapt.fails(17, "install", "acme/qa==1.0.0", "--test")
        assert changes(before, durable(tmp_path / "home")) == []

        adapt.ok("install", "acme/qa==1.0.0")
        assert changes(before, durable(tmp_path / "home")) != []

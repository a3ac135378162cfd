"""Terminals that are not UTF-8: no command fails for a character that the terminal lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.cli import COMMANDS
from tests.support.tiny import make_adapter

ENCODINGS = ("ascii", pytest.param("latin-1", marks=pytest.mark.exhaustive), "cp1252")
CHILD = """
import contextlib, json, sys
from adapterhub.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["adapt", *words]
    with contextlib.suppress(SystemExit):
        main()
    sys.stderr.write("\\n")
    sys.stdout.flush()
"""
"""Runs many commands in one process, which takes a second for each otherwise."""


def run(words: list[list[str]], encoding: str, home: Path) -> tuple[str, str]:
    environ = os.environ | {"PYTHONIOENCODING": encoding, "ADAPTERHUB_HOME": str(home), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(words)], env=environ, cwd=home, capture_output=True, check=False
    )
    # click takes a terminal of ASCII for one that is set up wrongly, and writes UTF-8
    return done.stdout.decode("utf-8" if encoding == "ascii" else encoding), done.stderr.decode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_command_fails_for_a_character_that_the_terminal_lacks(encoding: str, tmp_path: Path) -> None:
    make_adapter(tmp_path / "naïve-…-模型", base=None)
    adding = ["add", "naïve-…-模型", "--name", "x", "--no-base", "--description", "Ünïcode — 模型 🙂"]
    every = [[*name.split(), "--help"] for name in COMMANDS]
    typed = [
        ["explain"],
        adding,
        ["list"],
        ["info", "x"],
        ["verify", "./naïve-…-模型"],
        ["audit"],
        ["tree"],
        ["doctor"],
    ]
    typed += [["search", "模型"], ["remove", "模型"], ["run", "…", "—"], ["identify", "naïve-…-模型"], ["export"]]

    out, err = run([*every, *typed], encoding, tmp_path)

    assert "a bug in adapterhub" not in err
    assert "UnicodeEncodeError" not in err
    assert "x" in out


def test_a_json_document_stays_whole(tmp_path: Path) -> None:
    make_adapter(tmp_path / "a", base=None)
    told = "Ünïcode — 模型 🙂"
    run([["add", "a", "--name", "x", "--no-base", "--description", told]], "utf-8", tmp_path)

    plain, latin = (run([["list", "--json"]], encoding, tmp_path)[0] for encoding in ("utf-8", "latin-1"))

    assert json.loads(plain) == json.loads(latin)
    assert told in json.dumps(json.loads(latin), ensure_ascii=False)

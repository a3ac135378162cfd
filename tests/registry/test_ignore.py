"""`.gitignore` by git's rules: each case also asks git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from adapterhub_registry.repos.git_patterns import Ignored

PATHS = [
    "a.log", "keep.log", "build/x", "build/deep/y", "src/build/x", "top.txt", "src/top.txt", "a/z", "a/b/z", "a/b/c/z",
    "foo/x", "foo/y/z", "[x].txt", "x.txt", "#hash", "!bang", "space ", "Über.log", "n1/a.txt", "n10/a.txt", "docs/a.md",
]  # fmt: skip
RULES = [
    "",
    "# a comment\n\n",
    "*.log\n!keep.log\n",
    "build/\n",
    "/build/\n!build/x\n",
    "/top.txt\n",
    "a/**/z\n",
    "foo/**\n",
    "**/x\n",
    "\\[x\\].txt\n",
    "[!a-w].txt\n",
    "\\#hash\n\\!bang\n",
    "space\\ \n",
    "x.txt   \n",
    "n?/a.txt\n",
    "*\n!*/\n!*.txt\n",
    "docs\n",
    "a/b\n",
]


@pytest.mark.parametrize("rules", RULES)
def test_the_rules_are_those_of_git(tmp_path: Path, rules: str) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text(rules, encoding="utf-8")
    asked = subprocess.run(
        ["git", "-c", "core.quotePath=false", "check-ignore", "--no-index", "-z", "--stdin"],
        cwd=tmp_path,
        input="".join(f"{path}\0" for path in PATHS),
        capture_output=True,
        text=True,
        check=False,
    )

    ignored = Ignored(rules)

    assert [path for path in PATHS if ignored.has(path)] == asked.stdout.split("\0")[:-1]


@pytest.mark.parametrize("rule", ["*a" * 2000, "**/" * 500 + "x", "?*" * 1000 + "/" + "[a-z]*" * 500, "[" * 3000])
def test_a_rule_that_could_be_tried_in_endless_ways_ends(rule: str) -> None:
    assert not Ignored(f"{rule}\n").has("/".join(["a" * 60] * 16))

"""The table of attacks in this folder's README: each name in it is a test, and each file of attacks has a line."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = Path(__file__).with_name("README.md")


def named() -> set[str]:
    table = PAGE.read_text(encoding="utf-8").partition("## Attacks that are kept as tests")[2]
    return set(re.findall(r"`(test_\w+(?:\.py)?)`", table))


def names_in(path: Path) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)) | {path.name}


def test_each_name_in_the_table_of_attacks_is_a_test() -> None:
    known = {name for path in TESTS.rglob("test_*.py") for name in names_in(path)}

    assert named() - known == set()


def test_each_file_of_attacks_has_a_line_in_the_table() -> None:
    files = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]

    assert [path.name for path in files if not names_in(path) & named()] == []

"""What the table of the house counts, on texts whose counts are plain to see."""

from __future__ import annotations

import ast
from pathlib import Path

from tests import measure_house

TEXT = '''"""Two lines,
which are none of code."""
import os

# a comment
def one(library):
    """Nor is this."""

    from adapterhub.distribution import hub
    return library.push(
        hub,
    )
'''


def function() -> ast.FunctionDef:
    (found,) = (node for node in ast.parse(TEXT).body if isinstance(node, ast.FunctionDef))
    return found


def test_only_code_is_counted_as_code(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(TEXT)

    assert measure_house.code_lines(tmp_path / "one.py") == 4


def test_a_call_of_the_library_and_what_a_function_takes_by_itself_are_seen() -> None:
    assert measure_house.methods_called(function()) == {"push"}
    assert measure_house.taken_by(function(), {"hub": "adapterhub.distribution:hub"}) == {"adapterhub.distribution"}


def test_a_run_counts_the_functions_of_the_package_once_each(tmp_path: Path) -> None:
    import sys

    from adapterhub.core.specs import AdapterSpec

    entered = measure_house.Entered()
    sys.setprofile(entered)
    try:
        once = len(AdapterSpec.parse("legal-qa@base-7b").name) and len(entered.codes)
        AdapterSpec.parse("legal-qa@base-7b")
    finally:
        sys.setprofile(None)

    assert 0 < once == len(entered.codes)
    assert 1 < entered.depth < once + 1

"""The rule that keeps costly tests out of the fast set sees through fixtures, helpers, classes and parameters."""

from __future__ import annotations

import subprocess
from http.server import ThreadingHTTPServer

import pytest

from tests.support.speed import is_slow, is_slow_file


class Server(ThreadingHTTPServer):
    pass


class Shell:
    def run(self) -> None:
        subprocess.run(["true"], check=True)


def start_shell() -> Shell:
    return Shell()


@pytest.fixture
def shell() -> Shell:
    return start_shell()


def of_parameter() -> None:
    subprocess.run(["true"], check=True)


def by_class() -> None:
    assert Shell()


def by_import_inside() -> None:
    from tests.registry.running import running

    assert running


def by_base_class() -> None:
    assert Server


def by_model() -> None:
    from transformers import LlamaConfig

    assert LlamaConfig()


def plain() -> None:
    assert sorted([2, 1]) == [1, 2]


@pytest.mark.parametrize("function", [by_class, by_import_inside, by_base_class, by_model, of_parameter])
def test_what_a_test_names_or_gets_makes_it_slow(function, request):
    assert is_slow(request.node)


def test_a_fixture_makes_a_test_slow(shell, request):
    assert is_slow(request.node)


@pytest.mark.parametrize("function", [plain])
def test_a_test_that_starts_nothing_is_fast(function, request):
    assert not is_slow(request.node)


def test_a_file_that_imports_models_itself_or_by_another_is_slow(tmp_path):
    own, by_another, inside = (tmp_path / name for name in ("own.py", "by_another.py", "inside.py"))
    own.write_text("import peft\n")
    by_another.write_text("from tests.support import (\n    tiny,\n    tiny_models,\n)\n")
    inside.write_text("from tests.support.tiny import make_base\n\ndef load():\n    import peft\n")

    assert [is_slow_file(path) for path in (own, by_another, inside)] == [True, True, False]

"""`adapt list`: which adapters it shows, in which order, and how its table fits a narrow terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub import Library
from adapterhub.api.searching import method_text
from adapterhub.core.display import table_lines
from adapterhub.core.specs import BaseSpec, parse_name
from adapterhub.library.intake.description import Description
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

ADDED = [  # name, task, rank, base: in the order of their dates
    ("legal-qa", "legal-qa", 4, "base-7b"),
    ("acme/legal-sum", "summary", 16, "base-7b"),
    ("tables", "tables", 8, "other"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("listing")
    adapt = Adapt(folder)
    for seed, base in enumerate(("base-7b", "other")):
        make_base(folder / base, seed=seed, width=32)
        adapt.ok("base", "add", f"./{base}", "--as", base)
    library = adapt.library
    for seed, (name, task, rank, base) in enumerate(ADDED):
        namespace, _, bare = name.rpartition("/")
        about = Description(name=parse_name(bare), version="1.0.0", task=task)
        adapter = make_adapter(folder / "out" / str(seed), seed=seed, rank=rank, width=32)
        record = library.bases.find(BaseSpec.parse(base))
        library.add(adapter, about, base=record, namespace=namespace or None)
    return folder


@pytest.fixture
def adapt(made) -> Adapt:
    return Adapt(made)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["legal-qa", "acme/legal-sum", "tables"]),
        (["legal"], ["legal-qa", "acme/legal-sum"]),
        (["LEGAL-Q"], ["legal-qa"]),
        (["acme/"], ["acme/legal-sum"]),
        (["legal-*"], ["legal-qa", "acme/legal-sum"]),
        (["acme/*"], ["acme/legal-sum"]),
        (["*-q?", "tab"], ["legal-qa", "tables"]),
        (["legal", "--task", "summary"], ["acme/legal-sum"]),
        (["--base", "other"], ["tables"]),
        (["--rank", "8"], ["tables"]),
        (["--rank", "8-", "--sort", "rank"], ["acme/legal-sum", "tables"]),
        (["--sort", "size"], ["acme/legal-sum", "tables", "legal-qa"]),
        (["--sort", "size", "--reverse"], ["legal-qa", "tables", "acme/legal-sum"]),
        (["--sort", "task"], ["legal-qa", "acme/legal-sum", "tables"]),
        (["--sort", "date"], ["tables", "acme/legal-sum", "legal-qa"]),
        (["--reverse"], ["tables", "acme/legal-sum", "legal-qa"]),
        (["nothing"], []),
    ],
    ids=" ".join,
)
def test_list_shows_what_is_asked_for_in_that_order(adapt, words, names):
    rows = adapt.json("list", *words)

    assert [row["name"] if row["namespace"] is None else f"acme/{row['name']}" for row in rows] == names


def test_filters_choose_what_other_programs_get_too(adapt):
    assert [line.partition("=")[0] for line in adapt.ok("list", "tab", "--format", "vllm").splitlines()] == ["tables"]


def test_python_filters_and_sorts_as_the_command_does(made):
    library = Library(made / "home")

    found = library.list("legal", rank="4-", sort="size")

    assert [one.full_name for one in found] == ["acme/legal-sum", "legal-qa"]


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (["LORA"], "lora"),
        (["LORA", "rank_pattern", "alpha_pattern"], "lora"),
        (["LORA", "dora", "rank_pattern"], "lora+dora"),
        (["LORA", "rslora", "dora", "modules_to_save"], "lora+rslora+2"),
        ([], ""),
    ],
)
def test_the_method_column_is_short(method, text):
    assert method_text(method) == text


# ---------------------------------------------------------------- narrow terminals
COLUMNS = ("name", "task", "rank", "description")
ROWS = [
    ("legal-qa-for-german-law", "question-answering", "16", "Answers questions about German law with references."),
    ("日本語", "summary", "4", ""),
]


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40, 20, 1])
def test_a_table_never_cuts_a_word_and_keeps_to_its_width(width):
    head, body = table_lines(COLUMNS, ROWS, right=("rank",), width=width)

    lines = [*head, *body]
    assert " ".join(" ".join(head).split()) == " ".join(COLUMNS)
    assert {word for row in ROWS for cell in row for word in cell.split()} == set(" ".join(body[1:]).split())
    longest = max(len(word) for row in (COLUMNS, *ROWS) for cell in row for word in cell.split())
    assert max(map(len, lines)) <= max(width, longest + 2)


def test_a_wide_table_is_one_line_a_row_and_a_narrow_one_moves_whole_cells():
    wide = table_lines(COLUMNS, ROWS, right=("rank",), width=120)
    narrow = table_lines(COLUMNS[:3], [row[:3] for row in ROWS], right=("rank",), width=40)

    assert wide[1][1:] == [
        "legal-qa-for-german-law  question-answering    16  Answers questions about German law with references.",
        "日本語                   summary                4",
    ]
    assert narrow == (
        ["name", "  task                rank"],
        [
            "─" * 26,
            "legal-qa-for-german-law",
            "  question-answering    16",
            "日本語",
            "  summary                4",
        ],
    )


def test_a_list_of_an_empty_library_imports_nothing_of_builds(tmp_path):
    code = (
        "import sys\n"
        "sys.argv = ['adapt', 'list']\n"
        "from adapterhub.cli import main\n"
        "try: main()\n"
        "finally: print(*sorted(sys.modules))\n"
    )
    environment = os.environ | {"ADAPTERHUB_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    imported = done.stdout.split()

    assert "adapterhub.library.store.rows" in imported
    wings = ("adapterhub.formats", "adapterhub.trust", "adapterhub.library.bases", "adapterhub.library.store.aliases")
    assert [name for name in imported if name.startswith((*wings, "sqlite3", "hashlib"))] == []


def test_what_a_start_makes_is_kept_and_later_garbage_is_found():
    code = (
        "import gc, sys\n"
        "import adapterhub.cli as cli\n"
        "class Node: pass\n"
        "def run():\n"
        "    for _ in range(200_000):\n"
        "        node = Node()\n"
        "        node.itself = node\n"
        "    print(gc.get_threshold()[0], gc.get_freeze_count() > 10_000, len(gc.get_objects()) < 100_000)\n"
        "    return 0\n"
        "cli._run = run\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["20000", "True", "True"], done.stderr

"""The documentation is true: what it shows runs, what it links exists, what is generated is fresh."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import click
import pytest

from adapterhub.cli import cli
from tests.support.docs_sandbox import make_sandbox
from tests.support.warm_adapt import warm_adapt
from tests.test_architecture import FLOORS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted(DOCS.rglob("*.md"))]
STARTS_EMPTY = {"README.md"}
"""Pages that begin without a library; all others find one with a base and an adapter (`docs_sandbox.py`)."""

SKIPPED = {
    r"adapt run .*": "needs a language model",
    r"adapt push (?!.*--dry-run)\S+ --to (?!\.)\S+/\S+.*": "needs a server",
    r"adapt install (?!.*--(from|offline))'?\w+/.*": "needs a server",
    r"adapt (info \w+/|mirror ).*": "needs a server",
    r"adapt remote login .*": "needs a token",
    r"(.*\bpip\b|python3? -m venv|uv ).*": "sets up an environment; `.ci/run` does the README's",
    r"eval \"\$\(adapt help completion .*": "is for an interactive shell",
}
"""Commands that are shown and not run, with the reason."""
MOST_SKIPPED = 30

_FENCE = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*) -->\n)?```(?P<language>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_NOTE = re.compile(r"(?=.)(?:needs a model(?:, |$))?(?:exit (?P<exit>\d+))?")
"""The comment on the line above a fence. Renderers other than GitHub's drop a fence with words after its language."""


@dataclass(frozen=True)
class Step:
    """One command of a page, the lines shown below it, and the exit code it must have."""

    page: str
    command: str
    shown: tuple[str, ...]
    exit_code: int

    @property
    def reason_to_skip(self) -> str | None:
        return next((why for pattern, why in SKIPPED.items() if re.fullmatch(pattern, self.command)), None)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str, part: str = "") -> list[tuple[str, str]]:
    """`(comment above it, text)` of every fenced block in that language; the comment may be empty.

    Those of the `part` only, if it names a heading of the second level.
    """
    text = page.read_text(encoding="utf-8")
    if part:
        text = text.partition(f"\n## {part}\n")[2].partition("\n## ")[0] + "\n"
    found = _FENCE.finditer(text)
    return [(m["note"] or "", m["text"]) for m in found if m["language"] == language]


def steps(page: Path, *, with_model: bool = False, part: str = "") -> list[Step]:
    """The commands of a page; those under `<!-- needs a model -->` run in `test_run_page.py`."""
    found = []
    for note, text in blocks(page, "console", part):
        if note.startswith("needs a model") is not with_model:
            continue
        exits = _NOTE.fullmatch(note)
        exit_code = int(exits["exit"] or 0) if exits else 0
        for line in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, *shown = line.rstrip("\n").split("\n")
            lines = tuple(line for line in shown if line.strip() not in ("", "…"))
            found.append(Step(name_of(page), command, lines, exit_code))
    return found


def unread_fences(text: str) -> list[str]:
    """What a renderer or `steps` would not read of the fences in `text`: words after a language, unknown comments."""
    with_words = re.findall(r"^ *```\S+[ \t]+\S.*$", text, re.MULTILINE)
    notes = [m["note"] for m in _FENCE.finditer(text) if m["language"] == "console" and m["note"]]
    return [
        *(f"`{line.strip()}`: put the exit code into a line above it, `<!-- exit 2 -->`" for line in with_words),
        *(f"`<!-- {n} -->`: write `exit N` or `needs a model`, or both" for n in notes if not _NOTE.fullmatch(n)),
        *(
            f"`<!-- {n} -->`: no fence follows it"
            for n in re.findall(r"^<!-- (exit .*) -->\n(?!```)", text, re.MULTILINE)
        ),
    ]


def doctests(page: Path) -> str:
    return "\n\n".join(text for _, text in blocks(page, "python") if ">>>" in text)


def appears(line: str, output: list[str]) -> bool:
    """Whether a shown line is one of the output's; `…` stands for anything, runs of spaces and tabs are one space."""
    pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split("…"))
    return any(re.fullmatch(re.sub(r"(\\ )?\.\*(\\ )?", ".*", pattern), " ".join(o.split())) for o in output)


def cases(holds: Callable[[Path], object]) -> list[object]:
    """The pages that hold something to run, each with its sandbox."""
    return [pytest.param(page, page, id=name_of(page)) for page in PAGES if holds(page)]


@pytest.fixture(scope="module")
def adapt_command() -> Iterator[str]:
    with warm_adapt() as program:
        yield program


@pytest.fixture
def sandbox(tmp_path, request):
    page = name_of(request.param)
    make_sandbox(tmp_path, filled=page not in STARTS_EMPTY)
    return tmp_path


@pytest.mark.parametrize(("sandbox", "document"), cases(steps), indirect=["sandbox"])
def test_commands_do_what_the_page_shows(sandbox, document, adapt_command):
    program = sandbox / ".bin" / "adapt"
    program.parent.mkdir()
    program.write_text(adapt_command)
    program.chmod(0o755)
    python = sandbox / ".bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ADAPTERHUB_")}
    environ |= {"ADAPTERHUB_HOME": str(sandbox / "home"), "PATH": f"{sandbox / '.bin'}:{os.environ['PATH']}"}
    environ["PYTHONPATH"] = str(ROOT)

    for step in steps(document):
        if step.reason_to_skip:
            continue
        done = subprocess.run(
            ["bash", "-c", step.command], cwd=sandbox, env=environ, text=True, capture_output=True,
            check=False, stdin=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
        said = f"{document.name}: $ {step.command}\n{done.stdout}{done.stderr}"
        assert done.returncode == step.exit_code, said
        missing = [line for line in step.shown if not appears(line, (done.stdout + done.stderr).splitlines())]
        assert missing == [], said


@pytest.mark.parametrize("document", PAGES, ids=name_of)
def test_every_renderer_reads_the_fences_of_a_page(document):
    assert unread_fences(document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```console exit=2\n$ false\n```\n", "above it, `<!-- exit 2 -->`"),
        ("- a list\n\n  ```console model\n  ```\n", "`<!-- exit 2 -->`"),
        ("<!-- exit=2 -->\n```console\n```\n", "write `exit N` or `needs a model`"),
        ("<!-- exit 2 -->\n\n```console\n```\n", "no fence follows"),
    ],
)
def test_a_fence_that_a_renderer_drops_is_told(text, said):
    [problem] = unread_fences(text)

    assert said in problem


def test_only_commands_that_need_a_network_or_a_model_are_skipped():
    every = [step for page in PAGES for step in steps(page)]
    skipped = [step for step in every if step.reason_to_skip]
    unused = [p for p in SKIPPED if not any(re.fullmatch(p, step.command) for step in skipped)]

    assert len(skipped) <= MOST_SKIPPED, [f"{s.page}: {s.command}" for s in skipped]
    assert len(every) - len(skipped) > 2 * len(skipped)
    assert unused == []


@pytest.mark.slow
@pytest.mark.parametrize(("sandbox", "document"), cases(doctests), indirect=["sandbox"])
def test_doctests_hold(sandbox, document, monkeypatch):
    monkeypatch.chdir(sandbox)
    monkeypatch.setenv("ADAPTERHUB_HOME", str(sandbox / "home"))
    test = doctest.DocTestParser().get_doctest(doctests(document), {}, name_of(document), str(document), 0)
    report: list[str] = []

    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL).run(
        test, out=report.append
    )

    assert (result.failed, result.attempted > 0) == (0, True), "".join(report)


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)  # as for a script
        yield importlib.import_module("generate")


def test_generated_parts_are_fresh(generate, capsys):
    assert (generate.main(["--check"]), capsys.readouterr().err) == (0, "")


MOST_PAGES, MOST_WORDS, MOST_WRITTEN = 50, 75_000, 55_000
"""Of all pages, and words of them (as `wc -w` counts) without the generated parts."""


def test_the_documentation_stays_short(generate):
    pages = [page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))]
    written = [generate._PART.sub("", text) for text in pages]

    counts = len(pages), sum(len(text.split()) for text in pages), sum(len(text.split()) for text in written)

    assert [got <= most for got, most in zip(counts, (MOST_PAGES, MOST_WORDS, MOST_WRITTEN), strict=True)] == [
        True
    ] * 3, counts


def test_a_code_without_a_sentence_and_a_sentence_without_a_code_are_told(generate):
    problems = generate.problems_with_codes((generate.codes_in_source() - {"E_PAIR"}) | {"E_NEW"})

    assert [problem.partition(":")[0] for problem in problems] == ["E_NEW", "E_PAIR"]


def test_a_stale_page_is_told(generate):
    fresh = (DOCS / "reference" / "exit-codes.md").read_text(encoding="utf-8")

    assert generate.generated(fresh.replace("| 11 |", "| 12 |", 1)) == fresh


def examples(command: click.Command, path: tuple[str, ...] = ()) -> list[str]:
    """The example lines in the help of a command and of those below it."""
    text = [p for p in inspect.cleandoc(command.help or "").split("\n\n") if p.startswith("\b")]
    found = [line.strip() for p in text for line in p.splitlines() if line.strip().startswith("adapt ")]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            found += examples(below, (*path, name))
    return found


@pytest.mark.parametrize("sandbox", [DOCS], ids=[""], indirect=True)
def test_examples_of_the_help_can_be_typed(sandbox, monkeypatch):
    monkeypatch.chdir(sandbox)
    every = examples(cli)
    problems = []
    for line in every:
        command, words = cli, shlex.split(line.partition(" > ")[0])[1:]
        try:
            while isinstance(command, click.Group) and not words[0].startswith("-"):
                _, command, words = command.resolve_command(click.Context(command), words)
            command.make_context("adapt", words)
        except Exception as error:  # noqa: BLE001 - whatever a parser raises is the finding
            problems.append(f"{line}: {error}")

    assert len(every) > 15
    assert problems == []


def anchors(text: str) -> set[str]:
    """The anchors of the headings in `text`, as GitHub makes them: the second of a name ends in `-1`."""
    titles = re.findall(r"^#+ (.+)$", re.sub(_FENCE, "", text), re.MULTILINE)
    names = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    return {name + (f"-{names[:at].count(name)}" if name in names[:at] else "") for at, name in enumerate(names)}


def broken_links(page: Path, text: str) -> list[str]:
    """The relative links in the `text` of a page whose file or anchor is missing."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(_FENCE, "", text)):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if re.match(r"[a-z]+:", target):
            continue
        if not place.exists() or (anchor and anchor not in anchors(place.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("document", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(document):
    assert broken_links(document, document.read_text(encoding="utf-8")) == []


def test_a_link_to_a_heading_that_is_not_there_is_told():
    page = DOCS / "how-to" / "merge.md"
    text = (
        "# A b\n## C\n## C\n[1](#c-1) [2](install.md#nowhere) [3](../glossary.md#digest) [4](gone.md) [5](install.md)"
    )

    assert (broken_links(page, text), anchors(text)) == (["#c-1", "install.md#nowhere", "gone.md"], {"a-b", "c", "c-1"})


def links(page: Path) -> set[Path]:
    """The pages of our own that a page links to."""
    text = re.sub(_FENCE, "", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s:]+)\)", text)
    return {(page.parent / target.partition("#")[0]).resolve() for target in targets} & set(PAGES)


def test_every_page_is_at_most_two_links_from_the_start_page():
    start = DOCS / "index.md"
    near = {start} | links(start)
    near = near.union(*map(links, near))

    assert sorted(map(name_of, set(PAGES) - near - {ROOT / "README.md"})) == []


def test_the_readme_links_to_the_start_page_and_the_glossary():
    assert {DOCS / "index.md", DOCS / "glossary.md"} <= links(ROOT / "README.md")


def test_the_glossary_has_each_term_once_in_alphabetical_order_with_a_page():
    entries = (DOCS / "glossary.md").read_text(encoding="utf-8").split("\n### ")[1:]
    terms = [entry.partition("\n")[0] for entry in entries]

    assert terms == sorted({term.lower(): term for term in terms}.values(), key=str.lower)
    assert [entry for entry in entries if not re.search(r"\]\([^#)]", entry)] == []


def test_ci_runs_the_readmes_test_command():
    readme = [s.command for s in steps(ROOT / "README.md") if "pytest" in s.command]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    reads = [line for line in script.splitlines() if line.startswith(("test_command=", "set_up=", "tests="))]

    found = subprocess.run(
        ["bash", "-c", "\n".join([*reads, 'printf "%s && %s" "$set_up" "$tests"'])],
        cwd=ROOT, text=True, capture_output=True, check=True,
    )  # fmt: skip

    assert [found.stdout] == readme
    runs = ('\nbare "$set_up"\n', '/asked" "$tests"\n', '\ntested "$tests @$work/again"\n')
    assert [line for line in runs if line not in script] == []


def test_the_floors_of_the_page_are_those_of_the_test():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    floors = re.findall(r"^ +(\d)   ((?:\w+/ +)+)", page, re.MULTILINE)

    assert [(number, wings.replace("/", "").split()) for number, wings in floors] == [
        (str(number), wings) for number, wings in reversed(list(enumerate(FLOORS, 1)))
    ]


def test_every_file_that_the_page_for_contributors_names_is_there():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {path for path in re.findall(r"`([\w./]+/[\w.]*)`", page) if "<" not in path}
    roots = (ROOT, ROOT / "adapterhub", ROOT / "registry" / "adapterhub_registry")

    assert [path for path in sorted(named) if not any((root / path).exists() for root in roots)] == []


def test_every_environment_variable_is_documented():
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "adapterhub").rglob("*.py"))
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")

    assert set(re.findall(r"\bADAPTERHUB_[A-Z]+\b", source)) == set(re.findall(r"\bADAPTERHUB_[A-Z]+\b", page))

"""Completion: what is offered, that nothing heavy is imported for it, and what bash, zsh and fish make of it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import termios
import time
from pathlib import Path

import click
import pytest

from adapterhub.cli import COMMANDS, _run, cli
from adapterhub.cli.completion.completing import complete_license
from adapterhub.library.remotes import Remotes
from adapterhub.library.store.index import Index
from tests.bench.many_builds import rows
from tests.support.docs_sandbox import make_sandbox
from tests.support.programs import needs

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = """
[project]
base = "base-7b"

[remotes.ours]
url = "https://adapters.example.com"

[adapters]
summarize = ">=1"

[groups.eval]
judge = "*"

[merges.legal-summary]
method = "linear"
inputs = []
"""
HEAVY = ["torch", "peft", "transformers", "numpy", "sqlite_utils", "huggingface_hub", "rich", "tomlkit", "fastapi"]
SHIM = """#!/bin/sh
if [ -z "$_ADAPT_COMPLETE" ] && [ "$1" != help ]; then
    printf 'ran %s\\n' "$*" >> "$ADAPT_LOG"
    exit
fi
exec {python} -c "from adapterhub.cli import main; main()" "$@"
"""


class Prompt:
    """A folder in which a shell is used: the library `home`, a project, and `adapt` on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "ran"
        shim = folder / ".bin" / "adapt"
        shim.parent.mkdir()
        shim.write_text(SHIM.format(python=shlex.quote(sys.executable)))
        shim.chmod(0o755)
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("ADAPTERHUB_", "ADAPT_"))}
        self.environ |= {
            "ADAPTERHUB_HOME": str(folder / "home"),
            "ADAPT_LOG": str(self.log),
            "PATH": f"{shim.parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "registry")]),
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / ".config"),
            "XDG_DATA_HOME": str(folder / ".local"),
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
        }

    def offered(self, line: str, shell: str = "zsh", *, word: str | None = None, cwd: Path | None = None) -> list[str]:
        """The values for a line up to the cursor."""
        asked = {
            "_ADAPT_COMPLETE": f"{shell}_complete",
            "ADAPT_LINE": line,
            "ADAPTERHUB_HOME": str(self.folder / "home"),
        }
        asked |= {} if word is None else {"ADAPT_WORD": word}
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
            patch.chdir(cwd or self.folder)
            for name, value in asked.items():
                patch.setenv(name, value)
            assert _run() == 0
        return [line.split("\t")[1] for line in said.getvalue().splitlines() if line]


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Prompt:
    folder = tmp_path_factory.mktemp("shell")
    make_sandbox(folder, filled=True)
    (folder / "adapters.toml").write_text(PROJECT)
    (folder / "sub").mkdir()
    (folder / "sub" / "adapters.toml").write_text('[adapters]\nother = "*"\n')
    Remotes(folder / "home").add("theirs", "https://example.org")
    return Prompt(folder)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("adapt mir", ["mirror"]),
        ("adapt remote lo", ["login", "logout"]),
        ("adapt info ", ["judge", "legal-qa", "legal-summary", "summarize"]),
        ("adapt info leg", ["legal-qa", "legal-summary"]),
        ("adapt info legal-qa@", ["legal-qa@base-7b"]),
        ("adapt info legal-qa@b", ["legal-qa@base-7b"]),
        ("adapt info legal-qa==", ["legal-qa==1.0.0"]),
        ("adapt info legal-qa@base-7b==1", ["legal-qa@base-7b==1.0.0"]),
        ("adapt list --base b", ["base-7b"]),
        ("adapt list --base=b", ["--base=base-7b"]),
        ("adapt install x --remote ", ["hub", "ours", "theirs"]),
        ("adapt remote remove th", ["theirs"]),
        ("adapt verify leg", ["legal-qa", "legal-summary"]),
        ("adapt merge legal-qa summ", ["summarize"]),
        ("adapt merge legal-qa --method kn", ["knots"]),
        ("adapt run leg", ["legal-qa", "legal-summary"]),
        ("adapt run legal-qa leg", []),
        ("adapt run legal-qa --compare none,legal-q", ["none,legal-qa"]),
        ("adapt info nothing-like-it", []),
        ("adapt sync --group e", ["eval"]),
        ("adapt install x --save --group e", ["eval"]),
        ("adapt sync --fr", ["--frozen"]),
        ("adapt --ver", ["--verbose", "--version"]),
        ("adapt hel", ["help"]),
        ("adapt help mer", ["merge"]),
        ("adapt help base a", ["add"]),
        ("adapt lock --u", ["--upgrade"]),
        ("adapt export --group e", ["eval"]),
        ("adapt lock --upgrade ", ["judge", "legal-summary", "summarize"]),
        ("adapt lock --project ./sub --upgrade ", ["other"]),
        ("adapt tree --invert leg", ["legal-qa", "legal-summary"]),
        ("adapt compare --diff legal-qa summ", ["summarize"]),
        ("adapt remove jud", ["judge"]),
        ("adapt upgrade jud", ["judge"]),
        ("adapt verify legal-qa --engine ", ["llama.cpp", "ollama", "peft", "sglang", "tgi", "vllm"]),
        ("adapt verify legal-qa --engine vllm --engine=ll", ["--engine=llama.cpp"]),
        ("adapt serve legal-qa leg", ["legal-qa", "legal-summary"]),
        ("adapt serve legal-qa --base b", ["base-7b"]),
        ("adapt serve --engine l", ["llama.cpp"]),
        ("adapt export leg", ["legal-qa", "legal-summary"]),
        ("adapt export legal-qa --format v", ["vllm", "vllm@2d"]),
        ("adapt help completion z", ["zsh"]),
        ("adapt info 'leg", ["legal-qa", "legal-summary"]),
        ("adapt nonsense ", []),
    ],
)
def test_what_is_offered(prompt, line, values):
    assert prompt.offered(line) == values


def test_every_command_is_offered_with_its_sentence(prompt):
    assert set(COMMANDS) <= set(prompt.offered("adapt "))


def test_the_project_is_found_from_a_folder_below_it(prompt):
    (prompt.folder / "deep" / "er").mkdir(parents=True)

    assert prompt.offered("adapt info jud", cwd=prompt.folder / "deep" / "er") == ["judge"]


def test_bash_gets_only_what_stands_after_its_break(prompt):
    assert prompt.offered("adapt info legal-qa@b", "bash", word="@b") == ["@base-7b"]
    assert prompt.offered("adapt info legal-qa@b", "bash", word="b") == ["base-7b"]
    assert prompt.offered("adapt list --base=b", "bash", word="b") == ["base-7b"]


@pytest.mark.parametrize("text", ["[adapters", '[adapters]\n"$(touch x)" = "*"\n"a b" = "*"\n', "adapters = 3", "\0"])
def test_a_broken_or_hostile_project_file_takes_nothing_away(prompt, tmp_path, text):
    (tmp_path / "adapters.toml").write_text(text)

    assert prompt.offered("adapt info ", cwd=tmp_path) == ["legal-qa"]


def test_an_empty_or_broken_home_offers_nothing_and_says_nothing(prompt, tmp_path):
    (tmp_path / "index.db").write_bytes(b"garbage" * 100)
    (tmp_path / "remotes.json").write_text("{")

    assert prompt.offered(f"adapt info --root {tmp_path} leg", cwd=tmp_path) == []
    assert prompt.offered(f"adapt info --root {tmp_path} x --remote ", cwd=tmp_path) == []


LINES = [
    "adapt ",
    "adapt info leg",
    "adapt install x@",
    "adapt merge a --base ",
    "adapt install x --remote ",
    "adapt run ",
    "adapt verify legal-qa --engine ",
    "adapt serve leg",
]


def test_completion_imports_nothing_heavy(prompt):
    code = (
        "import os, sys; from adapterhub.cli import _run\n"
        f"for line in {LINES}:\n"
        "    os.environ['ADAPT_LINE'] = line\n"
        f"    print('HEAVY', _run(), [n for n in {HEAVY} if n in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=prompt.environ | {"_ADAPT_COMPLETE": "bash_complete"},
        cwd=prompt.folder,
        text=True,
        capture_output=True,
        check=True,
    )

    assert done.stdout.count("HEAVY 0 []\n") == len(LINES)


# ---------------------------------------------------------------- the shells themselves
PROMPT_TEXT = "READY>"
STARTS = {  # options, and what is typed first
    "bash": (["--norc", "--noprofile", "-i"], f"PS1='{PROMPT_TEXT}'; bind 'set bell-style none'\n"),
    "zsh": (
        ["-f", "-i"],
        f"unsetopt zle_bracketed_paste; PS1='{PROMPT_TEXT}'; autoload -U compinit; compinit -u\n",
    ),
}
LOADS = {"bash": 'eval "$(adapt help completion bash)"\n', "zsh": 'eval "$(adapt help completion zsh)"\n'}


def program_of(shell: str) -> str:
    return needs("zsh") if shell == "zsh" else needs("fish") if shell == "fish" else needs("bash")


def typed(prompt: Prompt, shell: str, keys: list[str]) -> list[str]:
    """What a shell runs when these lines are typed, keys and all, on a terminal of its own."""
    prompt.log.unlink(missing_ok=True)
    options, setting = STARTS[shell]
    program = program_of(shell)
    leader, follower = pty.openpty()

    def own_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [program, *options], stdin=follower, stdout=follower, stderr=follower, env=prompt.environ, cwd=prompt.folder,
        start_new_session=True, preexec_fn=own_terminal,  # noqa: PLW1509 - does one system call
    )  # fmt: skip
    os.close(follower)
    screen = ""

    def read_until(done) -> None:
        nonlocal screen
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end, screen
            if select.select([leader], [], [], 0.05)[0]:
                try:
                    screen += os.read(leader, 65536).decode(errors="replace")
                except OSError:
                    break

    def ran() -> list[str]:
        return prompt.log.read_text().splitlines() if prompt.log.exists() else []

    try:
        os.write(leader, setting.encode())
        read_until(lambda: screen.count(PROMPT_TEXT) >= 2)
        os.write(leader, LOADS[shell].encode())
        read_until(lambda: screen.count(PROMPT_TEXT) >= 3)
        for at, line in enumerate(keys, 1):
            os.write(leader, line.encode())
            os.write(leader, b"\n")
            read_until(lambda at=at: len(ran()) >= at)
    finally:
        os.close(leader)
        process.kill()
        process.wait()
    return [line.removeprefix("ran ").strip() for line in ran()]


def test_the_licences_in_the_library_complete(tmp_path):
    [row] = rows(1, tmp_path)
    Index(tmp_path / "index.db").rebuild([row._replace(license="apache-2.0")], [], [])
    context = click.Context(cli, info_name="adapt")
    context.params["root"] = tmp_path

    assert [item.value for item in complete_license(context, cli.params[0], "ap")] == ["apache-2.0"]


KEYS = {
    "adapt mir\t": "mirror",
    "adapt sync --froz\t": "sync --frozen",
    "adapt info legal-q\t": "info legal-qa",
    "adapt info legal-qa@\t": "info legal-qa@base-7b",
    "adapt info legal-qa@ba\t": "info legal-qa@base-7b",
    "adapt info legal-qa==\t": "info legal-qa==1.0.0",
    "adapt list --base ba\t": "list --base base-7b",
    "adapt list --base=ba\t": "list --base=base-7b",
    "adapt search --remote th\t x": "search --remote theirs x",
    "adapt verify ./models/base-7b-c\t": "verify ./models/base-7b-chat",
    "true && adapt info legal-s\t": "info legal-summary",
}


@pytest.mark.parametrize("shell", STARTS)
def test_a_shell_completes_what_is_typed(prompt, shell):
    # zsh takes the slash after a folder away again
    assert [line.rstrip("/") for line in typed(prompt, shell, list(KEYS))] == list(KEYS.values())


def test_fish_completes_what_is_typed(prompt):
    fish = needs("fish")

    def complete(line: str) -> list[str]:
        code = f"adapt help completion fish | source; complete -C {shlex.quote(line)}"
        done = subprocess.run(
            [fish, "--no-config", "-c", code],
            env=prompt.environ, cwd=prompt.folder, text=True, capture_output=True, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()

    assert complete("adapt mir") == [f"mirror\t{COMMANDS['mirror'][1]}"]
    for line, completed in KEYS.items():
        if "\t x" not in line and "./" not in line and "&&" not in line:
            word = completed.split()[-1]
            assert [found.split("\t")[0] for found in complete(line.rstrip("\t"))] == [word], line
    assert complete("adapt verify ./models/base-7b-c") == ["./models/base-7b-chat/\tDirectory"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_that_the_shell_can_read(prompt, shell):
    program = program_of(shell)
    environ = prompt.environ
    script = subprocess.run(
        ["adapt", "help", "completion", shell], env=environ, text=True, capture_output=True, check=True
    ).stdout

    done = subprocess.run([program, "-n"], input=script, env=environ, text=True, capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"_adapt_completion", script)

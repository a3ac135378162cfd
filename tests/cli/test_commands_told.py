"""Every `adapt …` that the code, the pages and the documentation tell to type is a command with such options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from adapterhub.cli import cli

ROOT = Path(__file__).parent.parent.parent
SUFFIXES = {".py", ".toml", ".html", ".js", ".md", ".yml", ".yaml", ".txt"}
PLACES = ("adapterhub", "registry/adapterhub_registry", "docs", "README.md", "SECURITY.md", "action.yml", ".github")
TOLD = re.compile(
    r"`adapt ([a-z-][^`]*)`"  # in a sentence
    r"|^\s*(?:\$ |#? {2,})adapt ([a-z-].*)$"  # an example of its own line
    r"|text=f?[\"']adapt ([a-z-].*)[\"']\)",  # a snippet of a page
    re.MULTILINE,
)
MISTYPED = {"upload"}
"""Commands that a page mistypes on purpose, to show the answer."""


def told_in(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":  # a sentence goes on in the next literal
        text = re.sub(r"\"\n\s*f?\"|'\n\s*f?'", "", text).replace('\\"', '"')
    for match in TOLD.finditer(text):
        line = " ".join(re.sub(r"\{[^{}]*\}", "X", next(group for group in match.groups() if group)).split())
        yield re.split(r" (?:\||&&|&|;|>|2>|#) ?|\\$|…$", line)[0]


def problem_of(line: str) -> str:
    """What is wrong with a command line, without `adapt`; "" if nothing is."""
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    command: click.Command = cli
    while isinstance(command, click.Group):
        while words and words[0].startswith("-"):
            if not _has(command, words.pop(0)):
                return "no such option of the group"
        if not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):  # a group, or a placeholder
            return ""
        name = words.pop(0)
        if name == "help":
            return ""
        found = command.get_command(click.Context(command), name)
        if found is None:
            return f"no command `{name}`"
        command = found
    options = [word for word in words[: words.index("--")] if "--" in words] if "--" in words else words
    lacking = [
        word
        for word in options
        if re.match(r"--?[a-zA-Z]", word) and word not in {"-N", "-X"} and not _has(command, word)
    ]
    return f"`{command.name}` has no {', '.join(lacking)}" if lacking else ""


def _has(command: click.Command, word: str) -> bool:
    name = word.partition("=")[0].rstrip(",.;:)")
    known = {
        option for one in command.get_params(click.Context(command)) for option in (*one.opts, *one.secondary_opts)
    }
    known |= {option for one in cli.get_params(click.Context(cli)) for option in one.opts} | {"-h", "--help"}
    parts = name.split("/")  # `--frozen/--locked`
    return all(part in known or (not part.startswith("--") and part[:2] in known) for part in parts)


def test_every_command_that_is_told_exists() -> None:
    wrong = []
    count = 0
    for place in PLACES:
        paths = [ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*"))
        for path in paths:
            name = path.relative_to(ROOT).as_posix()
            if path.suffix not in SUFFIXES:
                continue
            for line in told_in(path):
                count += 1
                if line not in MISTYPED and (problem := problem_of(line)):
                    wrong.append(f"{name}: adapt {line}: {problem}")

    assert wrong == []
    assert count > 1000


def every_option(command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    for one in command.get_params(context):
        yield from (*one.opts, *one.secondary_opts)
    for name in command.list_commands(context) if isinstance(command, click.Group) else ():
        inner = command.get_command(context, name)
        assert inner is not None
        yield from every_option(inner)


def test_every_option_that_a_remedy_names_exists() -> None:
    text = (ROOT / "adapterhub" / "trust" / "meanings.toml").read_text(encoding="utf-8")
    named = {
        option for quoted in re.findall(r"`([^`]*)`", text) for option in re.findall(r"(?<![\w-])--[a-z-]+", quoted)
    }

    assert named
    assert named - set(every_option(cli)) == set()


def test_a_command_that_does_not_exist_is_found() -> None:
    assert problem_of("export legal-qa --format gguf --out x.gguf") == "`export` has no --out"
    assert problem_of("remote lgin") == "no command `lgin`"
    assert problem_of("list --json") == problem_of("-q list") == problem_of("remote login acme") == ""

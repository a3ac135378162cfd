"""The first words of a command line: help, the version, options before the command, aliases, names from other tools."""

from __future__ import annotations

import click
import pytest

from adapterhub.cli import ALIASES, COMMANDS, cli
from adapterhub.cli.suggestions import COMMANDS_ELSEWHERE
from tests.support.command_line import Adapt


@pytest.fixture
def adapt(tmp_path) -> Adapt:
    return Adapt(tmp_path)


# ---------------------------------------------------------------- help and version
@pytest.mark.parametrize(
    ("words", "same"),
    [
        ([], ["--help"]),
        (["help"], ["--help"]),
        (["help", "merge"], ["merge", "--help"]),
        (["help", "base"], ["base", "--help"]),
        (["help", "base", "add"], ["base", "add", "--help"]),
        (["base", "help", "add"], ["base", "add", "--help"]),
        (["base"], ["base", "--help"]),
        (["-V"], ["--version"]),
    ],
    ids=" ".join,
)
def test_help_and_version_have_a_short_form(adapt, words, same):
    said = adapt.ok(*words)

    assert said == adapt.ok(*same)
    assert said.startswith(("Usage: adapt", "adapt "))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["help", "mrge"], "no command `mrge`; did you mean `adapt merge`?"),
        (["help", "base", "ad"], "no command `base ad`; did you mean `adapt base add`?"),
        (["base", "rm", "x"], "no command `base rm`; did you mean `adapt base remove`?"),
        (["base", "login"], "no command `base login`; `adapt base --help` lists the commands"),
        (["hlep"], "did you mean `adapt help`?"),
    ],
)
def test_help_for_what_is_not_there_names_what_is(adapt, words, said):
    assert said in adapt.fails(2, *words)


# ---------------------------------------------------------------- before or after the command
@pytest.mark.parametrize("words", [("-q", "list"), ("--quiet", "list"), ("list", "-q"), ("base", "list", "-q")])
def test_quiet_stands_before_or_after_the_command(adapt, words):
    loud, silent = adapt("list"), adapt(*words)

    assert "hint" in loud.stderr
    assert (silent.exit_code, silent.stderr) == (0, "")


@pytest.mark.parametrize("words", [("-v", "list"), ("--verbose", "list"), ("list", "-v")])
def test_verbose_names_the_library_and_leaves_stdout_alone(adapt, words):
    done = adapt(*words)

    assert f"library: {adapt.folder / 'home'}\n" in done.stderr
    assert done.stdout == adapt.ok("list")


# ---------------------------------------------------------------- names that other tools use
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("rm", "did you mean `adapt remove`?"),
        ("ls", "did you mean `adapt list`?"),
        ("login", "did you mean `adapt remote login`?"),
        ("whoami", "did you mean `adapt remote list`?"),
        ("download", "did you mean `adapt install`?"),
        ("describe", "did you mean `adapt info`?"),
        ("upload", "did you mean `adapt push`?"),
        ("version", "did you mean `adapt --version`?"),
        ("lst", "did you mean `adapt list`?"),
        ("auth", "did you mean `adapt remote login`?"),  # by spelling it would be `audit`
        ("history", "did you mean `adapt info`?"),
        ("reset", "did you mean `adapt upgrade --undo`?"),
        ("undo", "did you mean `adapt upgrade --undo`?"),
        ("deploy", "did you mean `adapt serve`?"),
        ("repo", "did you mean `adapt registry`?"),
        ("status", "did you mean `adapt upgrade`?"),
        ("eval", "did you mean `adapt test`?"),
        ("convert", "did you mean `adapt export`?"),
        ("tag", "did you mean `adapt alias`?"),
    ],
)
def test_the_command_of_another_tool_leads_to_ours(adapt, typed, said):
    assert said in adapt.fails(2, typed)


def test_a_suggestion_is_a_command_and_hides_none():
    for typed, ours in COMMANDS_ELSEWHERE.items():
        command: click.Command | None = cli
        for word in ours.split():
            if not word.startswith("--"):
                assert isinstance(command, click.Group)
                command = command.get_command(click.Context(command), word)
        assert command is not None, typed
    assert not COMMANDS_ELSEWHERE.keys() & {*COMMANDS, "delete", "yank"}


# ---------------------------------------------------------------- aliases
def test_a_second_name_is_the_same_command_and_no_list_shows_it(adapt):
    table = adapt.ok("--help")

    for alias, name in ALIASES.items():
        assert adapt.ok(alias, "--help").partition("\n\n")[2] == adapt.ok(name, "--help").partition("\n\n")[2]
        assert f"\n  {alias} " not in table
    assert ALIASES == {"uninstall": "remove", "show": "info"}


def test_the_help_of_all_commands_fits_one_screen(adapt):
    lines = adapt.ok("--help").splitlines()

    assert (len(lines) <= 60, max(map(len, lines)) <= 80) == (True, True)
    assert [name for name in COMMANDS if not any(line.startswith(f"  {name} ") for line in lines)] == []

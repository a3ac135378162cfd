"""The `adapt` command: each command parses its arguments, calls one library function and prints the result.

The command table is data, and a command's module is imported only when it runs, so `adapt --help` loads only click.
"""

# ruff: noqa: E402 - the rule for garbage has to stand before click is imported

from __future__ import annotations

import gc

gc.set_threshold(100_000)  # about what a start makes: to look for garbage in it takes a tenth; see `_keep_start`

import codecs
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from adapterhub.cli.groups import HELP, Group
from adapterhub.cli.output import report_failure, report_traceback
from adapterhub.core.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    AdapterHubError,
    MissingExtra,
    NotAllowed,
    UsageProblem,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Start": {
        "demo": (
            "adapterhub.cli.start.demo:demo",
            "Try the whole workflow on a real base with two real adapters",
        ),
        "init": ("adapterhub.cli.start.init:init", "Create a project in a folder"),
        "base": ("adapterhub.cli.start.base:base", "Register, list, show and compare base models"),
        "ui": ("adapterhub.cli.start.ui:ui", "Look at the library in a browser, with a playground"),
        "doctor": ("adapterhub.cli.start.doctor:doctor", "Check the installation and repair the store"),
        "cache": ("adapterhub.cli.inspect.cache:cache", "Show what uses the library's disk space, and free it"),
    },
    "Adapters": {
        "add": ("adapterhub.cli.adapters.add:add", "Add a PEFT output folder to the library"),
        "install": ("adapterhub.cli.adapters.install:install", "Install an adapter that fits a base"),
        "remove": (
            "adapterhub.cli.adapters.remove:remove",
            "Remove adapters from the library, with --save from the project",
        ),
        "list": ("adapterhub.cli.adapters.query:list_", "List installed adapters"),
        "search": ("adapterhub.cli.adapters.search:search", "Search adapters by text, base, task, rank and method"),
        "info": ("adapterhub.cli.inspect.info:info", "Show the details of an adapter, local or remote"),
        "verify": (
            "adapterhub.cli.inspect.verify:verify",
            "Check bytes, format, numbers and base, or what engines make of it",
        ),
        "test": (
            "adapterhub.cli.inspect.test:test",
            "Test whether an adapter still answers as its contract records",
        ),
        "contract": (
            "adapterhub.cli.inspect.contract:contract",
            "Record answers, show signed results, set what a PASS needs",
        ),
        "audit": ("adapterhub.cli.inspect.audit:audit", "Audit signatures, origins, bases, licences and names"),
        "identify": ("adapterhub.cli.inspect.identify:identify", "Identify an unknown file, or list a folder of files"),
        "alias": ("adapterhub.cli.use.alias:alias", "Give a build a moving name, and move it back"),
    },
    "Projects": {
        "lock": ("adapterhub.cli.projects.lock:lock", "Resolve the project's adapters and write the lock file"),
        "sync": ("adapterhub.cli.projects.sync:sync", "Make the project's adapters/ match the lock file"),
        "upgrade": (
            "adapterhub.cli.projects.upgrade:upgrade",
            "Show newer and withdrawn releases, move to the allowed, or back",
        ),
        "tree": ("adapterhub.cli.projects.tree:tree", "Show what each merge was made from, or what needs an adapter"),
    },
    "Weights": {
        "merge": ("adapterhub.cli.weights.merge:merge", "Merge adapters into one adapter, exactly or at a given rank"),
        "compare": (
            "adapterhub.cli.weights.compare:compare",
            "Compare adapters, predict a merge, or find what is like one",
        ),
        "resize": ("adapterhub.cli.weights.resize:resize", "Reduce an adapter to a lower rank and report the error"),
        "extract": ("adapterhub.cli.weights.extract:extract", "Extract a LoRA adapter from a fine-tuned model"),
        "port": ("adapterhub.cli.weights.port:port", "Move an adapter to a related base, as its contract proves"),
        "fuse": ("adapterhub.cli.weights.fuse:fuse", "Write a full model: a base with an adapter added"),
    },
    "Use": {
        "run": ("adapterhub.cli.use.run:run", "Generate text with an adapter on its base"),
        "route": (
            "adapterhub.cli.use.route:route",
            "Print the adapter that a text is for, or write a routing file",
        ),
        "serve": ("adapterhub.cli.use.serve:serve", "Start vLLM or llama.cpp on a base with adapters by name"),
        "mcp": ("adapterhub.cli.use.mcp:mcp", "Offer search, test, run and more to an agent (MCP)"),
        "export": (
            "adapterhub.cli.use.export:export",
            "Export an adapter to a program, a list or a bill of materials",
        ),
    },
    "Publishing": {
        "push": ("adapterhub.cli.publishing.push:push", "Publish an adapter to the Hub, a registry or a folder"),
        "pull": ("adapterhub.cli.publishing.pull:pull", "Write an adapter's files to a plain folder"),
        "mirror": ("adapterhub.cli.publishing.mirror:mirror", "Copy adapters from one server to another"),
        "yank": (
            "adapterhub.cli.publishing.yank:yank",
            "Withdraw a published version without deleting it, or take that back",
        ),
        "delete": ("adapterhub.cli.publishing.delete:delete", "Delete a published version or a repository"),
        "key": (
            "adapterhub.cli.publishing.key:key",
            "Sign adapters; manage keys, trust and signature policies",
        ),
        "remote": ("adapterhub.cli.publishing.remote:remote", "Manage servers, their namespaces and access tokens"),
        "registry": ("adapterhub_registry.operations.commands:registry", "Run and administer a self-hosted registry"),
    },
}
COMMANDS: dict[str, tuple[str, str]] = {name: entry for table in SECTIONS.values() for name, entry in table.items()}
ALIASES = {"uninstall": "remove", "show": "info"}
"""Second names of commands, each with the first; no list shows them."""
BELOW_HELP = {
    "explain": ("adapterhub.cli.start.explain:explain_", "Explain the code of a finding, or an exit code"),
    "completion": ("adapterhub.cli.start.completion:completion", "Print the completion script for a shell"),
}
"""What `adapt help CODE` and `adapt help completion SHELL` run."""

EXIT_TERMINATED = 143
_NO_COMMAND: type[click.UsageError] | tuple[()] = getattr(click.exceptions, "NoArgsIsHelpError", ())  # since click 8.2


def _without_extra(name: str, missing: MissingExtra) -> click.Command:
    """Return a stand-in for a command whose extra is missing: its help gives the purpose and the extra."""

    def refuse() -> NoReturn:
        raise missing

    help_text = f"{COMMANDS[name][1]}.\n\n{missing.message[0].upper()}{missing.message[1:]}: {missing.hint}."
    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, callback=refuse, help=help_text, context_settings=anything)


class LazyGroup(Group):
    """A group that imports a command only when it is used and prints its help from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the table."""
        return list(COMMANDS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read `help E_RANK` as `explain E_RANK`, and `help completion zsh` as the command below `help`."""
        if args[:1] == [HELP] and not ctx.resilient_parsing:
            words = [word for word in args[1:] if not word.startswith("-")]
            if "--skill" in args:
                args = ["explain", *args[1:]]
            elif words[:1] == ["completion"] and len(words) > 1:
                args = args[1:]
            elif words[:1] == ["codes"]:
                args = ["explain", *args[2:]]
            elif words and (words[0][0].isupper() or words[0].isdigit()):
                args = ["explain", *args[1:]]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command."""
        known = COMMANDS | BELOW_HELP
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in known:
            return None
        module, _, attribute = known[name][0].partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError:
            from adapterhub.core.extras import extra_named

            try:
                with extra_named(f"`adapt {cmd_name}`"):
                    raise
            except MissingExtra as missing:
                return _without_extra(cmd_name, missing)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is not a command")
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names from the table; click would import every command to check whether it is hidden."""
        from click.shell_completion import CompletionItem

        texts = {name: text for name, (_, text) in COMMANDS.items()} | {HELP: "Show the help of a command"}
        fits = [CompletionItem(name, help=text) for name, text in texts.items() if name.startswith(incomplete)]
        return [*fits, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a closed output pipe ends it as an interruption does, not as a bug."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError:
            from adapterhub.core.extras import extra_named

            with extra_named(f"`adapt {ctx.invoked_subcommand}`"):
                raise
        except BrokenPipeError:  # click would exit with code 1
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what fits one screen, from the table, without importing any command."""
        about = (self.help or "").partition("\n")[0]
        short = ", ".join("/".join(sorted(one.opts, key=len)) for one in self.get_params(ctx))
        lines = [f"Usage: {ctx.command_path} [OPTIONS] COMMAND [ARGS]...", "", f"  {about}", ""]
        for title, table in SECTIONS.items():
            lines += [f"{title}:", *(f"  {name:<10}{text}" for name, (_, text) in table.items())]
        lines += [
            "",
            f"Options: {short}",
            "`adapt help COMMAND` shows its options; `adapt help CODE` explains a code.",
        ]
        formatter.write("\n".join(lines) + "\n")


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--quiet", "-q", is_flag=True, help="Print only results, warnings and errors.")
@click.option("--verbose", "-v", is_flag=True, help="Also print the library, the project and each request.")
@click.version_option(
    None, "--version", "-V", package_name="adapterhub", message="adapt %(version)s", help="Show the version and exit."
)
def cli(quiet: bool, verbose: bool) -> None:
    """Manage, merge and serve many small adapters on one frozen base model."""


def main() -> NoReturn:
    """Run `adapt`; the entry point of the console script."""
    gc.callbacks.append(_keep_start)
    sys.excepthook = report_traceback
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have set it to be ignored
        signal.signal(signal.SIGINT, _stop)
    # A stream is None when the caller closed it.
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as above
    _escape_what_terminals_lack()
    try:
        code = _run()
    finally:  # `verify` leaves by SystemExit
        gc.freeze()  # the system takes the memory back: to look for garbage once more at the end takes a tenth, too
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk, for example; otherwise Python tries again and exits with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _escape_what_terminals_lack() -> None:
    r"""Write other characters as `\u2026` if stdout or stderr is not UTF-8, which keeps a JSON document whole."""
    codecs.register_error("adapterhub", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="adapterhub")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    import json

    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _keep_start(_phase: str, facts: dict[str, int]) -> None:
    """Keep the first 100,000 objects, most of which are imported, unsearched until the end; search the later ones."""
    if facts["generation"] == 0:  # a search that nothing asked for
        gc.callbacks.remove(_keep_start)
        gc.freeze()
        gc.set_threshold(20_000)


_stop_signals: list[int] = []
_told_to_stop: list[int] = []


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    # An exception lets every `with` and `finally` on the way clean up its temporary files.
    _stop_signals.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_TERMINATED)


def _run() -> int:
    if sys.platform == "win32":  # before any module that needs `fcntl`
        problem = UsageProblem("adapt runs on Linux and macOS; on Windows, install and run it in WSL (`wsl --install`)")
        report_failure(problem, as_json="--json" in sys.argv)
        return problem.exit_code
    if completion := os.environ.get("_ADAPT_COMPLETE"):  # set by the script of `adapt help completion`, never by a user
        from adapterhub.cli.completion.shells import answer

        return answer(cli, completion)
    return run_command(sys.argv[1:])


def run_command(words: Sequence[str]) -> int:
    """Run the command that the words after `adapt` name, report a failure on stderr, and return the exit code."""
    as_json = "--json" in words
    try:
        code = cli.main([*words], prog_name="adapt", standalone_mode=False)  # also where it runs as `adapterhub`
        sys.stdout.flush()
    except AdapterHubError as error:
        report_failure(error, as_json=as_json)
        return error.exit_code
    except _NO_COMMAND as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"see `{context.command_path} --help`" if context else ""
        message = error.format_message()
        if isinstance(error, click.MissingParameter) and isinstance(error.param, click.Option) and context:
            option = max(error.param.opts, key=len)
            message = f"`{context.command_path}` needs `{option} {error.param.metavar or option.strip('-').upper()}`"
            hint = f"add `{option}`; {hint}"
        report_failure(UsageProblem(message, hint=hint), as_json=as_json)
        return UsageProblem.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _interrupted()
    except BrokenPipeError:
        # The reader closed our output (`adapt list | head`); keep Python from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED
    except OSError as error:  # a system error that no lower level explained
        if os.environ.get("ADAPTERHUB_DEBUG"):
            raise
        what = f"`{error.filename}`: " if error.filename else ""
        hint = "run `adapt doctor` to check the home, disk and store, or set ADAPTERHUB_DEBUG=1 for the traceback"
        report_failure(
            NotAllowed(f"operating system error: {what}{error.strerror or error}", hint=hint), as_json=as_json
        )
        return NotAllowed.exit_code
    except Exception as error:
        if os.environ.get("ADAPTERHUB_DEBUG"):
            raise
        return _unexpected(error, as_json=as_json)
    return code if isinstance(code, int) else 0


def _interrupted() -> int:
    sys.stderr.write("interrupted; nothing half-made was kept\n")
    return EXIT_INTERRUPTED


def _unexpected(error: Exception, *, as_json: bool) -> int:
    if _stop_signals:  # C libraries turn the exception into other errors, above all during their import
        return _interrupted() if _stop_signals[0] == signal.SIGINT else EXIT_TERMINATED
    failure = AdapterHubError(
        f"a bug in adapterhub: {type(error).__name__}: {error}",
        hint="run again with ADAPTERHUB_DEBUG=1 and report the traceback",
    )
    report_failure(failure, as_json=as_json)
    return EXIT_BUG

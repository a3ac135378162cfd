"""`adapt`: argv becomes values, values one library call, its result one output.

The command table is data: a command's module is imported when it runs, so `adapt --help` costs what click costs.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from adapterhub.cli.output import report_failure
from adapterhub.core.errors import EXIT_BUG, EXIT_INTERRUPTED, AdapterHubError, NotAllowed, UsageProblem
from adapterhub.core.extras import extra_named

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Start": {
        "demo": (
            "adapterhub.cli.start.demo:demo",
            "Run the whole main job once, on a real base with two real adapters",
        ),
        "init": ("adapterhub.cli.start.init:init", "Make a project of a folder"),
        "base": ("adapterhub.cli.start.base:base", "Register, list, show and compare base models"),
        "doctor": ("adapterhub.cli.start.doctor:doctor", "Check the installation and the store"),
        "completion": ("adapterhub.cli.start.completion:completion", "Print the shell completion script"),
    },
    "Adapters": {
        "add": ("adapterhub.cli.adapters.add:add", "Take a PEFT output folder into the library"),
        "install": ("adapterhub.cli.adapters.install:install", "Install an adapter that fits a base"),
        "uninstall": (
            "adapterhub.cli.adapters.uninstall:uninstall",
            "Remove an adapter, with --save out of the project, too",
        ),
        "remove": ("adapterhub.cli.adapters.remove:remove", "Remove an installed adapter"),
        "list": ("adapterhub.cli.adapters.query:list_", "List installed adapters"),
        "search": ("adapterhub.cli.adapters.query:search", "Search by text, base, task, rank and method"),
        "info": ("adapterhub.cli.inspect.info:info", "Show everything about one adapter, here or on a server"),
        "show": ("adapterhub.cli.inspect.info:info", "Show everything about one adapter, as `info` does"),
        "path": ("adapterhub.cli.adapters.query:path", "Print the plain PEFT folder of an adapter"),
        "verify": ("adapterhub.cli.inspect.verify:verify", "Check bytes, format, shapes, numbers and base"),
        "check": (
            "adapterhub.cli.inspect.check:check",
            "Say which engines read an adapter right, and with which flags",
        ),
        "audit": ("adapterhub.cli.inspect.audit:audit", "Audit signatures, strays, base, lineage, licences and names"),
        "identify": ("adapterhub.cli.inspect.identify:identify", "Find out what a file or folder is"),
        "diff": ("adapterhub.cli.inspect.diff:diff", "Show what is different between two adapters, exactly"),
    },
    "Projects": {
        "lock": ("adapterhub.cli.projects.lock:lock", "Lock exactly what the project asks for"),
        "sync": ("adapterhub.cli.projects.sync:sync", "Make the project's adapters/ match its lock file"),
        "trust": ("adapterhub.cli.projects.trust:trust", "Agree to the servers that a project names"),
        "outdated": (
            "adapterhub.cli.projects.outdated:outdated",
            "Show what has a newer release, and what was withdrawn",
        ),
        "upgrade": ("adapterhub.cli.projects.upgrade:upgrade", "Take the newest that is allowed"),
        "tree": ("adapterhub.cli.projects.tree:tree", "Show what adapters were merged from, and who holds them"),
        "why": ("adapterhub.cli.projects.why:why", "Show who needs an adapter"),
    },
    "Weights": {
        "merge": ("adapterhub.cli.weights.merge:merge", "Merge adapters into one, exactly or at a rank"),
        "compare": (
            "adapterhub.cli.weights.compare:compare",
            "Compare adapters and forecast their merge, without merging",
        ),
        "resize": ("adapterhub.cli.weights.resize:resize", "Cut an adapter to a lower rank, with the error said"),
        "extract": ("adapterhub.cli.weights.extract:extract", "Extract a LoRA out of a fine-tuned model"),
        "fuse": ("adapterhub.cli.weights.fuse:fuse", "Write a base with an adapter added as a model of its own"),
    },
    "Use": {
        "run": ("adapterhub.cli.use.run:run", "Answer a prompt with an adapter on its frozen base"),
        "serve": ("adapterhub.cli.use.serve:serve", "Start vLLM or llama.cpp on a base, with adapters by name"),
        "export": ("adapterhub.cli.use.export:export", "Write an adapter for another program, or a list of adapters"),
    },
    "Publishing": {
        "push": ("adapterhub.cli.publishing.push:push", "Publish an adapter to the Hugging Face Hub or a folder"),
        "pull": ("adapterhub.cli.publishing.pull:pull", "Write an adapter's plain files to a folder"),
        "mirror": ("adapterhub.cli.publishing.mirror:mirror", "Copy adapters from one server to another"),
        "sign": ("adapterhub.cli.publishing.sign:sign", "Sign an adapter for its name, version, base and rank"),
        "key": ("adapterhub.cli.publishing.key:key", "Make keys, trust keys, say what is asked of signatures"),
        "remote": ("adapterhub.cli.publishing.remote:remote", "Name servers, give them namespaces, keep their tokens"),
        "registry": ("adapterhub_registry.operations.commands:registry", "Run and administer a self-hosted registry"),
    },
    "Space": {
        "cache": ("adapterhub.cli.inspect.cache:cache", "Show what takes the library's space, and who needs it"),
        "gc": ("adapterhub.cli.inspect.cache:gc", "Free the space of objects that nothing uses"),
    },
}
COMMANDS: dict[str, tuple[str, str]] = {name: entry for table in SECTIONS.values() for name, entry in table.items()}

EXIT_TERMINATED = 143


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used; help is shown from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import and return the command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        with extra_named(f"`adapt {cmd_name}`"):
            command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command for `args`; a misspelt one is answered with the nearest names."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=2)
            help_text = f"did you mean `adapt {near[0]}`?" if near else "`adapt --help` lists the commands"
            raise click.UsageError(f"no command `{name}`; {help_text}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names from the table; click would import every command to ask whether it is hidden."""
        from click.shell_completion import CompletionItem

        fits = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return [*fits, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a reader of its output that went away ends it as an interruption does, not as a bug."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError:
            with extra_named(f"`adapt {ctx.invoked_subcommand}`"):
                raise
        except BrokenPipeError:  # click would make it exit code 1
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """The table, without importing a command."""
        for title, table in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<10}", text) for name, (_, text) in table.items()])


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"adapt {version('adapterhub')}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """One frozen base model, a directory of small adapters, and a package manager for them.

    \b
    Examples:
      adapt base add ./models/base-7b --as base-7b
      adapt add ./out/legal-qa --name legal-qa --base base-7b --task legal-qa
      adapt install acme/summarize@base-7b
      adapt merge legal-qa summarize --weights 0.7,0.3 -o legal-summary
    """


def main() -> NoReturn:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell had it ignored
        signal.signal(signal.SIGINT, _stop)
    # None where the caller closed it
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as above
    code = _run()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nowhere to go, as on a full disk; Python would try once more and exit with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


_told_to_stop: list[int] = []


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    # An exception, so that every `with` and `finally` on the way cleans up its temp files.
    _told_to_stop.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_TERMINATED)


def _run() -> int:
    if sys.platform == "win32":  # before any module that needs `fcntl`
        problem = UsageProblem("adapt runs on Linux and macOS; on Windows, install and run it in WSL (`wsl --install`)")
        report_failure(problem, as_json="--json" in sys.argv)
        return problem.exit_code
    if asked := os.environ.get("_ADAPT_COMPLETE"):  # set by the script of `adapt completion`, never by a user
        from adapterhub.cli.completion.shells import answer

        return answer(cli, asked)
    return _run_command()


def _run_command() -> int:
    as_json = "--json" in sys.argv
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except AdapterHubError as error:
        report_failure(error, as_json=as_json)
        return error.exit_code
    except click.UsageError as error:
        hint = f"`{error.ctx.command_path} --help` shows how it is used" if error.ctx else ""
        report_failure(UsageProblem(error.format_message(), hint=hint), as_json=as_json)
        return UsageProblem.exit_code
    except click.ClickException as error:
        report_failure(UsageProblem(error.format_message()), as_json=as_json)
        return UsageProblem.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _interrupted()
    except BrokenPipeError:
        # The reader of our output went away (`adapt list | head`); keep Python from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED
    except OSError as error:  # from the system, where nobody below could say more
        if os.environ.get("ADAPTERHUB_DEBUG"):
            raise
        what = f"`{error.filename}`: " if error.filename else ""
        hint = "`adapt doctor` looks at home, disk and store; ADAPTERHUB_DEBUG=1 shows where this came from"
        report_failure(NotAllowed(f"the system refused: {what}{error.strerror or error}", hint=hint), as_json=as_json)
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
    if _told_to_stop:  # libraries in C make other errors of it, above all while they are imported
        return _interrupted() if _told_to_stop[0] == signal.SIGINT else EXIT_TERMINATED
    failure = AdapterHubError(
        f"a bug in adapterhub: {type(error).__name__}: {error}",
        hint="run again with ADAPTERHUB_DEBUG=1 for the traceback, and report it",
    )
    report_failure(failure, as_json=as_json)
    return EXIT_BUG

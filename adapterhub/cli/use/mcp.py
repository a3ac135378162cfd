"""`adapt mcp`: offer commands to agents as tools of the Model Context Protocol, over stdin and stdout."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.cli import COMMANDS, cli, run_command
from adapterhub.cli.options.params import Session, common
from adapterhub.core.errors import AdapterHubError, NotAllowed, UsageProblem, reason_of, shown
from adapterhub.core.extras import require
from adapterhub.formats.documented import Documented

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

OFFERED: Final[Mapping[str, str]] = {
    "search": "text --base --task --rank --method --license --signed --tested --remote --all-words --limit",
    "info": "spec --base --recipe --remote --offline",
    "verify": "adapters --all --base --engine --strict --offline",
    "test": "adapters --all --base --on --bound --base-alone --budget --require --again",
    "run": "words --with --compare --base --system --chat --template --max-new-tokens --temperature --top-p --seed",
    "install": "specs --from --base --rank --dry-run --exclude-newer --test --save --group --remote --offline",
    "merge": "adapters --output --weights --method --rank --energy --option --base --description --license --test "
    "--methods",
}
"""The commands, each with what a tool takes of it: no option that overrides a guard, replaces a build or signs."""
CHANGING: Final = frozenset({"install", "merge"})
_ABOUT: Final = (
    "Each tool is the command of `adapt` with its name, and answers with the document that the command prints with "
    "`--json`. Begin with `search`, read `info`, then `verify` and `test`. `exit_code` 0 is success, 3 means that an "
    "adapter failed a check, and 17 that a check could not run; `adapt help CODE` explains all."
)
_one_at_a_time = threading.Lock()  # a command writes to the process's stdout, which is redirected while it runs


@dataclass(frozen=True, slots=True)
class Tool(Documented):
    """A command that agents may call."""

    name: str
    about: str
    """in one sentence"""
    changes: bool
    """it writes adapters; --allow-changes offers it"""
    takes: tuple[str, ...]
    """names of its arguments"""

    @property
    def parameters(self) -> dict[str, click.Parameter]:
        """Return what the tool takes of its command, by the name that an agent writes."""
        found = {max(one.opts, key=len).lstrip("-").replace("-", "_"): one for one in _command(self.name).params}
        return {name: found[name] for name in self.takes}

    @property
    def input_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the arguments."""
        return {
            "type": "object",
            "properties": {name: _schema(one) for name, one in self.parameters.items()},
            "required": [name for name, one in self.parameters.items() if one.required],
            "additionalProperties": False,
        }

    def words(self, given: Mapping[str, Any]) -> list[str]:
        """Return the command line for the arguments of a call; no text of them can become an option.

        Raises:
            UsageProblem: the tool has no such argument, or a value has the wrong type.
        """
        known, options, positional = self.parameters, list[str](), list[str]()
        for name, value in given.items():
            one = known.get(name)
            if one is None:
                raise UsageProblem(f"`{self.name}` has no argument `{shown(name)}`, expected {', '.join(self.takes)}")
            several = value if isinstance(value, list) else [value]
            if not all(isinstance(each, str | int | float) for each in several):
                raise UsageProblem(f"`{shown(name)}` is {shown(value)}, expected text, a number, or a list of them")
            if name == "remote" and "://" in str(value):  # else a text that an agent reads could send it to any server
                raise UsageProblem(
                    "`remote` is a URL, expected the name of a remote",
                    hint="`adapt remote add NAME URL` names a server",
                )
            if isinstance(one, click.Argument):
                positional += map(str, several)
            elif isinstance(one, click.Option) and one.is_flag:
                options += [max(one.opts, key=len)] if value else one.secondary_opts[:1]
            else:
                options += [f"{max(one.opts, key=len)}={each}" for each in several]
        return [self.name, *options, "--json", "--", *positional]


def _schema(one: click.Parameter) -> dict[str, Any]:
    value: dict[str, Any] = {"type": ["string", "number"]}
    if isinstance(one, click.Option) and one.is_flag:
        value = {"type": "boolean"}
    elif isinstance(one.type, click.Choice):
        value = {"enum": [str(choice) for choice in one.type.choices]}
    elif isinstance(one.type, click.IntRange):
        value = {"type": "integer"}
    if one.multiple or one.nargs == -1:
        value = {"type": "array", "items": value}
    return value | {"description": getattr(one, "help", None) or one.make_metavar(click.Context(cli))}


def tools(*, allow_changes: bool) -> list[Tool]:
    """Return the tools that are offered."""
    every = [
        Tool(name, COMMANDS[name][1], name in CHANGING, tuple(t.lstrip("-").replace("-", "_") for t in takes.split()))
        for name, takes in OFFERED.items()
    ]
    return [tool for tool in every if allow_changes or not tool.changes]


def call(name: str, given: Mapping[str, Any], *, root: Path, allow_changes: bool) -> dict[str, Any]:
    """Run the command of a tool, and return `exit_code` with the `result` or the `error`, and its `notes`."""
    out, notes = io.StringIO(), io.StringIO()
    try:
        tool = next((one for one in tools(allow_changes=allow_changes) if one.name == name), None)
        if tool is None and name in CHANGING:
            raise NotAllowed(f"`{name}` changes the library", hint="start the server as `adapt mcp --allow-changes`")
        if tool is None:
            raise UsageProblem(f"no tool `{shown(name)}`, expected {', '.join(OFFERED)}")
        words = tool.words(given)
    except AdapterHubError as error:
        return {"exit_code": error.exit_code, "error": {"message": reason_of(error), "hint": error.hint}}
    words[1:1] = ["--root", str(root)]
    with _one_at_a_time, contextlib.redirect_stdout(out), contextlib.redirect_stderr(notes):
        try:
            code = run_command(words)
        except SystemExit as stop:  # `verify` and `test` report what they found by the exit code
            code = int(stop.code or 0)
    lines = notes.getvalue().splitlines()
    if out.getvalue():
        return {"exit_code": code, "result": json.loads(out.getvalue()), "notes": lines}
    failure = json.loads(lines.pop())["error"] if lines and lines[-1].startswith("{") else {"message": lines[-1:]}
    return {"exit_code": code, "error": failure, "notes": lines}


@click.command()
@click.option("--allow-changes", is_flag=True, help="Also offer `install` and `merge`, which write adapters.")
@common
def mcp(session: Session, allow_changes: bool) -> None:
    """Offer search, info, verify, test and run to an agent, as an MCP server on stdin and stdout.

    The tools are the commands of these names, with the same checks and the same JSON documents. None of them takes an
    option that overrides a check, and --remote takes only names of `adapt remote list`. Without --allow-changes, no
    tool installs or makes an adapter; `test` stores its verdicts. Needs the extra `mcp`. --json only lists the tools.

    \b
    Examples:
      adapt mcp
      adapt mcp --allow-changes --root ./home
      adapt mcp --json
    """
    offered = tools(allow_changes=allow_changes)
    if session.out.as_json:
        session.out.result([tool.to_json() for tool in offered], lambda: None)
        return
    require("mcp", "`adapt mcp`")
    _serve(session.root, offered, allow_changes=allow_changes)


def _serve(root: Path, offered: Sequence[Tool], *, allow_changes: bool) -> None:
    """Answer on stdin and stdout until the client closes them."""
    from importlib.metadata import version

    import anyio
    from mcp import types
    from mcp.server.lowlevel import Server
    from mcp.server.stdio import stdio_server

    async def on_list_tools(_context: Any, _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=tool.name,
                    description=_description(tool.name),
                    input_schema=tool.input_schema,
                    annotations=types.ToolAnnotations(read_only_hint=not tool.changes, destructive_hint=False),
                )
                for tool in offered
            ]
        )

    async def on_call_tool(_context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        def work() -> dict[str, Any]:
            return call(params.name, params.arguments or {}, root=root, allow_changes=allow_changes)

        done = await anyio.to_thread.run_sync(work)
        text = json.dumps(done.get("result", done.get("error")), ensure_ascii=False)
        return types.CallToolResult(
            content=[types.TextContent(text=text)], structured_content=done, is_error="error" in done
        )

    async def serve() -> None:
        server: Server[Any] = Server(
            "adapt",
            version=version("adapterhub"),
            instructions=_ABOUT,
            on_list_tools=on_list_tools,
            on_call_tool=on_call_tool,
        )
        async with stdio_server() as (reads, writes):
            await server.run(reads, writes, server.create_initialization_options())

    anyio.run(serve)


def _command(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def _description(name: str) -> str:
    """Return the help of a command up to its examples."""
    return inspect.cleandoc(_command(name).help or "").partition("\b")[0].strip()

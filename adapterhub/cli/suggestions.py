"""Which command a mistyped one means: a name that another tool uses, or the nearest of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

COMMANDS_ELSEWHERE: Final[Mapping[str, str]] = {
    "rm": "remove",
    "del": "remove",
    "ls": "list",
    "freeze": "export --requirements",
    "login": "remote login",
    "logout": "remote logout",
    "whoami": "remote list",
    "download": "install",
    "get": "install",
    "fetch": "install",
    "clone": "pull",
    "import": "add",
    "describe": "info",
    "inspect": "info",
    "find": "search",
    "upload": "push",
    "publish": "push",
    "update": "upgrade",
    "new": "init",
    "create": "init",
    "register": "base add",
    "chat": "run",
    "generate": "run",
    "prune": "gc",
    "clean": "gc",
    "version": "--version",
}
"""Our command by its name elsewhere."""


def advice(typed: str, commands: Iterable[str]) -> str:
    """What to type instead of the unknown command `typed`."""
    if typed in COMMANDS_ELSEWHERE:
        return f"did you mean `adapt {COMMANDS_ELSEWHERE[typed]}`?"
    import difflib

    near = difflib.get_close_matches(typed, commands, n=1)
    return f"did you mean `adapt {near[0]}`?" if near else "`adapt --help` lists the commands"

"""Which command a mistyped one means: a name that another tool uses, or the nearest of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

COMMANDS_ELSEWHERE: Final[Mapping[str, str]] = {
    "rm": "remove",
    "del": "remove",
    "ls": "list",
    "freeze": "export",
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
    "prune": "cache clean",
    "clean": "cache clean",
    "version": "--version",
    "auth": "remote login",
    "history": "info",
    "reset": "upgrade --undo",
    "undo": "upgrade --undo",
    "revert": "upgrade --undo",
    "rollback": "upgrade --undo",
    "deploy": "serve",
    "start": "serve",
    "repo": "registry",
    "server": "registry",
    "status": "upgrade",
    "eval": "test",
    "evaluate": "test",
    "benchmark": "test",
    "convert": "export",
    "tag": "alias",
    "validate": "verify",
    "graph": "tree",
    "deprecate": "yank",
}
"""Our command by its name elsewhere."""


def advice(typed: str, commands: Sequence[str], group: str = "") -> str:
    """Return a suggestion for the unknown command `typed` among `commands`, those of `group` such as `base `."""
    meant = COMMANDS_ELSEWHERE.get(typed, "")
    if not meant or (group and meant not in commands):
        import difflib

        meant = "".join(difflib.get_close_matches(typed, commands, n=1))
    return f"did you mean `adapt {group}{meant}`?" if meant else f"`adapt {group}--help` lists the commands"

"""The command line in this process: as a user types it, without a second of importing torch for each command."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from adapterhub.cli import cli
from adapterhub.errors import AdapterHubError


@dataclass(frozen=True)
class Adapt:
    """`adapt …` in `folder`, with the library `folder/home`."""

    folder: Path
    home: str = "home"

    def __call__(self, *arguments: object, **environ: str) -> Result:
        with _inside(self.folder):
            return CliRunner(env={"ADAPTERHUB_HOME": str(self.folder / self.home), **environ}).invoke(
                cli, [str(a) for a in arguments]
            )

    def ok(self, *arguments: object) -> str:
        done = self(*arguments)
        assert done.exit_code == 0, (done.output, done.exception)
        return done.stdout

    def json(self, *arguments: object) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def fails(self, code: int, *arguments: object) -> str:
        """What is said when the command is refused with that exit code."""
        done = self(*arguments)
        if isinstance(done.exception, AdapterHubError):
            assert done.exception.exit_code == code, done.exception
            return f"{done.exception.message}\n{done.exception.hint}"
        assert isinstance(done.exception, SystemExit), (done.output, done.exception)
        assert done.exit_code == code, done.output
        return done.output


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)

"""The command line in this process, from argv to exit code: as a user types it, without importing torch each time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterhub.cli import _run
from adapterhub.library.library import Library


@dataclass(frozen=True)
class Done:
    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Adapt:
    """`adapt …` in `folder`, with the library `folder/home`."""

    folder: Path
    home: str = "home"
    variables: Mapping[str, str] = field(default_factory=dict)

    def having(self, **variables: str) -> Adapt:
        """The same with these variables of the environment."""
        return replace(self, variables={**self.variables, **variables})

    @property
    def library(self) -> Library:
        return Library(self.folder / self.home)

    def __call__(self, *arguments: object) -> Done:
        said, complaints = io.StringIO(), io.StringIO()
        with self._in_place(arguments), contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaints):
            try:
                code = _run()
            except SystemExit as stop:  # `verify` tells what it found by the exit code
                code = int(stop.code or 0)
        return Done(exit_code=code, stdout=said.getvalue(), stderr=complaints.getvalue())

    def ok(self, *arguments: object) -> str:
        done = self(*arguments)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    def json(self, *arguments: object) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def fails(self, code: int, *arguments: object) -> str:
        """What is said when the command is refused with that exit code."""
        done = self(*arguments)
        assert (done.exit_code, done.stdout) == (code, ""), done.stderr
        return done.stderr

    @contextlib.contextmanager
    def _in_place(self, arguments: tuple[object, ...]) -> Iterator[None]:
        folder, argv, environ = Path.cwd(), sys.argv, dict(os.environ)
        os.chdir(self.folder)
        sys.argv = ["adapt", *map(str, arguments)]
        os.environ["ADAPTERHUB_HOME"] = str(self.folder / self.home)
        os.environ.update(self.variables)
        try:
            yield
        finally:
            os.chdir(folder)
            sys.argv = argv
            os.environ.clear()
            os.environ.update(environ)

"""`--verbose`: the library, the project and each request to a server, on stderr."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from adapterhub.cli.output import Output

_CLIENTS = ("httpx", "httpx2")
"""The loggers of the Hub's client in its versions."""


class _Requests(logging.Handler):
    """Prints each request without its query, which may hold a signature."""

    def __init__(self, out: Output) -> None:
        super().__init__(logging.INFO)
        self.out = out

    def emit(self, record: logging.LogRecord) -> None:
        """Print one request with the status of its response."""
        if isinstance(record.args, tuple) and len(record.args) == 5:
            method, url, _, status, reason = record.args
            self.out.detail(f"{method} {str(url).partition('?')[0]}: {status} {reason}")


def report_steps(out: Output, library: Path, project: Path | None) -> None:
    """Name the library and the project, and print each request until the command ends."""
    out.detail(f"library: {library}")
    if project is not None:
        out.detail(f"project: {project}")
    handler = _Requests(out)
    for logger in map(logging.getLogger, _CLIENTS):
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        click.get_current_context().call_on_close(functools.partial(logger.removeHandler, handler))

"""`--verbose`: the library, the project and each request to a server, on stderr."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session

_CLIENTS = ("httpx", "httpx2")
"""The loggers of the Hub's client in its versions."""


class _Requests(logging.Handler):
    """Prints each request without its query, which may hold a signature."""

    def __init__(self, session: Session) -> None:
        super().__init__(logging.INFO)
        self.session = session

    def emit(self, record: logging.LogRecord) -> None:
        """Print one request with the status of its response."""
        if isinstance(record.args, tuple) and len(record.args) == 5:  # noqa: PLR2004 - method, URL, protocol, status, reason
            method, url, _, status, reason = record.args
            self.session.out.detail(f"{method} {str(url).partition('?')[0]}: {status} {reason}")


def report_steps(session: Session) -> None:
    """Name the library and the project, and print each request until the command ends."""
    session.out.detail(f"library: {session.root}")
    if folder := session.project_folder:
        session.out.detail(f"project: {folder}")
    handler = _Requests(session)
    for logger in map(logging.getLogger, _CLIENTS):
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        click.get_current_context().call_on_close(functools.partial(logger.removeHandler, handler))

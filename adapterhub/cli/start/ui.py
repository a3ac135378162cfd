"""`adapt ui`: the library in the browser."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import Session, common, project_option
from adapterhub.core.arguments import Port
from adapterhub.core.extras import require

if TYPE_CHECKING:
    from adapterhub.api.pages.serving import Ui


@click.command()
@click.option("--port", type=kind_of(Port), default=0, metavar="N", help="Listen on port N [default: a free one].")
@click.option("--no-open", is_flag=True, help="Print the address, and open no browser.")
@project_option
@common
def ui(session: Session, port: int, no_open: bool) -> None:
    """Look at the library in a browser: adapters, projects, what is outdated, and a playground.

    Serves pages on 127.0.0.1 until Ctrl-C. The printed address holds a random token, which lets its reader in; treat
    it as a password. The playground answers a prompt with several adapters side by side on one base.

    \b
    Examples:
      adapt ui
      adapt ui --port 8123 --no-open --project ./assistant
    """
    require("ui", "`adapt ui`")
    from adapterhub.api.library import Library
    from adapterhub.api.project import Project

    library, folder = Library(session.root), session.project_folder
    project = None if folder is None else Project(folder, library=library, trust=session.trusts_project)
    with library.ui(port=port, project=project) as served:
        session.out.result({"url": served.url}, lambda: None)
        wait_for(session, served, opens=not no_open)


def wait_for(session: Session, served: Ui, *, opens: bool) -> None:
    """Print the address of the pages, open it where the reader has a browser, and wait for the end."""
    if not session.out.as_json:
        session.out.line(served.url)
    sys.stdout.flush()  # a program reads the address while the server runs
    session.out.note("Ctrl-C ends it")
    page = _open_browser(served.url) if opens and not session.out.as_json else None
    try:
        served.wait()
    finally:
        if page is not None:
            page.unlink(missing_ok=True)


def _open_browser(url: str) -> Path | None:
    """Open the address in the user's browser, if there is one with a window, by a file that only the user reads.

    The address itself would stand in the browser's command line, which every user of the machine sees.
    """
    import webbrowser

    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"} & os.environ.keys():
        return None
    handle, name = tempfile.mkstemp(prefix="adapt-ui-", suffix=".html")  # mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={url}"><a href="{url}">adapt ui</a>')
    with suppress(webbrowser.Error):
        webbrowser.open(Path(name).as_uri())
    return Path(name)

"""The door of a running server for commands on its machine: its address, and a token that ends with the server.

Who may read the folder may change the registry anyway. The token only
administers, and is written nowhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from adapterhub.core.disk.claims import claim, finished, living
from adapterhub.core.disk.real_folder import make_folder
from adapterhub.core.errors import NotFound, RemoteUnreachable, shown

FOLDER: Final = "servers"
DATABASE_FILE: Final = "registry.db"


@contextlib.contextmanager
def door(root: Path, url: str, token: str) -> Iterator[None]:
    """Let commands on this machine find the server at `url` while the block runs; only the file's owner can read it."""
    folder = root / FOLDER
    make_folder(folder)
    folder.chmod(0o700)
    for left in finished(folder):
        left.unlink(missing_ok=True)
    with claim(folder, f"{url} {token}", mode=0o600):
        yield


def door_of(root: Path) -> tuple[str, str]:
    """The address and the operator's token of a server that runs over the folder `root`.

    Raises:
        NotFound: `root` is not the folder of a registry; nothing was created.
        RemoteUnreachable: no server runs over it on this machine.
    """
    if not (root / FOLDER).is_dir():
        check_is_registry(root)
    for server in living(root / FOLDER):
        url, _, token = server.what.partition(" ")
        return url, token
    raise RemoteUnreachable(
        f"no server of `{shown(str(root))}` runs on this machine; nothing was changed",
        hint=f"start it: `adapt registry serve --root {root}`; or name a server elsewhere: `--url URL`",
    )


def check_is_registry(root: Path) -> None:
    """Raise unless `root` holds the database of a registry.

    Raises:
        NotFound: it is not; nothing was created.
    """
    if not (root / DATABASE_FILE).exists():
        raise NotFound(
            f"`{root}` is not a registry; nothing was created", hint=f"create one: `adapt registry serve --root {root}`"
        )

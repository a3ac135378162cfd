"""The small records of a library, each read as its users read it: what is damaged, and what to do about it.

Most of them are read leniently in daily use, so that one damaged file stops nothing; here each is named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from adapterhub.core.digests import digest_of, hex_of
from adapterhub.core.disk.files import read_json, read_plain
from adapterhub.core.errors import AdapterHubError, Malformed, MalformedManifest, NotAllowed, shown
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.library.bases.records import Bases
from adapterhub.library.own_settings import OwnSettings
from adapterhub.library.remotes import Remotes
from adapterhub.library.store.aliases import Aliases
from adapterhub.library.store.origins import read_origin
from adapterhub.library.store.roots import KnownProjects
from adapterhub.trust.signing.appraisal import FirstUseFile
from adapterhub.trust.signing.trust import TrustFile
from adapterhub.trust.verify import Finding

Read = Callable[[Path], object]
_LIMIT_BYTES: Final = 64 << 20
_HINTS: Final = {
    "aliases": "delete it, then set the alias again with `adapt alias set`",
    "bases": "delete it, then `adapt base add PATH --as NAME` adds the base again",
    "origins": "delete it; an `adapt install` from the same place notes it again",
    "pins": "delete it, then `adapt base pin` pins the base again",
    "projects": "delete it, then `adapt sync` in the project writes it again",
    "yanked": "delete it; `adapt outdated` asks again what was yanked",
    "tests": "delete it, and ask its tester for the result again",
    "made": "delete it, and ask its signer for the statement again",
    "mismatches": "delete it; `adapt install --allow-base-mismatch` notes it again",
    "synced": "delete it, then `adapt sync` in the project writes it again",
    "history": "delete it; the project cannot roll back past this point",
}
_DEPTHS: Final = {"tests": 2, "made": 2}


def damaged_records(root: Path, whole: Mapping[str, Callable[[], object]]) -> Iterator[Finding]:
    """A finding for each record of the library under `root` that cannot be read, with its path and remedy.

    `whole` reads more files of the root, by their names.
    """
    files: dict[str, Callable[[], object]] = {
        "config.json": OwnSettings(root).read,
        "remotes.json": Remotes(root).all,
        "credentials.json": lambda: Remotes(root).token(""),
        "trusted_keys.json": TrustFile(root).read,
        "seen_signatures.json": lambda: FirstUseFile(root).of(""),
        **whole,
    }
    for name, read in files.items():
        yield from _finding(root / name, root, lambda _, read=read: read(), "")  # type: ignore[misc]  # a bound default
    readers: dict[str, Read] = {
        "aliases": Aliases(root).read_at,
        "bases": lambda path: Bases(root / "bases", None).get(path.stem),
        "origins": read_origin,
        "pins": lambda path: BaseFingerprint.from_json(read_json(path, _LIMIT_BYTES), "pin"),
        "projects": KnownProjects(root).read_at,
        "tests": _named_by_its_bytes,
        "made": _named_by_its_bytes,
    }
    for folder, hint in _HINTS.items():
        pattern = "/".join(["*"] * (_DEPTHS.get(folder, 1) - 1) + ["[!.]*.json"])
        for path in sorted((root / folder).glob(pattern)):
            yield from _finding(path, root, readers.get(folder, _object), hint)


def _finding(path: Path, root: Path, read: Read, hint: str) -> Iterator[Finding]:
    if not os.path.lexists(path):
        return
    try:
        read(path)
    except FileNotFoundError:
        if path.is_symlink():
            yield _damage(path, root, "is a link that leads nowhere", hint)
        # otherwise removed since it was listed
    except AdapterHubError as error:
        reason = "; ".join(error.problems) if isinstance(error, MalformedManifest) else error.message
        code_hint = error.hint if isinstance(error, Malformed | NotAllowed) else ""
        yield _damage(path, root, reason, hint or code_hint)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        yield _damage(path, root, f"cannot be read: {reason}", hint)


def _damage(path: Path, root: Path, message: str, hint: str) -> Finding:
    where = path.relative_to(root).as_posix()
    return Finding(code="E_RECORD", severity="error", where=shown(where, 200), message=shown(message, 300), hint=hint)


def _object(path: Path) -> None:
    if not isinstance(read_json(path, _LIMIT_BYTES), dict):
        raise ValueError("expected a JSON object")  # noqa: TRY004 - one class for the caller


def _named_by_its_bytes(path: Path) -> None:
    """A signed file has the digest of its bytes as its name."""
    if path.stem != hex_of(digest_of(read_plain(path, _LIMIT_BYTES))):
        raise ValueError("its bytes do not match its name")

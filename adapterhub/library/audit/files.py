"""Pickles and code beside an adapter. We never open them; another program that is given the folder may.

Names (the rules of `verify`) and first bytes identify the files, in subfolders too. A pickle of
protocol 0 or 1 has no mark in its first bytes, so only its name identifies it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.core.limits import limits
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, SIGNATURE_FILE
from adapterhub.formats.safetensors.header import LOOKED_AT, is_pointer, recognise
from adapterhub.library.audit._subject import AuditedAdapter, Surroundings
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.subject import TAKEN, Entry, kind_of_name

MAX_DEPTH: Final = 8
_ZIP: Final = b"PK\x03\x04"
_PROGRAMS: Final = {
    b"\x7fELF": "a program",
    b"MZ\x90\x00": "a program",
    b"\xcf\xfa\xed\xfe": "a program",
    b"\xca\xfe\xba\xbe": "a program",
    b"#!": "a script",
}
_ADVICE: Final = {
    "E_BESIDE_PICKLE": "move it away; `torch.load`, and loaders that prefer `.bin` files, would run what it says",
    "E_BESIDE_CODE": "move it away; a loader with `trust_remote_code`, or a curious user, would run it",
    "W_BESIDE_OTHER": "find out who put it there; `adapt remove` and `adapt install` make the folder again",
    "U_BESIDE": "inspect the folder yourself, or give a folder that holds one adapter",
}


def check(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:  # noqa: ARG001 - every check is called alike
    """One finding for each file; in an installed folder also for every other file that does not belong there."""
    manifest = subject.manifest
    ours = {e.path for e in manifest.files} if manifest else set()
    ours |= {MANIFEST_FILE, CARD_FILE, SIGNATURE_FILE}
    count = 0
    passed_over = () if subject.build else (".git",)  # a clone's own; an installed folder has none
    for path, is_link in _files_below(subject.folder, passed_over):
        count += 1
        name = path.relative_to(subject.folder).as_posix()
        if count > limits().entries:
            yield _finding("U_BESIDE", shown(name), f"not searched: it holds more than {limits().entries} files")
            return
        if name in TAKEN and (subject.build is None or name in ours):
            continue  # the adapter's own
        if is_link is None:
            yield _finding("U_BESIDE", shown(name), f"not searched: folders deeper than {MAX_DEPTH}, or not readable")
        elif found := _judged(path, name, is_link=is_link):
            yield _finding(*found)
        elif subject.build is not None:
            yield _finding("W_BESIDE_OTHER", shown(name), "is not part of the adapter: something else put it there")


def _finding(code: str, where: str, message: str) -> Finding:
    return Finding(code, where, message, hint=_ADVICE[code])


def _judged(path: Path, name: str, *, is_link: bool) -> tuple[str, str, str] | None:
    """Code, place and message for a pickle or a piece of code."""
    named = kind_of_name(path.name)
    if named == "S_PICKLE" and not is_pointer(path):
        return "E_BESIDE_PICKLE", shown(name), "is a pickle by its name"
    if named == "S_CODE" and path.name.lower() != "config.json":  # a base's config, merged or saved with the adapter
        return "E_BESIDE_CODE", shown(name), "is code by its name"
    start = b"" if is_link else _start_of(path)
    kind = recognise(start)
    if kind is not None and (kind.is_pickle or start.startswith(_ZIP)):
        return "E_BESIDE_PICKLE", shown(name), f"is {kind.name}"
    program = next((what for magic, what in _PROGRAMS.items() if start.startswith(magic)), None)
    return ("E_BESIDE_CODE", shown(name), f"is {program} by its first bytes") if program else None


def _start_of(path: Path) -> bytes:
    """Return the first bytes of a plain file; none of anything else."""
    try:
        with Entry(name=path.name, path=path, size_bytes=0).open() as stream:
            return stream.read(LOOKED_AT)
    except OSError:
        return b""


def _files_below(folder: Path, passed_over: Sequence[str], depth: int = 0) -> Iterator[tuple[Path, bool | None]]:
    """Every file, and whether it is a link; None for a folder that is not searched. Links are not followed."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        yield folder, None
        return
    for entry in found:
        path = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            yield path, entry.is_symlink()
        elif depth == MAX_DEPTH:
            yield path, None
        elif entry.name not in passed_over:
            yield from _files_below(path, passed_over, depth + 1)

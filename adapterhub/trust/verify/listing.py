"""The files of a folder that are taken, all plain files of that folder.

Only allow-listed names are opened. Two exceptions say what a file is: in a folder without PEFT's weights the headers
of other safetensors files, and files of up to 1,024 bytes with the name of a pickle, which may be Git LFS pointers.
`library.intake.prompts` opens a few more, through `take`, for the prompt form.
`core.disk.inside` says which links may lead to a taken file.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Final

from adapterhub.core.disk.held_file import HeldFile
from adapterhub.core.disk.inside import NO_LINK, LeadsOut, inside
from adapterhub.core.errors import RefusedAdapter, shown
from adapterhub.core.limits import limits
from adapterhub.formats.base.weight_files import TOKENIZER_FILES
from adapterhub.formats.manifest import CARD_FILE, CONFIG_FILE, MANIFEST_FILE, MEDIA_TYPES, SIGNATURE_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.kinds import LOOKED_AT, POINTER, is_pointer, recognise
from adapterhub.trust.verify.report import Finding, some

TAKEN: Final = frozenset({*MEDIA_TYPES, MANIFEST_FILE, CARD_FILE, SIGNATURE_FILE})
"""The only names that a check opens."""


_MEASURED: Final = frozenset({CONFIG_FILE, WEIGHTS_FILE})
"""Files with a limit of their own in their readers."""


_UNSAFE: Final = frozenset({"E_LINK", "E_KIND", "E_LIMIT", "E_NAME"})
"""Findings of a listing about more than a missing file."""


_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5")


_PICKLED_WEIGHTS: Final = "adapter_model.bin"


_CODE: Final = (".py", ".pyc", ".so", ".sh", ".dll", ".dylib", ".exe", ".js", ".ipynb", ".bat", ".ps1", ".whl")


_TEXTS: Final = frozenset({*TOKENIZER_FILES, "chat_template.json"})


_CONVERT: Final = (
    "if you trust it, convert it: load it with PEFT on its base in isolation, call "
    "`save_pretrained(folder)`, and use that folder"
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A taken file: `path` is the regular file itself, whatever link led to it."""

    name: str
    path: Path
    size_bytes: int

    @cached_property
    def held(self) -> HeldFile:
        """The file, opened once: every check and every later reader sees the same bytes.

        Raises:
            OSError: it is gone, has become a link, or is not a regular file.
        """
        return HeldFile(self.path)

    def open(self) -> IO[bytes]:
        """The file, opened again for reading from the start.

        Raises:
            OSError: it is gone, has become a link, or is not a regular file.
        """
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(self.path, flags)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(0, "is not a regular file")
        return os.fdopen(handle, "rb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a folder holds. `others` are names that are never opened; `findings` are those of the listing."""

    taken: Mapping[str, Entry]
    others: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def list_folder(folder: Path) -> Listing:
    """List a folder without opening other files; never raises for its content."""
    try:
        facts = folder.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file can have this name"  # Pythons differ here
        return _refused(folder, "E_KIND", f"cannot be inspected: {shown(reason)}")
    if not stat.S_ISDIR(facts.st_mode):
        return _not_a_folder(folder, is_regular=stat.S_ISREG(facts.st_mode))
    names: list[str] = []
    most = limits().entries
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > most:
                    return _refused(folder, "E_LIMIT", f"holds more than {most} entries")
    except OSError as error:
        return _refused(folder, "E_KIND", f"cannot be listed: {error.strerror}")
    taken: dict[str, Entry] = {}
    findings = list(_clashes(names))
    for name in sorted(TAKEN.intersection(names)):
        found = take(folder, name)
        if isinstance(found, Entry):
            taken[name] = found
        else:
            findings.append(found)
    others = tuple(sorted(set(names) - TAKEN))
    findings += _skipped(folder, others)
    findings += _missing(folder, names)
    return Listing(taken=taken, others=others, findings=tuple(findings))


def safe_listing(folder: Path) -> Listing:
    """The files of an adapter in a folder that a stranger may have prepared; a missing one is not in it.

    This is how a command that reads single files of a folder opens it: links out of the folder, pipes, devices and
    files beyond the limits are refused before any of them is read.

    Raises:
        RefusedAdapter: lists each error, except missing files and pickles.
    """
    listing = list_folder(folder)
    errors = [f for f in listing.findings if f.severity == "error" and f.code in _UNSAFE]
    for name, most in ((CONFIG_FILE, limits().config_bytes), (WEIGHTS_FILE, limits().file_bytes)):
        if name in listing.taken and listing.taken[name].size_bytes > most:
            errors.append(_too_large(name, listing.taken[name].size_bytes, most))
    if errors:
        hint = next((f.hint for f in errors if f.hint), "`adapt verify FOLDER` shows every finding")
        listed = [(f.code, str(f).removeprefix(f"[{f.code}] ")) for f in errors]
        raise RefusedAdapter(f"`{shown(str(folder), 200)}` is not read. Nothing was changed", listed, hint=hint)
    return listing


def _refused(folder: Path, code: str, message: str, hint: str = "") -> Listing:
    where = shown(folder.name or str(folder))
    return Listing(taken={}, findings=(Finding(code=code, severity="error", where=where, message=message, hint=hint),))


def _not_a_folder(path: Path, *, is_regular: bool) -> Listing:
    if not is_regular:
        return _refused(path, "E_KIND", "is neither a folder nor a file")
    try:
        with Entry(name=path.name, path=path.resolve(), size_bytes=0).open() as stream:
            kind = recognise(stream.read(LOOKED_AT))
    except OSError as error:
        return _refused(path, "E_KIND", f"cannot be read: {error.strerror}")
    if kind is not None and kind.is_pointer:
        return _refused(path, "E_KIND", f"is {kind.name}; an adapter is a folder", hint=kind.hint)
    if kind is not None and kind.is_archive and not path.name.endswith(_PICKLES):
        return _refused(path, "E_ARCHIVE", f"is {kind.name}; archives are not unpacked", hint=kind.hint)
    if path.name.endswith(_PICKLES) or (kind is not None and kind.is_pickle):
        return _refused(path, "E_PICKLE", "is a pickle, which is never opened", hint=_CONVERT)
    return _refused(path, "E_KIND", "is a file; an adapter is a folder", hint="give the folder that holds it")


def _clashes(names: list[str]) -> Iterator[Finding]:
    """Taken names that another name equals on file systems that fold case or compose accents."""
    folded: dict[str, list[str]] = {}
    for name in names:
        composed = name if name.isascii() else unicodedata.normalize("NFKC", name)
        folded.setdefault(composed.casefold(), []).append(name)
    for same in folded.values():
        if len(same) > 1 and TAKEN.intersection(same):
            yield Finding(
                code="E_NAME",
                severity="error",
                where=some(sorted(same)),
                message="are the same file on systems that ignore case",
                hint="rename or delete one of them",
            )


def take(folder: Path, name: str) -> Entry | Finding:
    """The regular file behind a taken name, or a finding with the reason why there is none."""
    try:
        path = inside(folder, name)
        facts = path.lstat()
    except LeadsOut as error:
        return Finding(
            code="E_LINK",
            severity="error",
            where=name,
            message=error.strerror,
            expected="a plain file",
            hint=NO_LINK,
        )
    except OSError as error:
        return Finding(
            code="E_LINK", severity="error", where=name, message=f"leads nowhere: {shown(error.strerror or str(error))}"
        )
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe, socket or device"
        return Finding(code="E_KIND", severity="error", where=name, message=f"is {kind}", expected="a plain file")
    most = limits().text_bytes
    if name in MEDIA_TYPES and name not in _MEASURED and facts.st_size > most:
        return _too_large(name, facts.st_size, most)
    return Entry(name=name, path=path, size_bytes=facts.st_size)


def _too_large(name: str, size_bytes: int, most: int) -> Finding:
    message, hint = f"holds {size_bytes} bytes, expected at most {most}", "remove or shorten it"
    return Finding(code="E_LIMIT", severity="error", where=name, message=message, hint=hint)


def kind_of_name(name: str) -> str:
    """The kind of a file that is not taken, by its name: `S_PICKLE`, `S_CODE`, `S_TEMPLATE` or `S_OTHER`."""
    low = name.lower()
    if low.endswith(_PICKLES):
        return "S_PICKLE"
    if low.endswith(_CODE) or low == "config.json":
        return "S_CODE"
    return "S_TEMPLATE" if low in _TEXTS or low.endswith(".jinja") else "S_OTHER"


def _skipped(folder: Path, others: tuple[str, ...]) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {"S_PICKLE": [], "S_CODE": [], "S_TEMPLATE": [], "S_OTHER": []}
    for name in others:
        kind = kind_of_name(name)
        groups["S_OTHER" if kind == "S_PICKLE" and is_pointer(folder / name) else kind].append(name)
    why = {
        "S_PICKLE": "can run code when opened; never opened",
        "S_CODE": "can hold or name code; never opened",
        "S_TEMPLATE": "tokenizer and chat template are the base's; not taken as files",
        "S_OTHER": "not part of an adapter; not taken",
    }
    for code, names in groups.items():
        if names:
            yield Finding(code=code, severity="note", where=some(names, 6), message=why[code])


def _pointers(folder: Path, names: list[str]) -> Finding | None:
    """An error for weights under any name whose content git has not fetched; None if there are none."""
    weights = sorted(n for n in names if n.lower().endswith((*_PICKLES, ".safetensors")) and is_pointer(folder / n))
    if not weights:
        return None
    return Finding(
        code="E_CONTAINER",
        severity="error",
        where=some(weights),
        message=f"is {POINTER.name}",
        expected=WEIGHTS_FILE,
        hint=POINTER.hint,
    )


def _missing(folder: Path, names: list[str]) -> Iterator[Finding]:
    """Findings for a missing config or missing weights, which depend on the other files."""
    is_others = False
    if WEIGHTS_FILE not in names:
        from adapterhub.trust.verify.foreign import RENAME, weights_of_others

        foreign = _pointers(folder, names) or weights_of_others(folder, names)
        if foreign is not None:
            yield foreign
            is_others = foreign.code in ("E_UNSUPPORTED", "E_PICKLE") and foreign.hint != RENAME
    if CONFIG_FILE not in names and not is_others:
        yield Finding(
            code="E_CONFIG",
            severity="error",
            where=CONFIG_FILE,
            message="is missing",
            expected="the settings PEFT writes beside the weights",
            hint="give the folder that `save_pretrained` wrote; weights alone do not give rank, alpha and targets",
        )
    if WEIGHTS_FILE not in names and foreign is None:
        every = sorted(n for n in names if n.lower().endswith(_PICKLES))
        pickles = [n for n in every if n == _PICKLED_WEIGHTS] or every
        yield Finding(
            code="E_PICKLE" if pickles else "E_CONTAINER",
            severity="error",
            where=some(pickles) if pickles else WEIGHTS_FILE,
            message="is a pickle, which is never opened, and there are no other weights" if pickles else "is missing",
            expected=WEIGHTS_FILE,
            hint=_CONVERT if pickles else "give the folder that `save_pretrained` wrote",
        )

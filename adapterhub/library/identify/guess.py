"""What `add` guesses of a PEFT output folder: its name, and the registered base that it was made for."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from adapterhub.core.digests import hex_of
from adapterhub.core.disk.files import digest_of_file
from adapterhub.core.errors import AdapterHubError, SpecError, UsageProblem, shown
from adapterhub.core.specs import AdapterName, looks_like_revision, made_name, parse_name
from adapterhub.formats.manifest import CONFIG_FILE, MEDIA_TYPES, WEIGHTS_FILE
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.identify.matching import base_matches, is_named, read_orphan
from adapterhub.library.library import Library
from adapterhub.trust.verify.subject import list_folder

_PIN: Final = "`adapt base pin NAME BASE` records it"
_ADD: Final = f"`adapt base add PATH` registers one, and {_PIN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseGuess:
    """The base, or None; `why` is a clause, `todo` what to type about the adapter `NAME` where the base is unknown."""

    record: BaseRecord | None
    why: str
    todo: str = ""

    def sentence(self, name: str) -> str:
        """Return the guess in words, about the adapter `name`."""
        if self.record is not None:
            return f"took base `{self.record.alias}` for `{name}` ({self.why}); `--base` names another"
        return f"the base of `{name}` stays unknown: {self.why}; {self.todo.replace('NAME', name)}"


def guess_name(folder: Path) -> AdapterName:
    """Return the name of the folder, as adapters are named: `Legal QA` gives `legal-qa`.

    Accents are left off, and letters of other scripts are written as domain names write them, by Punycode.

    Raises:
        UsageProblem: no name can be made of it.
    """
    own = folder.resolve().name
    plain = "".join(c for c in unicodedata.normalize("NFKD", own) if not unicodedata.combining(c))
    foreign = "".join(c for c in unicodedata.normalize("NFKC", plain) if c.isalnum() and not c.isascii())
    code = foreign.encode("punycode").decode().strip("-")
    name = "-".join(filter(None, (made_name(plain), code)))
    try:
        if name and not looks_like_revision(name):
            return parse_name(name)
    except SpecError:  # such as `con`, which Windows keeps for a device
        pass
    raise UsageProblem(f"no name can be made of the folder `{shown(own)}`", hint="give one with `--name NAME`")


def guess_base(library: Library, folder: Path, base_sha256: str = "") -> BaseGuess:
    """Return the one registered base that the adapter in `folder` fits.

    Of several that fit, the one that its config names.

    Else the one whose single file has the hash `base_sha256`, which another program's header states. Reads headers and
    configs, weights only where the adapter has more than LoRA pairs, and files of bases only to compare that hash.
    """
    try:
        records = library.bases.list()
    except AdapterHubError as error:  # a damaged record is no reason to refuse an adapter
        return BaseGuess(record=None, why=f"the registered bases cannot be read ({error.message})", todo=_PIN)
    if not records:
        return BaseGuess(record=None, why="no base is registered", todo=_ADD)
    files = {n: entry.path for n, entry in list_folder(folder).taken.items() if n in MEDIA_TYPES}
    if not {CONFIG_FILE, WEIGHTS_FILE} <= files.keys():
        return BaseGuess(record=None, why="its files cannot be read", todo=_PIN)
    orphan = read_orphan(folder, files)
    if orphan.config is not None and not orphan.config.is_lora:
        return BaseGuess(record=None, why="only LoRA is compared with bases", todo=_PIN)
    by_alias = {record.alias: record for record in records}
    matches = [match for match in base_matches(library, orphan, (), ()) if match.name in by_alias]
    if not matches:
        listed = ", ".join(f"`{shown(alias)}`" for alias in by_alias)
        return BaseGuess(record=None, why=f"it fits no registered base ({listed})", todo=_ADD)
    sure = [m for m in matches if m.sure == "proven"] or [m for m in matches if m.sure == "likely"]
    if len({match.digest for match in sure}) != 1:
        return _of_several([by_alias[match.name] for match in sure or matches], base_sha256)
    first, record = sure[0], by_alias[sure[0].name]
    config, manifest = orphan.config, orphan.manifest
    named = None if config is None or config.base_is_path else config.base_model_name_or_path
    is_declared = manifest is not None and manifest.base.fingerprint is not None
    is_by_shape = first.sure == "likely" and not is_declared and not is_named(orphan, record)
    if is_by_shape and named and record.hub and named.casefold() != record.hub.casefold():
        why = f"it fits `{first.name}` ({shown(record.hub)}), but its config names `{shown(named)}`"
        return BaseGuess(record=None, why=why, todo=_PIN)
    return BaseGuess(record=record, why="the only registered base that it fits" if is_by_shape else first.how)


def _of_several(records: list[BaseRecord], base_sha256: str) -> BaseGuess:
    for record in records if base_sha256 else ():
        if _hash_of(record.path) == base_sha256:
            return BaseGuess(record=record, why="its header states the hash of that base's file")
    listed = " and ".join(f"`{shown(record.alias)}`" for record in records)
    return BaseGuess(record=None, why=f"it may be for {listed}", todo=_PIN)


def _hash_of(path: Path | None) -> str:
    """Return the sha256 of a base in one file; "" for a folder, and for a file that cannot be read."""
    try:
        if path is None or path.suffix != ".safetensors":
            return ""
        facts = path.stat()
        return _read_hash(path, facts.st_size, facts.st_mtime_ns)
    except OSError:
        return ""


@lru_cache(maxsize=64)
def _read_hash(path: Path, _size_bytes: int, _changed_ns: int) -> str:
    return hex_of(digest_of_file(path)[0])  # gigabytes, and `add` of a folder asks for each of its files

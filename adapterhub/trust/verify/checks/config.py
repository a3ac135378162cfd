"""Checks the settings in `adapter_config.json`, and reports those that users should know about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from adapterhub.core.errors import MalformedConfig
from adapterhub.core.limits import limits
from adapterhub.formats.manifest import CONFIG_FILE
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.header import recognise
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.subject import Subject

if TYPE_CHECKING:
    from adapterhub.trust.verify.subject import Entry


def read_config_file(entry: Entry, where: str = CONFIG_FILE) -> AdapterConfig:
    """Return the config in a taken file, which is held in memory; `where` names it in errors.

    Raises:
        MalformedConfig: with the code of the reason.
    """
    most = limits().config_bytes
    try:
        held = entry.held
        if held.size_bytes > most:
            raise MalformedConfig(where, f"holds {held.size_bytes} bytes, expected at most {most}")
        raw = bytes(held.load())
    except OSError as error:
        raise MalformedConfig(where, f"cannot be read: {error.strerror}") from None
    kind = recognise(raw)
    if kind is not None:
        raise MalformedConfig(where, f"is not JSON but {kind.name}", hint=kind.hint)
    return AdapterConfig.parse(raw, where)


_BASE_HINT: Final = (
    "`adapt base add PATH --as NAME` registers the folder it was trained from; `--base NAME` names it, and "
    "`add --no-base` leaves it unknown"
)


def check(subject: Subject) -> Iterator[Finding]:
    """Yield the notes of the reader, and a base path that exists only on its author's machine."""
    declares = subject.manifest is not None and subject.manifest.base.fingerprint is not None
    for code, text in subject.config.notes:
        if code == "W_BASE_MISSING" and declares:
            continue  # the manifest says it
        if code == "W_BASE_PATH" and not subject.base_named:
            yield Finding("E_CONFIG", CONFIG_FILE, text, expected="a hub id such as org/model", hint=_BASE_HINT)
        else:
            yield Finding(code, CONFIG_FILE, text)
    if subject.config.targets_all and subject.config.is_lora:
        yield Finding(
            "N_TARGETS",
            CONFIG_FILE,
            "the config leaves the targets to the model's type; the tensors show which modules they are",
        )

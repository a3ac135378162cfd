"""The facts about a base that rules need, from its record and its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import Malformed, shown
from adapterhub.formats.base.fingerprint import CONFIG_LIMIT_BYTES, OUTPUT_HEADS
from adapterhub.formats.engines import BaseFacts
from adapterhub.library.bases.records import BaseRecord

BASE_CONFIG: Final = "config.json"
_HEAD_TENSORS: Final = tuple(f"{head}.weight" for head in OUTPUT_HEADS)


def base_config(record: BaseRecord | None) -> Mapping[str, Any] | None:
    """Return the base's `config.json`; None if it is not on this machine.

    Raises:
        Malformed: it cannot be read.
    """
    path: Path | None = record.path / BASE_CONFIG if record is not None and record.path is not None else None
    if path is None or not path.is_file():
        return None
    try:
        value = read_json(path, CONFIG_LIMIT_BYTES, finite=False)
    except (OSError, ValueError) as error:
        raise Malformed(
            f"`{path}` cannot be read: {shown(str(error))}", hint="check its permissions and the disk with `ls -l`"
        ) from None
    return value if isinstance(value, dict) else {}


def base_facts(record: BaseRecord | None) -> BaseFacts:
    """Return the known facts about the base; its tensors show whether its head is its embedding.

    Raises:
        Malformed: its config cannot be read.
    """
    if record is None:
        return BaseFacts()
    config = base_config(record)
    facts = BaseFacts.from_config(config) if config is not None else BaseFacts(model_type=record.hints.model_type)
    if facts.is_tied or not record.tensors:
        return facts
    heads = {fact.sha256 for fact in record.weights if fact.name.endswith(_HEAD_TENSORS)}
    others = {fact.sha256 for fact in record.tensors if not fact.name.endswith(_HEAD_TENSORS)}
    return replace(facts, is_tied=not heads or not heads.isdisjoint(others))

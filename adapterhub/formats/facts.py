"""The few facts of a manifest that choosing a build needs, read without judging the rest.

A name may have ten thousand builds, of which a command takes one. `FactsReader` reads the manifests that are written as
this project writes them, which is how nearly all are; `Manifest.parse` reads the others, and the one that is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from adapterhub.core.digests import MAX_DEPTH, Digest, digest_of
from adapterhub.core.errors import SpecError
from adapterhub.core.specs import AdapterName, parse_name, version_of
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.base.hints import BaseHints
from adapterhub.formats.manifest import SCHEMA, BaseRef, base_to_json

_EXACT_DIGITS: Final = 15
_ENTRY: Final = {"path", "sha256", "size_bytes", "media_type"}
_ASTRAL: Final = 0xF0
"""From this byte on, UTF-8 holds characters whose order differs in UTF-16."""
_KEPT: Final = 64
_DIFFERENT: Final = re.compile(
    rb'"sha256":"sha256:[0-9a-f]{64}","size_bytes":(0|[1-9][0-9]{0,14})|"version":"([a-z0-9.+!]{1,64})"\}\Z'
)
"""Where builds of one name differ. Each quote begins or ends a JSON string, as no backslash stands before it."""


@dataclass(slots=True, kw_only=True)
class Facts:
    """What choosing compares, as `Manifest` names it; `digest` is that of the whole manifest."""

    name: AdapterName
    version: str
    base: BaseRef
    method: tuple[str, ...]
    rank: int | None
    license: str | None
    size_bytes: int
    digest: Digest


def _whole(text: str) -> int:
    if len(text) > _EXACT_DIGITS:
        raise ValueError
    return int(text)


def _fraction(text: str) -> float:
    if "e" in text or "E" in text or text.endswith(".0"):
        raise ValueError
    return float(text)


def _refuse(text: str) -> None:
    raise ValueError(text)


_DECODER: Final = json.JSONDecoder(parse_int=_whole, parse_float=_fraction, parse_constant=_refuse)
"""Numbers that `json` may write in another way than RFC 8785 are refused."""
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False)


def _normal(version: str) -> str:
    if str(version_of(version)) != version:
        raise ValueError
    return version


class FactsReader:
    """Reads the facts of many manifests; what they share is judged once."""

    def __init__(self) -> None:
        self._bases: list[tuple[Mapping[str, Any], BaseRef]] = []
        self._forms: dict[tuple[bytes, ...], Facts] = {}

    def read(self, raw: bytes) -> Facts | None:
        """The facts, or None where only a strict reader can tell: for any other form, and for wrong facts.

        `digest` is that of `Manifest.parse(raw)`, wherever that does not refuse.
        """
        parts = _DIFFERENT.split(raw)
        form, version, sizes = tuple(parts[::3]), parts[-2] if parts[1:] else None, parts[1:-3:3]
        alike = self._forms.get(form) if version else None
        try:
            if version and alike is not None:  # between the same bytes, other text of the same kind
                size_bytes = sum(map(int, sizes))
                return replace(alike, version=_normal(version.decode()), size_bytes=size_bytes, digest=digest_of(raw))
            facts, files = self._parsed(raw)
        except (ValueError, KeyError, TypeError, SpecError):
            return None
        if version and files == len(sizes) and len(self._forms) < _KEPT:
            self._forms[form] = facts
        return facts

    def _parsed(self, raw: bytes) -> tuple[Facts, int]:
        """The facts and the number of files; an error for anything unusual."""
        text = raw.decode("utf-8")
        if raw.count(b"[") + raw.count(b"{") >= MAX_DEPTH or (not raw.isascii() and max(raw) >= _ASTRAL):
            raise ValueError
        value = _DECODER.decode(text)
        if _ENCODER.encode(value) != text:
            raise ValueError
        size_bytes, before = 0, ""
        for entry in value["files"]:
            path, size = entry["path"], entry["size_bytes"]
            if entry.keys() != _ENTRY or type(size) is not int or size < 0 or path <= before:
                raise ValueError
            size_bytes, before = size_bytes + size, path
        rank, license_, method = value.get("rank"), value.get("license"), value["method"]
        is_usual = (
            value["schema"] == SCHEMA
            and type(value["parameters"]) is int
            and "parents" not in value
            and all(
                item or item == 0 or key == "base" for key, item in value.items()
            )  # `Manifest` leaves empty ones out
            and type(value["name"]) is str
            and type(value["version"]) is str
            and type(rank) in (int, type(None))
            and type(license_) in (str, type(None))
            and type(method) is list
            and all(type(one) is str for one in method)
        )
        if not is_usual:
            raise ValueError
        facts = Facts(
            name=parse_name(value["name"]),
            version=_normal(value["version"]),
            base=self._base(value["base"]),
            method=tuple(method),
            rank=rank,
            license=license_,
            size_bytes=size_bytes,
            digest=digest_of(raw),
        )
        return facts, len(value["files"])

    def _base(self, value: Mapping[str, Any]) -> BaseRef:
        """The base, if `Manifest` writes it as it stands."""
        for known, base in self._bases:
            if known == value:
                return base
        base = BaseRef(
            fingerprint=BaseFingerprint.from_json(value, "base") if "weights" in value else None,
            hints=BaseHints.from_json(value["hints"], "base.hints") if "hints" in value else BaseHints(),
        )
        if _ENCODER.encode(base_to_json(base)) != _ENCODER.encode(value):
            raise ValueError
        if len(self._bases) < _KEPT:
            self._bases.append((value, base))
        return base

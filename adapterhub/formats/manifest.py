"""The manifest `adapterhub.json`: what one build of one adapter release is, byte for byte.

Its identity is the sha256 of its canonical JSON (RFC 8785). The reference page is `docs/reference/manifest.md`.
A namespace is not part of it: that belongs to the place an adapter is published in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adapterhub.core.digests import Digest, canonical_json, digest_of, parse_digest, strict_json
from adapterhub.core.disk.files import read_plain
from adapterhub.core.errors import MalformedManifest, SpecError, shown
from adapterhub.core.specs import AdapterName, parse_name, parse_version
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.base.hints import BaseHints

SCHEMA = "adapterhub/1"
MANIFEST_FILE = "adapterhub.json"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
SIGNATURE_FILE = "model.sig"
LIMIT_BYTES = 16 << 20
_LISTED_PROBLEMS = 50
_MAX_PARENTS = 1024

MEDIA_TYPES: Mapping[str, str] = MappingProxyType(
    {
        CONFIG_FILE: "application/json",
        WEIGHTS_FILE: "application/vnd.safetensors",
        "LICENSE": "text/plain",
        "LICENSE.txt": "text/plain",
        "LICENSE.md": "text/markdown",
        "evals.jsonl": "application/jsonl",
    }
)
"""The files of an adapter folder that are taken into a build; nothing else is ever copied.

The card is not among them: `README.md` is written from the manifest (`card`), so that editing it never
changes what an adapter is.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a build; `path` is relative to the adapter's folder."""

    path: str
    sha256: Digest
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """An adapter that was merged into this one, with the factor it was given."""

    digest: Digest | None
    spec: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRef:
    """The base an adapter was made for: its fingerprint (None when nobody knows it) and names to show."""

    fingerprint: BaseFingerprint | None = None
    hints: BaseHints = field(default_factory=BaseHints)

    @property
    def label(self) -> str:
        """A short name for people: Hub id, else the start of the weights digest, else `unknown`."""
        if self.hints.hub_id:
            return self.hints.hub_id
        return self.fingerprint.weights[7:19] if self.fingerprint else "unknown"


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One build: the release `(name, version)` for one base at one rank.

    `method` is the PEFT type followed by its variants (`LORA`, `rslora`); `rank` and `alpha` are the largest over
    all modules (None for methods that have none); `parameters` counts the values in the weights file.
    `extra` holds top-level keys of a newer schema, kept as they came.
    """

    name: AdapterName
    version: str
    base: BaseRef
    method: tuple[str, ...]
    files: tuple[FileEntry, ...]
    task: str | None = None
    description: str = ""
    license: str | None = None
    rank: int | None = None
    alpha: float | None = None
    target_modules: tuple[str, ...] = ()
    dtype: str = ""
    parameters: int = 0
    parents: tuple[Parent, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=_empty)
    behaviour: Mapping[str, Any] = field(default_factory=_empty)
    metrics: Mapping[str, Any] = field(default_factory=_empty)
    annotations: Mapping[str, Any] = field(default_factory=_empty)
    card: str = ""
    extra: Mapping[str, Any] = field(default_factory=_empty)

    @cached_property
    def digest(self) -> Digest:
        """Identity of this build."""
        return digest_of(self.to_bytes())

    @property
    def digests(self) -> dict[str, Digest]:
        """The digests of the files, by their paths."""
        return {entry.path: entry.sha256 for entry in self.files}

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of the build."""
        return sum(entry.size_bytes for entry in self.files)

    @property
    def label(self) -> str:
        """`1.2.0` or `1.2.0 (rank 16)`: how one build of a release is named in a list."""
        return f"{self.version} (rank {self.rank})" if self.rank else self.version

    def file(self, path: str) -> FileEntry | None:
        """The entry for `path`, if the build has that file."""
        return next((entry for entry in self.files if entry.path == path), None)

    def to_json(self) -> dict[str, Any]:
        """The JSON value; fields without content are left out."""
        value: dict[str, Any] = dict(self.extra)
        value |= {"schema": SCHEMA, "name": str(self.name), "version": self.version, "base": _base_to_json(self.base)}
        value["method"] = list(self.method)
        value["files"] = [
            {"path": e.path, "sha256": e.sha256, "size_bytes": e.size_bytes, "media_type": e.media_type}
            for e in sorted(self.files, key=lambda e: e.path)
        ]
        parents = [_without_none({"digest": p.digest, "spec": p.spec, "weight": p.weight}) for p in self.parents]
        optional: dict[str, Any] = {
            "task": self.task,
            "description": self.description,
            "license": self.license,
            "rank": self.rank,
            "alpha": self.alpha,
            "target_modules": list(self.target_modules),
            "dtype": self.dtype,
            "parameters": self.parameters,
            "parents": parents,
            "recipe": dict(self.recipe),
            "behaviour": dict(self.behaviour),
            "metrics": dict(self.metrics),
            "annotations": dict(self.annotations),
            "card": self.card,
        }
        value |= {key: item for key, item in optional.items() if item not in (None, "", [], {})}
        return value

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same manifest gives the same bytes everywhere."""
        return canonical_json(self.to_json())

    def with_base(self, base: BaseRef) -> Manifest:
        """The same build with its base named by `base`."""
        return replace(self, base=base)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in a file; strict, bounded, and never waiting for what is no plain file.

        Raises:
            MalformedManifest: as `parse`, and when the file cannot be read.
            FileNotFoundError: there is none.
        """
        try:
            raw = read_plain(path, LIMIT_BYTES)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise MalformedManifest(str(path), [f"cannot be read: {error.strerror}"]) from None
        return cls.parse(raw, str(path))

    @classmethod
    def parse(cls, raw: bytes, where: str = MANIFEST_FILE) -> Manifest:
        """Strict read.

        Raises:
            MalformedManifest: every problem with its path, such as `files[2].size_bytes: expected integer, got string`.
        """
        try:
            value = strict_json(raw, limit_bytes=LIMIT_BYTES)
        except ValueError as error:
            raise MalformedManifest(where, [str(error)]) from None
        reader = _Reader(value)
        manifest = reader.manifest()
        if reader.problems or manifest is None:
            raise MalformedManifest(where, reader.problems)
        try:
            _ = manifest.digest
        except ValueError as error:  # a number beyond 2**53, or half of a UTF-16 pair
            raise MalformedManifest(where, [f"has no canonical form: {shown(str(error))}"]) from None
        return manifest


def _without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def _base_to_json(base: BaseRef) -> dict[str, Any]:
    value = base.fingerprint.to_json() if base.fingerprint else {}
    hints = base.hints.to_json()
    return value | ({"hints": hints} if hints else {})


_KINDS: Mapping[type, str] = MappingProxyType(
    {str: "string", int: "integer", float: "number", dict: "object", list: "list", bool: "boolean", type(None): "null"}
)


class _Reader:
    """Reads a JSON value into a Manifest and gathers every problem on the way."""

    def __init__(self, value: object) -> None:
        self.value = value
        self.problems: list[str] = []

    def wrong(self, path: str, expected: str, item: object) -> None:
        got = _KINDS.get(type(item), type(item).__name__)
        detail = f" {shown(item)}" if isinstance(item, str | int | float) else ""
        self.problems.append(f"{path}: expected {expected}, got {got}{detail}")

    def take(self, holder: Mapping[str, Any], key: str, kind: type, default: Any, path: str = "") -> Any:  # noqa: ANN401 - any JSON value
        """`holder[key]` when it has the type `kind`; `...` as default makes it required."""
        where = f"{path}{key}"
        if key not in holder:
            if default is ...:
                self.problems.append(f"{where}: missing, expected {_KINDS[kind]}")
                return kind()
            return default
        item = holder[key]
        if kind is float and type(item) is int:
            try:
                return float(item)
            except OverflowError:
                self.wrong(where, "number of 64 bits", item)
                return 0.0
        if type(item) is not kind:
            self.wrong(where, _KINDS[kind], item)
            return kind() if default is ... else default
        return item

    def checked(self, path: str, parse: Callable[[Any], Any], item: object) -> Any:  # noqa: ANN401 - what `parse` gives
        try:
            return parse(item)
        except SpecError as error:
            self.problems.append(f"{path}: {error.reason}")
        except ValueError as error:
            text = str(error)
            self.problems.append(text if text.startswith(path) else f"{path}: {text}")
        return None

    def manifest(self) -> Manifest | None:
        if not isinstance(self.value, dict):
            self.wrong("(top)", "object", self.value)
            return None
        top = self.value
        schema = self.take(top, "schema", str, ...)
        if schema and schema != SCHEMA:
            self.problems.append(f"schema: expected {SCHEMA}, got {shown(schema)}; a newer adapterhub may read it")
            return None
        known = {f.name for f in fields(Manifest)} | {"schema"}
        name, version = self.take(top, "name", str, ...), self.take(top, "version", str, ...)
        if name:
            name = self.checked("name", parse_name, name)
        if version:
            normal = self.checked("version", parse_version, version)
            if normal not in (None, version):
                self.problems.append(f"version: expected the normal form `{normal}`, got `{shown(version)}`")
        return Manifest(
            name=name or AdapterName(""),
            version=version,
            base=self.base(self.take(top, "base", dict, ...)),
            method=self.strings(top, "method", ...),
            files=self.files(self.take(top, "files", list, ...)),
            task=self.take(top, "task", str, None),
            description=self.take(top, "description", str, ""),
            license=self.take(top, "license", str, None),
            rank=self.take(top, "rank", int, None),
            alpha=self.take(top, "alpha", float, None),
            target_modules=self.strings(top, "target_modules", []),
            dtype=self.take(top, "dtype", str, ""),
            parameters=self.take(top, "parameters", int, 0),
            parents=self.parents(self.take(top, "parents", list, [])),
            recipe=self.take(top, "recipe", dict, {}),
            behaviour=self.take(top, "behaviour", dict, {}),
            metrics=self.take(top, "metrics", dict, {}),
            annotations=self.take(top, "annotations", dict, {}),
            card=self.take(top, "card", str, ""),
            extra={key: item for key, item in top.items() if key not in known or key == "extra"},
        )

    def counted(self, items: list[Any]) -> Iterator[tuple[int, Any]]:
        """The items with their places, until there is enough to complain about."""
        for index, item in enumerate(items):
            if len(self.problems) > _LISTED_PROBLEMS:
                return
            yield index, item

    def strings(self, holder: Mapping[str, Any], key: str, default: Any) -> tuple[str, ...]:  # noqa: ANN401 - [] or ...
        items = self.take(holder, key, list, default)
        for index, item in self.counted(items):
            if not isinstance(item, str):
                self.wrong(f"{key}[{index}]", "string", item)
        return tuple(item for item in items if isinstance(item, str))

    def base(self, value: dict[str, Any]) -> BaseRef:
        fingerprint, hints = None, BaseHints()
        if "weights" in value:
            fingerprint = self.checked("base", lambda v: BaseFingerprint.from_json(v, "base"), value)
        if "hints" in value:
            hints = self.checked("base.hints", lambda v: BaseHints.from_json(v, "base.hints"), value["hints"]) or hints
        return BaseRef(fingerprint=fingerprint, hints=hints)

    def files(self, items: list[Any]) -> tuple[FileEntry, ...]:
        entries: list[FileEntry] = []
        if len(items) > len(MEDIA_TYPES):
            self.problems.append(f"files: {len(items)} entries, expected at most {len(MEDIA_TYPES)}")
            return ()
        for index, item in enumerate(items):
            path = f"files[{index}]."
            if not isinstance(item, dict):
                self.wrong(path[:-1], "object", item)
                continue
            name = self.take(item, "path", str, ..., path)
            if name and name not in MEDIA_TYPES:
                self.problems.append(f"{path}path: `{shown(name)}` is not a file that adapters have")
            digest = self.checked(f"{path}sha256", parse_digest, item.get("sha256"))
            size_bytes = self.take(item, "size_bytes", int, ..., path)
            if size_bytes < 0:
                self.problems.append(f"{path}size_bytes: expected 0 or more, got {size_bytes}")
            media_type = self.take(item, "media_type", str, MEDIA_TYPES.get(name, ""), path)
            if digest:
                entries.append(FileEntry(path=name, sha256=digest, size_bytes=size_bytes, media_type=media_type))
        names = [entry.path for entry in entries]
        self.problems += [
            f"files: `{shown(n)}` is listed twice" for n in sorted({n for n in names if names.count(n) > 1})
        ]
        self.problems += [f"files: `{n}` is missing" for n in (CONFIG_FILE, WEIGHTS_FILE) if n not in names]
        return tuple(entries)

    def parents(self, items: list[Any]) -> tuple[Parent, ...]:
        found: list[Parent] = []
        if len(items) > _MAX_PARENTS:
            self.problems.append(f"parents: {len(items)} entries, expected at most {_MAX_PARENTS}")
            return ()
        for index, item in self.counted(items):
            path = f"parents[{index}]."
            if not isinstance(item, dict):
                self.wrong(path[:-1], "object", item)
                continue
            digest = self.checked(f"{path}digest", parse_digest, item["digest"]) if "digest" in item else None
            spec, weight = self.take(item, "spec", str, ..., path), self.take(item, "weight", float, ..., path)
            found.append(Parent(digest=digest, spec=spec, weight=weight))
        return tuple(found)

"""The manifest `adapterhub.json`, which describes one build of one adapter release.

The sha256 of its canonical JSON (RFC 8785) is the identity of the build. The namespace is not part of it: it belongs to
the place where the adapter is published. The reference page is `docs/reference/files.md`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final

from adapterhub.core.digests import MAX_DEPTH, Digest, canonical_json, digest_of, parse_digest, strict_json
from adapterhub.core.disk.files import read_plain
from adapterhub.core.errors import MalformedManifest, SpecError, shown
from adapterhub.core.specs import AdapterName, parse_name, parse_version, version_of
from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseHints
from adapterhub.formats.documented import Documented
from adapterhub.formats.documents import JSON_KINDS, DocumentReader

if TYPE_CHECKING:
    from adapterhub.formats.prompts.form import PromptForm

SCHEMA = "adapterhub/1"
MANIFEST_FILE = "adapterhub.json"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
SIGNATURE_FILE = "model.sig"
CONTRACT_FILE = "evals.jsonl"
LIMIT_BYTES = 2 << 20
MOST_VALUES = 50_000
_MAX_PARENTS = 1024
_RELATIONS: Final = {"lora": "converted from", "port": "ported from"}
_PROMPT = "prompt"
_EXAMPLES = "prompts"
_CUTS = ("rank", "energy", "max_error")  # the options that choose the size of a result

MEDIA_TYPES: Mapping[str, str] = MappingProxyType(
    {
        CONFIG_FILE: "application/json",
        WEIGHTS_FILE: "application/vnd.safetensors",
        "LICENSE": "text/plain",
        "LICENSE.txt": "text/plain",
        "LICENSE.md": "text/markdown",
        CONTRACT_FILE: "application/jsonl",
    }
)
"""The files of an adapter folder that a build may hold; no other file is ever copied.

The card is not among them: `README.md` is generated from the manifest (`formats.card`), so editing it never changes the
adapter.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry(Documented, keys="path size_bytes sha256", title="File"):
    """A file with its size and digest."""

    path: Annotated[str, "its name in the adapter's folder"]
    sha256: Digest
    size_bytes: Annotated[int, "bytes"]
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent(Documented, keys="adapter=spec weight digest", title="WeightedAdapter"):
    """An adapter and its weight in a sum."""

    digest: Annotated[Digest | None, "of its manifest; null for a folder without one"]
    spec: Annotated[str, "spec or folder"]
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRef:
    """The base that an adapter was made for: its fingerprint (None when unknown) and names to show."""

    fingerprint: BaseFingerprint | None = None
    hints: BaseHints = field(default_factory=BaseHints)

    @property
    def label(self) -> str:
        """A short name for people: Hub id, or the start of the weights digest, or `unknown`."""
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
    `extra` holds unknown top-level keys, unchanged.
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
    recipe: Mapping[str, Any] = field(default_factory=_empty, hash=False)
    behaviour: Mapping[str, Any] = field(default_factory=_empty, hash=False)
    metrics: Mapping[str, Any] = field(default_factory=_empty, hash=False)
    annotations: Mapping[str, Any] = field(default_factory=_empty, hash=False)
    card: str = ""
    extra: Mapping[str, Any] = field(default_factory=_empty, hash=False)

    @cached_property
    def digest(self) -> Digest:
        """Identity of this build."""
        return digest_of(self.to_bytes())

    @cached_property
    def prompt(self) -> PromptForm | None:
        """How the adapter wants to be asked, `behaviour.prompt`; None when the manifest does not say."""
        held = self.behaviour.get(_PROMPT)
        if held is None:
            return None
        from adapterhub.formats.prompts.form import PromptForm

        return PromptForm.from_json(held, "behaviour.prompt", knows_all=False)

    @property
    def examples(self) -> tuple[str, ...]:
        """Example prompts for the adapter, the texts in `behaviour.prompts`."""
        held = self.behaviour.get(_EXAMPLES)
        return tuple(text for text in held if isinstance(text, str)) if isinstance(held, list | tuple) else ()

    @property
    def relation(self) -> str:
        """How it came from its parents: `merged from` several; `resized`, `converted`, `ported` or `made from` one."""
        if (known := _RELATIONS.get(str(self.recipe.get("method")))) is not None:
            return known
        options = self.recipe.get("options")
        is_cut = isinstance(options, Mapping) and any(name in options for name in _CUTS)
        if len(self.parents) > 1:
            return "merged from"
        is_whole = [parent.weight for parent in self.parents] == [1]
        return "resized from" if is_whole and is_cut and self.recipe.get("method") == "svd" else "made from"

    @property
    def digests(self) -> dict[str, Digest]:
        """The digests of the files, by their paths."""
        return {entry.path: entry.sha256 for entry in self.files}

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of the build."""
        return sum(map(attrgetter("size_bytes"), self.files))

    @property
    def label(self) -> str:
        """`1.2.0` or `1.2.0 (rank 16)`: the name of a build in lists."""
        return f"{self.version} (rank {self.rank})" if self.rank else self.version

    def file(self, path: str) -> FileEntry | None:
        """Return the entry for `path`, if the build has that file."""
        return next((entry for entry in self.files if entry.path == path), None)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value, without empty fields."""
        value: dict[str, Any] = dict(self.extra)
        value |= {"schema": SCHEMA, "name": str(self.name), "version": self.version, "base": base_to_json(self.base)}
        value["method"] = list(self.method)
        value["files"] = [
            {"path": e.path, "sha256": e.sha256, "size_bytes": e.size_bytes, "media_type": e.media_type}
            for e in sorted(self.files, key=attrgetter("path"))
        ]
        parents: list[dict[str, Any]] = []
        for parent in self.parents:
            known = {"digest": parent.digest} if parent.digest is not None else {}
            parents.append(known | {"spec": parent.spec, "weight": parent.weight})
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
        """Canonical JSON: equal manifests have equal bytes on every machine.

        Raises:
            MalformedManifest: a value is not of JSON, a number is beyond 2**53, or a text has half of a UTF-16 pair.
        """
        try:
            return canonical_json(self.to_json())
        except (ValueError, TypeError) as error:
            raise MalformedManifest(MANIFEST_FILE, [f"has no canonical form: {shown(str(error))}"]) from None

    def with_prompt(self, form: PromptForm | None) -> Manifest:
        """Return the same build with another prompt form, or none.

        Raises:
            Malformed, DigestMismatch: the form is one that no manifest may hold.
        """
        if form is not None:
            form.from_json(form.to_json(), "behaviour.prompt")
        rest = {key: item for key, item in self.behaviour.items() if key != _PROMPT}
        return replace(self, behaviour=rest if form is None else rest | {_PROMPT: form.to_json()})

    def with_examples(self, examples: Sequence[str]) -> Manifest:
        """Return the same build with these example prompts instead of its earlier ones."""
        rest = {key: item for key, item in self.behaviour.items() if key != _EXAMPLES}
        return replace(self, behaviour=rest | {_EXAMPLES: list(examples)} if examples else rest)

    def with_base(self, base: BaseRef) -> Manifest:
        """Return the same build with another `base`."""
        return replace(self, base=base)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest file; strict, bounded, and for plain files only.

        Raises:
            MalformedManifest: as `parse`, and when the file cannot be read.
            FileNotFoundError: there is no such file.
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
        """Read a manifest strictly.

        Raises:
            MalformedManifest: every problem with its path, such as `files[2].size_bytes: expected integer, got string`.
        """
        try:
            value = strict_json(raw, limit_bytes=LIMIT_BYTES, most_values=MOST_VALUES)
        except ValueError as error:
            raise MalformedManifest(where, [str(error)]) from None
        reader = _Reader()
        manifest = reader.manifest(value)
        if reader.problems or manifest is None:
            raise MalformedManifest(where, reader.lines)
        try:
            _ = manifest.digest
        except MalformedManifest as error:
            raise MalformedManifest(where, error.problems) from None
        return manifest


def base_to_json(base: BaseRef) -> dict[str, Any]:
    """Return the value of `base` in a manifest."""
    value = base.fingerprint.to_json() if base.fingerprint else {}
    hints = base.hints.to_json()
    return value | ({"hints": hints} if hints else {})


_KEYS: Final = {field.name for field in fields(Manifest)} | {"schema"}


class _Reader(DocumentReader):
    """Reads a JSON value into a `Manifest`."""

    kinds = JSON_KINDS
    null_is_absent = False

    def manifest(self, top: object) -> Manifest | None:
        """Return the manifest; None when the value is not an object or of another schema."""
        if not isinstance(top, dict):
            self.wrong("(top)", "object", top)
            return None
        schema = self.take(top, "schema", str, required=True)
        if schema and schema != SCHEMA:
            self.say("schema", f"expected {SCHEMA}, got {shown(schema)}; a newer adapterhub may read it")
            return None
        name, version = self.take(top, "name", str, required=True), self.take(top, "version", str, required=True)
        normal = self.parsed(version or None, parse_version, "version")
        if normal not in (None, version):
            self.say("version", f"expected the normal form `{normal}`, got `{shown(version)}`")
        return Manifest(
            name=self.parsed(name or None, parse_name, "name") or AdapterName(""),
            version=version or "",
            base=self.base(self.take(top, "base", dict, required=True) or {}),
            method=self.texts(top, "method", required=True),
            files=self.files(top),
            task=self.take(top, "task", str),
            description=self.take(top, "description", str) or "",
            license=self.take(top, "license", str),
            rank=self.take(top, "rank", int),
            alpha=self.take(top, "alpha", float),
            target_modules=self.texts(top, "target_modules"),
            dtype=self.take(top, "dtype", str) or "",
            parameters=self.take(top, "parameters", int) or 0,
            parents=self.parents(top) if "parents" in top else (),
            recipe=self.take(top, "recipe", dict) or {},
            behaviour=self.behaviour(top),
            metrics=self.take(top, "metrics", dict) or {},
            annotations=self.take(top, "annotations", dict) or {},
            card=self.take(top, "card", str) or "",
            extra={key: item for key, item in top.items() if key not in _KEYS or key == "extra"},
        )

    def behaviour(self, top: Mapping[str, Any]) -> Mapping[str, Any]:
        value: Mapping[str, Any] = self.take(top, "behaviour", dict) or {}
        if _PROMPT in value:
            from adapterhub.formats.prompts.form import read_form

            read_form(self, value[_PROMPT], f"behaviour.{_PROMPT}.")
        return value

    def base(self, value: dict[str, Any]) -> BaseRef:
        fingerprint, hints = None, BaseHints()
        try:
            if "weights" in value:
                fingerprint = BaseFingerprint.from_json(value, "base")
            if "hints" in value:
                hints = BaseHints.from_json(value["hints"], "base.hints")
        except ValueError as error:
            path, _, text = str(error).partition(": ")
            self.say(path, text)
        return BaseRef(fingerprint=fingerprint, hints=hints)

    def files(self, top: Mapping[str, Any]) -> tuple[FileEntry, ...]:
        entries: list[FileEntry] = []
        for path, item in self.tables(top, "files", most=len(MEDIA_TYPES), required=True):
            name = self.take(item, "path", str, path, required=True) or ""
            if name and name not in MEDIA_TYPES:
                self.say(f"{path}path", f"`{shown(name)}` is not a file of an adapter")
            digest = self.parsed(self.take(item, "sha256", str, path, required=True), parse_digest, f"{path}sha256")
            size_bytes = self.take(item, "size_bytes", int, path, required=True) or 0
            if size_bytes < 0:
                self.say(f"{path}size_bytes", f"expected 0 or more, got {size_bytes}")
            media_type = self.take(item, "media_type", str, path)
            media_type = MEDIA_TYPES.get(name, "") if media_type is None else media_type
            if digest:
                entries.append(FileEntry(path=name, sha256=digest, size_bytes=size_bytes, media_type=media_type))
        names = Counter(map(attrgetter("path"), entries))
        for name, count in sorted(names.items()):
            if count > 1:
                self.say("files", f"`{shown(name)}` is listed twice")
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if name not in names:
                self.say("files", f"`{name}` is missing")
        return tuple(entries)

    def parents(self, top: Mapping[str, Any]) -> tuple[Parent, ...]:
        return tuple(
            Parent(
                digest=self.parsed(self.take(item, "digest", str, path), parse_digest, f"{path}digest"),
                spec=self.take(item, "spec", str, path, required=True) or "",
                weight=self.number(item, "weight", path),
            )
            for path, item in self.tables(top, "parents", most=_MAX_PARENTS)
        )


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
    """The facts that choosing compares, as `Manifest` names them; `digest` is that of the whole manifest."""

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
        """Return the facts, or None if only a strict reader can tell: for any other form, and for wrong facts.

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
        """Return the facts and the number of files; an error for anything unusual."""
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
            and set(map(type, method)) <= {str}
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
        """Return the base, if `Manifest` writes it as it stands."""
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

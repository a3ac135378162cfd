"""Turns the tables of a lock file into values; strict, and every problem has its line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, cast

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import AdapterHubError, SpecError, shown
from adapterhub.core.hub_ids import parse_hub_id
from adapterhub.core.specs import AdapterSpec, parse_name, parse_version
from adapterhub.distribution.remote_kinds import KIND_OF_KEY, kind_by_keys, kind_named
from adapterhub.projects.lock._lines import Value, value_of
from adapterhub.projects.values import Lock, LockedAdapter, LockedBase, LockedFile, LockedMerge, LockedSource, Policy
from adapterhub.weights.recipes.toml import step_from
from adapterhub.weights.recipes.toml.values import Step, near_name

_ADAPTER: Final = ("key", "wanted", "name", "version", "digest", "base", "rank", "group", "source", "files")
_MERGE: Final = (
    "key", "version", "digest", "base", "rank", "group", "task", "license", "description", "source", "files",
)  # fmt: skip
_RECIPE: Final = ("method", "dtype", "seed", "options", "inputs")
_BASE: Final = tuple(one.name for one in fields(LockedBase))
_POLICY: Final = {one.name.replace("_", "-"): one.name for one in fields(Policy)}
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass
class Section:
    """One table: its header, the header's line, and `(line, value)` for each key.

    A list that spans lines holds `(line, value)` pairs as well.
    """

    header: str
    line: int
    values: dict[str, tuple[int, Any]] = field(default_factory=dict)

    def line_of(self, key: str) -> int:
        """The line of a key, or of the table if the key is missing."""
        return self.values[key][0] if key in self.values else self.line


class EntryReader:
    """Reads the tables into a `Lock` and collects every problem."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def say(self, line: int, text: str) -> None:
        """Record a problem."""
        self.problems.append(f"line {line}: {text}")

    def lock(self, sections: Sequence[Section]) -> Lock | None:
        """The lock; None if there is a problem."""
        base: LockedBase | None = None
        policy: Policy | None = None
        adapters: list[LockedAdapter | None] = []
        merges: list[LockedMerge | None] = []
        self.known(sections[0], ("schema",))
        pending: Section | None = None  # a merge that waits for its recipe
        for section in sections[1:]:
            if pending is not None and section.header != "[merge.recipe]":
                self.say(pending.line, "merge: has no `[merge.recipe]`")
                pending = None
            if section.header == "[[adapter]]":
                adapters.append(self.adapter(section))
            elif section.header == "[[merge]]":
                pending = section
            elif section.header == "[merge.recipe]" and pending is not None:
                merges.append(self.merge(pending, section))
                pending = None
            elif section.header == "[base]" and base is None:
                base = self.base(section)
            elif section.header == "[policy]" and policy is None:
                policy = self.policy(section)
            else:
                self.say(section.line, f"no table `{shown(section.header)}` is expected here")
        if pending is not None:
            self.say(pending.line, "merge: has no `[merge.recipe]`")
        self.keys_differ(sections)
        if self.problems:
            return None
        return Lock(
            base=base,
            policy=policy or Policy(),
            adapters=tuple(cast("list[LockedAdapter]", adapters)),
            merges=tuple(cast("list[LockedMerge]", merges)),
        )

    def keys_differ(self, sections: Iterable[Section]) -> None:
        seen: dict[object, int] = {}
        for section in sections:
            if section.header in ("[[adapter]]", "[[merge]]") and "key" in section.values:
                line, key = section.values["key"]
                if isinstance(key, str) and seen.setdefault(key, line) != line:
                    self.say(line, f"`{shown(key)}` is locked twice, here and on line {seen[key]}")

    # ------------------------------------------------------------ values
    def known(self, section: Section, keys: Iterable[str]) -> None:
        known = tuple(keys)
        for key, (line, _) in section.values.items():
            if key not in known:
                self.say(line, f"{shown(key)}: no such key{near_name(key, known)}")

    def take(self, section: Section, key: str, kind: type, *, needed: bool = False) -> Value:
        if key not in section.values:
            if needed:
                self.say(section.line, f"{key}: missing")
            return None
        line, value = section.values[key]
        if type(value) is kind:
            return value
        expected = {str: "text", int: "a whole number", dict: "a table", list: "a list"}[kind]
        return self.say(line, f"{key}: expected {expected}, got {shown(value_of(value), 100)}")

    def checked(self, section: Section, key: str, parse: Callable[[str], Any], *, needed: bool = False) -> Value:
        text = self.take(section, key, str, needed=needed)
        return None if text is None else self.parsed(text, parse, section.line_of(key), key)

    def parsed(self, value: Value, parse: Callable[[Any], Any], line: int, what: str) -> Value:
        try:
            return parse(value)
        except SpecError as error:
            reason = error.reason
        except AdapterHubError as error:
            reason = error.message
        except ValueError as error:
            reason = str(error)
        return self.say(line, f"{what}: {reason}")

    def rank(self, section: Section) -> int | None:
        rank = self.take(section, "rank", int)
        if rank is not None and rank < 1:
            self.say(section.line_of("rank"), f"rank: at least 1, got {rank}")
        return cast("int | None", rank)

    # ------------------------------------------------------------ tables
    def base(self, section: Section) -> LockedBase:
        self.known(section, _BASE)
        digests = {key: self.checked(section, key, parse_digest) for key in ("weights", "tensors", "structure")}
        return LockedBase(
            spec=self.checked(section, "spec", _text, needed=True) or "",
            hub_id=self.checked(section, "hub_id", parse_hub_id),
            **digests,
        )

    def policy(self, section: Section) -> Policy:
        self.known(section, _POLICY)
        told: dict[str, Any] = {}
        for key, (line, value) in section.values.items():
            name = _POLICY.get(key, "")
            if name == "max_rank":
                told[name] = self.take(section, key, int)
            elif name == "exclude_newer":
                told[name] = self.checked(section, key, _text)
            elif name:
                told[name] = self.parsed(value, _texts, line, key) or ()
        return Policy(**told)

    def adapter(self, section: Section) -> LockedAdapter | None:
        self.known(section, _ADAPTER)
        found = len(self.problems)
        entry = LockedAdapter(
            key=self.checked(section, "key", parse_name, needed=True),
            wanted=self.checked(section, "wanted", _text, needed=True),
            name=self.checked(section, "name", _full_name, needed=True),
            **self.build(section),
        )
        if len(self.problems) > found:
            return None
        namespace, slash, _ = entry.name.rpartition("/")
        source = entry.source
        owner = "" if source.is_library else kind_named(source.kind).publisher(source.pin)
        if slash and owner and owner.lower() != namespace.lower():
            line = section.line_of("source")
            self.say(line, f"source.repo: `{entry.name}` is not published by `{owner}`, but by `{namespace}`")
        return entry

    def merge(self, section: Section, recipe: Section) -> LockedMerge | None:
        self.known(section, _MERGE)
        found = len(self.problems)
        entry = LockedMerge(
            key=self.checked(section, "key", parse_name, needed=True),
            step=self.step(recipe),
            task=self.take(section, "task", str),
            description=self.take(section, "description", str) or "",
            license=self.take(section, "license", str),
            **self.build(section),
        )
        return entry if len(self.problems) == found else None

    def build(self, section: Section) -> dict[str, Any]:
        """The fields that adapters and merges share."""
        return {
            "version": self.checked(section, "version", _version, needed=True),
            "digest": self.checked(section, "digest", parse_digest, needed=True),
            "base": self.checked(section, "base", parse_digest),
            "rank": self.rank(section),
            "group": self.checked(section, "group", parse_name),
            "source": self.source(section),
            "files": self.files(section),
        }

    def source(self, section: Section) -> LockedSource:
        table = self.take(section, "source", dict, needed=True) or {}
        line = section.line_of("source")
        texts = {key: self.parsed(value, _text_or_none, line, f"source.{shown(key)}") for key, value in table.items()}
        keys: tuple[str, ...] = ("remote", *KIND_OF_KEY)
        remote = texts.get("remote") or ""
        kind = self.parsed(texts.get("kind"), lambda named: kind_by_keys(texts, named), line, "source.kind")
        if kind is not None:
            keys = ("remote", *(["kind"] if "kind" in texts else []), kind.address_key, *kind.pin_keys)
        if odd := [key for key in table if key not in keys]:
            self.say(line, f"source: no such key `{shown(odd[0])}`{near_name(odd[0], keys)}")
        if kind is None:
            if len(KIND_OF_KEY.keys() & texts) > 1:
                self.say(line, "source: expected either `url` or `path`")
            return LockedSource(remote=remote)
        address = texts.get(kind.address_key) or ""
        pin = {key: text for key in kind.pin_keys if (text := texts.get(key))}
        for problem in kind.problems(address, pin):
            self.say(line, f"source.{problem}" if problem[0] != "`" else f"source: {problem}")
        return LockedSource(remote=remote, kind=kind.name, address=address, pin=pin)

    def files(self, section: Section) -> tuple[LockedFile, ...]:
        listed = self.take(section, "files", list, needed=True)
        if listed is not None and not listed:
            self.say(section.line_of("files"), "files: none; every file of a build is locked with its hash")
        found = []
        for line, item in listed or []:
            if not isinstance(item, dict) or set(item) != {"path", "sha256", "size"}:
                self.say(line, "files: expected a table of `path`, `sha256` and `size`")
                continue
            size = item["size"]
            if type(size) is not int or size < 0:
                self.say(line, f"size: expected a whole number of bytes, got {shown(size)}")
            path = self.parsed(item["path"], _file_name, line, "path")
            sha256 = self.parsed(item["sha256"], parse_digest, line, "sha256")
            found.append(LockedFile(path=path, sha256=sha256, size_bytes=size))
        return tuple(found)

    def step(self, section: Section) -> Step:
        self.known(section, _RECIPE)
        inputs = self.take(section, "inputs", list, needed=True) or []
        table = {key: value for key, (_, value) in section.values.items() if key in _RECIPE}
        step, problems = step_from({**table, "inputs": [item for _, item in inputs]}, "")
        for problem in problems:
            numbered = re.match(r"inputs\[(\d+)\]", problem)
            line = inputs[int(numbered[1])][0] if numbered else section.line_of(re.split(r"[.:]", problem)[0])
            self.say(line, f"recipe: {problem}")
        if not problems and any(leaf.digest is None for leaf in step.leaves()):
            self.say(section.line_of("inputs"), "recipe: an input has no digest; every input is locked with its digest")
        return step


def _text(text: str) -> str:
    if not text:
        raise ValueError("expected text, got nothing")
    return text


def _text_or_none(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {shown(value)}")  # noqa: TRY004 - gathered with the other problems
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("expected a list of texts")
    return tuple(value)


def _version(text: str) -> str:
    if (normal := parse_version(text)) != text:
        raise ValueError(f"expected `{normal}`, got `{shown(text)}`")
    return text


def _full_name(text: str) -> str:
    if AdapterSpec.parse(text).full_name != text:
        raise ValueError(f"expected a name, got `{shown(text)}`")
    return text


def _file_name(value: object) -> str:
    if not isinstance(value, str) or not _FILE.fullmatch(value) or ".." in value:
        raise ValueError(f"expected the name of a file, got {shown(value)}")
    return value

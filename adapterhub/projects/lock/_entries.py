"""Turns the tables of a lock file into values; strict, and every problem has its line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, cast

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import shown
from adapterhub.core.hub_ids import parse_hub_id
from adapterhub.core.specs import AdapterSpec, parse_name, parse_version
from adapterhub.distribution.remote_kinds import KIND_OF_KEY, kind_by_keys, kind_named
from adapterhub.formats.contract.bounds import bound_text
from adapterhub.formats.documents import DocumentReader
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.projects.aliases import parse_key
from adapterhub.projects.values import Lock, LockedAdapter, LockedBase, LockedFile, LockedMerge, LockedSource, Policy
from adapterhub.weights.recipes.toml import Step, step_from

_ADAPTER: Final = ("key", "wanted", "name", "version", "digest", "base", "rank", "contract", "group", "source", "files")
_MERGE: Final = (
    "key", "version", "digest", "base", "rank", "group", "task", "license", "description", "source", "files",
)  # fmt: skip
_RECIPE: Final = ("method", "dtype", "seed", "options", "inputs")
_BASE: Final = tuple(one.name for one in fields(LockedBase))
_POLICY: Final = {one.name.replace("_", "-"): one.name for one in fields(Policy)}
_POLICY_TEXTS: Final = ("exclude_newer", "tests", "tests_max_age", "tests_never")
_FILE_KEYS: Final = {"path", "sha256", "size"}
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass
class Section:
    """One table: its header as written and the line of that, its values, and by key the lines of a value.

    The first of these lines is that of the key, the others are those of the items of a list.
    """

    header: str
    line: int
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)

    def line_of(self, path: str) -> int:
        """The line of a value such as `files[2].size`; that of the table when it lacks the key."""
        key, _, rest = path.partition("[")
        lines = self.lines.get(path) or self.lines.get(key.partition(".")[0]) or [self.line]
        item = rest.partition("]")[0]
        return lines[int(item) + 1] if item.isdecimal() and int(item) + 1 < len(lines) else lines[0]


class LockReader:
    """Reads the tables into a `Lock` and collects every problem."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def say(self, line: int, text: str) -> None:
        """Record one problem."""
        self.problems.append(f"line {line}: {text}")

    def lock(self, sections: Sequence[Section]) -> Lock | None:
        """The lock; None when there is a problem."""
        base: LockedBase | None = None
        policy: Policy | None = None
        adapters: list[LockedAdapter | None] = []
        merges: list[LockedMerge | None] = []
        SectionReader(sections[0], self.problems).known(sections[0].values, ("schema",))
        pending: Section | None = None  # a merge that waits for its recipe
        for section in sections[1:]:
            reader = SectionReader(section, self.problems)
            if pending is not None and section.header != "[merge.recipe]":
                self.say(pending.line, "merge: has no `[merge.recipe]`")
                pending = None
            if section.header == "[[adapter]]":
                adapters.append(reader.adapter())
            elif section.header == "[[merge]]":
                pending = section
            elif section.header == "[merge.recipe]" and pending is not None:
                merges.append(SectionReader(pending, self.problems).merge(reader))
                pending = None
            elif section.header == "[base]" and base is None:
                base = reader.base()
            elif section.header == "[policy]" and policy is None:
                policy = reader.policy()
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
        """Record every key that two entries have."""
        lines: dict[object, int] = {}
        for section in sections:
            key = section.values.get("key") if section.header in ("[[adapter]]", "[[merge]]") else None
            if isinstance(key, str):
                line = section.line_of("key")
                if lines.setdefault(key, line) != line:
                    self.say(line, f"`{shown(key)}` is locked twice, here and on line {lines[key]}")


class SectionReader(DocumentReader):
    """Reads one table; its problems go to `lines` with their line."""

    def __init__(self, section: Section, problems: list[str]) -> None:
        super().__init__()
        self.section = section
        self.values = section.values
        self.found = problems

    def say(self, path: str, text: str) -> None:
        super().say(path, text)
        self.found.append(f"line {self.section.line_of(path)}: {shown(path, 200)}: {text}")

    def base(self) -> LockedBase:
        self.known(self.values, _BASE)
        digests = {key: self.checked(self.values, key, parse_digest) for key in ("weights", "tensors", "structure")}
        return LockedBase(
            spec=self.checked(self.values, "spec", _text, required=True) or "",
            hub_id=self.checked(self.values, "hub_id", parse_hub_id),
            **digests,
        )

    def policy(self) -> Policy:
        self.known(self.values, _POLICY)
        fields: dict[str, Any] = {}
        for key, name in _POLICY.items():
            if key not in self.values:
                continue
            if name == "max_rank":
                fields[name] = self.take(self.values, key, int)
            elif name in _POLICY_TEXTS:
                fields[name] = self.checked(self.values, key, _text)
            else:
                fields[name] = self.texts(self.values, key, parse=bound_text if name == "tests_bounds" else None)
        return Policy(**fields)

    def adapter(self) -> LockedAdapter | None:
        self.known(self.values, _ADAPTER)
        entry = LockedAdapter(
            key=self.checked(self.values, "key", parse_key, required=True),
            wanted=self.checked(self.values, "wanted", _text, required=True),
            name=self.checked(self.values, "name", full_name, required=True),
            contract=self.checked(self.values, "contract", parse_digest),
            **self.build(),
        )
        if self.problems:
            return None
        for path, text in adapter_problems(entry):
            self.say(path, text)
        return entry

    def merge(self, recipe: SectionReader) -> LockedMerge | None:
        self.known(self.values, _MERGE)
        entry = LockedMerge(
            key=self.checked(self.values, "key", parse_name, required=True),
            step=recipe.step(),
            task=self.take(self.values, "task", str),
            description=self.take(self.values, "description", str) or "",
            license=self.take(self.values, "license", str),
            **self.build(),
        )
        return None if self.problems or recipe.problems else entry

    def build(self) -> dict[str, Any]:
        """The fields that adapters and merges share."""
        return {
            "version": self.checked(self.values, "version", version_text, required=True),
            "digest": self.checked(self.values, "digest", parse_digest, required=True),
            "base": self.checked(self.values, "base", parse_digest),
            "rank": self.rank(self.values, "rank"),
            "group": self.checked(self.values, "group", parse_name),
            "source": self.source(),
            "files": self.files(),
        }

    def source(self) -> LockedSource:
        table = self.take(self.values, "source", dict, required=True) or {}
        named = self.text(table, "kind", "source.")
        kind = self.parsed(named or "", lambda text: kind_by_keys(table, text or None), "source.kind")
        if kind is None and len(KIND_OF_KEY.keys() & table.keys()) > 1:
            self.say("source", "expected either `url` or `path`")
        place = (kind.address_key, *kind.pin_keys) if kind else tuple(KIND_OF_KEY)
        keys = ("remote", *(["kind"] if "kind" in table else []), *place)
        self.known(table, keys, "source.")
        texts = {key: self.text(table, key, "source.") or "" for key in keys if key in table}
        if kind is None:
            return LockedSource(remote=texts.get("remote", ""))
        address = texts.get(kind.address_key, "")
        pin = {key: texts[key] for key in kind.pin_keys if texts.get(key)}
        for problem in kind.problems(address, pin):
            key, _, reason = problem.rpartition(": ") if problem[0] == "`" else problem.partition(": ")
            self.say(f"source.{key}" if key else "source", reason)
        return LockedSource(remote=texts.get("remote", ""), kind=kind.name, address=address, pin=pin)

    def files(self) -> tuple[LockedFile, ...]:
        if self.values.get("files") == []:
            self.say("files", "none; every file of a build is locked with its hash")
        found = []
        for path, item in self.tables(self.values, "files", required=True):
            if item.keys() != _FILE_KEYS:
                self.known(item, sorted(_FILE_KEYS), path)
            size = self.take(item, "size", int, path, required=True) or 0
            if size < 0:
                self.say(f"{path}size", f"expected a whole number of bytes, got {shown(size)}")
            name = self.parsed(self.take(item, "path", str, path, required=True), file_name, path, "path")
            sha256 = self.parsed(self.take(item, "sha256", str, path, required=True), parse_digest, path, "sha256")
            found.append(LockedFile(path=name, sha256=sha256, size_bytes=size))
        return tuple(found)

    def step(self) -> Step:
        self.known(self.values, _RECIPE)
        step, problems = step_from({key: self.values[key] for key in _RECIPE if key in self.values}, "")
        for path, text in problems:
            self.say(path, text)
        if not problems and any(leaf.digest is None for leaf in step.leaves()):
            self.say("inputs", "an input has no digest; every input is locked with its digest")
        return step


def adapter_problems(entry: LockedAdapter) -> Iterator[tuple[str, str]]:
    """What does not fit together in an adapter whose values are right alone: the path of a value, and why."""
    if entry.contract is not None and (CONTRACT_FILE, entry.contract) not in [(f.path, f.sha256) for f in entry.files]:
        yield "contract", f"is not the digest of `{CONTRACT_FILE}` among the files"
    namespace, slash, _ = entry.name.rpartition("/")
    source = entry.source
    owner = "" if source.is_library else kind_named(source.kind).publisher(source.pin)
    if slash and owner and owner.lower() != namespace.lower():
        yield "source.repo", f"`{entry.name}` is not published by `{owner}`, but by `{namespace}`"


def _text(text: str) -> str:
    if not text:
        raise ValueError("expected text, got nothing")
    return text


def version_text(text: str) -> str:
    if (normal := parse_version(text)) != text:
        raise ValueError(f"expected `{normal}`, got `{shown(text)}`")
    return text


def full_name(text: str) -> str:
    if AdapterSpec.parse(text).full_name != text:
        raise ValueError(f"expected a name, got `{shown(text)}`")
    return text


def file_name(text: str) -> str:
    if not _FILE.fullmatch(text) or ".." in text:
        raise ValueError(f"expected the name of a file, got `{shown(text)}`")
    return text

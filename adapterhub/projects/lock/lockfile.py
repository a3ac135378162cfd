"""Reads and writes `adapters.lock`, and finds stale entries in it; see `docs/reference/files.md`.

The text is canonical (order, spaces, quotes), so equal locks are equal files, and a file that does not print as it came
read is damaged. Errors name the line. Any TOML reader can read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import parse_digest
from adapterhub.core.disk.files import not_read, output_place, read_plain, write_durably
from adapterhub.core.disk.home import LOCK_FILE, PROJECT_FILE
from adapterhub.core.errors import Malformed, NotAllowed, NotFound, problem_list, shown
from adapterhub.core.specs import AdapterName, AdapterSpec, parse_hub_id, parse_name, parse_version, version_of
from adapterhub.distribution.remote_kinds import KIND_OF_KEY, kind_by_keys, kind_named
from adapterhub.formats.contract.standards import bound_text
from adapterhub.formats.documents import DocumentReader, both_sides, line_of, lines_of, toml_of
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.projects.aliases import parse_key
from adapterhub.projects.values import (
    AdapterRequirement,
    Lock,
    Locked,
    LockedAdapter,
    LockedBase,
    LockedFile,
    LockedMerge,
    LockedSource,
    MergeRequirement,
    Policy,
    Project,
)
from adapterhub.weights.recipes.toml import Inner, Leaf, MergeStep, step_from, step_table

SCHEMA: Final = "adapterhub-lock/1"
LIMIT_BYTES: Final = 16 << 20
MOST_ENTRIES: Final = 10_000
"""Reading takes 0.3 ms an entry."""
PROBLEMS_SHOWN: Final = 20

_HEAD: Final = f"# Written by `adapt lock` from {PROJECT_FILE}, which is the file to edit.\n"
_HINT: Final = f"restore `{LOCK_FILE}` from version control, or delete it and run `adapt lock`"


_ADAPTER: Final = ("key", "wanted", "name", "version", "digest", "base", "rank", "contract", "group", "source", "files")
_MERGE: Final = (
    "key", "version", "digest", "base", "rank", "group", "task", "license", "description", "source", "files", "recipe",
)  # fmt: skip
_RECIPE: Final = ("method", "dtype", "seed", "options", "inputs")
_BASE: Final = tuple(one.name for one in fields(LockedBase))
_POLICY: Final = {one.name.replace("_", "-"): one.name for one in fields(Policy)}
_POLICY_TEXTS: Final = ("exclude_newer", "tests", "tests_max_age", "tests_never")
_FILE_KEYS: Final = {"path", "sha256", "size"}
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


_ESCAPES: Final = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")


# ---------------------------------------------------------------- files
def read_lock(folder: Path) -> Lock:
    """Return the lock of the project in `folder`.

    Raises:
        NotFound: there is no lock file.
        Malformed: it is damaged; with the line.
    """
    path = folder / LOCK_FILE
    try:
        raw = read_plain(path, LIMIT_BYTES)
    except FileNotFoundError:
        raise NotFound(f"`{shown(str(folder), 200)}` has no `{LOCK_FILE}`", hint="`adapt lock` writes it") from None
    except OSError as error:
        raise not_read(error, shown(str(path), 200), NotAllowed) from None
    if len(raw) > LIMIT_BYTES:
        raise _damaged(str(path), [f"larger than the limit of {LIMIT_BYTES:,} bytes for a lock file"])
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _damaged(str(path), [f"line {line}: not UTF-8 at byte {error.start}"]) from None
    return parse_lock(text.replace("\r\n", "\n"), str(path))  # version control may check it out so on Windows


def previous_lock(project: Project) -> Lock | None:
    """Return the lock of the project; None if there is none yet.

    Raises:
        Malformed: it is damaged.
    """
    try:
        return read_lock(project.folder)
    except NotFound:
        return None


def write_lock(folder: Path, lock: Lock) -> bool:
    """Write the lock of the project in `folder` atomically. Returns whether the file changed.

    Raises:
        NotAllowed: it cannot be written, or would be too large to be read; the old file stays.
    """
    path, data = folder / LOCK_FILE, lock_text(lock).encode()
    if len(lock.entries) > MOST_ENTRIES or len(data) > LIMIT_BYTES:
        raise NotAllowed(
            f"the lock would have {len(lock.entries):,} entries and {len(data):,} bytes; `{LOCK_FILE}` has at most "
            f"{MOST_ENTRIES:,} and {LIMIT_BYTES:,}. It is unchanged",
            hint="make several projects of it",
        )
    try:
        if read_plain(path, 2 * len(data)).replace(b"\r\n", b"\n") == data:
            return False
    except OSError:
        pass  # none yet, or none that can be read
    try:
        write_durably(output_place(path), data)
    except OSError as error:
        raise NotAllowed(
            f"`{shown(str(path), 200)}` cannot be written: {error.strerror}. It is unchanged",
            hint="check its permissions and the free space",
        ) from error
    return True


# ---------------------------------------------------------------- printing
def lock_text(lock: Lock) -> str:
    """Return the canonical text of a lock; the order of its entries does not matter."""
    parts = [_HEAD, f"schema = {text_of(SCHEMA)}\n"]
    if lock.base is not None:
        parts.append("\n[base]\n" + _pairs({one.name: getattr(lock.base, one.name) for one in fields(LockedBase)}))
    policy = policy_table(lock.policy)
    if policy:
        parts.append("\n[policy]\n" + _pairs(policy))
    parts += (_adapter(entry) for entry in sorted(lock.adapters, key=lambda entry: entry.key))
    parts += (_merge(entry) for entry in sorted(lock.merges, key=lambda entry: entry.key))
    return "".join(parts)


def policy_table(policy: Policy) -> dict[str, object]:
    """Return a policy as a table, without unset keys."""
    told = {one.name.replace("_", "-"): getattr(policy, one.name) for one in fields(Policy)}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in told.items()
        if value not in (None, ())
    }


def _adapter(entry: LockedAdapter) -> str:
    names = ("key", "wanted", "name", "version", "digest", "base", "rank", "contract", "group")
    return (
        "\n[[adapter]]\n" + _pairs({name: getattr(entry, name) for name in names}) + _bytes(entry.source, entry.files)
    )


def _merge(entry: LockedMerge) -> str:
    names = ("key", "version", "digest", "base", "rank", "group", "task", "license")
    told = {name: getattr(entry, name) for name in names} | {"description": entry.description or None}
    recipe = _recipe(entry.step)
    inputs = recipe.pop("inputs")
    return "".join(
        [
            "\n[[merge]]\n",
            _pairs(told),
            _bytes(entry.source, entry.files),
            "\n[merge.recipe]\n",
            _pairs(recipe),
            _lines("inputs", inputs),
        ]
    )


def _bytes(source: LockedSource, files: Iterable[LockedFile]) -> str:
    listed = [
        f"  {{ path = {text_of(file.path)}, sha256 = {text_of(file.sha256)}, size = {file.size_bytes} }},\n"
        for file in sorted(files, key=lambda file: file.path)
    ]
    return f"source = {value_of(source.table)}\nfiles = [\n{''.join(listed)}]\n"


def _recipe(step: MergeStep) -> dict[str, Any]:
    return _ordered(step_table(step))


def _ordered(table: dict[str, Any]) -> dict[str, Any]:
    """Return the same table with the options of every level in the order of their names."""
    if "options" in table:
        table["options"] = dict(sorted(table["options"].items()))
    table["inputs"] = [
        item | {"merge": _ordered(item["merge"])} if "merge" in item else item for item in table["inputs"]
    ]
    return table


def _pairs(values: Mapping[str, object]) -> str:
    return "".join(f"{key} = {value_of(value)}\n" for key, value in values.items() if value is not None)


def _lines(key: str, items: Iterable[object]) -> str:
    return f"{key} = [\n{''.join(f'  {value_of(item)},{chr(10)}' for item in items)}]\n"


def text_of(text: str) -> str:
    """`text` as a TOML string; unprintable characters are escaped by number."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else _numbered(c)) for c in text) + '"'


def _numbered(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04X}" if code < 1 << 16 else f"\\U{code:08X}"


def value_of(value: object) -> str:
    """Return a value on one line."""
    if isinstance(value, str):
        return text_of(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        inside = ", ".join(
            f"{key if _BARE.fullmatch(key) else text_of(key)} = {value_of(v)}" for key, v in value.items()
        )
        return f"{{ {inside} }}" if inside else "{}"
    assert isinstance(value, Sequence)
    inside = ", ".join(value_of(item) for item in value)
    return f"[ {inside} ]" if inside else "[]"


# ---------------------------------------------------------------- reading
def parse_lock(text: str, where: str = LOCK_FILE) -> Lock:
    """Parse the text of a lock; `where` names the file in errors.

    Raises:
        Malformed: it is not what `lock_text` prints; with the lines.
    """
    if told := both_sides(text):
        hint = f"take one side (`git checkout --ours {LOCK_FILE}`), then run `adapt lock`"
        raise _damaged(where, [told], hint)
    count = text.count("\n[[")
    if count > MOST_ENTRIES:
        raise _damaged(where, [f"has {count:,} entries, at most {MOST_ENTRIES:,} are read"])
    try:
        document = toml_of(text.encode())
    except ValueError as error:
        raise _damaged(where, [_with_line(str(error), text)]) from None
    schema = document.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, str) and schema.startswith("adapterhub-lock/")
        hint = "a newer adapterhub wrote it: `pip install -U adapterhub`" if newer else _HINT
        got = f"expected `{SCHEMA}`, got {f'`{shown(schema)}`' if isinstance(schema, str) else 'nothing'}"
        raise _damaged(where, [f"line {lines_of(text).get('schema', 1)}: schema: {got}"], hint)
    reader = _LockReader()
    lock = reader.lock(document)
    if reader.problems:
        lines = lines_of(text)
        found = [(line_of(path, lines) or 1, path, problem) for path, problem in reader.problems]
        raise _damaged(where, [f"line {line}: {shown(path, 200)}: {problem}" for line, path, problem in found])
    printed = lock_text(lock)
    if printed != text:
        raise _damaged(where, [_first_difference(text, printed)])
    return lock


def _with_line(told: str, text: str) -> str:
    """Return the parser's message, with the line in front."""
    place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", told)
    if place is None:
        return told if told.startswith("line ") else f"line 1: {told}"
    line = place[1] or text.count("\n") + 1
    return f"line {line}: {told[: place.start()]}{told[place.end() :]}"


class _LockReader(DocumentReader):
    """Reads the whole file and collects every problem."""

    def lock(self, top: Mapping[str, Any]) -> Lock:
        self.known(top, ("schema", "base", "policy", "adapter", "merge"))
        base, policy = (self.take(top, key, dict) for key in ("base", "policy"))
        adapters = [self.adapter(values, path) for path, values in self.tables(top, "adapter")]
        merges = [self.merge(values, path) for path, values in self.tables(top, "merge")]
        first: dict[str, str] = {}
        for key in ("adapter", "merge"):
            for at, values in enumerate(top.get(key) or ()):
                if isinstance(values, dict) and isinstance(name := values.get("key"), str) and name in first:
                    self.say(f"{key}[{at}].key", f"`{shown(name)}` is locked twice, here and by {first[name]}")
                elif isinstance(values, dict) and isinstance(name, str):
                    first[name] = f"{key}[{at}]"
        return Lock(
            base=self.base(base) if base is not None else None,
            policy=self.policy(policy or {}),
            adapters=tuple(filter(None, adapters)),
            merges=tuple(filter(None, merges)),
        )

    def base(self, values: Mapping[str, Any]) -> LockedBase:
        self.known(values, _BASE, "base.")
        digests = {key: self.checked(values, key, parse_digest, "base.") for key in ("weights", "tensors", "structure")}
        return LockedBase(
            spec=self.checked(values, "spec", _text, "base.", required=True) or "",
            hub_id=self.checked(values, "hub_id", parse_hub_id, "base."),
            **digests,
        )

    def policy(self, values: Mapping[str, Any]) -> Policy:
        self.known(values, _POLICY, "policy.")
        fields: dict[str, Any] = {}
        for key, name in _POLICY.items():
            if key not in values:
                continue
            if name == "max_rank":
                fields[name] = self.take(values, key, int, "policy.")
            elif name in _POLICY_TEXTS:
                fields[name] = self.checked(values, key, _text, "policy.")
            else:
                parse = bound_text if name == "tests_bounds" else None
                fields[name] = self.texts(values, key, "policy.", parse)
        return Policy(**fields)

    def adapter(self, values: Mapping[str, Any], path: str) -> LockedAdapter | None:
        before = len(self.problems)
        self.known(values, _ADAPTER, path)
        entry = LockedAdapter(
            key=self.checked(values, "key", parse_key, path, required=True),
            wanted=self.checked(values, "wanted", _text, path, required=True),
            name=self.checked(values, "name", _full_name, path, required=True),
            contract=self.checked(values, "contract", parse_digest, path),
            **self.build(values, path),
        )
        if len(self.problems) > before:
            return None
        for key, text in _adapter_problems(entry):
            self.say(f"{path}{key}", text)
        return entry

    def merge(self, values: Mapping[str, Any], path: str) -> LockedMerge:
        self.known(values, _MERGE, path)
        return LockedMerge(
            key=self.checked(values, "key", parse_name, path, required=True),
            step=self.step(self.take(values, "recipe", dict, path, required=True) or {}, f"{path}recipe."),
            task=self.take(values, "task", str, path),
            description=self.take(values, "description", str, path) or "",
            license=self.take(values, "license", str, path),
            **self.build(values, path),
        )

    def build(self, values: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Return the fields that adapters and merges share."""
        return {
            "version": self.checked(values, "version", _version_text, path, required=True),
            "digest": self.checked(values, "digest", parse_digest, path, required=True),
            "base": self.checked(values, "base", parse_digest, path),
            "rank": self.rank(values, "rank", path),
            "group": self.checked(values, "group", parse_name, path),
            "source": self.source(self.take(values, "source", dict, path, required=True) or {}, f"{path}source"),
            "files": self.files(values, path),
        }

    def source(self, table: Mapping[str, Any], path: str) -> LockedSource:
        named = self.text(table, "kind", f"{path}.")
        kind = self.parsed(named or "", lambda text: kind_by_keys(table, text or None), f"{path}.kind")
        if kind is None and len(KIND_OF_KEY.keys() & table.keys()) > 1:
            self.say(path, "expected either `url` or `path`")
        place = (kind.address_key, *kind.pin_keys) if kind else tuple(KIND_OF_KEY)
        keys = ("remote", *(["kind"] if "kind" in table else []), *place)
        self.known(table, keys, f"{path}.")
        texts = {key: self.text(table, key, f"{path}.") or "" for key in keys if key in table}
        if kind is None:
            return LockedSource(remote=texts.get("remote", ""))
        address = texts.get(kind.address_key, "")
        pin = {key: texts[key] for key in kind.pin_keys if texts.get(key)}
        for problem in kind.problems(address, pin):
            key, _, reason = problem.rpartition(": ") if problem[0] == "`" else problem.partition(": ")
            self.say(f"{path}.{key}" if key else path, reason)
        return LockedSource(remote=texts.get("remote", ""), kind=kind.name, address=address, pin=pin)

    def files(self, values: Mapping[str, Any], path: str) -> tuple[LockedFile, ...]:
        if values.get("files") == []:
            self.say(f"{path}files", "none; every file of a build is locked with its hash")
        found = []
        for place, item in self.tables(values, "files", path, required=True):
            if item.keys() != _FILE_KEYS:
                self.known(item, sorted(_FILE_KEYS), place)
            size = self.take(item, "size", int, place, required=True) or 0
            if size < 0:
                self.say(f"{place}size", f"expected a whole number of bytes, got {shown(size)}")
            name = self.parsed(self.take(item, "path", str, place, required=True), _file_name, place, "path")
            sha256 = self.parsed(self.take(item, "sha256", str, place, required=True), parse_digest, place, "sha256")
            found.append(LockedFile(path=name, sha256=sha256, size_bytes=size))
        return tuple(found)

    def step(self, values: Mapping[str, Any], path: str) -> MergeStep:
        self.known(values, _RECIPE, path)
        step, problems = step_from({key: values[key] for key in _RECIPE if key in values}, path)
        self.problems += problems
        if not problems and any(leaf.digest is None for leaf in step.leaves()):
            self.say(f"{path}inputs", "an input has no digest; every input is locked with its digest")
        return step


def _adapter_problems(entry: LockedAdapter) -> Iterator[tuple[str, str]]:
    """Yield the contradictions in an adapter whose values are right one by one: the path of a value, and the reason."""
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


def _version_text(text: str) -> str:
    if (normal := parse_version(text)) != text:
        raise ValueError(f"expected `{normal}`, got `{shown(text)}`")
    return text


def _full_name(text: str) -> str:
    if AdapterSpec.parse(text).full_name != text:
        raise ValueError(f"expected a name, got `{shown(text)}`")
    return text


def _file_name(text: str) -> str:
    if not _FILE.fullmatch(text) or ".." in text:
        raise ValueError(f"expected the name of a file, got `{shown(text)}`")
    return text


def _first_difference(text: str, printed: str) -> str:
    found, expected = text.split("\n"), printed.split("\n")
    for number, (one, other) in enumerate(zip(found, expected, strict=False), 1):
        if one != other:
            return f"line {number}: expected `{shown(other, 100)}`, got `{shown(one, 100)}`"
    return f"line {min(len(found), len(expected)) + 1}: the file is cut short or too long"


def _damaged(where: str, problems: list[str], hint: str = _HINT) -> Malformed:
    text = problem_list(f"`{shown(where, 200)}`: not what `adapt lock` wrote", problems, PROBLEMS_SHOWN)
    return Malformed(f"{text}\nNothing was changed", hint=hint)


def wanted_text(wanted: AdapterRequirement) -> str:
    """Return a requirement as a lock records it: `acme/legal-qa>=1.2,<2 rank=-16 remote=ours`."""
    more = {"rank": wanted.ranks.written} if wanted.ranks.written else {}
    more |= {} if wanted.remote is None else {"remote": wanted.remote}
    more |= {} if wanted.weight is None else {"weight": f"{wanted.weight!r}"}
    return " ".join([str(wanted.spec), *(f"{name}={value}" for name, value in more.items())])


def locked_step(step: MergeStep, entries: Mapping[AdapterName, Locked]) -> MergeStep:
    """Return the recipe of a merge, with each name replaced by the exact spec and digest locked under it.

    Raises:
        KeyError: a name that `entries` lacks.
    """
    inputs: list[Leaf | Inner] = []
    for item in step.inputs:
        if isinstance(item, Inner):
            inputs.append(replace(item, step=locked_step(item.step, entries)))
        else:
            entry = entries[AdapterName(item.spec)]
            inputs.append(Leaf(spec=f"{entry.name}=={entry.version}", weight=item.weight, digest=entry.digest))
    return replace(step, inputs=tuple(inputs))


def lock_problems(project: Project, lock: Lock) -> list[str]:
    """Return why `lock` is stale for `project`, one sentence each; empty if it is up to date."""
    problems = [*_base_problems(project, lock), *policy_changes(lock.policy, project.policy)]
    entries = lock.entries
    for wanted in project.adapters:
        entry = entries.get(wanted.key)
        if isinstance(entry, LockedAdapter):
            problems += adapter_problems(project, wanted, entry)
        else:
            problems.append(f"`{wanted.key}` is not locked")
    for merge in project.merges:
        entry = entries.get(merge.key)
        if isinstance(entry, LockedMerge):
            problems += merge_problems(merge, entry, entries)
        else:
            problems.append(f"`{merge.key}` is not locked")
    asked = {wanted.key for wanted in project.requirements}
    return problems + [f"`{key}` is locked, but the project does not list it" for key in entries if key not in asked]


def adapter_problems(project: Project, wanted: AdapterRequirement, entry: LockedAdapter) -> list[str]:
    """Return why a locked adapter does not meet its requirement."""
    problems = []
    if entry.wanted != (text := wanted_text(wanted)):
        problems.append(
            f"`{wanted.key}` is locked for `{shown(entry.wanted)}`, but the project requires `{shown(text)}`"
        )
    problems += _group_problems(wanted, entry)
    source = entry.source
    if source.remote:
        remote = next((r for r in project.remotes if r.name == source.remote), None)
        if remote is None:
            problems.append(f"`{wanted.key}` is locked from remote `{source.remote}`, which the project does not name")
        elif (remote.kind, remote.address) != (source.kind, source.address):
            place, now = shown(source.address), shown(remote.address)
            problems.append(f"`{wanted.key}` is locked from {place}, but remote `{remote.name}` is {now}")
    return problems


def merge_problems(wanted: MergeRequirement, entry: LockedMerge, entries: Mapping[AdapterName, Locked]) -> list[str]:
    """Return why a locked merge does not meet its requirement."""
    problems = []
    try:
        step = locked_step(wanted.step, entries)
    except KeyError as missing:
        problems.append(f"`{wanted.key}` is made of `{missing.args[0]}`, which is not locked")
    else:
        if step != entry.step:
            problems.append(f"`{wanted.key}` is locked with a different recipe or different inputs")
    if wanted.version is not None and version_of(wanted.version) != version_of(entry.version):
        problems.append(
            f"`{wanted.key}` is locked as {entry.version}, but the project gives it version {wanted.version}"
        )
    differing = [name for name in ("task", "description", "license") if getattr(wanted, name) != getattr(entry, name)]
    problems += [f"`{wanted.key}` is locked with a different {name}" for name in differing]
    return problems + _group_problems(wanted, entry)


def policy_changes(locked: Policy, now: Policy) -> list[str]:
    """Return the differences between the policy of a lock and that of its project."""
    changed = []
    for one in fields(Policy):
        before, after = getattr(locked, one.name), getattr(now, one.name)
        if before != after:
            changed.append(f"policy `{one.name.replace('_', '-')}` changed from {_said(before)} to {_said(after)}")
    return changed


def _base_problems(project: Project, lock: Lock) -> list[str]:
    locked = lock.base.spec if lock.base else None
    asked = str(project.base) if project.base else None
    if locked == asked:
        return []
    return [f"the base is locked as {_said(locked)}, but the project requires {_said(asked)}"]


def _group_problems(wanted: AdapterRequirement | MergeRequirement, entry: Locked) -> list[str]:
    if wanted.group == entry.group:
        return []
    return [f"`{wanted.key}` is locked in {_group(entry.group)}, but the project has it in {_group(wanted.group)}"]


def _group(name: str | None) -> str:
    return f"group `{shown(name)}`" if name else "no group"


def _said(value: object) -> str:
    if value in (None, ()):
        return "nothing"
    return ", ".join(f"`{shown(str(item))}`" for item in (value if isinstance(value, tuple) else (value,)))

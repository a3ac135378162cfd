"""Parses `adapters.toml` into a `Project`: strict, and reports every problem with its place."""

from __future__ import annotations

import codecs
import datetime as dt
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from adapterhub.core.dates import parse_newest_allowed
from adapterhub.core.disk.files import read_plain
from adapterhub.core.disk.home import PROJECT_FILE
from adapterhub.core.errors import Malformed, NotFound, SpecError, UsageProblem, problem_list, shown
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import (
    AdapterName,
    AdapterSpec,
    BaseSpec,
    looks_like_revision,
    parse_name,
    parse_namespace,
    parse_version,
)
from adapterhub.distribution.remote_kinds import KIND_OF_KEY, kind_by_keys
from adapterhub.formats.alias import parse_alias
from adapterhub.formats.contract.bounds import bound_text
from adapterhub.formats.contract.standards import parse_age, parse_tests_policy
from adapterhub.formats.documents import DocumentReader, toml_of
from adapterhub.formats.toml_lines import both_sides, line_of, lines_of
from adapterhub.library.remotes import parse_remote_name
from adapterhub.projects.aliases import targets_wanted, weights_in
from adapterhub.projects.values import (
    AdapterRequirement,
    MergeRequirement,
    Policy,
    Project,
    ProjectRemote,
)
from adapterhub.trust.signing.keys import parse_key_name
from adapterhub.trust.signing.policy import SIGNATURE_POLICIES
from adapterhub.weights.recipes.toml import step_from

LIMIT_BYTES: Final = 4 << 20
MAX_ENTRIES: Final = 20_000
"""Adapters, groups, merges and remotes of a project, all together."""

_TABLES: Final = ("project", "remotes", "adapters", "groups", "aliases", "merges", "policy")
_REMOTE_KEYS: Final = (*KIND_OF_KEY, "namespaces", "signatures", "kind")
_ADAPTER_KEYS: Final = ("spec", "rank", "remote")
_STEP_KEYS: Final = ("method", "dtype", "seed", "options", "inputs")
_MERGE_KEYS: Final = (*_STEP_KEYS, "version", "task", "description", "license", "group")
_LISTS: Final = (
    "allow-namespaces", "deny-namespaces", "allow-licenses", "deny-licenses", "allow-methods", "deny-methods",
)  # fmt: skip
_TESTS: Final = ("tests", "tests-by", "tests-max-age", "tests-bounds", "tests-never")
_POLICY_KEYS: Final = (*_LISTS, "max-rank", "exclude-newer", *_TESTS)


def project_bytes(folder: Path) -> bytes:
    """The bytes of the project file in `folder`; `parse_project` refuses a file beyond `LIMIT_BYTES`.

    Raises:
        NotFound: there is no project file, or it is not a regular file.
    """
    path = folder / PROJECT_FILE
    try:
        return read_plain(path, LIMIT_BYTES)
    except OSError as error:
        raise NotFound(
            f"`{shown(str(path), 200)}`: {error.strerror}", hint="`adapt init` creates a project in this folder"
        ) from None


def parse_project(raw: bytes, folder: Path, where: str) -> Project:
    """Parse a project file of `folder`; `where` names the file in errors.

    Raises:
        Malformed: lists every problem with its place.
    """
    if len(raw) > LIMIT_BYTES:
        raise Malformed(f"`{shown(where, 200)}`: larger than the limit of {LIMIT_BYTES:,} bytes for a project file")
    try:
        document = toml_of(raw)
    except ValueError as error:
        raise _malformed(where, [_unreadable(raw) or str(error)]) from None
    if (entries := _entries_in(document)) > MAX_ENTRIES:
        raise _malformed(where, [f"{entries:,} adapters, groups, merges and remotes; the limit is {MAX_ENTRIES:,}"])
    reader = _Reader()
    project = reader.project(document, folder)
    if reader.problems:
        lines = lines_of(raw.decode("utf-8"))
        placed = [(line_of(path, lines), path, text) for path, text in reader.problems]
        placed.sort(key=lambda one: one[0] or 0)
        raise _malformed(where, [_told(*one) for one in placed])
    return project


def wanted_spec(key: AdapterName, text: str) -> AdapterSpec:
    """The spec that `text` means for the entry `key`: versions of the adapter `key`, or a whole spec.

    Raises:
        SpecError: `text` is neither.
    """
    text = text.strip()
    if text in ("", "*"):
        return AdapterSpec(namespace=None, name=key, base=None, specifiers="", digest_prefix=None)
    if text[0] in "<>=!~@#":
        return AdapterSpec.parse(f"{key}{text}")
    if (meant := _range_meant(text)) is not None:
        raise SpecError(text, "not a version range", hint=f'write `{key} = "{meant}"`')
    return AdapterSpec.parse(text)


def _range_meant(text: str) -> str | None:
    """Our form of a range of other package managers (`^1.2`, `1.x`, `latest`, `1.2`); else None."""
    bare = text.lstrip("vV^ ")
    if wild := re.fullmatch(r"([0-9]+(?:\.[0-9]+)*)\.[xX*]", bare):
        return f"=={wild[1]}.*"
    if not looks_like_revision(bare):
        return None
    if not re.match(r"[0-9]+(\.|$)", bare):  # `latest`, `main`, the start of a commit
        return "*"
    if not text.startswith("^") or not re.fullmatch(r"[0-9]+(\.[0-9]+)*", bare):
        return f"=={bare}"
    parts = [int(part) for part in bare.split(".")]
    place = next((at for at, part in enumerate(parts) if part), len(parts) - 1)
    return f">={bare},<{'.'.join(map(str, [*parts[:place], parts[place] + 1]))}"


def _entries_in(document: Mapping[str, Any]) -> int:
    """The number of adapters, groups, merges and remotes in a document, counted before any is read."""
    groups = document.get("groups")
    tables = [document.get(name) for name in ("adapters", "merges", "remotes")]
    tables += [groups, *groups.values()] if isinstance(groups, dict) else []
    aliases = document.get("aliases")
    tables += [one for table in aliases.values() for one in _tables_in(table)] if isinstance(aliases, dict) else []
    return sum(len(table) for table in tables if isinstance(table, dict))


def _tables_in(table: object) -> list[object]:
    """A table and the tables in it."""
    return [table, *table.values()] if isinstance(table, dict) else []


def _malformed(where: str, problems: Sequence[str]) -> Malformed:
    return Malformed(problem_list(f"`{shown(where, 200)}`: not a usable project file", problems))


def _unreadable(raw: bytes) -> str | None:
    """A clearer reason than the TOML parser's for an encoding or a merge conflict; None otherwise."""
    if raw.startswith(codecs.BOM_UTF8):
        return "line 1: begins with a byte order mark (editors hide it); save the file as UTF-8 without one"
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "the file is UTF-16; save it as UTF-8"
    return both_sides(raw.decode("utf-8", "replace"))


def _told(line: int | None, path: str, text: str) -> str:
    where = shown(path, 200)
    return f"{where}: {text}" if line is None else f"line {line}, {where}: {text}"


class _Reader(DocumentReader):
    """Reads a parsed document into a `Project` and collects every problem."""

    # ------------------------------------------------------------ the tables
    def project(self, top: Mapping[str, Any], folder: Path) -> Project:
        self.known(top, _TABLES, "")
        head = self.take(top, "project", dict, "") or {}
        self.known(head, ("base",), "project.")
        remotes = self.take(top, "remotes", dict, "") or {}
        merges = self.take(top, "merges", dict, "") or {}
        adapters = self.adapters(self.take(top, "adapters", dict, "") or {}, None, "adapters.")
        groups = self.take(top, "groups", dict, "") or {}
        for group in groups:
            if self.parsed(group, parse_name, f"groups.{group}") is not None:
                wanted = self.take(groups, group, dict, "groups.") or {}
                adapters += self.adapters(wanted, group, f"groups.{group}.")
        base = self.checked(head, "base", BaseSpec.parse, "project.")
        adapters += self.aliases(self.take(top, "aliases", dict, "") or {}, adapters, base)
        project = Project(
            folder=folder,
            base=base,
            remotes=tuple(r for name in remotes if (r := self.remote(remotes, name)) is not None),
            adapters=tuple(adapters),
            merges=tuple(m for key in merges if (m := self.merge(merges, key)) is not None),
            policy=self.policy(self.take(top, "policy", dict, "") or {}),
        )
        self.names_agree(project, remotes)
        return project

    def remote(self, holder: Mapping[str, Any], name: str) -> ProjectRemote | None:
        path = f"remotes.{name}"
        item = self.take(holder, name, dict, "remotes.")
        if item is None or self.parsed(name, parse_remote_name, path) is None:
            return None
        named = self.text(item, "kind", f"{path}.")
        kind = self.parsed(named or "", lambda text: kind_by_keys(item, text or None), f"{path}.kind")
        self.known(item, (*_REMOTE_KEYS, *([kind.address_key] if kind else [])), f"{path}.")
        if kind is not None:
            address = self.checked(item, kind.address_key, kind.parse_address, f"{path}.")
        if kind is None or {*KIND_OF_KEY, kind.address_key} & item.keys() != {kind.address_key}:
            self.say(path, "expected either `url` (a server) or `path` (a directory of builds)")
        signatures = self.text(item, "signatures", f"{path}.")
        if signatures is not None and signatures not in SIGNATURE_POLICIES:
            self.say(f"{path}.signatures", f"`{shown(signatures)}`, expected one of {', '.join(SIGNATURE_POLICIES)}")
        if kind is None or address is None:
            return None
        return ProjectRemote(
            name=name,
            kind=kind.name,
            address=address,
            namespaces=tuple(dict.fromkeys(self.texts(item, "namespaces", f"{path}.", parse_namespace))),
            signatures=signatures if signatures in SIGNATURE_POLICIES else None,
        )

    def adapters(self, holder: Mapping[str, Any], group: str | None, path: str) -> list[AdapterRequirement]:
        found = []
        for name, item in holder.items():
            where = f"{path}{name}"
            key = self.parsed(name, parse_name, where)
            if key is None:
                continue
            table = {"spec": item} if isinstance(item, str) else item  # the short form of the same
            if isinstance(item, dict):
                self.known(item, _ADAPTER_KEYS, f"{where}.")
                where += ".spec"
            elif not isinstance(item, str):
                self.wrong(where, "text or a table", item)
                continue
            text = self.text(table, "spec", f"{path}{name}.")
            spec = self.parsed(text or "", functools.partial(wanted_spec, key), where)
            ranks, remote = ANY_RANK, None
            if isinstance(item, dict):
                ranks, remote = self.ranks(item, f"{path}{name}"), self.text(item, "remote", f"{path}{name}.")
            if spec is not None:
                found.append(AdapterRequirement(key=key, spec=spec, ranks=ranks, group=group, remote=remote))
        return found

    def ranks(self, table: Mapping[str, Any], path: str) -> RankRange:
        wanted = table.get("rank")
        if wanted is None or isinstance(wanted, str):
            return self.parsed(wanted, RankRange.of, f"{path}.rank") or ANY_RANK
        return RankRange.of(self.rank(table, "rank", f"{path}."))

    def aliases(
        self, holder: Mapping[str, Any], adapters: Sequence[AdapterRequirement], base: BaseSpec | None
    ) -> list[AdapterRequirement]:
        found: list[AdapterRequirement] = []
        known = {wanted.key: wanted for wanted in adapters}
        for key in holder:
            table = self.take(holder, key, dict, "aliases.") or {}
            wanted = known.get(AdapterName(key))
            if wanted is None:
                near = self.near(key, known) or "; add it under `[adapters]`"
                self.say(f"aliases.{key}", f"this project has no adapter `{shown(key)}`{near}")
                continue
            for name, value in table.items():
                path = f"aliases.{key}.{name}"
                alias = self.parsed(name, parse_alias, path)
                if name == str(base):
                    self.say(
                        path, f"`{shown(name)}` is a base, so `{shown(key)}@{shown(name)}` already means something"
                    )
                weights = self.parsed("", functools.partial(_weights, value), path)
                if alias is not None and weights is not None:
                    found += targets_wanted(wanted, alias, weights)
        return found

    def merge(self, holder: Mapping[str, Any], name: str) -> MergeRequirement | None:
        path = f"merges.{name}"
        item = self.take(holder, name, dict, "merges.")
        key = self.parsed(name, parse_name, path)
        if item is None or key is None:
            return None
        self.known(item, _MERGE_KEYS, f"{path}.")
        step, problems = step_from({k: item[k] for k in _STEP_KEYS if k in item}, f"{path}.", inputs_by="adapter")
        self.problems += problems
        return MergeRequirement(
            key=key,
            step=step,
            version=self.checked(item, "version", parse_version, f"{path}."),
            task=self.text(item, "task", f"{path}."),
            description=self.text(item, "description", f"{path}.") or "",
            license=self.text(item, "license", f"{path}."),
            group=self.checked(item, "group", parse_name, f"{path}."),
        )

    def policy(self, holder: Mapping[str, Any]) -> Policy:
        self.known(holder, _POLICY_KEYS, "policy.")
        lists = {
            key.replace("-", "_"): tuple(dict.fromkeys(self.texts(holder, key, "policy.", parse)))
            for key in _LISTS
            for parse in [parse_namespace if key.endswith("namespaces") else _word]
        }
        newest = holder.get("exclude-newer")
        if isinstance(newest, dt.date):  # a time is a date, too
            newest = newest.isoformat()
        if newest is not None:
            newest = self.checked({"exclude-newer": newest}, "exclude-newer", _exclude_newer, "policy.")
        return Policy(
            **lists,
            max_rank=self.rank(holder, "max-rank", "policy."),
            exclude_newer=newest,
            tests=self.checked(holder, "tests", parse_tests_policy, "policy."),
            tests_by=tuple(dict.fromkeys(self.texts(holder, "tests-by", "policy.", parse_key_name))),
            tests_max_age=self.checked(holder, "tests-max-age", parse_age, "policy."),
            tests_bounds=tuple(self.bounds(self.take(holder, "tests-bounds", dict, "policy.") or {})),
            tests_never=self.checked(holder, "tests-never", _path_inside, "policy."),
        )

    def bounds(self, table: Mapping[str, Any]) -> Iterator[str]:
        for name in sorted(table):
            path = f"policy.tests-bounds.{name}"
            number = self.take(table, name, float, "policy.tests-bounds.")
            if number is not None and (text := self.parsed(f"{name}={number}", bound_text, path)) is not None:
                yield text

    # ------------------------------------------------------------ what stands in two places
    def names_agree(self, project: Project, remotes: Mapping[str, Any]) -> None:
        """Record names that are used twice, and references to names that do not exist."""
        places: dict[str, str] = {}
        for wanted in project.requirements:
            table = "merges" if isinstance(wanted, MergeRequirement) else "adapters"
            path = (
                f"groups.{wanted.group}.{wanted.key}"
                if wanted.group and table == "adapters"
                else f"{table}.{wanted.key}"
            )
            if wanted.key in places:
                self.say(path, f"the name is used twice, here and by {places[wanted.key]}")
            places.setdefault(wanted.key, path)
        for one in project.adapters:
            if one.remote is not None and one.remote not in remotes:
                near = self.near(one.remote, remotes) or "; `[remotes]` of this file does not name it"
                self.say(f"{places[one.key]}.remote", f"no remote `{shown(one.remote)}`{near}")
        inputs = {str(merge.key): [leaf.spec for leaf in merge.step.leaves()] for merge in project.merges}
        for key, named in inputs.items():
            for name in dict.fromkeys(named):
                if name not in places:
                    near = self.near(name, places.keys() - {key}) or "; add it under `[adapters]`"
                    self.say(f"merges.{key}.inputs", f"this project has nothing named `{shown(name)}`{near}")
        if loop := _loop(inputs):
            self.say(f"merges.{loop[0]}", f"made of itself: {' -> '.join(loop)}")


def _loop(inputs: Mapping[str, Sequence[str]]) -> list[str]:
    """A cycle of merges, from one back to itself; empty if there is none."""
    done: set[str] = set()
    for start in inputs:
        trail = {start: [*inputs[start]]}
        while trail:
            key, rest = next(reversed(trail.items()))
            if not rest:
                done.add(key)
                del trail[key]
                continue
            name = rest.pop()
            if name in trail:
                keys = [*trail]
                return [*keys[keys.index(name) :], name]
            if name in inputs and name not in done:
                trail[name] = [*inputs[name]]
    return []


def _weights(value: object, _text: str) -> dict[str, float]:
    return weights_in(value)


def _word(text: str) -> str:
    if not text or not text.isprintable() or text != text.strip():
        raise UsageProblem("expected a word")
    return text


def _exclude_newer(text: str) -> str:
    """`text` in its normal form."""
    try:
        return parse_newest_allowed(text).text
    except ValueError as error:
        raise UsageProblem(str(error)) from None


def _path_inside(text: str) -> str:
    """A path from the project that does not leave it."""
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts or "\\" in text:
        raise UsageProblem(f"expected a path inside the project, as in `tests/never.jsonl`, got `{shown(text)}`")
    return text

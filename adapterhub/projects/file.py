"""Reads `adapters.toml` into a `Project`, strictly, with the place of every problem; and edits it, comments kept."""

from __future__ import annotations

import codecs
import datetime as dt
import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, cast

from adapterhub.core.dates import NewestAllowed, parse_newest_allowed, time_text
from adapterhub.core.disk.files import output_place, read_plain, write_durably
from adapterhub.core.disk.home import LOCK_FILE, PROJECT_FILE
from adapterhub.core.errors import (
    Conflict,
    Malformed,
    NotAllowed,
    NotFound,
    SpecError,
    UsageProblem,
    problem_list,
    shown,
)
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
from adapterhub.distribution.resolve import Candidate, Objection
from adapterhub.formats.alias import parse_alias
from adapterhub.formats.contract.standards import bound_text, parse_age, parse_tests_policy
from adapterhub.formats.documents import DocumentReader, both_sides, line_of, lines_of, near_name, toml_of
from adapterhub.formats.licenses import Expression, spdx_name
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

if TYPE_CHECKING:
    from tomlkit import TOMLDocument
    from tomlkit.items import Table

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
    """Return the bytes of the project file in `folder`; `parse_project` refuses a file beyond `LIMIT_BYTES`.

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
        raise Malformed(
            f"`{shown(where, 200)}`: larger than the limit of {LIMIT_BYTES:,} bytes for a project file",
            hint="move adapters into a second project",
        )
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
    """Return the spec that `text` means for the entry `key`: versions of the adapter `key`, or a whole spec.

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
    """Return our form of a range of other package managers (`^1.2`, `1.x`, `latest`, `1.2`); None if it is not one."""
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
    """Return the number of adapters, groups, merges and remotes in a document, counted before any is read."""
    groups = document.get("groups")
    tables = [document.get(name) for name in ("adapters", "merges", "remotes")]
    tables += [groups, *groups.values()] if isinstance(groups, dict) else []
    aliases = document.get("aliases")
    tables += [one for table in aliases.values() for one in _tables_in(table)] if isinstance(aliases, dict) else []
    return sum(len(table) for table in tables if isinstance(table, dict))


def _tables_in(table: object) -> list[object]:
    """Return a table and the tables in it."""
    return [table, *table.values()] if isinstance(table, dict) else []


def _malformed(where: str, problems: Sequence[str]) -> Malformed:
    return Malformed(
        problem_list(f"`{shown(where, 200)}`: not a usable project file", problems),
        hint="correct these lines, and run the command again",
    )


def _unreadable(raw: bytes) -> str | None:
    """Return a clearer reason than the TOML parser's for an encoding or a merge conflict; None otherwise."""
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
                self.say(f"aliases.{key}", f"no adapter `{shown(key)}` in this project{near}")
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
            newest = self.checked(
                {"exclude-newer": newest}, "exclude-newer", lambda text: parse_newest_allowed(text).text, "policy."
            )
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
                    self.say(f"merges.{key}.inputs", f"no adapter `{shown(name)}` in this project{near}")
        if loop := _loop(inputs):
            self.say(f"merges.{loop[0]}", f"made of itself: {' -> '.join(loop)}")


def _loop(inputs: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a cycle of merges, from one back to itself; empty if there is none."""
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


def _path_inside(text: str) -> str:
    """Return a path from the project that does not leave it."""
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts or "\\" in text:
        raise UsageProblem(f"expected a path inside the project, as in `tests/never.jsonl`, got `{shown(text)}`")
    return text


_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*[A-Za-z0-9+]")


def parse_exclude_newer(text: str) -> NewestAllowed:
    """Read `exclude-newer`: `2026-01-31` (that day and before, in UTC), an RFC 3339 time, or an age as in `7d`.

    Raises:
        UsageProblem: `text` is not one of these.
    """
    try:
        return parse_newest_allowed(text)
    except ValueError as error:
        raise UsageProblem(
            f"exclude-newer: {error}", hint="write a day, a time or an age, as in `2026-01-31` or `7d`"
        ) from None


def refusal(policy: Policy, candidate: Candidate, now: float) -> str | None:
    """Every reason of `policy` against a release, as one text; None if it is allowed. `now` is Unix time.

    Raises:
        UsageProblem: the policy's `exclude_newer` cannot be read.
    """
    return "; ".join(_reasons(policy, candidate, now)) or None


def objection_of(policy: Policy, now: float) -> Objection | None:
    """`refusal` in the form that `resolve` takes; None for an empty policy.

    Raises:
        UsageProblem: as `refusal`, here and now.
    """
    if policy == Policy():
        return None
    if policy.exclude_newer is not None:
        parse_exclude_newer(policy.exclude_newer)
    return lambda candidate: refusal(policy, candidate, now)


def _reasons(policy: Policy, one: Candidate, now: float) -> Iterator[str]:
    yield from _namespace(policy, one.namespace)
    yield from _license(policy, one.license)
    yield from _methods(policy, one.method)
    if policy.max_rank is not None and one.rank is None:
        yield f"rank not recorded, policy `max-rank` is {policy.max_rank}"
    elif policy.max_rank is not None and one.rank is not None and one.rank > policy.max_rank:
        yield f"rank {one.rank}, policy `max-rank` is {policy.max_rank}"
    if policy.exclude_newer is not None:
        yield from _date(parse_exclude_newer(policy.exclude_newer), one.published_at, now)


def _namespace(policy: Policy, namespace: str | None) -> Iterator[str]:
    # hubs treat `Acme` and `acme` as one
    name = (namespace or "").casefold()
    if namespace and name in _folded(policy.deny_namespaces):
        yield f"policy `deny-namespaces` holds `{shown(namespace)}`"
    elif policy.allow_namespaces and name not in _folded(policy.allow_namespaces):
        what = f"namespace `{shown(namespace)}`" if namespace else "no namespace"
        yield f"{what}, policy `allow-namespaces` holds {_listed(policy.allow_namespaces)}"


def _license(policy: Policy, stated: str | None) -> Iterator[str]:
    if policy.allow_licenses or policy.deny_licenses:
        reason = _license_reason(policy.allow_licenses, policy.deny_licenses, stated)
        if reason is not None:
            yield reason


@lru_cache(maxsize=1024)
def _license_reason(allow: tuple[str, ...], deny: tuple[str, ...], stated: str | None) -> str | None:
    """Return the reason against a licence, unless one way to comply with it is allowed and includes no denied licence.

    If the text is not an SPDX expression, any denied word in it refuses it, and only the whole text can be allowed.
    """
    allowed, denied = _licenses(allow), _licenses(deny)
    outside = f"policy `allow-licenses` holds {_listed(allow)}"
    if not stated:
        return f"states no licence, {outside}" if allow else None
    expression = Expression.parse(stated)
    if expression is None:
        is_denied = any(_forms(word) & denied for word in [stated, *_WORD.findall(stated)])
        is_allowed = not allow or stated.casefold() in allowed
    else:
        ways = [way.identifiers for way in expression.choices]
        open_ways = [way for way in ways if not any(_forms(one) & denied for one in way)]
        is_denied = not open_ways
        is_allowed = not allow or any(all(_forms(one) & allowed for one in way) for way in open_ways)
    if is_denied:
        return f"licence {shown(stated)}, policy `deny-licenses` holds {_listed(deny)}"
    return None if is_allowed else f"licence {shown(stated)}, {outside}"


def _methods(policy: Policy, method: str) -> Iterator[str]:
    words = [word.casefold() for word in method.split(",") if word]
    if policy.allow_methods and not words:
        yield f"states no method, policy `allow-methods` holds {_listed(policy.allow_methods)}"
    if denied := [word for word in words if word in _folded(policy.deny_methods)]:
        yield f"made with {_listed(denied)}, policy `deny-methods` holds {_listed(policy.deny_methods)}"
    elif policy.allow_methods and (other := [word for word in words if word not in _folded(policy.allow_methods)]):
        yield f"made with {_listed(other)}, policy `allow-methods` holds {_listed(policy.allow_methods)}"


def _date(newest: NewestAllowed, published_at: float | None, now: float) -> Iterator[str]:
    if published_at is None:
        yield f"its date is not known, `exclude-newer` {newest.text} takes only what is known to be older"
    elif published_at > (moment := newest.moment(now)):
        yield f"dated {time_text(published_at)}, `exclude-newer` {newest.text} takes none after {time_text(moment)}"


def _licenses(names: Iterable[str]) -> frozenset[str]:
    """Return the listed licences in every equivalent spelling."""
    return frozenset(form for name in names for form in (name.casefold(), spdx_name(name).casefold()))


def _forms(identifier: str) -> frozenset[str]:
    """Return the ways to list an identifier: whole, without its exception (`GPL-2.0-only WITH …`), without `+`."""
    plain = identifier.partition(" WITH ")[0]
    return frozenset(form.casefold() for form in (identifier, plain, plain.removesuffix("+")))


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.casefold() for name in names)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{shown(name)}`" for name in names)


_START: Final = """\
[project]{base}

# Adapters by name. `adapt install NAME --save` adds them here, `adapt lock` chooses versions, `adapt sync` brings them.
[adapters]
# legal-qa = ">=1.2,<2"
# summarize = {{ spec = "acme/summarize~=1.0", rank = "-16" }}
"""
_NO_BASE: Final = '\n# base = "base-7b"   the base model that all adapters of this project are for'


TomlItem = Any
"""Text or a table, as tomlkit has them."""


def new_project_text(base: BaseSpec | None = None) -> str:
    """Return the text of a new project file."""
    import tomlkit

    return _START.format(base=f"\nbase = {tomlkit.item(base.text).as_string()}" if base else _NO_BASE)


def create_project(folder: Path, base: BaseSpec | None = None) -> Project:
    """Create a project in `folder`.

    Raises:
        Conflict: it already is a project.
        NotAllowed: it cannot be written, or it is inside a library.
    """
    path = folder / PROJECT_FILE
    output_place(path)
    if path.exists() or path.is_symlink():
        hint = "edit it, or name another folder"
        raise Conflict(f"`{shown(str(folder), 200)}` already has an `{PROJECT_FILE}`. It was not changed", hint=hint)
    return write_project(folder, new_project_text(base))


def project_of(text: str, folder: Path) -> Project:
    """Parse the text of a project file of `folder` that is not written yet."""
    return parse_project(text.encode(), folder, str(folder / PROJECT_FILE))


# ---------------------------------------------------------------- text to text
def with_adapter(text: str, wanted: AdapterRequirement) -> str:
    """Return the text with this adapter in it; an older entry of the name is replaced, in whichever table it is.

    Raises:
        Conflict: a merge has the name.
    """
    document, line_end = _parsed(text)
    if wanted.key in document.get("merges", {}):
        raise Conflict(
            f"`{wanted.key}` is a merge of this project. Nothing was changed",
            hint=f"`adapt remove {wanted.key} --save` removes it; or choose another name",
        )
    table = _holder(document, wanted.group)
    for other in _tables(document):
        if other is not table and wanted.key in other:
            del other[wanted.key]
    _put(table, wanted.key, _entry(wanted))
    return document.as_string().replace("\n", line_end)


def with_alias(text: str, key: AdapterName, name: str, weights: Mapping[str, float]) -> str:
    """Return the text in which the alias `name` of the adapter `key` means these versions."""
    import tomlkit

    document, line_end = _parsed(text)
    if "aliases" not in document:
        document["aliases"] = tomlkit.table(is_super_table=True)
    aliases = cast("Table", document["aliases"])
    if key not in aliases:
        aliases[key] = tomlkit.table()
    entry: TomlItem = next(iter(weights))
    if len(weights) > 1:
        entry = tomlkit.inline_table()
        entry.update(weights)
    _put(cast("Table", aliases[key]), AdapterName(name), entry)
    return document.as_string().replace("\n", line_end)


def not_in_project(name: str, keys: Collection[str]) -> NotFound:
    """Return the error for a name that the project's `keys` lack, with the nearest of them."""
    near = near_name(name.rpartition("/")[2], keys)
    return NotFound(f"no adapter `{shown(name)}` in this project{near}", hint=f"`{PROJECT_FILE}` lists all names")


def without_adapters(text: str, keys: Sequence[AdapterName]) -> str:
    """Return the text without these adapters or merges.

    Raises:
        NotFound: the project has none of that name.
        Conflict: merges are made of it.
    """
    project = parse_project(text.encode(), Path(), PROJECT_FILE)
    known = [wanted.key for wanted in project.requirements]
    for key in keys:
        if key not in known:
            raise not_in_project(key, known)
        users = [
            merge.key
            for merge in project.merges
            if merge.key not in keys and any(leaf.spec == key for leaf in merge.step.leaves())
        ]
        if users:
            together = " ".join([*users, *keys])
            raise Conflict(
                f"`{key}` is part of {', '.join(f'`{user}`' for user in users)}. Nothing was changed",
                hint=f"`adapt remove {together} --save` removes all of them; or remove `{key}` from the recipe",
            )
    document, line_end = _parsed(text)
    for table in (*_tables(document), document.get("merges", {}), document.get("aliases", {})):
        for key in keys:
            if key in table:
                del table[key]
    return document.as_string().replace("\n", line_end)


def _parsed(text: str) -> tuple[TOMLDocument, str]:
    """Return the document with Unix line ends, and the line end of the text."""
    import tomlkit

    return tomlkit.parse(text.replace("\r\n", "\n")), "\r\n" if "\r\n" in text else "\n"


def _put(table: TomlItem, key: AdapterName, entry: TomlItem) -> None:
    """Set `key`. A new key goes after the last one, before blank lines and comments of the next table."""
    from tomlkit.items import Table

    if key in table or type(table) is not Table or any(isinstance(item, Table) for _, item in table.value.body):
        table[key] = entry  # in place, or before nested tables, which tomlkit handles
        return
    body = table.value.body
    end = max((at + 1 for at, (one, _) in enumerate(body) if one is not None), default=None)
    if end is None:  # an empty table owns its comments up to the last blank line
        end = max((at for at, (_, item) in enumerate(body) if not item.as_string().strip()), default=len(body))
    held = body[end:]
    del body[end:]
    table[key] = entry
    body.extend(held)


def _entry(wanted: AdapterRequirement) -> TomlItem:
    """Return the shortest form that reads as `wanted`."""
    import tomlkit

    text = str(wanted.spec)
    if wanted.spec.namespace is None and wanted.spec.name == wanted.key:
        short = text.removeprefix(wanted.key)
        text = short or "*"
    assert wanted_spec(wanted.key, text) == wanted.spec
    written = wanted.ranks.written
    more: dict[str, int | str] = {"rank": int(written) if written.isdigit() else written} if written else {}
    more |= {} if wanted.remote is None else {"remote": wanted.remote}
    if not more:
        return text
    table = tomlkit.inline_table()
    table.update({"spec": text, **more})
    return table


def _holder(document: TOMLDocument, group: str | None) -> Table:
    """`[adapters]` or `[groups.GROUP]`, created if missing."""
    import tomlkit

    if group is None:
        if "adapters" not in document:
            document["adapters"] = tomlkit.table()
        return cast("Table", document["adapters"])
    if "groups" not in document:
        document["groups"] = tomlkit.table(is_super_table=True)
    groups = cast("Table", document["groups"])
    if group not in groups:
        groups[group] = tomlkit.table()
    return cast("Table", groups[group])


def _tables(document: TOMLDocument) -> list[Any]:
    """Every table that holds adapters."""
    return [document.get("adapters", {}), *document.get("groups", {}).values()]


# ---------------------------------------------------------------- files
def text_of_project(folder: Path) -> str:
    """Return the text of the project file.

    Raises:
        NotFound: there is no project file.
    """
    raw = project_bytes(folder)
    parse_project(raw, folder, str(folder / PROJECT_FILE))  # raises if it is not a valid project in UTF-8
    return raw.decode("utf-8")


def write_project(folder: Path, text: str) -> Project:
    """Write a whole project file atomically, if it is valid."""
    project = project_of(text, folder)
    path = folder / PROJECT_FILE
    output_place(folder / LOCK_FILE)  # which is written next: both or neither
    try:
        write_durably(output_place(path), text.encode())
    except OSError as error:
        raise NotAllowed(
            f"`{shown(str(path), 200)}` cannot be written: {error.strerror}. It is unchanged",
            hint="check its permissions and the free space",
        ) from error
    return project

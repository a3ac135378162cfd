"""The aliases of a library: moving names of adapters, with their history.

    aliases/[<namespace>--]<name>@<alias>.json
        {"adapter", "alias", "place", "moves": [{"action", "at", "by", "targets": [{"version", "digest", "weight"}]}]}
    aliases/[<namespace>--]<name>@<alias>.unsynced
        {"boot", "alias": …}

The last move counts; a removed alias keeps its history. Each change replaces the file as a whole, so a crash leaves
the old alias or the new one. An alias of a stream may also have "dropped" and "refused".

A move may count before it is durable. It is in the second file then, beside the boot id of this machine, and readers
under the same boot take that file for the first. After a power cut the boot is another one, so the first file counts,
whose targets were durable before it named them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.digests import Digest, canonical_json, strict_json
from adapterhub.core.disk.files import read_plain
from adapterhub.core.disk.root import Root, myself
from adapterhub.core.errors import AmbiguousSpec, Conflict, Malformed, NotFound, UsageProblem, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.alias import (
    MOST_MOVES,
    MOST_REFUSED,
    Action,
    Alias,
    AliasMove,
    AliasTarget,
    RefusedMove,
    check_targets,
    earlier,
    parse_alias,
    short,
)

if TYPE_CHECKING:
    from adapterhub.library.store.catalog import Installed

_FOLDER: Final = "aliases"
_LOCK: Final = "aliases"
_UNSYNCED: Final = ".unsynced"


class Aliases:
    """The aliases of the library under `root`. Cheap to make; files are read when needed."""

    def __init__(self, root: Path) -> None:
        self._root = Root(root)
        self._folder = root / _FOLDER

    # ------------------------------------------------------------ read
    def all(self, adapter: str | None = None) -> list[Alias]:
        """Every alias, or those of one adapter by its full name, sorted; removed ones are left out.

        Raises:
            Malformed: the file of one is damaged.
        """
        return self._read_all(self._files(f"{_stem(adapter)}@" if adapter else ""))

    def _files(self, begin: str = "", end: str = "") -> list[Path]:
        """Return the files of aliases whose names, without `.json`, begin and end so; sorted. It opens none."""
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - a hundred thousand names
        except FileNotFoundError:
            return []
        end = f"{end}.json"
        found = [name for name in names if name.endswith(end) and name.startswith(begin)]
        return [self._folder / name for name in sorted(found) if "@" in name and not name.startswith(".")]

    def _read_all(self, paths: Sequence[Path]) -> list[Alias]:
        return [alias for path in paths if (alias := self.read_at(path)) is not None and alias.targets]

    def get(self, adapter: str, name: str) -> Alias | None:
        """One alias; None if there is none, or it was removed."""
        alias = self.ever(adapter, name)
        return alias if alias is not None and alias.targets else None

    def ever(self, adapter: str, name: str) -> Alias | None:
        """One alias with its history, also after its removal; None if there never was one.

        Raises:
            Malformed: its file is damaged.
        """
        return self.read_at(self._path(adapter, name))

    def stamp(self, adapter: str, name: str) -> object:
        """Return a stamp that differs once an alias moves. Its two opens make a network file system ask its server."""
        path = self._path(adapter, name)
        return _stamp(path), _stamp(path.with_suffix(_UNSYNCED))

    def meant(self, spec: AdapterSpec) -> Alias | None:
        """Return the alias that the `@word` of a spec is; None if it is not an alias.

        A name without a namespace means its own alias, or the only one of that name in any namespace.

        Raises:
            AmbiguousSpec: adapters of several namespaces have such an alias.
            Malformed: its file is damaged.
        """
        if spec.base is None or spec.base.kind != "alias":
            return None
        found = self.get(spec.full_name, spec.base.text)
        if found is not None or spec.namespace is not None:
            return found
        named = self._read_all(self._files(end=f"--{spec.name}@{spec.base.text}"))
        if len(named) > 1:
            choices = [(str(alias), alias.text()) for alias in named]
            raise AmbiguousSpec(f"`{spec}` is the alias of {len(named)} adapters", choices, hint="name one of them")
        return named[0] if named else None

    def by_build(self, adapter: str | None = None, *, strict: bool = False) -> dict[tuple[str, str], list[str]]:
        """By full name and digest, the aliases that have a build as a target; damaged files are passed over.

        With `adapter`, it reads only the aliases of that full name.

        Raises:
            Malformed: with `strict`, the file of one is damaged, so that it may have any build as a target.
        """
        return self._by_build(self._files(f"{_stem(adapter)}@" if adapter else ""), strict=strict)

    def shown_with(self, adapter: str) -> dict[str, list[str]]:
        """Return by digest the aliases of one adapter that have a build as a target, for a page; skip damaged files.

        The names of the files are read once and kept until their folder changes.
        """
        paths = [self._folder / name for name in _listed(self._folder).get(_stem(adapter), ())]
        return {digest: names for (_, digest), names in self._by_build(paths).items()}

    @staticmethod
    def _by_build(paths: Sequence[Path], *, strict: bool = False) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = {}
        for path in paths:
            try:
                alias = Aliases.read_at(path)
            except Malformed:
                if strict:
                    raise
                continue
            if alias is None:  # removed since it was listed
                continue
            before = _read(path)  # what counts again after a power cut
            for target in dict.fromkeys((*alias.targets, *(before.targets if before else ()))):
                found.setdefault((alias.adapter, target.digest), []).append(alias.name)
        return found

    def ensure_none(self, builds: Sequence[Installed]) -> None:
        """Raise if an alias has one of the builds as a target.

        Raises:
            Conflict: names the aliases, and how to move them.
            Malformed: an alias of one of their adapters is damaged, so that it may have them as targets.
        """
        adapters = {build.full_name for build in builds}
        of_adapter = {name: self.by_build(name, strict=True) for name in adapters}
        for build in builds:
            by_build = of_adapter[build.full_name]
            if names := by_build.get((build.full_name, build.manifest.digest)):
                listed = ", ".join(f"`{build.full_name}@{name}`" for name in names)
                raise Conflict(
                    f"{build.full_name} {build.manifest.label} is {listed}. Nothing was removed",
                    hint=f"move it first with `adapt alias set {names[0]} {build.full_name}==VERSION`, or remove it "
                    f"with `adapt alias remove {build.full_name}@{names[0]}`",
                )

    def lacking(self, adapter: str, name: str) -> NotFound:
        """Return the error for an alias that an adapter does not have; its hint names those that it has."""
        known = ", ".join(f"`{one.name}`" for one in self.all(adapter))
        hint = f"it has {known}" if known else "`adapt alias list` shows the aliases"
        return NotFound(f"`{shown(adapter)}` has no alias `{shown(name)}`. Nothing was changed", hint=hint)

    # ------------------------------------------------------------ change
    def move(
        self,
        adapter: str,
        name: str,
        targets: Sequence[AliasTarget],
        *,
        action: Action = "set",
        place: str = "",
        durable: bool = True,
    ) -> Alias:
        """Point an alias at `targets`, or remove it with none; one change at a time. Equal targets make no new move.

        Without `durable`, a power cut takes the move back until `settle` has made it durable; an alias that was never
        moved has to be durable.

        Raises:
            UsageProblem: an alias may not have these targets.
            SpecError: it may not have this name.
            NotAllowed, DiskFull, StoreLocked: the library cannot be written; the alias is as before.
        """
        name = parse_alias(name)
        with self._root.lock(_LOCK, exclusive=True):
            return self._move(self.ever(adapter, name), adapter, name, targets, action, place, durable=durable)

    def refuse(self, adapter: str, name: str, target: AliasTarget, why: str) -> Alias:
        """Note a version to which a gate does not let the alias move; what it means stays."""
        with self._root.lock(_LOCK, exclusive=True):
            alias = self.ever(adapter, name) or Alias(adapter=adapter, name=parse_alias(name))
            after = alias.dropped + len(alias.moves)
            one = RefusedMove(
                version=target.version, digest=target.digest, at=time.time(), why=shown(why, 500), after=after
            )
            alias = replace(alias, refused=(*alias.refused, one)[-MOST_REFUSED:])
            self._write(alias, durable=self._unsynced(self._path(adapter, name)) is None)
            return alias

    def settle(self, adapter: str, name: str, digest: Digest) -> None:
        """Make the moves durable up to the last one to `digest`, whose bytes are durable by now."""
        with self._root.lock(_LOCK, exclusive=True):
            alias = self._unsynced(self._path(adapter, name))
            to = (
                [at for at, move in enumerate(alias.moves, 1) if digest in (t.digest for t in move.targets)]
                if alias
                else []
            )
            if alias is not None and to:
                self._write(replace(alias, moves=alias.moves[: to[-1]]))
                if to[-1] == len(alias.moves):
                    self._forget_unsynced(adapter, name)

    def _forget_unsynced(self, adapter: str, name: str) -> None:
        with self._root.os_errors_as_refusals():
            self._path(adapter, name).with_suffix(_UNSYNCED).unlink(missing_ok=True)

    def remove(self, adapter: str, name: str) -> Alias:
        """Remove an alias; its history stays.

        Raises:
            NotFound: there is no such alias.
        """
        with self._root.lock(_LOCK, exclusive=True):
            alias = self.get(adapter, name)
            if alias is None:
                raise self.lacking(adapter, name)
            return self._move(alias, adapter, name, (), "remove", alias.place)

    def roll_back(self, adapter: str, name: str, *, to: int | None = None) -> Alias:
        """Point an alias at what it had before its last move, or after the move number `to` of its history.

        Raises:
            NotFound: there is no such alias or move, or nothing before.
        """
        with self._root.lock(_LOCK, exclusive=True):
            alias = self.ever(adapter, name)
            if alias is None:
                raise self.lacking(adapter, name)
            return self._move(alias, adapter, name, earlier(alias, to), "rollback", "")

    def _move(
        self,
        before: Alias | None,
        adapter: str,
        name: str,
        targets: Sequence[AliasTarget],
        action: Action,
        place: str,
        *,
        durable: bool = True,
    ) -> Alias:
        if targets:
            targets = check_targets(f"{adapter}@{name}", targets)
        if before is not None and before.targets == tuple(targets) and before.place == place:
            return before
        before = before or Alias(adapter=adapter, name=name)
        moves = (*before.moves, AliasMove(action=action, at=time.time(), by=_user(), targets=tuple(targets)))
        dropped = max(len(moves) - MOST_MOVES, 0)
        made = replace(before, moves=moves[dropped:], dropped=before.dropped + dropped, place=place)
        self._write(made, durable=durable)
        if durable:
            self._forget_unsynced(adapter, name)
        return made

    def _write(self, alias: Alias, *, durable: bool = True) -> None:
        value: dict[str, Any] = {
            "adapter": alias.adapter,
            "alias": alias.name,
            "place": alias.place,
            "moves": [],
        }
        if alias.dropped:
            value["dropped"] = alias.dropped
        if alias.refused:
            value["refused"] = [one.to_json() for one in alias.refused]
        # each move was written before, but for the last: to write a hundred again takes a millisecond
        data = canonical_json(value).replace(b'"moves":[]', b'"moves":[%s]' % b",".join(map(_json_of, alias.moves)))
        path, boot = self._path(alias.adapter, alias.name), "" if durable else myself().boot
        if boot:
            path, data = path.with_suffix(_UNSYNCED), b'{"alias":%s,"boot":%s}' % (data, canonical_json(boot))
        self._root.write(path, data, sync=not boot)
        _remember(data, alias, boot)

    def _path(self, adapter: str, name: str) -> Path:
        return self._folder / f"{_stem(adapter)}@{name}.json"

    @staticmethod
    def read_at(path: Path) -> Alias | None:
        """Return the alias in a file, with the moves since then that are not durable yet; None if there is none.

        Raises:
            Malformed: it is damaged.
        """
        return Aliases._unsynced(path) or _read(path)

    @staticmethod
    def _unsynced(path: Path) -> Alias | None:
        """Return the alias with moves that are not durable yet; None after a power cut, and where there are none."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, UsageProblem):
            boot, alias = _known(read_plain(path.with_suffix(_UNSYNCED), _LIMIT_BYTES))
            if boot and boot == myself().boot:
                return alias
        return None


def _read(path: Path) -> Alias | None:
    """Return the alias in a file without the moves that are not durable yet; as `Aliases.read_at`."""
    try:
        return _known(read_plain(path, _LIMIT_BYTES))[1]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageProblem) as error:
        raise Malformed(
            f"`{shown(str(path), 200)}` is damaged: {shown(str(error), 200)}",
            hint="delete it, then set the alias again with `adapt alias set`",
        ) from None


_LISTED: Final[dict[Path, tuple[tuple[int, int], dict[str, list[str]]]]] = {}
_SETTLED_NS: Final = 2_000_000_000
"""Two changes of a folder may have one time; a list is kept once the last change is so long ago."""


def _listed(folder: Path) -> dict[str, list[str]]:
    """Return the names of the files of aliases in a folder by what stands before their `@`."""
    try:
        facts = folder.stat()
        key = facts.st_ino, facts.st_mtime_ns
        if (kept := _LISTED.get(folder)) is not None and kept[0] == key:
            return kept[1]
        names = sorted(os.listdir(folder))  # noqa: PTH208 - a hundred thousand names
    except FileNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for name in names:
        stem, at, _ = name.partition("@")
        if at and name.endswith(".json") and not name.startswith("."):
            found.setdefault(stem, []).append(name)
    if time.time_ns() - facts.st_mtime_ns > _SETTLED_NS:
        _LISTED[folder] = key, found
    return found


_KNOWN: Final[dict[bytes, tuple[str, Alias]]] = {}
"""What was read or written last, by the bytes of the file: to parse a hundred moves takes longer than to publish."""
_MOST_KNOWN: Final = 64
_LIMIT_BYTES: Final = 1 << 20


def _known(data: bytes) -> tuple[str, Alias]:
    """Return the boot id in a file, "" for none, and the alias."""
    found = _KNOWN.get(data)
    if found is None:
        value = strict_json(data, limit_bytes=_LIMIT_BYTES)
        boot = value.get("boot", "")
        found = (boot, _parsed(value["alias"] if boot else value))
        _keep(data, found)
    return found


def _remember(data: bytes, alias: Alias, boot: str = "") -> None:
    """Keep an alias that was just written, as it will be read: times are whole seconds."""
    moves = tuple(move if move.at.is_integer() else replace(move, at=float(int(move.at))) for move in alias.moves)
    refused = tuple(replace(one, at=float(int(one.at))) for one in alias.refused)
    _keep(data, (boot, replace(alias, moves=moves, refused=refused)))


def _keep(data: bytes, found: tuple[str, Alias]) -> None:
    while len(_KNOWN) >= _MOST_KNOWN:
        with contextlib.suppress(StopIteration, RuntimeError, KeyError):  # another thread was faster
            del _KNOWN[next(iter(_KNOWN))]
    _KNOWN[data] = found


@lru_cache(1024)
def _json_of(move: AliasMove) -> bytes:
    return canonical_json(move.to_json())


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        facts = os.fstat(handle)
    finally:
        os.close(handle)
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def not_here(alias: Alias, target: AliasTarget) -> str:
    """Return the sentence that the target of an alias is not installed."""
    return f"`{alias}` is {alias.adapter} {target.version} ({short(target.digest)}), which is not installed here"


def _stem(adapter: str) -> str:
    return adapter.replace("/", "--")


def _user() -> str:
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without that user
        name = f"uid {os.getuid()}"
    return f"{name}@{os.uname().nodename}"


def _parsed(value: Any) -> Alias:
    spec = AdapterSpec.parse(value["adapter"])
    moves = tuple(map(AliasMove.from_json, value["moves"]))
    refused = tuple(map(RefusedMove.from_json, value.get("refused", ())))
    dropped = value.get("dropped", 0)
    if not (moves or refused) or not isinstance(value["place"], str):
        raise ValueError("it has no moves, or no place")
    if not isinstance(dropped, int) or dropped < 0:
        raise ValueError("`dropped` is not a number of moves")
    return Alias(
        adapter=spec.full_name,
        name=parse_alias(value["alias"]),
        moves=moves,
        place=value["place"],
        dropped=dropped,
        refused=refused,
    )

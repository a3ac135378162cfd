"""The aliases of a library: moving names of adapters, with their history.

    aliases/[<namespace>--]<name>@<alias>.json
        {"adapter", "alias", "place", "moves": [{"action", "at", "by", "targets": [{"version", "digest", "weight"}]}]}

The last move counts; a removed alias keeps its history. Each change replaces the file as a whole, so a crash leaves
the old alias or the new one.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import canonical_json
from adapterhub.core.disk.files import read_json
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import AmbiguousSpec, Conflict, Malformed, NotFound, UsageProblem, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.alias import (
    ACTIONS,
    MOST_MOVES,
    Action,
    Alias,
    AliasMove,
    AliasTarget,
    check_targets,
    earlier,
    parse_alias,
    short,
)

if TYPE_CHECKING:
    from adapterhub.library.store.catalog import Installed

_FOLDER: Final = "aliases"
_LOCK: Final = "aliases"


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
        pattern = f"{_stem(adapter)}@*.json" if adapter else "[!.]*@*.json"
        found = [self.read_at(path) for path in sorted(self._folder.glob(pattern))]
        return [alias for alias in found if alias is not None and alias.targets]

    def get(self, adapter: str, name: str) -> Alias | None:
        """One alias; None where there is none, or it was removed."""
        alias = self.ever(adapter, name)
        return alias if alias is not None and alias.targets else None

    def ever(self, adapter: str, name: str) -> Alias | None:
        """One alias with its history, also after its removal; None where there never was one.

        Raises:
            Malformed: its file is damaged.
        """
        return self.read_at(self._path(adapter, name))

    def meant(self, spec: AdapterSpec) -> Alias | None:
        """The alias that the `@word` of a spec is; None where it is none.

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
        others = [self.read_at(path) for path in sorted(self._folder.glob(f"*--{spec.name}@{spec.base.text}.json"))]
        named = [alias for alias in others if alias is not None and alias.targets]
        if len(named) > 1:
            choices = [(str(alias), alias.text()) for alias in named]
            raise AmbiguousSpec(f"`{spec}` is the alias of {len(named)} adapters", choices, hint="name one of them")
        return named[0] if named else None

    def by_build(self, *, strict: bool = False) -> dict[tuple[str, str], list[str]]:
        """By full name and digest, the aliases that have a build as a target; damaged files are passed over.

        Raises:
            Malformed: with `strict`, the file of one is damaged, so that it may have any build as a target.
        """
        found: dict[tuple[str, str], list[str]] = {}
        for path in sorted(self._folder.glob("[!.]*@*.json")):
            try:
                alias = self.read_at(path)
            except Malformed:
                if strict:
                    raise
                continue
            if alias is None:  # removed since it was listed
                continue
            for target in alias.targets:
                found.setdefault((alias.adapter, target.digest), []).append(alias.name)
        return found

    def ensure_none(self, builds: Sequence[Installed]) -> None:
        """Raise if an alias has one of the builds as a target.

        Raises:
            Conflict: names the aliases, and how to move them.
            Malformed: an alias of one of their adapters is damaged, so that it may have them as targets.
        """
        for stem in {_stem(build.full_name) for build in builds}:
            for path in sorted(self._folder.glob(f"{stem}@*.json")):
                self.read_at(path)
        by_build = self.by_build()
        for build in builds:
            if names := by_build.get((build.full_name, build.manifest.digest)):
                listed = ", ".join(f"`{build.full_name}@{name}`" for name in names)
                raise Conflict(
                    f"{build.full_name} {build.manifest.label} is {listed}. Nothing was removed",
                    hint=f"move it first with `adapt alias set {names[0]} {build.full_name}==VERSION`, or remove it "
                    f"with `adapt alias remove {build.full_name}@{names[0]}`",
                )

    # ------------------------------------------------------------ change
    def move(
        self, adapter: str, name: str, targets: Sequence[AliasTarget], *, action: Action = "set", place: str = ""
    ) -> Alias:
        """Point an alias at `targets`, or remove it with none; one change at a time. Equal targets make no new move.

        Raises:
            UsageProblem: an alias may not have these targets.
            SpecError: it may not have this name.
            NotAllowed, DiskFull, StoreLocked: the library cannot be written; the alias is as before.
        """
        name = parse_alias(name)
        with self._root.lock(_LOCK, exclusive=True):
            return self._move(self.ever(adapter, name), adapter, name, targets, action, place)

    def remove(self, adapter: str, name: str) -> Alias:
        """Remove an alias; its history stays.

        Raises:
            NotFound: there is no such alias.
        """
        with self._root.lock(_LOCK, exclusive=True):
            alias = self.get(adapter, name)
            if alias is None:
                raise no_alias(adapter, name, [one.name for one in self.all(adapter)])
            return self._move(alias, adapter, name, (), "remove", alias.place)

    def roll_back(self, adapter: str, name: str, *, to: int | None = None) -> Alias:
        """Point an alias at what it had before its last move, or after the move number `to` of its history.

        Raises:
            NotFound: there is no such alias or move, or nothing before.
        """
        with self._root.lock(_LOCK, exclusive=True):
            alias = self.ever(adapter, name)
            if alias is None:
                raise no_alias(adapter, name, [one.name for one in self.all(adapter)])
            return self._move(alias, adapter, name, earlier(alias, to), "rollback", "")

    def _move(
        self,
        before: Alias | None,
        adapter: str,
        name: str,
        targets: Sequence[AliasTarget],
        action: Action,
        place: str,
    ) -> Alias:
        if targets:
            targets = check_targets(f"{adapter}@{name}", targets)
        if before is not None and before.targets == tuple(targets) and before.place == place:
            return before
        move = AliasMove(action=action, at=time.time(), by=_user(), targets=tuple(targets))
        moves = (*(before.moves if before else ()), move)[-MOST_MOVES:]
        made = Alias(adapter=adapter, name=name, moves=moves, place=place)
        value = {
            "adapter": adapter,
            "alias": name,
            "place": place,
            "moves": [one.to_json() for one in moves],
        }
        self._root.write(self._path(adapter, name), canonical_json(value))
        return made

    def _path(self, adapter: str, name: str) -> Path:
        return self._folder / f"{_stem(adapter)}@{name}.json"

    @staticmethod
    def read_at(path: Path) -> Alias | None:
        """The alias in a file; None where there is none.

        Raises:
            Malformed: it is damaged.
        """
        try:
            return _parsed(read_json(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageProblem) as error:
            raise Malformed(
                f"`{shown(str(path), 200)}` is damaged: {shown(str(error), 200)}",
                hint="delete it, then set the alias again with `adapt alias set`",
            ) from None


def no_alias(adapter: str, name: str, known: Sequence[str]) -> NotFound:
    """The error for an alias that an adapter does not have; its hint names those that it has."""
    has = f"it has {', '.join(f'`{one}`' for one in known)}" if known else "`adapt alias list` shows the aliases"
    return NotFound(f"`{shown(adapter)}` has no alias `{shown(name)}`. Nothing was changed", hint=has)


def not_here(alias: Alias, target: AliasTarget) -> str:
    """The sentence that the target of an alias is not installed."""
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
    moves = []
    for move in value["moves"]:
        if move["action"] not in ACTIONS or not isinstance(move["by"], str):
            raise ValueError("a move has an `action`, `by`, `at` and `targets`")
        targets = tuple(AliasTarget.from_json(one) for one in move["targets"])
        moves.append(AliasMove(action=move["action"], at=parse_time(move["at"]), by=move["by"], targets=targets))
    if not moves or not isinstance(value["place"], str):
        raise ValueError("it has no moves, or no place")
    return Alias(adapter=spec.full_name, name=parse_alias(value["alias"]), moves=tuple(moves), place=value["place"])

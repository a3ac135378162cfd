"""The aliases that our registry keeps, as a client reads and moves them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from adapterhub.core.dates import parse_time
from adapterhub.core.errors import AmbiguousSpec, RemoteUnreachable, UsageProblem, shown
from adapterhub.core.specs import AdapterSpec, parse_name
from adapterhub.distribution.http.wire import Wire
from adapterhub.formats.alias import ACTIONS, MOST_TARGETS, Alias, AliasMove, AliasTarget, check_targets, parse_alias

FEATURE: Final = "aliases"
_API: Final = "api/adapt/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedAlias:
    """An alias, and the repository that has it."""

    repo: str
    alias: Alias


class RegistryAliases:
    """The aliases of one server, which has them if `is_offered`."""

    def __init__(self, wire: Wire, *, is_offered: bool) -> None:
        self._wire = wire
        self.is_offered = is_offered

    def find(self, spec: AdapterSpec) -> PublishedAlias | None:
        """The alias that the `@word` of a spec is; None where it is none.

        Raises:
            AmbiguousSpec: several repositories of the adapter have it.
        """
        if not self.is_offered or spec.namespace is None or spec.base is None or spec.base.kind != "alias":
            return None
        with self._wire.plainly(f"alias `{spec}`"):
            told = self._wire.json(f"{_API}/aliases/{spec.full_name}/{spec.base.text}")
        found = [one for one in self._read(told, "aliases") if one.repo.partition("/")[0] == spec.namespace]
        if len(found) > 1:
            choices = [(f"{one.repo}@{one.alias.name}", one.alias.text()) for one in found]
            raise AmbiguousSpec(f"`{spec}` is the alias of {len(found)} repositories", choices, hint="name one of them")
        return found[0] if found else None

    def all(self, repo: str) -> list[PublishedAlias]:
        """The aliases of a repository."""
        self._ensure_offered()
        with self._wire.plainly(f"aliases of `{repo}`"):
            return self._read(self._wire.json(f"{_API}/adapters/{repo}/aliases"), "aliases")

    def history(self, repo: str, name: str) -> Alias:
        """An alias with its moves, also after its removal; without moves where there never was one."""
        self._ensure_offered()
        with self._wire.plainly(f"history of `{repo}@{name}`"):
            told = self._wire.json(f"{_API}/adapters/{repo}/aliases/{name}/history")
        try:
            moves = tuple(_move(one, at=one["at"], by=one["by"]) for one in told["moves"])
        except (LookupError, TypeError, ValueError) as error:
            raise self._nonsense(error) from None
        return Alias(adapter=repo, name=name, moves=moves, place=self._wire.endpoint)

    def set(self, repo: str, name: str, targets: Sequence[tuple[str, float]]) -> Alias:
        """Point an alias at released versions of a repository, each with its weight."""
        body = {"targets": [{"version": version, "weight": weight} for version, weight in targets]}
        return self._post(repo, parse_alias(name), "", body)

    def roll_back(self, repo: str, name: str, to: int | None = None) -> Alias:
        """Point an alias at what it meant before, or after the move number `to`."""
        return self._post(repo, name, "/rollback", {} if to is None else {"to": to})

    def remove(self, repo: str, name: str) -> Alias:
        """Remove an alias; its history stays."""
        return self._post(repo, name, "/remove", {})

    def _post(self, repo: str, name: str, verb: str, body: dict[str, Any]) -> Alias:
        self._ensure_offered()
        with self._wire.plainly(f"alias `{repo}@{name}`"):
            self._wire.json(f"{_API}/adapters/{repo}/aliases/{name}{verb}", form=json.dumps(body).encode())
        return self.history(repo, name)

    def _ensure_offered(self) -> None:
        if not self.is_offered:
            raise UsageProblem(
                f"{self._wire.endpoint} keeps no aliases. Nothing was changed",
                hint="`adapt alias set` without `--remote` sets it in your library",
            )

    def _read(self, told: Any, key: str) -> list[PublishedAlias]:  # noqa: ANN401 - JSON
        try:
            return [_published(one, self._wire.endpoint) for one in told[key]]
        except (LookupError, TypeError, ValueError, UsageProblem) as error:
            raise self._nonsense(error) from None

    def _nonsense(self, error: Exception) -> RemoteUnreachable:
        return RemoteUnreachable(f"{self._wire.endpoint} sent no aliases: {shown(repr(error), 160)}")


def _published(value: Any, place: str) -> PublishedAlias:  # noqa: ANN401 - JSON
    repo, name, adapter = value["repo"], parse_alias(value["alias"]), value["adapter"]
    namespace, _, bare = repo.partition("/")
    full_name = f"{namespace}/{parse_name(adapter) if adapter is not None else bare}"
    move = _move(value, at=value["moved_at"], by=value["moved_by"])
    if move.targets:
        check_targets(name, move.targets)
    return PublishedAlias(repo=repo, alias=Alias(adapter=full_name, name=name, moves=(move,), place=place))


def _move(value: Any, *, at: str, by: str) -> AliasMove:  # noqa: ANN401 - JSON
    action, targets = value["action"], value["targets"]
    if action not in ACTIONS or not isinstance(by, str) or len(targets) > MOST_TARGETS:
        raise ValueError("no move of an alias")
    found = tuple(AliasTarget.from_json(one) for one in targets)
    return AliasMove(action=action, at=parse_time(at), by=shown(by, 200), targets=found)

"""Changes published versions: yanks and deletes them, moves their aliases, and reads the yanks of a registry.

Our registry records a yank itself. Any other server gets a commit with `adapterhub.yanked.json`, which has the reasons,
and then the tag `yanked-v<version>` on that commit, which is the mark.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.digests import Digest, parse_digest
from adapterhub.core.errors import AmbiguousSpec, RemoteUnreachable, SpecError, UsageProblem, shown
from adapterhub.core.specs import AdapterSpec, parse_name, version_key
from adapterhub.distribution.http.wire import Wire
from adapterhub.distribution.hub._versions import YANKED_FILE, YANKED_TAG, places_in, reasons_at, refs_of, yank_tags
from adapterhub.formats.administration import AliasRetention
from adapterhub.formats.alias import Alias, AliasMove, check_targets, parse_alias

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEMA: Final = "adapterhub-yanked/1"


class Withdrawal:
    """Withdraws on one server. `is_registry`: the server records yanks itself, as its `features` say."""

    def __init__(self, api: HfApi, wire: Wire, features: Collection[str]) -> None:
        self._api, self._wire, self._features, self.is_registry = api, wire, features, "yank" in features

    def yank(self, repo: str, version: str, reason: str) -> None:
        """Yank a version, or replace the reason. An interrupted call leaves no yank; a second call goes on."""
        with self._wire.plainly(f"yank of `{repo}` {version}"):
            if self.is_registry:
                self._post(f"api/adapt/v1/adapters/{repo}/yank", version=version, reason=reason)
                return
            commit = self._write(repo, version, f"Yank {version}: {reason}", reason)
            self._delete_mark(repo, version)
            self._api.create_tag(repo, tag=f"{YANKED_TAG}{version}", revision=commit)

    def unyank(self, repo: str, version: str) -> None:
        """Take a yank back, and keep its reason. An interrupted call leaves the yank; a second call goes on."""
        with self._wire.plainly(f"unyank of `{repo}` {version}"):
            if self.is_registry:
                self._post(f"api/adapt/v1/adapters/{repo}/unyank", version=version)
                return
            self._write(repo, version, f"Take back the yank of {version}")
            self._delete_mark(repo, version)

    def taken_back(self, repo: str) -> Mapping[str, str]:
        """Return the reason of each yank that was taken back, by the version as it is compared."""
        if self.is_registry:
            told = places_in(self._wire, repo, self._features)
            found = {one.version: one.unyanked for one in told if one.version and one.unyanked is not None}
        else:
            with self._wire.plainly(f"yanks of `{repo}`"):
                head = refs_of(self._wire, repo).branches.get("main")
                found = reasons_at(self._wire, repo, head, taken_back=True) if head else {}
        keys: dict[str, str] = {}
        for text, why in found.items():
            with contextlib.suppress(SpecError):  # a server may write anything there
                keys[version_key(text)] = why
        return keys

    def delete_version(self, repo: str, version: str) -> None:
        """Delete the tag of a version, and then the mark of its yank."""
        with self._wire.plainly(f"deletion of `{repo}` {version}"):
            self._api.delete_tag(repo, tag=f"v{version}")
            if not self.is_registry:
                self._delete_mark(repo, version)

    def delete_repository(self, repo: str) -> None:
        """Delete a repository with all its versions."""
        with self._wire.plainly(f"deletion of `{repo}`"):
            self._api.delete_repo(repo)

    def _post(self, path: str, **body: str) -> None:
        self._wire.json(path, form=json.dumps(body).encode())

    def _delete_mark(self, repo: str, version: str) -> None:
        for tag in yank_tags(refs_of(self._wire, repo).tags, version):
            self._api.delete_tag(repo, tag=tag)

    def _write(self, repo: str, version: str, message: str, reason: str | None = None) -> str:
        """Commit the reason of a version to `main`, or its removal; returns the commit with it."""
        head = refs_of(self._wire, repo).branches["main"]
        before = {back: reasons_at(self._wire, repo, head, taken_back=back) for back in (False, True)}
        known = before[False].get(version) or before[True].get(version, "")
        after = {back: {v: why for v, why in found.items() if v != version} for back, found in before.items()}
        after[reason is None][version] = known if reason is None else reason
        if after == before:
            return head
        live = {v: {"reason": why} for v, why in after[False].items()}
        value = {
            "schema": SCHEMA,
            "versions": live | {v: {"reason": why, "taken_back": True} for v, why in after[True].items()},
        }
        data = json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
        from huggingface_hub import CommitOperationAdd

        # naming the parent serializes concurrent yanks and pushes
        made = self._api.create_commit(
            repo, [CommitOperationAdd(YANKED_FILE, io.BytesIO(data))], commit_message=message, parent_commit=head
        )
        return str(made.oid)


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
        """Return the alias that the `@word` of a spec is; None if it is not an alias.

        Raises:
            AmbiguousSpec: several repositories of the adapter have it.
        """
        if not self.is_offered or spec.namespace is None or spec.base is None or spec.base.kind != "alias":
            return None
        with self._wire.plainly(f"alias `{spec}`"):
            told = self._wire.json(f"{_API}/aliases/{spec.full_name}/{spec.base.text}")
        found = [one for one in self._read(told) if one.repo.partition("/")[0] == spec.namespace]
        if len(found) > 1:
            choices = [(f"{one.repo}@{one.alias.name}", one.alias.text()) for one in found]
            raise AmbiguousSpec(f"`{spec}` is the alias of {len(found)} repositories", choices, hint="name one of them")
        return found[0] if found else None

    def all(self, repo: str) -> list[PublishedAlias]:
        """Return the aliases of a repository."""
        self._ensure_offered()
        with self._wire.plainly(f"aliases of `{repo}`"):
            return self._read(self._wire.json(f"{_API}/adapters/{repo}/aliases"))

    def history(self, repo: str, name: str) -> Alias:
        """Return an alias with its moves, also after its removal; without moves where there never was one."""
        self._ensure_offered()
        with self._wire.plainly(f"history of `{repo}@{name}`"):
            told = self._wire.json(f"{_API}/adapters/{repo}/aliases/{name}/history")
        try:
            moves = tuple(map(AliasMove.from_json, told["moves"]))
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

    def retention(self, repo: str, name: str, change: dict[str, Any] | None = None) -> AliasRetention:
        """Return how many of the versions that an alias had stay, after a `change` if there is one."""
        self._ensure_offered()
        form = None if change is None else json.dumps(change).encode()
        with self._wire.plainly(f"retention of `{repo}@{name}`"):
            told = self._wire.json(f"{_API}/adapters/{repo}/aliases/{name}/retention", form=form)
        try:
            return AliasRetention.from_json(told)
        except (LookupError, TypeError, ValueError) as error:
            raise self._nonsense(error) from None

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

    def _read(self, told: Any) -> list[PublishedAlias]:
        try:
            return [_published(one, self._wire.endpoint) for one in told["aliases"]]
        except (LookupError, TypeError, ValueError, UsageProblem) as error:
            raise self._nonsense(error) from None

    def _nonsense(self, error: Exception) -> RemoteUnreachable:
        return RemoteUnreachable(f"{self._wire.endpoint} sent no aliases: {shown(repr(error), 160)}")


def _published(value: Any, place: str) -> PublishedAlias:
    repo, name, adapter = value["repo"], parse_alias(value["alias"]), value["adapter"]
    namespace, _, bare = repo.partition("/")
    full_name = f"{namespace}/{parse_name(adapter) if adapter is not None else bare}"
    move = AliasMove.from_json({**value, "at": value["moved_at"], "by": value["moved_by"]})
    if move.targets:
        check_targets(name, move.targets)
    return PublishedAlias(repo=repo, alias=Alias(adapter=full_name, name=name, moves=(move,), place=place))


MOST_IN_PAGE: Final = 500
LONGEST_WAIT_S: Final = 30
"""How long a registry lets a request wait for an event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that changed at a registry, such as `version.yanked`; `digest` is None if it is about no build."""

    id: str
    type: str
    number: int
    repo: str
    digest: Digest | None
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Events in their order. `next` is where to continue; with `missed`, events after the start may be gone."""

    events: tuple[Event, ...]
    next: int
    missed: bool


def events_since(wire: Wire, since: int | None, wait_s: int) -> EventPage:
    """Return the events after the number `since`; with None, none, but where to begin.

    Raises:
        RemoteUnreachable: the answer is not such a page.
    """
    asked = {} if since is None else {"since": since, "wait": wait_s, "limit": MOST_IN_PAGE}
    with wire.plainly("events"):
        told = wire.json("api/adapt/v1/events", asked)
    try:
        return _page(told)
    except (LookupError, TypeError, ValueError):
        raise RemoteUnreachable(f"{wire.endpoint} sent events that this version cannot read") from None


def _page(told: Any) -> EventPage:
    if not (type(told["next"]) is int and isinstance(told["missed"], bool)):
        raise ValueError("expected a number and a truth value")
    return EventPage(events=tuple(_event(one) for one in told["events"]), next=told["next"], missed=told["missed"])


def _event(value: Mapping[str, Any]) -> Event:
    data = value["data"]
    texts = (value["id"], value["type"], data["repo"])
    if not all(isinstance(text, str) for text in texts) or type(value["number"]) is not int:
        raise ValueError("expected texts and a number")
    digest = None if data.get("digest") is None else parse_digest(data["digest"])
    return Event(id=texts[0], type=texts[1], number=value["number"], repo=texts[2], digest=digest, data=data)

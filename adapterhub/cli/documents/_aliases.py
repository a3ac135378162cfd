"""Documents of the commands about aliases."""

from __future__ import annotations

from typing import Annotated

from adapterhub.cli.documents._parts import TypedDict


class AliasTarget(TypedDict):
    """One build under an alias."""

    version: str
    digest: Annotated[str, "of the manifest"]
    weight: Annotated[float, "its share of the requests is this divided by the sum of all weights"]


class Alias(TypedDict):
    """An alias and its last move."""

    adapter: Annotated[str, "full name of the adapter that it belongs to"]
    alias: str
    targets: Annotated[list[AliasTarget], "what it means; empty after `alias remove`"]
    moved_at: Annotated[str, "RFC 3339"]
    moved_by: Annotated[str, "the user and machine, or the user and token of a registry"]
    action: Annotated[str, "`set`, `rollback`, `remove`, or `follow`: taken over from a registry"]
    place: Annotated[str | None, "the registry that says what it means; null: it was set here"]


class AliasMove(TypedDict):
    """One move of an alias."""

    number: Annotated[int, "for `adapt alias rollback --to`, from 1"]
    action: Annotated[str, "as in `alias show`"]
    at: Annotated[str, "RFC 3339"]
    by: str
    targets: Annotated[list[AliasTarget], "what it meant since then"]


ALIASES = {
    "alias-set": Alias,
    "alias-list": list[Alias],
    "alias-show": Alias,
    "alias-remove": Alias,
    "alias-history": list[AliasMove],
    "alias-rollback": Alias,
}

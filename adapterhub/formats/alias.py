"""Aliases: names of an adapter that move, such as `prod` in `legal-qa@prod`, and which build a request gets.

An alias has one target, or several with weights. A target is one build of the adapter. Each change of the targets is a
*move*; the last move counts, and the earlier ones are the history.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal

from adapterhub.core.dates import parse_time, time_text
from adapterhub.core.digests import Digest, parse_digest
from adapterhub.core.errors import NotFound, SpecError, UsageProblem, shown
from adapterhub.core.specs import AdapterSpec, looks_like_revision, parse_name, parse_version
from adapterhub.formats.documented import Documented

MOST_TARGETS: Final = 16
MOST_MOVES: Final = 100
"""How many moves the history keeps."""
MOST_REFUSED: Final = 20
"""How many refused versions it keeps."""

Action = Literal["set", "rollback", "remove", "follow"]
"""`follow`: a library took over what a registry says."""

ACTIONS: Final[tuple[Action, ...]] = ("set", "rollback", "remove", "follow")
_WEIGHTED: Final = re.compile(r"(?P<spec>.*[^=!~<>])=(?P<weight>[0-9.eE+-]+)")
_SHOWN: Final = len("sha256:") + 12


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasTarget(Documented):
    """One build under an alias."""

    version: str
    digest: Annotated[Digest, "of the manifest"]
    weight: Annotated[float, "its share of the requests is this divided by the sum of all weights"] = 1.0

    @classmethod
    def from_json(cls, value: Any) -> AliasTarget:
        """Return the target in a JSON value.

        Raises:
            ValueError: it is not a target.
        """
        if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("version", "digest")):
            raise ValueError("a target has a `version` and a `digest`")
        weight = value.get("weight", 1.0)
        if not is_weight(weight):
            raise ValueError("the weight of a target is a number above 0")
        return cls(version=parse_version(value["version"]), digest=parse_digest(value["digest"]), weight=float(weight))


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove(Documented, keys="number? action at=time by targets"):
    """One move of an alias.

    `at` is Unix time; `targets` are empty after a removal.
    """

    action: Annotated[Action, "`set`, `rollback`, `remove`, or `follow`: taken over from a registry"]
    at: float
    by: Annotated[str, "the user and machine, or the user and token of a registry"]
    targets: Annotated[tuple[AliasTarget, ...], "what it meant since then"]
    number: Annotated[int | None, "for `adapt alias rollback --to`, from 1"] = field(default=None, compare=False)

    @property
    def time(self) -> str:
        """RFC 3339."""
        return time_text(self.at)

    @classmethod
    def from_json(cls, value: Any) -> AliasMove:
        """Return the move in a JSON value.

        Raises:
            LookupError, TypeError, ValueError, UsageProblem: it is not a move.
        """
        action, by, targets = value["action"], value["by"], value["targets"]
        if action not in ACTIONS or not isinstance(by, str) or len(targets) > MOST_TARGETS:
            raise ValueError("a move has an `action`, `by`, `at` and `targets`")
        found = tuple(AliasTarget.from_json(one) for one in targets)
        return cls(action=action, at=parse_time(value["at"]), by=shown(by, 200), targets=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedMove(Documented, keys="version digest at=time why after"):
    """A version to which a gate did not let an alias move.

    `at` is Unix time; `after` is how many moves the alias had made by then.
    """

    version: str
    digest: Annotated[Digest, "of the manifest"]
    at: float
    why: str
    after: int = 0

    @property
    def time(self) -> str:
        """RFC 3339."""
        return time_text(self.at)

    @classmethod
    def from_json(cls, value: Any) -> RefusedMove:
        """Return the refusal in a JSON value.

        Raises:
            LookupError, TypeError, ValueError, UsageProblem: it is not a refusal.
        """
        version, digest, why, after = value["version"], value["digest"], value["why"], value["after"]
        if not isinstance(why, str) or not isinstance(after, int) or after < 0:
            raise ValueError("a refusal has a `version`, a `digest`, `at`, `why` and `after`")
        at = parse_time(value["at"])
        return cls(version=parse_version(version), digest=parse_digest(digest), at=at, why=shown(why, 500), after=after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias(
    Documented,
    keys="adapter alias=name targets moved_at=last.time moved_by=last.by action=last.action place=followed",
):
    """An alias and its last move.

    `moves` are oldest first, after `dropped` earlier ones. `place` is the registry that the alias follows, "" for one
    that the user set here. `refused` are versions that a stream published and its gate did not let become current.
    """

    adapter: Annotated[str, "full name of the adapter that it belongs to"]
    name: str
    moves: tuple[AliasMove, ...] = field(default=())
    place: str = ""
    dropped: int = 0
    refused: tuple[RefusedMove, ...] = ()

    @property
    def targets(self) -> tuple[AliasTarget, ...]:
        """What it means; empty after `alias remove`."""
        return self.moves[-1].targets if self.moves else ()

    @property
    def last(self) -> AliasMove:
        """The move that counts."""
        return self.moves[-1]

    @property
    def history(self) -> tuple[AliasMove, ...]:
        """The moves with their numbers."""
        return tuple(replace(move, number=number) for number, move in enumerate(self.moves, 1))

    @property
    def followed(self) -> str | None:
        """The registry that defines the alias; None if it was set here."""
        return self.place or None

    @property
    def main(self) -> AliasTarget:
        """The target with the largest weight, the first of equals; for uses without a request key."""
        return max(self.targets, key=lambda target: target.weight)

    def for_key(self, key: str) -> AliasTarget:
        """Return the target for the requests with this key: always the same while the targets stay.

        Weighted rendezvous hashing: a changed weight moves no key between two other targets, and only as many as the
        change needs.
        """
        return max(self.targets, key=lambda target: _score(f"{self}\0{key}\0{target.digest}", target.weight))

    def __str__(self) -> str:
        return f"{self.adapter}@{self.name}"

    def spec_of(self, target: AliasTarget) -> str:
        """Return the spec that means exactly this target: `acme/legal-qa==1.2.0#sha256:…`."""
        return f"{self.adapter}=={target.version}#{target.digest}"

    def text(self) -> str:
        """Return the targets in words: `1.2.0`, or `1.2.0 90 %, 1.3.0 10 %`."""
        return targets_text(self.targets)

    def moved_text(self) -> str:
        """Return the last move in words: `acme/legal-qa@prod: 1.2.0 -> 1.3.0`."""
        before = targets_text(self.moves[-2].targets) if len(self.moves) > 1 else "new"
        return f"{self}: {before} -> {self.text()}"


def targets_text(targets: Sequence[AliasTarget]) -> str:
    """Targets in words, with shares in percent where there are several; `removed` for none."""
    if len(targets) == 1:
        return targets[0].version
    whole = sum(target.weight for target in targets)
    return ", ".join(f"{one.version} {100 * one.weight / whole:.3g} %" for one in targets) or "removed"


def _score(text: str, weight: float) -> float:
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return -weight / math.log((number + 0.5) / 2.0**64)


def is_weight(value: object) -> bool:
    """Return whether a value is the weight of a target: a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def earlier(alias: Alias, to: int | None) -> tuple[AliasTarget, ...]:
    """Return the targets one step back, or those after the move number `to`, counted from 1.

    Rollbacks that follow each other each go one step further back.

    Raises:
        NotFound: there is no such move.
    """
    if to is None:
        found = next((targets for targets in reversed(_steps(alias)[:-1]) if targets), None)
        if found is None:
            raise NotFound(
                f"`{alias}` has no earlier target to roll back to. Nothing was changed",
                hint=f"`adapt alias set {alias.name} {alias.adapter}==VERSION` moves it",
            )
        return found
    if not 1 <= to <= len(alias.moves) or not alias.moves[to - 1].targets:
        raise NotFound(
            f"`{alias}` has no move {to} with a target. Nothing was changed",
            hint=f"`adapt alias history {alias}` lists its moves",
        )
    return alias.moves[to - 1].targets


def _steps(alias: Alias) -> list[tuple[AliasTarget, ...]]:
    """Return the targets of the alias, oldest first; a rollback takes back the steps that it went back over."""
    steps: list[tuple[AliasTarget, ...]] = []
    for move in alias.moves:
        while move.action == "rollback" and move.targets in steps:
            steps.pop()
        steps.append(move.targets)
    return steps


def check_targets(alias: str, targets: Sequence[AliasTarget]) -> tuple[AliasTarget, ...]:
    """Return the targets, if an alias may have them.

    Raises:
        UsageProblem: there are no targets or too many, one occurs twice, or a weight is not a number above 0.
    """
    if not 0 < len(targets) <= MOST_TARGETS:
        raise UsageProblem(f"`{alias}` needs 1 to {MOST_TARGETS} targets, not {len(targets)}. Nothing was changed")
    digests = [target.digest for target in targets]
    for target in targets:
        if digests.count(target.digest) > 1:
            raise UsageProblem(f"`{alias}` has {target.version} twice. Nothing was changed", hint="name it once")
        if not is_weight(target.weight):
            raise UsageProblem(
                f"`{alias}` has {target.version} with weight {target.weight:g}, expected a number above 0. "
                "Nothing was changed"
            )
    return tuple(targets)


def parse_alias(text: str) -> str:
    """Return the name of an alias: as the name of an adapter, but nothing that reads as a version, branch or commit.

    Raises:
        SpecError: it cannot be the name of an alias.
    """
    name = parse_name(text)
    if looks_like_revision(name):
        raise SpecError(
            text,
            "an alias cannot be called like a version, a branch or a commit",
            hint="choose a word such as `prod` or `canary`",
        )
    return name


def parse_target(text: str) -> tuple[AdapterSpec, float | None]:
    """Return a target as one types it: a spec, and its weight after a single `=`, as in `legal-qa==1.2=0.9`.

    Raises:
        SpecError: the spec does not parse, or the weight is not a number above 0.
    """
    found = _WEIGHTED.fullmatch(text)
    if found is None:
        return AdapterSpec.parse(text), None
    try:
        weight = float(found["weight"])
    except ValueError:
        weight = 0.0
    if not is_weight(weight):
        reason = f"the weight `{shown(found['weight'])}` is no number above 0"
        raise SpecError(text, reason, hint="as in `NAME==1.2=0.9`")
    return AdapterSpec.parse(found["spec"]), weight


def short(digest: str) -> str:
    """Return a digest as messages show it."""
    return digest[:_SHOWN]

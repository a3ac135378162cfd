"""The aliases of a project: the entries that their targets have in its lock, and what they mean there.

`[aliases.legal-qa] prod = {"1.2" = 0.9, "1.3" = 0.1}` gives the lock two entries, `legal-qa@prod` for the target with
the largest weight and `legal-qa@prod@1.3` for the other. `sync` brings them as it brings every other entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from adapterhub.core.errors import SpecError, UsageProblem, shown
from adapterhub.core.specs import AdapterName, parse_name, parse_version
from adapterhub.formats.alias import Alias, AliasMove, AliasTarget, is_weight, parse_alias
from adapterhub.projects.values import AdapterRequirement, Locked, LockedAdapter

_WEIGHT: Final = re.compile(r" weight=([0-9.e+-]+)$")


def is_alias_key(key: str) -> bool:
    """Return whether a key of a project is that of a target of an alias."""
    return "@" in key


def adapter_of(key: str) -> str:
    """Return the project's name of the adapter that an alias belongs to: `legal-qa` for `legal-qa@prod@1.3`."""
    return key.partition("@")[0]


def parse_key(text: str) -> AdapterName:
    """Return the key of an entry of a lock: a name, or that of a target of an alias.

    Raises:
        SpecError: it is neither.
    """
    name, *rest = text.split("@")
    if len(rest) > 2:
        raise SpecError(text, "expected NAME, NAME@ALIAS or NAME@ALIAS@VERSION")
    parse_name(name)
    if rest:
        parse_alias(rest[0])
    if len(rest) > 1:
        parse_version(rest[1])
    return AdapterName(text)


def weights_in(value: Any) -> dict[str, float]:
    """Return the weight of each version in the value of an alias: a version, or a table of weights.

    TOML reads the key in `{1.2 = 0.9}` as a table `1` with the key `2`; that is `1.2` here.

    Raises:
        UsageProblem, SpecError: it is neither.
    """
    if isinstance(value, str):
        return {parse_version(value.strip().removeprefix("==")): 1.0}
    found = {parse_version(key): weight for key, weight in _flat(value, "")} if isinstance(value, dict) else {}
    if not found:
        raise UsageProblem('expected a version such as "1.2", or versions with weights, {"1.2" = 0.9, "1.3" = 0.1}')
    for version, weight in found.items():
        if not is_weight(weight):
            raise UsageProblem(f"the weight of {version} is {shown(str(weight))}, expected a number above 0")
    return found


def _flat(table: Mapping[str, Any], before: str) -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def targets_wanted(wanted: AdapterRequirement, alias: str, weights: Mapping[str, float]) -> list[AdapterRequirement]:
    """Return the requirements of an alias of `wanted`: one exact version per target, the largest weight first."""
    ordered = sorted(weights.items(), key=lambda pair: -pair[1])
    return [
        replace(
            wanted,
            key=AdapterName(f"{wanted.key}@{alias}" + (f"@{version}" if number else "")),
            spec=replace(wanted.spec, specifiers=f"=={version}", digest_prefix=None),
            weight=float(weight),
        )
        for number, (version, weight) in enumerate(ordered)
    ]


def locked_alias(entries: Mapping[AdapterName, Locked], key: str, name: str) -> Alias | None:
    """Return the alias `name` of the project's adapter `key`, as its lock has it; None if it has none."""
    main = f"{key}@{name}"
    found = [
        entry
        for one, entry in entries.items()
        if isinstance(entry, LockedAdapter) and (one == main or one.startswith(f"{main}@"))
    ]
    if not found:
        return None
    targets = tuple(AliasTarget(version=one.version, digest=one.digest, weight=_weight(one)) for one in found)
    move = AliasMove(action="set", at=0.0, by="the project", targets=targets)
    return Alias(adapter=found[0].name, name=name, moves=(move,))


def _weight(entry: LockedAdapter) -> float:
    written = _WEIGHT.search(entry.wanted)
    return float(written[1]) if written else 1.0

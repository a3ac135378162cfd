"""The user's own defaults for tests, in `config.json` of the library: a project may ask for more, never for less."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import canonical_json, strict_json
from adapterhub.core.disk.files import read_owned, write_durably
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import Malformed, NotAllowed, UsageProblem, shown
from adapterhub.formats.contract.standards import Standards, bound_text, parse_age, parse_bound, parse_tests_policy

_LIMIT_BYTES: Final = 64 << 10
_KEYS: Final = frozenset({"policy", "max_age", "bounds"})


class OwnSettings:
    """The file of the library under `root`. Cheap to make; read when needed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.path = root / "config.json"

    def read(self) -> Standards:
        """Return the user's demand on every build; `off` without the file.

        Raises:
            NotAllowed: others may write or own it or its folder, or it cannot be read.
            Malformed: it is damaged.
        """
        try:
            raw = read_owned(self.path, "says which tests a build must pass", limit_bytes=_LIMIT_BYTES)
        except FileNotFoundError:
            return Standards()
        except OSError as error:
            raise NotAllowed(
                f"`{self.path}` cannot be read: {error.strerror}",
                hint="check its permissions, or move it away to start without settings",
            ) from None
        try:
            return _standards(strict_json(raw, limit_bytes=_LIMIT_BYTES))
        except (ValueError, UsageProblem) as error:
            hint = "`adapt contract policy --reset` starts again"
            raise Malformed(f"`{self.path}`: {shown(str(error), 200)}", hint=hint) from None

    def write(self, standards: Standards) -> None:
        """Replace the file.

        Raises:
            NotAllowed, DiskFull: it cannot be written.
        """
        tests: dict[str, Any] = {"policy": standards.policy}
        tests |= {"max_age": standards.max_age} if standards.max_age is not None else {}
        tests |= {"bounds": dict(standards.bounds)} if standards.bounds else {}
        try:
            write_durably(self.path, canonical_json({"tests": tests}) + b"\n", mode=0o600)
        except OSError as error:
            raise Root(self._root).explain(error) from error


def set_own_tests(
    root: Path,
    policy: str | None = None,
    *,
    max_age: str | None = None,
    bounds: Mapping[str, float] | None = None,
    reset: bool = False,
) -> Standards:
    """Change what is given and keep the rest, or with `reset` start from nothing; returns what holds now.

    Raises:
        UsageProblem: a value is impossible; nothing was written.
        NotAllowed, Malformed, DiskFull: the file cannot be used.
    """
    file = OwnSettings(root)
    checked = dict(parse_bound(bound_text(f"{name}={value}")) for name, value in (bounds or {}).items())
    wanted = None if policy is None else parse_tests_policy(policy)
    age = None if max_age is None else parse_age(max_age)
    with Root(root).lock("config", exclusive=True):
        before = Standards() if reset else file.read()
        after = Standards(
            policy=wanted or before.policy,
            max_age=age or before.max_age,
            bounds={**before.bounds, **checked},
        )
        file.write(after)
    return after


def _standards(value: object) -> Standards:
    tests = value.get("tests") if isinstance(value, dict) and value.keys() == {"tests"} else None
    if not isinstance(tests, dict) or not tests.keys() <= _KEYS:
        raise ValueError("expected `tests` with `policy`, `max_age` and `bounds`")
    policy, age, bounds = tests.get("policy", "off"), tests.get("max_age"), tests.get("bounds", {})
    if not isinstance(policy, str) or not isinstance(age, str | None) or not isinstance(bounds, dict):
        told = "expected a text as `policy`, a text as `max_age` and an object as `bounds`"
        raise ValueError(told)
    return Standards(
        policy=parse_tests_policy(policy),
        max_age=None if age is None else parse_age(age),
        bounds=dict(parse_bound(bound_text(f"{name}={number}")) for name, number in bounds.items()),
    )

"""What versions mean, apart from their text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from packaging.version import Version


_OPERATORS: Final = ("==", "!=", "~=", "<=", ">=", "<", ">")


def lies_in(version: Version, specifiers: str) -> bool:
    """Return whether `version` satisfies every clause of `specifiers`, a set in normal form."""
    return all(clause.takes(version) for clause in _clauses(specifiers))


@lru_cache(maxsize=64)
def _clauses(specifiers: str) -> tuple[_Clause, ...]:
    from packaging.version import Version

    found = []
    for text in specifiers.split(","):
        operator = next(each for each in _OPERATORS if text.startswith(each))
        value = text.removeprefix(operator)
        bound = Version(value.removesuffix(".*"))
        found.append(_Clause(operator=operator, bound=bound, is_prefix=value.endswith(".*")))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clause:
    """`==1.4.*`, taken apart."""

    operator: str
    bound: Version
    is_prefix: bool

    def takes(self, version: Version) -> bool:
        bound = self.bound
        if self.operator in {"==", "!="}:
            return self._equals(version) == (self.operator == "==")
        if self.operator == "~=":
            return _public(version) >= bound and _begins(version, bound.epoch, bound.release[:-1])
        if self.operator == "<=":
            return _public(version) <= bound
        if self.operator == ">=":
            return _public(version) >= bound
        if self.operator == "<":
            return version < bound and not self._is_own_prerelease(version)
        return _public(version) > bound and not self._is_own_post_release(version)

    def _equals(self, version: Version) -> bool:
        if self.is_prefix:
            return _begins(version, self.bound.epoch, self.bound.release)
        return (version if self.bound.local else _public(version)) == self.bound

    def _is_own_prerelease(self, version: Version) -> bool:
        bound = self.bound
        is_one = version.is_prerelease and not bound.is_prerelease
        is_of_it = bound.post is None or (version.pre, version.post) == (None, bound.post)
        return is_one and is_of_it and _has_numbers_of(version, bound)

    def _is_own_post_release(self, version: Version) -> bool:
        bound = self.bound
        is_one = version.post is not None and bound.post is bound.dev is None
        return is_one and _has_numbers_of(version, bound) and version.pre == bound.pre


def _public(version: Version) -> Version:
    """Return the version without its local part."""
    return version if version.local is None else type(version)(version.public)


def _begins(version: Version, epoch: int, release: Sequence[int]) -> bool:
    """Return whether the numbers of a version begin with those of `release`; lacking ones are zeros."""
    numbers = (*version.release, *[0] * (len(release) - len(version.release)))
    return version.epoch == epoch and numbers[: len(release)] == tuple(release)


def _has_numbers_of(one: Version, other: Version) -> bool:
    return _begins(one, other.epoch, other.release) and _begins(other, one.epoch, one.release)

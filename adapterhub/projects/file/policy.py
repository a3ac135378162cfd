"""Compares releases with the policy of a project, and collects every reason against each; does no input or output.

See `docs/how-to/policy.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, Protocol

from adapterhub.core.dates import NewestAllowed, parse_newest_allowed, time_text
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.distribution.resolve import Objection
from adapterhub.formats.licenses.expression import Expression
from adapterhub.formats.licenses.rules import spdx_name
from adapterhub.projects.values import Policy

_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*[A-Za-z0-9+]")


class Offered(Protocol):
    """The facts that a policy reads; a `Candidate` has them. `method` is words with commas, as in `LORA,rslora`."""

    @property
    def namespace(self) -> str | None:
        """The namespace in its place."""

    @property
    def license(self) -> str | None:
        """The licence that it states."""

    @property
    def method(self) -> str:
        """The training methods."""

    @property
    def rank(self) -> int | None:
        """Its largest rank."""

    @property
    def published_at(self) -> float | None:
        """The Unix time by which it was published."""


def parse_exclude_newer(text: str) -> NewestAllowed:
    """What `exclude-newer` means: `2026-01-31` (that day and before, in UTC), an RFC 3339 time, or an age as in `7d`.

    Raises:
        UsageProblem: `text` is none of these.
    """
    try:
        return parse_newest_allowed(text)
    except ValueError as error:
        raise UsageProblem(f"exclude-newer: {error}") from None


def refusal(policy: Policy, candidate: Offered, now: float) -> str | None:
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


def _reasons(policy: Policy, one: Offered, now: float) -> Iterator[str]:
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
    """The reason against a licence, unless one way to comply with it is allowed and includes no denied licence.

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
    """The listed licences in every equivalent spelling."""
    return frozenset(form for name in names for form in (name.casefold(), spdx_name(name).casefold()))


def _forms(identifier: str) -> frozenset[str]:
    """The ways to list an identifier: whole, without its exception (`GPL-2.0-only WITH …`), without `+`."""
    plain = identifier.partition(" WITH ")[0]
    return frozenset(form.casefold() for form in (identifier, plain, plain.removesuffix("+")))


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.casefold() for name in names)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{shown(name)}`" for name in names)

"""Routes times callers: a registry with hidden things answers as one without them."""

from __future__ import annotations

import pytest

from tests.registry.matrix.asking import Request
from tests.registry.matrix.comparing import CALLERS, differences
from tests.registry.matrix.listed import MEANT
from tests.registry.matrix.worlds import DEVICE, JOBS, KINDS

ASKED = (
    "/similar",
    "xet-write-token",
    "objects/batch",
    "/webhooks",
    "/api/models",
    "/compare",
    "/base/",
    "/metrics",
    "/adapters",
    "/_lfs",
    "/info/refs",
)


def _is_quick(request: Request) -> bool:
    """Whether a request goes to a route that told of hidden things once, or writes."""
    return request.method == "POST" or any(part in request.route for part in ASKED)


def test_what_is_private_changes_no_answer() -> None:
    callers = ("nobody", DEVICE, "expired member", JOBS[0])
    found = differences(("private",), callers, _is_quick)

    assert [str(one) for one in found if (one.kind, one.request.route) not in MEANT] == []


@pytest.mark.exhaustive
def test_what_is_hidden_changes_no_answer_of_any_route_to_any_caller() -> None:
    found = list(differences(tuple(KINDS), CALLERS))

    assert [str(one) for one in found if (one.kind, one.request.route) not in MEANT] == []
    assert MEANT.keys() - {(one.kind, one.request.route) for one in found} == set()

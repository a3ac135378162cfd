"""What all errors can do."""

from __future__ import annotations

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import DigestMismatch, alike_once, reworded


def test_a_reworded_error_keeps_its_class_and_facts_and_leaves_the_caught_one_alone() -> None:
    caught = DigestMismatch("a file", expected=digest_of(b"a"), actual=digest_of(b"b"), hint="fetch it again")
    before = dict(vars(caught))

    made = reworded(caught, "two files")

    assert type(made) is DigestMismatch
    assert (str(made), made.message, made.hint) == ("two files", "two files", "fetch it again")
    assert (made.expected, made.actual) == (caught.expected, caught.actual)
    assert reworded(caught, hint="none").message == caught.message
    assert vars(caught) == before


def test_problems_that_differ_in_one_name_are_told_once() -> None:
    bad = [f"`layers.{i}` in `{label}` holds NaN" for i in range(60) for label in ("a", "b")]
    rest = ["`head`: a vector", "no name at all", "`x` differs: [8, 8] in `a`, [8, 4] in `b`"]

    assert alike_once([*bad, *rest]) == [
        "`layers.0` in `a` holds NaN; and 59 more like it",
        "`layers.0` in `b` holds NaN; and 59 more like it",
        *rest,
    ]


def test_a_few_problems_are_told_each() -> None:
    few = [f"`layers.{i}` holds NaN" for i in range(5)]

    assert alike_once(few) == few
    assert alike_once([]) == []

"""What all errors can do."""

from __future__ import annotations

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import DigestMismatch, reworded


def test_a_reworded_error_keeps_its_class_and_facts_and_leaves_the_caught_one_alone() -> None:
    caught = DigestMismatch("a file", expected=digest_of(b"a"), actual=digest_of(b"b"), hint="fetch it again")
    before = dict(vars(caught))

    made = reworded(caught, "two files")

    assert type(made) is DigestMismatch
    assert (str(made), made.message, made.hint) == ("two files", "two files", "fetch it again")
    assert (made.expected, made.actual) == (caught.expected, caught.actual)
    assert reworded(caught, hint="none").message == caught.message
    assert vars(caught) == before

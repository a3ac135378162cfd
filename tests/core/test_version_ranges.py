"""One rule says which versions a range takes, whatever release of `packaging` is installed."""

from __future__ import annotations

import itertools
import sys

import pytest
from packaging.version import Version

from adapterhub.core.specs import AdapterSpec
from adapterhub.core.versions import lies_in


@pytest.mark.parametrize(
    ("taken", "specifiers", "left"),
    [
        ("1.0.post1 1.0 1.0rc2 2", ">1.0rc1", "1.0rc1 1.0.0rc1 1.0rc1.post1 1.0a9"),
        ("1.0.1 1.1 2a1 1!0.1", ">1.0", "1.0 1.0.0 1.0.post1 1.0+local 1.0.post1.dev1 1.0rc1"),
        ("1.0 1.0.post1 1.0.dev2", ">1.0.dev1", "1.0.dev1 0.9"),
        ("1.0.post2 1.1", ">1.0.post1", "1.0.post1 1.0 1.0.post1+local"),
        ("0.9 0.9.post1", "<1.0", "1.0 1.0rc1 1.0.dev1 1.0rc1.post1 1.0.0a1 1.0+local"),
        ("1.0a1 1.0rc1.dev1 0.9", "<1.0rc1", "1.0rc1 1.0"),
        ("1.0 1.0rc1 1.0+local", "<1.0.post1", "1.0.post1 1.0.post1.dev1 1.1"),
        ("1.0 1 1.0.0 1.0+local", "==1.0", "1.0.1 1.0rc1 1.0.post1 1!1.0"),
        ("1.0+local", "==1.0+local", "1.0 1.0+other"),
        ("1.0.1 1.0+other", "!=1.0+local", "1.0.0+local"),
        ("1 1.0.9 1.0rc1 1.0.post1", "==1.0.*", "1.1 1!1.0 2"),
        ("1.1 1!1.0", "!=1.0.*", "1 1.0.9 1.0rc1"),
        ("1.4 1.4.1 1.9 1.4.post1", "~=1.4", "2.0 2 1.3 1.4rc1"),
        ("1.4.2 1.4.9", "~=1.4.2", "1.5 1.4.1"),
        ("1.4rc1 1.9", "~=1.4rc1", "2.0 1.4a1"),
        ("1.0 1.0+local 2", ">=1.0", "1.0rc1 0.9"),
        ("1.0 1.0+local 1.0rc1", "<=1.0", "1.0.post1 1.1"),
        ("1.5", ">=1,<2", "0.9 2 2rc1"),
    ],
)
def test_a_range_takes_these_and_leaves_those(taken, specifiers, left):
    assert [one for one in taken.split() if not lies_in(Version(one), specifiers)] == []
    assert [one for one in left.split() if lies_in(Version(one), specifiers)] == []


def test_a_range_is_judged_without_the_rules_of_packaging(monkeypatch):
    """`>1.0rc1` was 1.0 with packaging 24.2 and 1.0.post1 with 26.4, so that one project had two locks."""
    spec = AdapterSpec.parse("legal-qa>1.0rc1")
    monkeypatch.setitem(sys.modules, "packaging.specifiers", None)

    assert [v for v in ("1.0rc1", "1.0", "1.0.post1") if spec.matches(v)] == ["1.0", "1.0.post1"]


def test_a_range_and_its_opposite_share_no_version_and_leave_none_but_those_of_the_bound():
    parts = itertools.product(("1.0", "1.1"), ("", "a1", "rc1"), ("", ".post1"), ("", ".dev1"))
    versions = [Version("".join(part)) for part in parts]

    for bound, version in itertools.product(versions, repeat=2):
        assert lies_in(version, f">={bound}") == (version >= bound)
        assert lies_in(version, f"<={bound}") == (version <= bound)
        assert lies_in(version, f"=={bound}") != lies_in(version, f"!={bound}")
        assert not (lies_in(version, f">{bound}") and version <= bound)
        assert not (lies_in(version, f"<{bound}") and version >= bound)

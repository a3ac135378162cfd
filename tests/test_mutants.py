"""The targets of `python -m tests.mutants` name files that are there: a file that moves takes its target along."""

from __future__ import annotations

import pytest

from tests.mutants.__main__ import ROOT, TARGETS


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_each_target_names_files_that_are_there(name):
    target = TARGETS[name]

    for pattern in target.modules:
        assert [*ROOT.glob(pattern), *(ROOT / "registry").glob(pattern)], pattern
    for test in target.tests:
        assert (ROOT / test.partition("::")[0]).is_file(), test

"""A build with its contract appears whole or not at all, wherever the power fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adapterhub.core.errors import NotAllowed
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.library.contracting import add_contract
from adapterhub.library.library import Library
from adapterhub.library.store.origins import Origin
from adapterhub.trust.verify import verify_folder
from tests.support.contracts import small_contract
from tests.support.kills import in_child


def recorded(root: Path, stops_at: int = 0) -> int | None:
    def record() -> None:
        library = Library(root)
        add_contract(library, next(library.installed()), small_contract())

    return in_child(record, stops_at)


@pytest.mark.slow
def test_a_killed_recording_leaves_the_old_build_or_the_new_one_too(tmp_path, library, add):
    add("legal-qa")
    shutil.copytree(library.root, tmp_path / "whole", symlinks=True)
    changes = recorded(tmp_path / "whole")
    seen = set()
    assert changes is not None
    assert changes > 5
    for number in range(1, changes + 1):
        root = tmp_path / f"killed-{number}"
        shutil.copytree(library.root, root, symlinks=True)
        assert recorded(root, number) is None
        there = Library(root)
        versions = sorted(build.manifest.version for build in there.installed())
        seen.add(tuple(versions))
        assert versions in (["1.0.0"], ["1.0.0", "1.0.1"])
        assert all(verify_folder(build.folder).status != "failed" for build in there.installed())

        old = next(build for build in there.installed() if build.manifest.version == "1.0.0")
        added = add_contract(there, old, small_contract())
        assert (added.build.manifest.version, contract_in(added.build.folder)) == ("1.0.1", small_contract())
    assert seen == {("1.0.0",), ("1.0.0", "1.0.1")}


def test_a_release_of_a_server_gets_no_new_version_here(library, add):
    build = add("legal-qa").build
    library.origins.record(Origin(adapter=build.manifest.digest, name="legal-qa", place="https://hub.example"))

    with pytest.raises(NotAllowed, match="a release never changes"):
        add_contract(library, build, small_contract())
    assert [one.manifest.file(CONTRACT_FILE) for one in library.installed()] == [None]

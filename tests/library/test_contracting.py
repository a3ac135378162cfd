"""A build with its contract appears whole or not at all, wherever the power fails."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from adapterhub.core.errors import NotAllowed
from adapterhub.formats.contract.contract import CONTRACT_FILE
from adapterhub.formats.contract.reading import contract_in
from adapterhub.library.contracting import add_contract
from adapterhub.library.library import Library
from adapterhub.library.store.origins import Origin
from adapterhub.trust.verify import verify_folder
from tests.support.contracts import small_contract

CALLS = {"os.rename", "os.link", "os.mkdir", "os.remove"}


def recorded(root: Path, stops_at: int = 0) -> int:
    """Record in a child that is killed before its `stops_at`-th change of a name; returns how many it made, 0 if killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, _arguments: object) -> None:
            nonlocal count
            if event in CALLS:
                count += 1
                if count == stops_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        library = Library(root)
        add_contract(library, next(library.installed()), small_contract())
        os.write(writing, str(count).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as said:
        return int(said.read() or 0)


@pytest.mark.slow
def test_a_killed_recording_leaves_the_old_build_or_the_new_one_too(tmp_path, library, add):
    add("legal-qa")
    shutil.copytree(library.root, tmp_path / "whole", symlinks=True)
    changes = recorded(tmp_path / "whole")
    seen = set()
    assert changes > 5
    for number in range(1, changes + 1):
        root = tmp_path / f"killed-{number}"
        shutil.copytree(library.root, root, symlinks=True)
        assert recorded(root, number) == 0
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

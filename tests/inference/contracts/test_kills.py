"""Commands that ask an adapter are killed before a change of a name: the library is as before or as after.

`python -m tests.crash --commands record,install-test,merge-test` does the same by calls of the system, with errors, full
disks and Ctrl-C.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.stand import ASKING, COMMANDS, damage_in, leftovers_in, make_asking_stand, state_of
from tests.support.command_line import Adapt
from tests.support.kills import in_child

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_asking_stand(tmp_path_factory.mktemp("kills") / "stand")


@pytest.mark.parametrize("command", ASKING)
def test_a_killed_command_leaves_old_or_new_and_can_be_run_again(
    stand: Path, tmp_path: Path, command: str, amount: Callable[[int, int], int]
) -> None:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(stand, tmp_path / name, symlinks=True))

    def run(folder: Path, stops_at: int = 0) -> int | None:
        return in_child(lambda: Adapt(folder).ok(*COMMANDS[command]), stops_at)

    old, done = state_of(stand), copied("done")
    changes = run(done)
    new = state_of(done)
    assert changes is not None
    assert (changes > 5, old != new) == (True, True)
    step = max(1, changes // amount(3, 1000))
    for number in (*range(1, changes, step), changes):
        folder = copied(f"killed-{number}")
        assert run(folder, number) is None
        assert state_of(folder) in (old, new)
        assert damage_in(folder) == []
        assert run(folder) is not None
        assert (state_of(folder), damage_in(folder)) == (new, [])
        Adapt(folder).ok("cache", "clean", "--grace", "0")
        assert [name for name in leftovers_in(folder) if "/." not in name] == []  # those are swept when an hour old

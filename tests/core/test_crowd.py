"""Eight processes on one library, with gc and verify in a loop; the long form is `python -m tests.crash --only crowd`."""

from __future__ import annotations

from tests.crash.crowd import crowd


def test_eight_processes_lose_nothing_and_none_is_locked_out(tmp_path):
    seen = crowd(tmp_path / "crowd", operations=12)

    assert (seen.failed, seen.lost, seen.damage, seen.locked) == ((), (), (), 0)
    assert seen.operations == 96
    assert seen.loops > 1
    assert seen.longest_s < 30  # the longest that a command waits for a lock before it gives up

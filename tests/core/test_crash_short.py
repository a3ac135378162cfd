"""A sample of `python -m tests.crash`: faults of the system at some of the places where a library writes."""

from __future__ import annotations

import pytest

from tests.crash import disks
from tests.crash.faults import calls_of, errors, injected, interrupts, kills
from tests.crash.flips import flip_bits
from tests.crash.stand import Stand, make_stand
from tests.crash.stops import stops

SAMPLES = {"add": 23, "install": 37, "push": 17, "remove": 37, "gc": 13, "merge": 230}
"""One call in so many; `add` is killed at every rename, too, which is where things appear."""


def every(step, always=()):
    count = 0

    def keep(call, _number):
        nonlocal count
        count += 1
        return call in always or count % step == 1

    return keep


def problems(trials):
    trials = list(trials)
    assert trials
    return [f"{t.fault}: {t.problem}" for t in trials if t.problem]


@pytest.mark.parametrize("command", SAMPLES)
def test_a_killed_command_leaves_old_or_new_and_can_be_run_again(tmp_path, command):
    stand = Stand(make_stand(tmp_path / "stand"), command)
    renames = ("rename",) if command == "add" else ()

    assert problems(kills(stand, calls_of(stand), every(SAMPLES[command], renames))) == []


def test_a_killed_sync_leaves_each_folder_old_or_new_and_can_be_run_again(tmp_path):
    stand = Stand(make_stand(tmp_path / "stand"), "sync")

    def keep(call, number):
        return call in ("rename", "renameat2") or (call in ("link", "unlinkat") and number % 3 == 2)

    assert problems(kills(stand, calls_of(stand), keep)) == []


@pytest.mark.parametrize("command", ["add", "push"])
def test_an_error_of_the_system_is_refused_in_words_or_does_no_harm(tmp_path, command):
    stand = Stand(make_stand(tmp_path / "stand"), command)

    assert problems(errors(stand, calls_of(stand), every(29))) == []


def test_a_failed_sync_is_a_failed_add(tmp_path):
    stand = Stand(make_stand(tmp_path / "stand"), "add")
    trials = [stand.trial("EIO", injected("fsync", number, "error=EIO"), codes=(14,)) for number in (1, 2, 3)]

    assert (problems(trials), [t.is_old for t in trials]) == ([], [True, True, True])


def test_sigterm_and_ctrl_c_leave_no_temp_files(tmp_path):
    stand = Stand(make_stand(tmp_path / "stand"), "add")

    assert problems(interrupts(stand, calls_of(stand), every(37))) == []


def test_gc_takes_nothing_from_a_stopped_install(tmp_path):
    stand = Stand(make_stand(tmp_path / "stand"), "install")

    assert problems(stops(stand, calls_of(stand), every(9))) == []


@pytest.mark.parametrize("case", [disks.small_disk, disks.read_only, disks.another_user, disks.file_size, disks.clock])
def test_disks_and_clocks(tmp_path, case):
    assert case(tmp_path).problem == ""


@pytest.mark.parametrize("number", [5, 8, 12])
def test_few_file_descriptors(tmp_path, number):
    assert disks.descriptors(tmp_path, number).problem == ""


@pytest.mark.slow
def test_flipped_bits_are_found_or_change_nothing(tmp_path):
    flips = flip_bits(make_stand(tmp_path / "stand"), 60, seed=7)

    assert (flips.missed, flips.false_alarms, flips.found + flips.harmless) == ((), 0, 60)

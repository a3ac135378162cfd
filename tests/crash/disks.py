"""Stores on disks that are small, read-only, or limited: each case runs in a mount namespace or process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.crash.stand import ROOT, Trial, damage_in, environment, leftovers_in, make_stand, run, state_of
from tests.support.outside import lacking
from tests.support.programs import needs
from tests.support.tiny import make_adapter

NO_ROOM = 14
SMALL = 4 << 20


def in_namespace(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run shell commands where mounts are ours alone and end with them."""
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    unshare = needs("unshare")
    probe = subprocess.run([unshare, *own, "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, check=False)  # fmt: skip
    if probe.returncode:
        lacking(f"needs the right to mount, at least in a namespace: {probe.stderr.strip()}")
    return subprocess.run(
        [unshare, *own, "--mount", "sh", "-euc", script],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def _inside(folder: Path, what: str, mount: str) -> Trial:
    """Run one of the functions below in a namespace after `mount`; it prints its problems as JSON."""
    done = in_namespace(f"{mount}\nexec {sys.executable} -m tests.crash.disks {what} {folder}", folder)
    try:
        problem = "; ".join(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        problem = done.stderr[-500:] or "said nothing"
    return Trial(fault=what, exit_code=done.returncode, is_old=True, problem=problem)


def small_disk(work: Path) -> Trial:
    """A store on a tmpfs of 4 MB, with an adapter too large for it."""
    folder = make_stand(work / "small")
    make_adapter(folder / "large", seed=9, rank=256, width=2048)
    mount = (
        f"mkdir small && mount -t tmpfs -o size={SMALL} none small && cp -a home/. small/ && mount --bind small home"
    )
    return _inside(folder, "4 MB disk", mount)


def _small_disk(folder: Path) -> list[str]:
    before = state_of(folder)
    problems = []
    large = ("add", "./large", "--name", "large")
    done = run(folder, large)
    if done.returncode != NO_ROOM or "no room" not in done.stderr or str(folder / "home") not in done.stderr:
        problems.append(f"too large: exit {done.returncode}: {done.stderr}")
    if state_of(folder) != before or damage_in(folder) or leftovers_in(folder):
        problems.append(f"after it: {damage_in(folder)} {leftovers_in(folder)}")
    # filled to the last block, with small ones until it says no
    (folder / "home" / "ballast").write_bytes(bytes(SMALL - 700_000))
    added = []
    for number in range(60):
        make_adapter(folder / f"s{number}", seed=100 + number, rank=64, width=32)
        done = run(folder, ("add", f"./s{number}", "--name", f"s{number}"))
        if done.returncode:
            break
        added.append(f"s{number}")
    if done.returncode != NO_ROOM or "Traceback" in done.stderr:
        problems.append(f"full: exit {done.returncode} after {len(added)}: {done.stderr}")
    names = {text.split()[0] for text in state_of(folder).listed}
    if names != {"one", "two", *added}:
        problems.append(f"full: listed {sorted(names)}, added {added}")
    problems += damage_in(folder)
    (folder / "home" / "ballast").unlink()
    done = run(folder, ("add", f"./s{number}", "--name", f"s{number}"))
    if done.returncode or damage_in(folder) or leftovers_in(folder):
        problems.append(f"room again: exit {done.returncode}: {done.stderr} {damage_in(folder)} {leftovers_in(folder)}")
    return problems


def read_only(work: Path) -> Trial:
    """A store that is mounted read-only: reading works, writing is refused in one line."""
    folder = make_stand(work / "read-only")
    mount = "mount --bind home home && mount -o remount,ro,bind home"
    return _inside(folder, "read-only store", mount)


def _read_only(folder: Path, before: Sequence[str] = ()) -> list[str]:
    problems = []
    for arguments, code in (
        (("list",), 0),
        (("search", "one"), 0),
        (("info", "one@base-7b", "--path"), 0),
        (("show", "one@base-7b"), 0),
        (("verify", "--all"), 0),
        (("push", "one@base-7b", "--to", "./elsewhere"), 0),
        (("add", "./new", "--name", "new"), NO_ROOM),
        (("install", "three@base-7b", "--from", "./published"), NO_ROOM),
        (("remove", "one@base-7b", "--yes"), NO_ROOM),
        (("cache", "clean"), NO_ROOM),
        (("doctor", "--repair", "--offline"), NO_ROOM),
    ):
        done = run(folder, arguments, before=before)
        if done.returncode != code or "Traceback" in done.stderr or "a bug in" in done.stderr:
            problems.append(f"{' '.join(arguments)}: exit {done.returncode}, expected {code}: {done.stderr}")
    return problems


def another_user(work: Path) -> Trial:
    """A library of somebody else, who lets us read: the same."""
    folder = make_stand(work / "another-user")
    before, is_root = state_of(folder), os.geteuid() == 0
    for path in (folder / "home", *(folder / "home").rglob("*")):
        if is_root:
            os.chown(path, 65534, 65534)
        path.chmod(path.stat().st_mode & (0o755 if is_root else 0o555))
    # root without the right to pass over permissions is anybody
    rights = (needs("setpriv"), "--bounding-set=-dac_override,-dac_read_search,-fowner,-chown") if is_root else ()
    problems = _read_only(folder, rights)
    if state_of(folder) != before or damage_in(folder):
        problems.append("something changed")
    return Trial("another user's library", 0, is_old=True, problem="; ".join(problems))


def file_size(work: Path) -> Trial:
    """RLIMIT_FSIZE of 1 MB: a larger file is refused (EFBIG), the store stays as it was."""
    folder = make_stand(work / "file-size")
    make_adapter(folder / "large", seed=9, rank=64, width=2048)
    return _limited(folder, "RLIMIT_FSIZE 1 MB", ("add", "./large", "--name", "large"), resource.RLIMIT_FSIZE, 1 << 20)


def descriptors(work: Path, number: int) -> Trial:
    """RLIMIT_NOFILE of `number`."""
    folder = make_stand(work / f"descriptors-{number}")
    command = ("add", "./new", "--name", "new", "--base", "base-7b")
    return _limited(folder, f"RLIMIT_NOFILE {number}", command, resource.RLIMIT_NOFILE, number, may_succeed=True)


def _limited(
    folder: Path, fault: str, arguments: tuple[str, ...], kind: int, limit: int, *, may_succeed: bool = False
) -> Trial:
    before = state_of(folder)
    code = f"import resource; resource.setrlimit({kind}, ({limit}, {limit})); from adapterhub.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    problems = []
    if done.returncode not in ((0, NO_ROOM) if may_succeed else (NO_ROOM,)) or "Traceback" in done.stderr:
        problems.append(f"exit {done.returncode}: {done.stderr[-400:]}")
    is_old = state_of(folder) == before
    if done.returncode and not is_old:
        problems.append("refused, and yet something was stored")
    problems += damage_in(folder) + leftovers_in(folder)
    if (again := run(folder, arguments)).returncode:
        problems.append(f"without the limit: exit {again.returncode}: {again.stderr}")
    return Trial(fault=fault, exit_code=done.returncode, is_old=is_old, problem="; ".join(problems))


def shifted(offset: str) -> tuple[str, ...]:
    """How to start a command whose clock is off by `offset` (`-1d`); also that of SQLite and of the times of files."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("PyPI has `libfaketime` for Linux on x86_64 alone")
    package = importlib.util.find_spec("libfaketime")
    assert package is not None
    assert package.origin is not None
    library = Path(package.origin).with_name("vendor") / "libfaketime" / "src" / "libfaketime.so.1"
    assert library.is_file()
    return ("env", f"LD_PRELOAD={library}", f"FAKETIME={offset}", "FAKETIME_DONT_FAKE_MONOTONIC=1")


def clock(work: Path) -> Trial:
    """The clock a day back and a year forward between commands (libfaketime, from PyPI)."""
    folder = make_stand(work / "clock")
    problems = []
    probe = [*shifted("+365d"), sys.executable, "-c", "import time; print(time.time())"]
    if float(subprocess.run(probe, capture_output=True, check=True).stdout) < time.time() + 364 * 86_400:
        problems.append("the clock was not moved")
    for when, arguments in (
        ("-1d", ("add", "./new", "--name", "new", "--base", "base-7b")),
        ("-1d", ("cache", "clean")),
        ("+365d", ("install", "three@base-7b", "--from", "./published")),
        ("+365d", ("cache", "clean")),
        ("-1d", ("verify", "--all")),
        ("+365d", ("verify", "--all")),
        ("-1d", ("list",)),
        ("+365d", ("list",)),
    ):
        done = run(folder, arguments, before=shifted(when))
        if done.returncode:
            problems.append(f"{when} {' '.join(arguments)}: exit {done.returncode}: {done.stderr}")
    names = [text.split()[0] for text in state_of(folder).listed]
    if names != ["new", "one", "three", "two"]:
        problems.append(f"listed: {names}")
    problems += damage_in(folder)
    return Trial(fault="clock a day back, a year forward", exit_code=0, is_old=False, problem="; ".join(problems))


def all_disks(work: Path) -> Iterator[Trial]:
    """Every case of this module."""
    yield small_disk(work)
    yield read_only(work)
    yield another_user(work)
    yield file_size(work)
    for number in (5, 6, 7, 8, 10, 12, 16):
        yield descriptors(work, number)
    yield clock(work)


_INSIDE: dict[str, Callable[[Path], list[str]]] = {"4 MB disk": _small_disk, "read-only store": _read_only}

if __name__ == "__main__":
    assert Path.cwd().is_dir()
    assert str(ROOT) in os.environ["PYTHONPATH"]
    *words, place = sys.argv[1:]
    print(json.dumps(_INSIDE[" ".join(words)](Path(place))))

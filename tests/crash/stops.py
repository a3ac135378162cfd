"""A writer that is stopped in the middle while `gc --grace 0` runs, then goes on; and kills at random times."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from adapterhub.core.errors import StoreLocked
from adapterhub.library.library import Library
from tests.crash.stand import PROGRAM, Stand, Trial, environment
from tests.support.programs import needs_strace

STOPPABLE = ("rename", "link", "mkdir", "fsync", "unlink")


def frozen(call: str, number: int, note: list[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Stop the command at its `number`-th `call`, collect garbage, let it go on; `note` gets what gc did."""

    def hurt(folder: Path, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        note.clear()
        inject = f"inject={call}:signal=SIGSTOP:when={number}"
        before = (needs_strace(), "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
        with subprocess.Popen(
            [*before, *PROGRAM, *arguments],
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            stopped = _stopped_child(process)
            if stopped is not None:
                try:
                    swept = Library(folder / "home").gc(grace_s=0, wait_s=0.5)
                    note.append(f"gc took {len(swept.gone)}")
                except StoreLocked:
                    note.append("gc refused")
                finally:
                    os.kill(stopped, signal.SIGCONT)
            said, complaints = _ended(process, stopped)
        return subprocess.CompletedProcess(arguments, process.returncode, said, complaints)

    return hurt


def _ended(process: subprocess.Popen[str], stopped: int | None) -> tuple[str, str]:
    """What the command said in the end; on a busy machine it may stop only after it was told to go on."""
    for _ in range(240):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=0.5)
        if stopped is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)
    process.kill()
    raise TimeoutError("the command did not go on")


def _stopped_child(process: subprocess.Popen[str]) -> int | None:
    """The traced process once it is stopped; None when it ended before."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        for pid in children.read_text().split():
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, IndexError):
                continue
            if state == "T" or (state == "t" and _has_stopped(pid)):
                return int(pid)
        time.sleep(0.01)
    return None


def _has_stopped(pid: str) -> bool:
    """Whether a traced process stays stopped, and not only for a call that strace looks at."""
    seen = set()
    for _ in range(10):
        time.sleep(0.02)
        try:
            status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        seen.add((status[0], status[11], status[12]))
    return len(seen) == 1 and next(iter(seen))[0] == "t"


def stops(stand: Stand, counts: dict[str, int], keep: Callable[[str, int], bool]) -> Iterator[Trial]:
    """A stopped writer at every place that `keep` wants; it completes or is refused."""
    for call in STOPPABLE:
        for number in range(1, counts.get(call, 0) + 1):
            if keep(call, number):
                note: list[str] = []
                trial = stand.trial(
                    f"{stand.command}: stopped at {call} {number}, gc meanwhile",
                    frozen(call, number, note),
                    codes=(0, 12, 14, 15),
                )
                problem = trial.problem or ("" if note else "the command never stopped")
                yield Trial(
                    fault=f"{trial.fault} ({', '.join(note)})",
                    exit_code=trial.exit_code,
                    is_old=trial.is_old,
                    problem=problem,
                )


def random_kills(stand: Stand, number: int, seed: int) -> Iterator[Trial]:
    """SIGKILL after a random share of 1.1 times the normal run."""
    chance = random.Random(seed)
    start = time.perf_counter()
    subprocess.run(
        [*PROGRAM, *stand.arguments],
        cwd=(folder := stand.copy()),
        env=environment(folder),
        check=True,
        capture_output=True,
    )
    normal_s = time.perf_counter() - start
    for turn in range(number):
        delay_s = chance.uniform(0, 1.1 * normal_s)

        def hurt(
            folder: Path, arguments: tuple[str, ...], delay_s: float = delay_s
        ) -> subprocess.CompletedProcess[str]:
            with subprocess.Popen(
                [*PROGRAM, *arguments],
                cwd=folder,
                env=environment(folder),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                time.sleep(delay_s)
                process.kill()
                said, complaints = process.communicate()
            return subprocess.CompletedProcess(arguments, process.returncode, said, complaints)

        yield stand.trial(f"{stand.command}: killed at random, {turn + 1}: after {delay_s:.3f} s", hurt)

"""One process that types many commands and tells what each did.

    python -m tests.attacks.command_child JOB.json

The job holds `folder`, the commands of `warm` (run first, so that what is imported late is there) and `runs`, each an
`id` and its `arguments`. Prints one JSON line a run: exit code, output, megabytes above what the process held before,
and everything that must not happen. A run that does not end within `HANGS_S` is given up. Used by
`test_command_inputs.py`.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from tests.support.command_line import Adapt
from tests.support.hostile_child import Hangs, Watch, forget_peak, give_up, memory_mb, peak_mb

HANGS_S = 30


def main() -> None:
    signal.signal(signal.SIGALRM, give_up)
    job = json.loads(Path(sys.argv[1]).read_text())
    adapt = Adapt(Path(job["folder"]))
    for arguments in job["warm"]:
        adapt(*arguments)
    watch = Watch(adapt.folder)
    for run in job["runs"]:
        reset = forget_peak()
        held, started = memory_mb("VmRSS"), time.process_time()
        with watch.watching() as seen:
            signal.alarm(HANGS_S)
            try:
                done = adapt(*run["arguments"])
                told = {"exit_code": done.exit_code, "stdout": done.stdout[:20_000], "stderr": done.stderr[:20_000]}
            except Hangs:
                told = {"exit_code": None, "stdout": "", "stderr": f"did not end within {HANGS_S} s"}
            except BaseException as error:  # noqa: BLE001 - whatever came through is what we look for
                told = {"exit_code": None, "stdout": "", "stderr": f"{type(error).__name__}: {error}"[:300]}
            finally:
                signal.alarm(0)
        harm = [what for what in seen if not what.startswith("imported ")]  # which error needs which module is free
        mb = peak_mb(since_reset=reset) - held
        sys.stdout.write(
            json.dumps({"id": run["id"], **told, "seconds": time.process_time() - started, "mb": mb, "seen": harm})
            + "\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Serves a registry again and again in forks of one process: a start costs milliseconds, so a hundred kills are cheap.

    python -m tests.registry.forking_server OPTIONS…

Each line on stdin starts a server; its process id and URL are the answer. Whoever reads it kills it.
"""

from __future__ import annotations

import os
import sys

from adapterhub_registry.__main__ import main


def run() -> None:
    for _ in sys.stdin:
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            os._exit(main(["--port", "0", *sys.argv[1:]]))
        sys.stdout.write(f"pid: {process}\n")
        sys.stdout.flush()
        os.waitpid(process, 0)


if __name__ == "__main__":
    run()

"""Prove names of modules on tiny models of every class.

    python -m tests.dialects            a row for each class and set of names; exit code 1 if one is wrong
    python -m tests.dialects NAME …     only these classes of transformers

Errors are relative to what the adapter changes: 0 is right, 1 is as if it were ignored. `peft` is the error of PEFT's own
reload. The names are those in memory, those in the files (which transformers 4 has in memory, too), those of the text
model (`inner`: its adapter on the whole; `text`: made by PEFT on the text model; `outer`: the whole's on the text model).
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from transformers.utils import logging

from tests.dialects.classes import CLASSES
from tests.dialects.proof import Row, prove


def main() -> int:
    """Print the table; the exit code."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    right = total = 0
    sys.stdout.write(f"{Row('class', 'names', 'peft', 'verify', 'attach', 'bank')}\n")
    for name in sys.argv[1:] or CLASSES:
        with tempfile.TemporaryDirectory() as folder:
            rows = prove(name, Path(folder))
        for row in rows:
            sys.stdout.write(f"{row}{'' if row.is_right else '  WRONG'}\n")
        right += sum(row.is_right for row in rows)
        total += len(rows)
    sys.stdout.write(f"{right} of {total} right, {len(sys.argv[1:] or CLASSES)} classes\n")
    return 0 if right == total else 1


if __name__ == "__main__":
    sys.exit(main())

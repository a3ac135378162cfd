"""A plain list of adapters with one spec per line, as `export` writes and `install -r` reads it.

# comment
acme/legal-qa==1.2.0#sha256:9f86d081884c7d65…      # a comment starts a line or follows a space
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Final

from adapterhub.core.disk.files import ensure_there, read_plain
from adapterhub.core.errors import SAVE_UTF8, Malformed, NotFound, SpecError, shown
from adapterhub.core.specs import AdapterSpec

MOST_BYTES: Final = 4 << 20
_COMMENT: Final = re.compile(r"(?:^|\s)#.*$")


def read_requirements(path: str | os.PathLike[str]) -> list[AdapterSpec]:
    """Return the specs in a file, in order; `-` reads stdin.

    Raises:
        Malformed: the message lists every line that is not a spec, with its number.
    """
    where = "stdin" if str(path) == "-" else str(path)
    if where != "stdin":
        ensure_there(Path(path), NotFound)
    try:
        raw = sys.stdin.buffer.read(MOST_BYTES + 1) if str(path) == "-" else read_plain(Path(path), MOST_BYTES)
    except OSError as error:
        raise Malformed(
            f"cannot read `{shown(where, 200)}`: {error.strerror}",
            hint="check its permissions and the disk with `ls -l`",
        ) from None
    if len(raw) > MOST_BYTES:
        raise Malformed(f"`{shown(where, 200)}`: expected at most {MOST_BYTES:,} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"`{shown(where, 200)}`: not UTF-8 at byte {error.start}", hint=SAVE_UTF8) from None
    return parse_requirements(text, where)


def parse_requirements(text: str, where: str = "requirements") -> list[AdapterSpec]:
    """Return the specs in `text`, as in `read_requirements`."""
    specs: list[AdapterSpec] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        spec = _COMMENT.sub("", line).strip()
        if not spec:
            continue
        try:
            specs.append(AdapterSpec.parse(spec))
        except SpecError as error:
            problems.append(f"  line {number}: `{shown(spec)}`: {error.reason}")
    if problems:
        raise Malformed(
            "\n".join([f"`{shown(where, 200)}`: not a list of adapters; nothing was changed", *problems]),
            hint="write one spec per line, as `adapt export` does",
        )
    return specs

"""Run the checks, or those named as arguments: one JSON line each, then a line with the versions."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.registry.conformance import downloads, errors, listings, repositories, uploads
from tests.registry.conformance.client import CHECKS, Client

MODULES = (repositories, uploads, downloads, listings, errors)


def main() -> int:
    failed = 0
    names = sys.argv[1:] or list(CHECKS)
    prefix = (
        "run" + re.sub(r"[^a-z]", "", os.urandom(40).hex().translate(str.maketrans("0123456789", "ghjkmnpqrs")))[:8]
    )
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / name.replace("_", "")
            place.mkdir()
            client = Client(os.environ["HF_ENDPOINT"], os.environ["ADMIN_TOKEN"], place, prefix)
            problem, began = None, time.monotonic()
            try:
                CHECKS[name](client)
            except BaseException:  # noqa: BLE001 - whatever it is, it is the result
                problem = traceback.format_exc()
                failed += 1
        sys.stdout.write(
            json.dumps({"check": name, "problem": problem, "seconds": round(time.monotonic() - began, 3)}) + "\n"
        )
        sys.stdout.flush()
    versions = {name: _version(name) for name in ("huggingface_hub", "hf_xet")}
    sys.stdout.write(json.dumps({"versions": versions, "failed": failed, "checks": len(names)}) + "\n")
    return 1 if failed else 0


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())

"""What `pip install adapterhub` takes on disk: the wheel of this checkout in a fresh environment, the rest from PyPI.

    python -m tests.bench.bench_core_size [--extras registry,scale] [--limit 110]

The size is what `du -sm` says of `site-packages`, with compiled files, and with pip, which sqlite-utils requires. Exit code 1
above the limit.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.harness import given

ROOT = Path(__file__).resolve().parents[2]
LIMIT_MB = 110
LISTED = 8


def megabytes(path: Path) -> float:
    """The blocks of a file or folder, as `du` counts them."""
    every = (path, *path.rglob("*")) if path.is_dir() else (path,)
    return sum(one.lstat().st_blocks for one in every) * 512 / (1 << 20)


def install(folder: Path, extras: str) -> Path:
    """The `site-packages` of a new environment that holds the wheel and what it needs, and nothing else."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    subprocess.run([*pip, "--python", environment, "install", f"{wheel}[{extras}]" if extras else wheel], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    return packages


def main() -> int:
    """Measure and print."""
    options = given(__doc__, extras="", limit=float(LIMIT_MB))
    with tempfile.TemporaryDirectory() as folder:
        packages = install(Path(folder), options.extras)
        total = megabytes(packages)
        sizes = sorted(((megabytes(path), path.name) for path in packages.iterdir()), reverse=True)
    print(f"{total:.0f} MB installed (at most {options.limit:.0f})")
    for size, name in sizes[:LISTED]:
        print(f"{size:6.1f} MB  {name}")
    return int(total > options.limit)


if __name__ == "__main__":
    sys.exit(main())

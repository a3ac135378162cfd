"""The conformance checks with each supported version of the hub client: a table for the docs.

    python -m tests.registry.client_versions FOLDER [VERSION …]

Makes one environment for each version in FOLDER (kept, so that a second run is quick; needs a package index), serves
a registry on loopback, and prints a Markdown table. Not part of the default test run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.registry.conftest import LIMITS, MODES, ROOT, Served, serving

VERSIONS = ("0.26.5", "0.36.2", "1.19.0", "1.20.1", "1.33.0", "2.1.1", "newest")


def environment(folder: Path, version: str) -> Path:
    """The interpreter of an environment that holds this version, and nothing else that matters."""
    python = folder / version / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / version)], check=True)
        wanted = "huggingface_hub" if version == "newest" else f"huggingface_hub=={version}"
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--upgrade", wanted], check=True)
    return python


def run(python: Path, served: Served, switches: dict[str, str]) -> tuple[dict[str, str | None], list[str], int]:
    """Versions of the client's parts, names of the checks that failed, and the number of checks."""
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [str(python), "-m", "tests.registry.conformance"],
            env=served.environment(Path(home), **switches),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines or "versions" not in lines[-1]:
        raise SystemExit(done.stderr)
    for line in lines[:-1]:
        if line["problem"]:
            sys.stderr.write(f"{line['check']}: {line['problem']}\n")
    return lines[-1]["versions"], [line["check"] for line in lines[:-1] if line["problem"]], len(lines) - 1


def main() -> int:
    folder, versions = Path(sys.argv[1]), sys.argv[2:] or VERSIONS
    failures = 0
    sys.stdout.write("| huggingface_hub | hf-xet | switches | checks passed | failed |\n|---|---|---|---:|---|\n")
    for version in versions:
        python = environment(folder, version)
        with tempfile.TemporaryDirectory() as root, serving(Path(root), LIMITS) as served:
            for name, switches in MODES.items():
                told, failed, count = run(python, served, switches)
                failures += len(failed)
                mode = "as installed" if name == "xet" else "HF_HUB_DISABLE_XET=1"
                parts = f"{told['huggingface_hub']} | {told['hf_xet'] or 'none'} | {mode}"
                sys.stdout.write(f"| {parts} | {count - len(failed)} of {count} | {', '.join(failed)} |\n")
                sys.stdout.flush()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

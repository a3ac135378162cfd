"""The registry with `@huggingface/hub`, the Hub's client for JavaScript, as npm installs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.registry.running import Running
from tests.support.outside import lacking
from tests.support.programs import needs

VERSION = "2.17.5"
SCRIPT = Path(__file__).with_name("hub_client.mjs")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which node finds the client."""
    folder = tmp_path_factory.mktemp("js")
    options = ("--no-audit", "--no-fund", "--ignore-scripts", "--no-save")
    done = subprocess.run(
        [needs("npm"), "install", *options, f"@huggingface/hub@{VERSION}"],
        cwd=folder,
        env=os.environ | {"HOME": str(folder), "PATH": os.pathsep.join([str(Path(needs("node")).parent), os.defpath])},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        lacking(f"needs a package index for npm: {done.stderr.strip()[-300:]}")
    return folder


def test_a_program_in_javascript_uses_a_repository_from_its_first_file_to_its_end(
    package: Path, server: Running
) -> None:
    shutil.copy(SCRIPT, package)
    done = subprocess.run(
        [needs("node"), SCRIPT.name],
        cwd=package,
        env=os.environ | {"HF_ENDPOINT": server.url, "HF_TOKEN": server.token, "REPO": "ann/from-js"},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")) == {
        "who": "ann",
        "exists": True,
        "info": "ann/from-js",
        "files": [
            "file .gitattributes",
            "file model.safetensors",
            "file notes.txt",
            "directory sub",
            "file sub/large.bin",
        ],
        "notes": "notes",
        "large": 9_000_000,
        "size": 89,
        "missing": False,
        "paths": ["notes.txt", "sub"],
        "titles": ["Add sub/large.bin", "Add two files", "initial commit"],
        "count": 3,
        "header": [2, 3],
        "on dev": "dev",
        "snapshot": "notes",
        "listed": ["ann/from-js"],
        "refused": 404,
        "deleted": False,
    }

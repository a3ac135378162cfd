"""What the compose file names starts and works together: see `composed`.

`pytest --exhaustive tests/deploy/test_composed.py` runs it, as root. Debian has the programs: `apt-get install docker-compose
iproute2 nginx openssl`; `awscli` comes from PyPI, into an environment that is thrown away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import pytest

from tests.deploy.kubernetes import ROOT
from tests.support.outside import lacking
from tests.support.programs import needs

pytestmark = pytest.mark.exhaustive


def test_an_adapter_goes_through_all_that_the_compose_file_starts(tmp_path: Path) -> None:
    needs("docker-compose"), needs("ip"), needs("nginx"), needs("openssl")
    unshare = needs("unshare")
    if os.geteuid() != 0:
        lacking("needs root, for a network of its own")
    venv.create(tmp_path / "aws", with_pip=True)
    subprocess.run([tmp_path / "aws" / "bin" / "pip", "install", "-q", "awscli"], check=True)

    with tempfile.TemporaryDirectory() as name:  # where PostgreSQL's account may go, too
        folder = Path(name)
        folder.chmod(0o755)
        command = [
            unshare,
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            sys.executable,
            "-m",
            "tests.deploy.composed",
            folder,
            tmp_path / "aws" / "bin",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
        logs = {path.stem: path.read_text() for path in folder.glob("*.log")}

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["sent"] == told["got"]
    assert set(logs) == {"postgres", "s3", "bucket", "registry-1", "registry-2", "proxy"}
    assert all('"path": ' in logs[name] for name in ("registry-1", "registry-2"))  # both answered

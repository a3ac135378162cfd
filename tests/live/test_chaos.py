"""A few rounds of `python -m tests.live.chaos`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent.parent


def test_whatever_is_killed_no_version_is_lost_and_no_answer_mixed(amount: Callable[[int, int], int]) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.live.chaos", "--rounds", str(amount(10, 200))]
    here = {name: text for name, text in os.environ.items() if name != "HF_HUB_OFFLINE"}  # the registry is asked
    done = subprocess.run(command, check=False, cwd=ROOT, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "none lost" in done.stdout
    assert "none mixed" in done.stdout

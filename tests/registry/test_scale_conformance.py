"""The unmodified hub client against two servers of one registry, which share PostgreSQL and S3.

Every connection goes to the other server than the one before, so what one wrote the other must find.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.registry.conformance import downloads, errors, listings, repositories, uploads
from tests.registry.conformance.client import CHECKS
from tests.registry.conftest import LIMITS, MODES, ROOT
from tests.registry.shared_servers import S3, Balancer, Postgres, Shared

MODULES = (repositories, uploads, downloads, listings, errors)
OPTIONS = [part for limit in LIMITS for part in ("--limit", limit)]


@pytest.fixture(scope="module")
def shared(pg: Postgres, s3_server: S3, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    folder = tmp_path_factory.mktemp("shared")
    return Shared(folder, pg.new_registry(), s3_server.endpoint, s3_server.new_bucket())


@pytest.fixture(scope="module")
def front(shared: Shared) -> Iterator[Balancer]:
    with shared.replica(*OPTIONS) as one, shared.replica(*OPTIONS) as other:
        balancer = Balancer(one.url, other.url)
        yield balancer
        balancer.close()


@pytest.mark.parametrize("mode", ["xet", pytest.param("lfs", marks=pytest.mark.exhaustive)])
def test_stock_client_on_two_servers(
    front: Balancer, shared: Shared, mode: str, tmp_path: Path, amount: Callable[[int, int], int]
) -> None:
    names = random.Random().sample(sorted(CHECKS), amount(20, len(CHECKS)))
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    path = os.pathsep.join([str(ROOT), str(ROOT / "registry")])
    hub = {"HF_ENDPOINT": front.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.registry.conformance", *names],
        env=mine | hub | {"PYTHONPATH": path, "ADMIN_TOKEN": shared.token} | MODES[mode],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = {line["check"]: line["problem"] for line in lines if "check" in line}
    problems = {name: problem for name, problem in found.items() if problem}
    assert problems == {}, "\n".join(problems.values())
    assert found.keys() == set(names), done.stderr


def test_a_server_with_another_secret_is_refused(front: Balancer, shared: Shared, tmp_path: Path) -> None:
    assert front.url
    (tmp_path / "secret").write_text("another secret of thirty-two bytes or more")
    command = [sys.executable, "-m", "adapterhub_registry", "--root", str(tmp_path), "--port", "0", *shared.options]
    path = os.pathsep.join([str(ROOT), str(ROOT / "registry")])
    done = subprocess.run(
        [*command, "--secret-file", str(tmp_path / "secret")],
        env=os.environ | shared.variables | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "the servers of this database use another secret" in done.stderr
    assert "--replace-secret" in done.stderr


def test_nothing_is_left_on_the_way(front: Balancer, shared: Shared, s3_server: S3) -> None:
    assert front.passed_over == 0
    kinds = {key.split("/")[1] for key in s3_server.keys(shared.bucket)}

    assert kinds <= {"blobs", "xorbs"}, "uploads stayed in staging"

"""The tables of vLLM beside vLLM: tiny models of many classes, adapters in several dialects, and what each one does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.inference.engines.classes import CASES, PROMPT, Row, engine_version, make, row_of, unlisted, write_rows
from tests.inference.engines.servers import ROOT, engine_environ, vllm_python

pytestmark = pytest.mark.engine

_ROWS: dict[tuple[str, str], Row] = {}


def effects(folder: Path, adapters: dict[str, Path]) -> dict[str, Any]:
    """What vLLM does with each adapter, by one process for the base."""
    script = Path(__file__).with_name("effects.py")
    words = [str(folder / "base"), json.dumps(PROMPT), *map(str, adapters.values())]
    environ = engine_environ() | {"VLLM_PLUGINS": "none"}
    done = subprocess.run(
        [vllm_python(), str(script), *words], env=environ, capture_output=True, text=True, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("EFFECTS ")), "")
    found = json.loads(line.removeprefix("EFFECTS ")) if line else {"error": done.stderr}
    return {name: found.get(str(path), found.get("error")) for name, path in adapters.items()} | {
        "base": found.get("base"), "modules": found.get("modules"),
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_vllm_does_what_its_table_says(name: str, tmp_path: Path) -> None:
    adapters = make(name, tmp_path)
    found = effects(tmp_path, adapters)

    rows = [row_of(name, tmp_path, adapter, found, engine_version()) for adapter in adapters.values()]

    _ROWS.update({(row.case, row.adapter): row for row in rows})
    for row in rows:
        assert row.agrees, row
    assert unlisted(rows[0].architecture, found["modules"] or (), engine_version()) == set()
    if os.environ.get("ADAPTERHUB_WRITE_ROWS"):
        write_rows(_ROWS.values(), ROOT / "docs" / "engine_tables" / "ran.json")

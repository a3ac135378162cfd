"""One quick case of `python -m tests.programs`: diffusers computes what an exported file means."""

from __future__ import annotations

from pathlib import Path

from tests.programs.in_diffusers import BOUND, difference


def test_diffusers_computes_what_the_adapter_means(tmp_path: Path) -> None:
    ours, _, moved = difference(tmp_path, is_xl=False, only_attention=True)

    assert ours < BOUND < moved

"""Hostile quantised copies: the commands that read them end with a plain error, or say that they prove nothing."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from adapterhub.core.errors import EXIT_BUG
from adapterhub.formats.base.fingerprint import BaseVerdict
from tests.support.command_line import Adapt, Done
from tests.support.hostile_copies import GGUF_KINDS, KINDS, WRITERS, Tensors, make, make_right
from tests.support.hostile_corpus import make_base
from tests.support.hostile_kinds import good

MOST_BYTES = 96 << 20
HARMLESS = {
    "int8: codes of 10**9 bits",
    "mlx: groups of a number without end",
    "gguf: 10**9 layers",
    "fp8: says that it is gptq",
    "fp8: nests its settings",
    "fp8: groups of layers that are no objects",
}
"""Whose files say something wrong that decides nothing: they hold the copy itself."""
NOT_KNOWN = 11
"""The exit code for bases that do not fit each other."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapt, Tensors]:
    folder = tmp_path_factory.mktemp("world")
    adapt = Adapt(folder)
    base = make_base(folder / "base")
    good(folder / "adapter")
    adapt.ok("base", "add", str(base), "--as", "source")
    return adapt, load_file(base / "model.safetensors")


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def plain(done: Done) -> Done:
    """No bug, no traceback, and a reason where it failed."""
    assert done.exit_code != EXIT_BUG, done.stderr
    assert "Traceback" not in done.stderr
    assert done.exit_code == 0 or done.stderr or done.stdout
    return done


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if n % 3 == 0 else pytest.mark.exhaustive)
        for n, kind in enumerate([*KINDS, *GGUF_KINDS])
    ],
)
def test_a_hostile_copy_is_refused_or_proves_nothing(kind: str, world: tuple[Adapt, Tensors], tmp_path: Path) -> None:
    adapt, source = world
    config = json.loads((adapt.folder / "base" / "config.json").read_text())
    copy = make(kind, source, config, tmp_path / "copy")
    before = {path.name for path in (adapt.folder / "home" / "bases").iterdir()}

    held = peak_bytes()
    for pair in (("source", copy), (copy, "source")):
        for how in ((), ("--full",)):
            done = plain(adapt("base", "compare", *pair, *how, "--json"))
            assert done.exit_code != 0 or kind in HARMLESS
            if done.exit_code == NOT_KNOWN:
                assert not BaseVerdict[json.loads(done.stdout)["verdict"]].allows_attach
    added = plain(adapt("base", "add", copy, "--as", "copy"))
    if added.exit_code == 0:
        shown = plain(adapt("base", "show", "copy"))
        assert "SAME_WEIGHTS" not in shown.stdout or kind in HARMLESS
        plain(adapt("verify", adapt.folder / "adapter", "--base", "copy"))
        adapt.ok("base", "remove", "copy")
    plain(adapt("verify", adapt.folder / "adapter", "--base", copy))

    assert peak_bytes() - held < MOST_BYTES
    after = {path.name for path in (adapt.folder / "home" / "bases").iterdir()}
    assert after == before


@pytest.mark.parametrize("writer", [*WRITERS, "Q8_0"])
def test_the_same_copies_are_the_source_s_where_nothing_is_spoilt(
    writer: str, world: tuple[Adapt, Tensors], tmp_path: Path
) -> None:
    adapt, source = world
    config = json.loads((adapt.folder / "base" / "config.json").read_text())
    copy = make_right(writer, source, config, tmp_path / "copy")

    for how in ((), ("--full",)):
        done = adapt("base", "compare", "source", copy, *how, "--json")

        expected = "LIKELY_SAME_QUANTISED" if writer in ("gptq", "awq") else "SAME_WEIGHTS_QUANTISED"
        assert json.loads(done.stdout)["verdict"] == expected, done.stdout

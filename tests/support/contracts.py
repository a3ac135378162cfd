"""A library whose adapter `a` has a recorded contract, and a contract to write down in tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterhub.core.digests import canonical_json, digest_of
from adapterhub.formats.contract.contract import (
    Contract,
    Demand,
    Expect,
    Golden,
    ImageSettings,
    LeaveAlone,
    Recorded,
    packed_latent,
)
from adapterhub.formats.prompts.form import RAW
from tests.support.command_line import Adapt

ASKED = (
    "Where is the boat?", "Hello you", "who", "A cat sat.", "dogs bark", "see me", "blue boats", "fine", "over there",
    "the end", "we", "go on", "no", "yes sir", "ask me", "me too",
)  # fmt: skip
RECORD = ("contract", "record", "a", "--examples", "examples.jsonl", "--max-new-tokens", "5")
SOME = digest_of(b"some bytes")


def write_examples(path: Path, asked: Sequence[str] = ASKED, wanted: Sequence[str] | None = None) -> Path:
    pairs = zip(asked, wanted or [" a b"] * len(asked), strict=True)
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    return path


def recorded_library(folder: Path) -> Adapt:
    """The library of the tests of `run`, with a contract for `a` in its version 1.0.1."""
    from tests.support.run_library import make_library  # torch, which tests of the format do not need

    make_library(folder)
    write_examples(folder / "examples.jsonl")
    adapt = Adapt(folder)
    adapt.ok(*RECORD)
    return adapt


def small_contract(**changed: Any) -> Contract:
    """A contract with a line of every kind."""
    recorded = Recorded(
        base=SOME, base_dtype="float32", adapter=SOME, tokenizer_sha256=SOME, vocabulary=64, engine="e", torch="t", peft="p"
    )  # fmt: skip
    golden = Golden(
        id="golden-1", asked="hi", answer=" yo", tokens=(1, 2, 63), prompt_tokens=2, prompt_sha256=SOME, loss=0.25,
        base_loss=2.5, margin=1.5,
    )  # fmt: skip
    contract = Contract(
        kind="causal",
        prompt=RAW,
        recorded=recorded,
        goldens=(golden,),
        expects=(
            Expect(id="e", asked="q", demand=Demand(contains=("b",), json={"type": "object"})),
            Expect(id="n", asked="q", demand=Demand(not_contains=("arr",)), binds_merges=True),
        ),
        leave_alone=(LeaveAlone(id="l", asked="z", answer="k", tokens=(1,), loss=0.5),),
    )
    return replace(contract, **changed)


def image_contract(**changed: Any) -> Contract:
    """A contract of a pipeline, with one prompt under two seeds."""
    goldens = tuple(
        Golden(
            id=f"golden-{seed}", asked="a cat", prompt_tokens=2, prompt_sha256=SOME, seed=seed,
            latent=packed_latent([1.0, -0.5, 0.25]), gap=0.5,
        )
        for seed in (0, 1)
    )  # fmt: skip
    contract = Contract(
        kind="image",
        prompt=RAW,
        recorded=small_contract().recorded,
        goldens=goldens,
        image=ImageSettings(width=64, height=64, steps=4, guidance=7.5, scheduler=SOME),
    )
    return replace(contract, **changed)


def changed_line(raw: bytes, number: int, **changed: Any) -> bytes:
    """The file with other values in one line (counted from 1), in canonical JSON; None removes a key."""
    lines = raw.split(b"\n")
    value = json.loads(lines[number - 1]) | changed
    lines[number - 1] = canonical_json({key: item for key, item in value.items() if item is not ...})
    return b"\n".join(lines)

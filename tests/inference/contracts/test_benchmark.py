"""The parts of the benchmark of contracts that decide what its long run says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench.contracts.changes import CHANGES, DAMAGES
from tests.bench.contracts.families import FAMILIES
from tests.bench.contracts.report import report
from tests.bench.contracts.results import DRIFT, KEY, NEVER, RECORDING, Results
from tests.bench.contracts.training import recipes
from tests.bench.merge_forecast import mixes, spearman

ON_WHICH_BOUNDS_WERE_CHOSEN = {"json", "pirate", "larger", "sentiment"}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_held_out_prompt_is_trained_on_or_in_a_contract(name: str) -> None:
    tasks = FAMILIES[name].tasks
    assert len(tasks) == len({recipe.key for recipe in recipes(name, FAMILIES[name])}) == 10
    assert not ON_WHICH_BOUNDS_WERE_CHOSEN & set(tasks)
    for seed, task in enumerate(tasks.values()):
        trained, asked, held = task.rows(seed)
        assert (len(held), len({one for one, _ in (*trained, *asked, *held)})) == (64, 352)
        assert task.rows(seed) == (trained, asked, held)
        assert all(task.marker in answer for _, answer in trained)


def test_a_change_keeps_names_and_shapes_and_changes_the_update() -> None:
    draw = torch.Generator().manual_seed(0)
    parts = {"lora_A": (4, 6), "lora_B": (5, 4)}
    tensors = {
        f"base_model.model.encoder.layer.{layer}.{kind}.{part}.weight": torch.randn(shape, generator=draw)
        for layer in range(4)
        for kind in ("query", "value")
        for part, shape in parts.items()
    } | {"base_model.model.classifier.weight": torch.randn(3, 5, generator=draw)}
    made = {name: change.tensors(dict(tensors)) for name, change in {**CHANGES, **DAMAGES}.items() if change.tensors}

    assert all(changed is not None for changed in made.values())
    for changed in made.values():
        assert changed is not None
        assert {k: t.shape for k, t in changed.items()} == {k: t.shape for k, t in tensors.items()}
        assert any(not torch.equal(changed[key], tensor) for key, tensor in tensors.items())


def row(change: str, verdict: str, truth: float, **values: Any) -> dict[str, Any]:
    goldens = [[verdict == "PASS", 0.1, 0.1, 2.0, 3]] * 20
    found: dict[str, Any] = {
        "family": "small-gpt2",
        "adapter": "bang",
        "recipe": "r",
        "change": change,
        "verdict": verdict,
        "reason": "",
    }
    found |= {"truth": truth, "by_numbers": verdict, "cpu_seconds": 1.0, "bytes": 2048, "goldens": goldens}
    return found | values


def test_the_report_counts_what_was_told_and_what_was_refused(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    for one in (
        row("no-op", "CHANGED", 0.0),
        row("alpha x 2", "PASS", 0.5),
        row("int3 adapter", "CHANGED", 1.0),
        row("bf16 adapter", "PASS", 1.0),
        row("chat form", "UNKNOWN", 0.0, by_numbers="PASS", reason="other-tokenizer"),
        row(NEVER, "CHANGED", 0.4),
        {"family": "minilm", "adapter": "law", "recipe": "r", "change": RECORDING, "problem": "too few"},
    ):
        results.append([one.pop(name) for name in KEY], **one)
    with results.path.open("a") as file:
        file.write('{"family": "small-g')  # a run that was ended
    last = row("as recorded", "PASS", 1.0)
    results.append([last.pop(name) for name in KEY], **last)
    said = report(results.rows())

    assert len(results.rows()) == 8
    assert "| changed adapters told | at least 99 % | 50.0 % (1 of 2) |" in said
    assert "| unchanged adapters refused | at most 1 % | 33.3 % (1 of 3) |" in said
    assert "not passed | 100 % | 100.0 % (2 of 2) |" in said
    assert "told by the numbers alone |  | 0.0 % (0 of 1) |" in said
    assert "that keep it, told | 100 % | 100.0 % (1 of 1) |" in said
    assert "changed adapters told | at least 99 % | -" in report([])


def test_the_report_shows_what_drift_tells_by_damage_and_by_threshold() -> None:
    measured = [
        ["as recorded", "float32", 0.0, 0.0, False, "PASS", 1.0],
        ["as recorded", "bfloat16, 2 threads", 0.03, 0.01, True, "PASS", 1.0],
        ["alpha x 0.8", "float32", 0.08, 0.0, True, "PASS", 1.0],
        ["alpha x 0.8", "bfloat16", 0.01, 0.01, False, "PASS", 1.0],
    ]
    key = {"family": "small-gpt2", "adapter": "bang", "recipe": "r", "change": DRIFT}
    said = report([key | {"measured": measured, "seconds": 4.0}])

    assert "| float32 | 0.0 % (0 of 1) | 0.0000 | 0.0000 |" in said
    assert "| bfloat16 | 100.0 % (1 of 1) | 0.0300 | 0.0100 |" in said
    assert "| alpha x 0.8 | 1 of 1, 0.080 | 0 of 1, 0.010 | - | - |" in said
    assert "| 1 | 50.0 | 50.0 | - |" in said
    assert "| 2 | 0.0 | 50.0 | - |" in said


def test_merges_come_in_one_order_and_ranks_share_ties() -> None:
    assert mixes(4, 0)[:5] == mixes(4, 0)[:5] != mixes(4, 1)[:5]
    assert [len(mix.parents) for mix in mixes(4, 0)[:4]] == [2, 4, 2, 4]
    assert spearman([(1, 10), (2, 20), (3, 40), (4, 30)]) == pytest.approx(0.8)
    assert spearman([(1, 5), (1, 5), (2, 7), (2, 7)]) == pytest.approx(1)
    assert spearman([(1, 1), (1, 2)]) is None

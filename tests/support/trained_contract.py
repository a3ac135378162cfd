"""A library on the real base with the shipped adapter `pirate` and a contract of sentences that it was not taught."""

from __future__ import annotations

from pathlib import Path

from adapterhub.cli.start.demo_run import tasks
from tests.support.command_line import Adapt
from tests.support.contracts import write_examples
from tests.support.real_base import smollm2_base

SHIPPED = Path(tasks.__file__).parent / "adapters"


def pirate_library(folder: Path) -> Adapt:
    """`pirate` for the base `smol`, with 20 goldens in its version 1.0.1."""
    [task] = [one for one in tasks.make_tasks() if one.name == "pirate"]
    held_out = task.held_out[::4]
    write_examples(folder / "examples.jsonl", [e.prompt for e in held_out], [e.answer for e in held_out])
    adapt = Adapt(folder)
    adapt.ok("base", "add", smollm2_base(), "--as", "smol")
    adapt.ok("add", SHIPPED / "pirate", "--name", "pirate", "--base", "smol")
    adapt.ok("contract", "record", "pirate", "--examples", "examples.jsonl", "--prompt", "raw")
    return adapt

"""The pages about contracts are true: their commands run on a small model and say what the pages show."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from peft import LoraConfig

from adapterhub.core.specs import parse_name
from adapterhub.library.intake.description import Description
from tests.support.command_line import Adapt
from tests.support.contracts import write_examples
from tests.support.moved_bases import moved_copy
from tests.support.run_library import write_base
from tests.support.tiny_models import llama, save_adapter
from tests.test_docs import DOCS, appears, blocks, steps

PAGE = DOCS / "how-to" / "test-adapters.md"
RECORD, GATE, NEW_BASE = "Record and test", "Accept only what passes", "Test a library on a new base"
TOOLS, PORT = "Use lm-eval and pytest", "Move an adapter to a new base"
PARTS = dict.fromkeys((RECORD, GATE, NEW_BASE, TOOLS), PAGE) | {PORT: DOCS / "how-to" / "extract-and-fuse.md"}
"""Headings of two pages, each with its own library."""

pytestmark = pytest.mark.filterwarnings("ignore")


def with_base(folder: Path, home: str = "home") -> Adapt:
    adapt = Adapt(folder, home)
    adapt.ok("base", "add", "./models/base-7b", "--as", "base-7b")
    return adapt


@pytest.fixture
def adapt(tmp_path: Path, request: pytest.FixtureRequest) -> Adapt:
    """The library that a part finds: both adapters, with contracts or without, or only what is published."""
    write_base(tmp_path / "models" / "base-7b")
    for seed, name in enumerate(("legal-qa", "summarize"), 1):
        config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
        save_adapter(tmp_path / "out" / name, llama, config, seed=seed)
    [(_, examples)] = blocks(PAGE, "jsonl")
    (tmp_path / "examples.jsonl").write_text(examples)
    if request.param in (RECORD, NEW_BASE, PORT):
        adapt = with_base(tmp_path)
        record = adapt.library.bases.list()[0]
        for name in ("legal-qa", "summarize"):
            adapt.library.add(tmp_path / "out" / name, Description(name=parse_name(name), version="1.0.0"), base=record)
            if request.param != RECORD:
                write_examples(tmp_path / "more.jsonl")
                adapt.ok("contract", "record", name, "--examples", "more.jsonl", "--max-new-tokens", 4)
        if request.param != RECORD:
            moved_copy(tmp_path / "models" / "base-7b", tmp_path / "models" / "base-7b-v2", 0.001)
        return adapt
    author = with_base(tmp_path, "author")
    write_examples(tmp_path / "more.jsonl")
    record_more = ("contract", "record", "./out/legal-qa", "--examples", "more.jsonl", "--max-new-tokens", 4)
    author.ok(*record_more, "--base", "base-7b")
    for name in ("legal-qa", "summarize"):
        author.ok("add", f"./out/{name}", "--name", name, "--base", "base-7b")
        author.ok("push", name, "--to", "./published")
    adapt = with_base(tmp_path)
    if request.param == TOOLS:
        adapt.ok("install", "legal-qa@base-7b", "--from", "./published")
    return adapt


@pytest.mark.parametrize(("adapt", "part"), [(part, part) for part in PARTS], indirect=["adapt"])
def test_commands_do_what_the_page_shows(adapt: Adapt, part: str) -> None:
    found = steps(PARTS[part], with_model=True, part=part)
    assert found
    for step in found:
        words = shlex.split(step.command)[1:]
        if words[-1].startswith("./home/") and "*" in words[-1]:  # as a shell does
            words[-1:] = [str(path) for path in adapt.folder.glob(words[-1].removeprefix("./"))]
        done = adapt(*words)
        said = (done.stdout + done.stderr).splitlines()

        assert done.exit_code == step.exit_code, (step.command, said)
        assert [line for line in step.shown if not appears(line, said)] == [], (step.command, said)

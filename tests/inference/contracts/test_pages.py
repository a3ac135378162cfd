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
from tests.support.run_library import write_base
from tests.support.tiny_models import llama, save_adapter
from tests.test_docs import DOCS, appears, blocks, steps

TUTORIAL, GATE = DOCS / "tutorial" / "test-an-adapter.md", DOCS / "how-to" / "gate.md"
TOOLS = DOCS / "how-to" / "test-with-tools.md"
pytestmark = pytest.mark.filterwarnings("ignore")


def with_base(folder: Path, home: str = "home") -> Adapt:
    adapt = Adapt(folder, home)
    adapt.ok("base", "add", "./models/base-7b", "--as", "base-7b")
    return adapt


@pytest.fixture
def adapt(tmp_path: Path, request: pytest.FixtureRequest) -> Adapt:
    """The library that a page finds: for the tutorial with both adapters, for the how-to with what is published."""
    write_base(tmp_path / "models" / "base-7b")
    for seed, name in enumerate(("legal-qa", "summarize"), 1):
        config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
        save_adapter(tmp_path / "out" / name, llama, config, seed=seed)
    [(_, examples)] = blocks(TUTORIAL, "jsonl")
    (tmp_path / "examples.jsonl").write_text(examples)
    if request.param == TUTORIAL:
        adapt = with_base(tmp_path)
        record = adapt.library.bases.list()[0]
        for name in ("legal-qa", "summarize"):
            adapt.library.add(tmp_path / "out" / name, Description(name=parse_name(name), version="1.0.0"), base=record)
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


@pytest.mark.parametrize(
    ("adapt", "document"), [(page, page) for page in (TUTORIAL, GATE, TOOLS)], indirect=["adapt"], ids=str
)
def test_commands_do_what_the_page_shows(adapt: Adapt, document: Path) -> None:
    for step in steps(document, with_model=True):
        words = shlex.split(step.command)[1:]
        if words[-1].startswith("./home/") and "*" in words[-1]:  # as a shell does
            words[-1:] = [str(path) for path in adapt.folder.glob(words[-1].removeprefix("./"))]
        done = adapt(*words)
        said = (done.stdout + done.stderr).splitlines()

        assert done.exit_code == step.exit_code, (step.command, said)
        assert [line for line in step.shown if not appears(line, said)] == [], (step.command, said)

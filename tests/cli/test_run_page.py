"""`docs/how-to/run.md` is true: its commands run on real SmolLM2 and say what the page shows."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from adapterhub.cli.start.demo_run import ADAPTERS, BASE_ALIAS
from adapterhub.core.specs import parse_name
from adapterhub.formats.prompts.form import RAW
from adapterhub.library.intake.description import Description
from tests.support.command_line import Adapt
from tests.support.real_base import smollm2_base
from tests.test_docs import DOCS, Step, appears, blocks, steps

PAGE = DOCS / "how-to" / "run.md"
SHIPPED = DOCS.parent / "adapterhub" / "cli" / "start" / "demo_run" / "adapters"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """The library of `adapt demo`, and the file that the page shows."""
    adapt = Adapt(tmp_path_factory.mktemp("page"))
    record = adapt.library.bases.add(smollm2_base(), BASE_ALIAS)
    adapt.library.catalog.put_base(record)
    for name in ADAPTERS:
        adapt.library.add(SHIPPED / name, Description(name=parse_name(name), version="1.0.0", prompt=RAW), base=record)
    [(_, prompts)] = blocks(PAGE, "jsonl")
    Path(adapt.folder / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    return adapt


def marked(step: Step) -> object:
    """One answer and one batch always; what the options do is shown on tiny models, so the others run with `--exhaustive`."""
    more = {"--compare", "--load-in"} & set(shlex.split(step.command))
    return pytest.param(step, id=step.command[10:22], marks=pytest.mark.exhaustive if more else ())


@pytest.mark.parametrize("step", [marked(step) for step in steps(PAGE, with_model=True)])
def test_commands_do_what_the_page_shows(adapt, step):
    done = adapt(*shlex.split(step.command)[1:])

    said = (done.stdout + done.stderr).splitlines()
    assert done.exit_code == step.exit_code, done.stderr
    assert [line for line in step.shown if not appears(line, said)] == []

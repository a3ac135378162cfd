"""What is asked for a recording: examples as for tuning, or a plan."""

from __future__ import annotations

from pathlib import Path

from adapterhub.core.errors import Malformed, problem_list, shown
from adapterhub.formats.contract.contract import Asked
from adapterhub.formats.contract.plan import Plan, Wanted
from adapterhub.formats.prompts.form import Turn
from adapterhub.inference.tuning import read_examples


def plan_of_examples(path: Path) -> Plan:
    """The prompts of a file of examples as inputs; their completions are what the author wants.

    Raises:
        NotFound, Malformed: as `read_examples`, and where an example has no prompt.
    """
    goldens, problems = [], []
    for number, example in enumerate(read_examples(path), 1):
        if example.prompt is None:
            problems.append(f"line {example.line}: `text` alone says not where the prompt ends")
            continue
        asked: Asked = ""
        if isinstance(example.prompt, str):
            asked = example.prompt
        else:
            asked = tuple(Turn(role=turn.role, content=turn.content) for turn in example.prompt)
        goldens.append(Wanted(id=f"golden-{number}", asked=asked, completion=example.completion))
    if problems:
        title = f"{shown(str(path), 200)}: some lines have no prompt"
        raise Malformed(problem_list(title, problems), hint='write {"prompt": …, "completion": …}')
    return Plan(goldens=tuple(goldens))

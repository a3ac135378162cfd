"""What is asked for a recording: examples as for tuning, or a plan; and goldens as examples for tuning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.errors import CouldNotTell, Malformed, problem_list, shown
from adapterhub.formats.contract.contract import Asked, Contract, ids_digest
from adapterhub.formats.contract.plan import Plan, Wanted
from adapterhub.formats.prompts.form import Turn
from adapterhub.inference.contracts.answers import prompts_in_tokens
from adapterhub.inference.contracts.unknown import Unknown
from adapterhub.inference.tuning import Encoded, read_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adapterhub.inference.generation import Model


def plan_of_examples(path: Path) -> Plan:
    """The prompts of a file of examples as inputs; their completions, where they have any, are what the author wants.

    Raises:
        NotFound, Malformed: as `read_examples`, and where an example has no prompt.
    """
    goldens, problems = [], []
    for number, example in enumerate(read_examples(path, takes_prompts=True), 1):
        if example.prompt is None:
            problems.append(f"line {example.line}: `text` alone says not where the prompt ends")
            continue
        asked: Asked = ""
        if isinstance(example.prompt, str):
            asked = example.prompt
        else:
            asked = tuple(Turn(role=turn.role, content=turn.content) for turn in example.prompt)
        goldens.append(Wanted(id=f"golden-{number}", asked=asked, completion=example.completion or None))
    if problems:
        title = f"{shown(str(path), 200)}: some lines have no prompt"
        raise Malformed(problem_list(title, problems), hint='write {"prompt": …}, with a `completion` if you like')
    return Plan(goldens=tuple(goldens))


def examples_of(name: str, contract: Contract, model: Model, tokenizer: PreTrainedTokenizerBase) -> tuple[Encoded, ...]:
    """The goldens of a contract as examples in tokens: the prompt in its form, and the recorded answer.

    Raises:
        CouldNotTell: it holds digests alone, is of another kind, or the tokenizer makes other tokens of its prompts.
    """
    goldens = [golden for golden in contract.distinct if golden.asked is not None and golden.tokens]
    if contract.kind != "causal" or not goldens:
        what = "digests alone" if contract.visibility == "digests" else f"no answers in tokens, as {contract.kind} has"
        raise CouldNotTell(f"the contract of `{shown(name, 200)}` holds {what}; weights cannot be tuned on it")
    longest = max(len(golden.tokens) for golden in goldens)
    try:
        asked = [golden.asked for golden in goldens if golden.asked is not None]
        prompts = prompts_in_tokens(contract.prompt, asked, model, tokenizer, new=longest)
    except Unknown as unknown:
        raise CouldNotTell(f"the contract of `{shown(name, 200)}` cannot be asked here: {unknown.detail}") from None
    found = []
    for golden, prompt in zip(goldens, prompts, strict=True):
        if ids_digest(prompt) != golden.prompt_sha256:
            raise CouldNotTell(
                f"the tokenizer of the base makes other tokens of `{golden.id}` in the contract of"
                f" `{shown(name, 200)}` than at the recording"
            )
        found.append(Encoded(tokens=(*prompt, *golden.tokens), first=len(prompt)))
    return tuple(found)

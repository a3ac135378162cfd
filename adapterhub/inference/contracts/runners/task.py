"""The goldens of a contract as a task of lm-evaluation-harness: a YAML file and a file of JSON Lines.

The tool's traps are in the comments: each was met with the real tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from adapterhub.core.digests import canonical_json
from adapterhub.core.errors import Incompatible
from adapterhub.formats.contract.contract import WRITERS, Contract
from adapterhub.inference.generation import NEW_TOKENS
from adapterhub.inference.stopping import before_stop

METRIC: Final = "exact_match"
_NO_NAME: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class LmEvalTask:
    """A task: its name, its files by name, and the arguments that the tool's model needs besides its paths."""

    name: str
    goldens: int
    files: Mapping[str, bytes]
    model_args: Mapping[str, str]

    @property
    def yaml(self) -> str:
        """The name of the task's YAML file."""
        return f"{self.name}.yaml"


def ensure_askable(contract: Contract) -> None:
    """Refuse a contract whose goldens lm-eval cannot ask.

    Raises:
        Incompatible: it writes no text, holds digests alone, or has no golden.
    """
    if contract.kind not in WRITERS:
        raise Incompatible(
            f"lm-eval compares texts, and this contract is of the kind `{contract.kind}`",
            hint="`adapt test` without `--runner` checks it",
        )
    if contract.visibility == "digests":
        raise Incompatible(
            "the contract holds digests alone, and lm-eval needs its prompts and answers",
            hint="name the full contract with `--tests FILE`",
        )
    if not contract.goldens:
        raise Incompatible("the contract has no golden, and lm-eval asks goldens alone")


def lm_eval_task(contract: Contract, prompts: Sequence[str], name: str) -> LmEvalTask:
    """The task of an adapter `name`; `prompts` are the texts of the contract's distinct goldens, in their frame.

    Raises:
        Incompatible: as `ensure_askable`.
    """
    ensure_askable(contract)
    form = contract.prompt
    task = f"adapt_{_NO_NAME.sub('_', name.lower()).strip('_') or 'adapter'}"
    rows = [
        # The tool cuts its answers before a stop text, and compares them with their leading spaces.
        {"id": golden.id, "prompt": prompt, "answer": before_stop(golden.answer, form.stop)}
        for golden, prompt in zip(contract.distinct, prompts, strict=True)
    ]
    settings: dict[str, object] = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{task}.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        # The names of columns, not Jinja: texts with braces stay themselves, and none loses its last line feed.
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "num_fewshot": 0,
        "generation_kwargs": {
            "do_sample": False,
            "max_gen_toks": form.max_new_tokens or NEW_TOKENS,
            "until": list(form.stop),  # without the key, the tool ends each answer at an empty line
        },
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1, "contract": contract.digest},
    }
    head = "# Made by `adapt contract export`. Run the tool in this folder: the data file's path is relative.\n"
    text = head + "".join(f"{key}: {_yaml(value)}\n" for key, value in settings.items())
    # The frame is in the prompts; a rendered chat has its special tokens already.
    model_args = {} if form.has_special_tokens else {"add_bos_token": "False"}
    files = {f"{task}.yaml": text.encode(), f"{task}.jsonl": b"".join(canonical_json(row) + b"\n" for row in rows)}
    return LmEvalTask(name=task, goldens=len(rows), files=files, model_args=model_args)


def _yaml(value: object) -> str:
    """The value as YAML: JSON is YAML once what YAML folds or forbids is escaped."""
    return "".join(one if one.isprintable() else _escaped(one) for one in json.dumps(value, ensure_ascii=False))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004 - YAML's two escapes

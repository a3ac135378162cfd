"""Calls lm-evaluation-harness on a base with an adapter, and reads what it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from adapterhub.core.arguments import path_of
from adapterhub.core.errors import EngineFailed, UsageProblem, shown
from adapterhub.inference.contracts.runners.tools import MAX_REPORT_BYTES, Ran, find_tool, run_tool

INSTALL: Final = "pip install 'lm_eval[hf]'"
_BATCH: Final = "8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """What the tool loads, and how: folders of base and adapter, precision, device, and its own further arguments."""

    base: Path
    adapter: Path
    dtype: str
    device: str
    model_args: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What the tool measured: its metrics by `task/metric`, a sample for each prompt, and the versions of its parts."""

    metrics: Mapping[str, float]
    samples: tuple[Mapping[str, Any], ...]
    engine: str
    ran: Ran


def lm_eval_tool(path: str) -> str:
    """The place of the tool, beside this Python or in the folders of `path`.

    Raises:
        UsageProblem: it is not installed.
    """
    return find_tool(("lm-eval", "lm_eval"), INSTALL, path)


def task_place(task: Path) -> tuple[Path, str]:
    """The folder in which the tool runs a user's task, and the task's name there: a YAML file, or `.` for all of them.

    Raises:
        UsageProblem: there is no such task, or the tool would take its name for several.
    """
    named = path_of(task).absolute()
    where = shown(str(task), 200)
    if named.is_dir():
        if not any(named.glob("*.yaml")):
            raise UsageProblem(f"`--task {where}`: the folder has no `.yaml` file")
        return named, "."
    if not named.is_file() or named.suffix != ".yaml":
        raise UsageProblem(f"`--task {where}`: expected the `.yaml` file of a task, or a folder of such files")
    if "," in named.name:
        raise UsageProblem(f"`--task {where}`: lm-eval takes a comma in the name for two tasks")
    return named.parent, named.name


def score(
    tool: str, place: tuple[Path, str], loading: Loading, work: Path, environ: Mapping[str, str], *, budget_s: float
) -> Scored | Ran:
    """The tool's measurement of a task at its `place`; how the tool ended, where its budget did not suffice.

    `work` is an empty folder: links to the model, caches and results go there, so that no path of the user meets the
    tool's own syntax and no answer of another run is taken for one of this. `budget_s` are CPU seconds.

    Raises:
        EngineFailed: the tool ended without a result.
        UsageProblem: the path of the work folder breaks the tool's syntax.
    """
    if any(letter in str(work) for letter in ",= "):
        raise UsageProblem(
            f"lm-eval takes no path such as `{shown(str(work), 200)}`",
            hint="set TMPDIR to a folder without `,`, `=` or spaces",
        )
    folder, task = place
    (work / "base").symlink_to(loading.base.absolute(), target_is_directory=True)
    (work / "adapter").symlink_to(loading.adapter.absolute(), target_is_directory=True)
    given = {"pretrained": work / "base", "peft": work / "adapter", "dtype": loading.dtype, "trust_remote_code": False}
    words = [
        tool,
        "--model",
        "hf",
        "--model_args",
        ",".join(f"{k}={v}" for k, v in {**given, **loading.model_args}.items()),
    ]
    words += ["--tasks", task, "--device", loading.device, "--batch_size", _BATCH]
    words += ["--output_path", str(work / "out"), "--log_samples"]
    caches = {"HF_HOME": str(work / "cache"), "HF_DATASETS_CACHE": str(work / "cache" / "datasets")}
    ran = run_tool(words, folder=folder, environ={**environ, **caches}, budget_s=budget_s)
    if ran.is_over:
        return ran
    if ran.code != 0:
        raise ran.failed("lm-eval")
    return _read(work / "out", ran)


def _read(out: Path, ran: Ran) -> Scored:
    try:
        [results] = out.rglob("results_*.json")
        document = json.loads(_text(results))
        lines = [json.loads(line) for path in sorted(out.rglob("samples_*.jsonl")) for line in _text(path).splitlines()]
        metrics = {
            f"{task}/{key.removesuffix(',none')}": float(value)
            for task, values in document["results"].items()
            for key, value in values.items()
            if isinstance(value, int | float) and "," in key and "_stderr" not in key
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineFailed(
            f"`lm-eval` wrote results that cannot be read: {shown(str(error), 200)}",
            hint=f"`{INSTALL} -U` brings a newer one",
        ) from None
    versions = {"lm-eval": document.get("lm_eval_version"), "transformers": document.get("transformers_version")}
    engine = ", ".join(f"{name} {shown(str(value), 40)}" for name, value in versions.items() if value)
    return Scored(metrics=metrics, samples=tuple(lines), engine=engine or "lm-eval", ran=ran)


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_REPORT_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_REPORT_BYTES >> 20} MB")
    return path.read_text(encoding="utf-8")

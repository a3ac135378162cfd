"""A stand-in for lm-eval: takes its words, answers as the task wants but for some, and writes its two files.

It shows what the program calls and reads; `test_lm_eval.py` compares with the tool itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

_PYTHON = sys.executable  # before a test changes it
_PROGRAM = """#!{python}
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
given = dict(zip(words[::2], words[1::2]))
task = given["--tasks"].removesuffix(".yaml")
args = dict(part.split("=", 1) for part in given["--model_args"].split(","))
log = {{"words": words, "args": args, "offline": os.environ["HF_HUB_OFFLINE"], "token": os.environ.get("HF_TOKEN")}}
log["files"] = sorted(os.listdir(args["peft"])), sorted(os.listdir(args["pretrained"]))
Path({log!r}).write_text(json.dumps(log))
if {code}:
    sys.exit("ValueError: the stand-in fails")
rows = [json.loads(line) for line in open(task + ".jsonl")] if os.path.exists(task + ".jsonl") else []
out = Path(given["--output_path"]) / "some__model"
out.mkdir(parents=True)
lines, right = [], 0
for at, row in enumerate(rows):
    text = row["answer"] if at >= {wrong} else row["answer"] + "!"
    right += text == row["answer"]
    lines.append({{"doc_id": at, "doc": row, "filtered_resps": [text], "exact_match": float(text == row["answer"])}})
(out / "samples_x_2026.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
share = right / len(rows) if rows else 0.25
values = {{"alias": task, "exact_match,none": share, "exact_match_stderr,none": "N/A"}}
versions = {{"lm_eval_version": "0.0.1", "transformers_version": "5.0"}}
(out / "results_2026.json").write_text(json.dumps({{"results": {{task: values}}, **versions}}))
"""


def make_lm_eval(folder: Path, *, wrong: int = 0, fails: bool = False) -> Path:
    """Write the stand-in into `folder`; the first `wrong` answers are others. Returns the log of its last call."""
    folder.mkdir(parents=True, exist_ok=True)
    tool, log = folder / "lm-eval", folder / "called.json"
    tool.write_text(_PROGRAM.format(python=_PYTHON, log=str(log), wrong=wrong, code=fails))
    tool.chmod(0o755)
    return log


def called(log: Path) -> dict[str, object]:
    """What the stand-in was called with."""
    return dict(json.loads(log.read_text()))

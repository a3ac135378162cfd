"""Renders the chat template of a stranger: in Jinja's immutable sandbox, in a process of its own, within limits.

The child (`_sandbox.py`) imports Jinja alone, may use `LIMIT_CPU_SECONDS` and `LIMIT_MEMORY_BYTES`, opens no file, and
writes at most `LIMIT_TOTAL_BYTES`. A child that passes a limit ends, and nothing of it is used.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from adapterhub.core.errors import ChatTemplateRefused, MissingExtra, UsageProblem, shown
from adapterhub.formats.prompts.form import Turn

LIMIT_CPU_SECONDS: Final = 1.0
"""For all conversations of a call together, after Jinja is imported."""
LIMIT_WALL_SECONDS: Final = 60.0
"""A last resort: a template cannot wait, so its CPU time ends first unless the machine is overloaded."""
LIMIT_MEMORY_BYTES: Final = 192 << 20
LIMIT_OUTPUT_BYTES: Final = 256 << 10
"""Of one prompt."""
LIMIT_TOTAL_BYTES: Final = 16 << 20
_CHILD: Final = Path(__file__).with_name("_sandbox.py")


def render_chats(
    template: str,
    chats: Sequence[Sequence[Turn]],
    *,
    generation_prompt: bool = True,
    variables: Mapping[str, str] | None = None,
) -> list[str]:
    """The prompt of each conversation; `variables` are the tokenizer's special tokens, such as `bos_token`.

    It gives what transformers' `apply_chat_template` gives, except that `strftime_now` is undefined: a prompt that
    holds today's date is not the same tomorrow. One child renders all; it costs about 0.15 CPU seconds to start.

    Raises:
        ChatTemplateRefused: the template is no Jinja, does what the sandbox forbids, or passes a limit.
        UsageProblem: the template itself refuses a conversation, by `raise_exception`.
        MissingExtra: Jinja is not installed.
    """
    if find_spec("jinja2") is None:
        raise MissingExtra("a chat template", ["jinja2"], "weights")
    task = {
        "template": template,
        "chats": [list(chat) for chat in chats],
        "generation_prompt": generation_prompt,
        "variables": dict(variables or {}),
        "cpu_seconds": LIMIT_CPU_SECONDS,
        "memory_bytes": LIMIT_MEMORY_BYTES,
        "output_bytes": LIMIT_OUTPUT_BYTES,
        "total_bytes": LIMIT_TOTAL_BYTES,
    }
    answer = _child(json.dumps(task).encode())
    problem = answer.get("problem")
    if problem is None:
        return [str(text) for text in answer["texts"]]
    text = shown(str(answer.get("text", "")), 200)
    if problem == "refuses":
        raise UsageProblem(f"the adapter's chat template refuses the prompt: {text}")
    raise ChatTemplateRefused(f"the adapter's chat template cannot be used: {text}", reason=problem)


def _child(task: bytes) -> dict[str, Any]:
    """What the child answers. Its output goes through a file, whose size the child's own limit bounds.

    Raises:
        ChatTemplateRefused: it ended without an answer.
    """
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(  # noqa: S603 - our own file; the template goes through stdin
                [sys.executable, "-I", str(_CHILD)],
                input=task,
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=LIMIT_WALL_SECONDS,
                check=False,
                env={},
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = 1
        out.seek(0)
        raw = out.read(LIMIT_TOTAL_BYTES + 1)
    if code == 0 and len(raw) <= LIMIT_TOTAL_BYTES:
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and ("problem" in answer or isinstance(answer.get("texts"), list)):
            return answer
    raise ChatTemplateRefused(
        f"the adapter's chat template cannot be used: it takes more than {LIMIT_CPU_SECONDS:g} s or"
        f" {LIMIT_MEMORY_BYTES >> 20} MiB to render",
        reason="limits",
    )

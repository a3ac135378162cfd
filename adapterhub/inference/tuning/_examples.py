"""Reads examples of the wanted answers from JSON Lines: strictly, and every problem with its line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from adapterhub.core.digests import strict_json
from adapterhub.core.disk.nearest import read_typed
from adapterhub.core.errors import Malformed, problem_list, shown

MAX_FILE_BYTES: Final = 16 << 20
MAX_LINE_BYTES: Final = 1 << 20
MAX_EXAMPLES: Final = 1000
"""A search runs the model over its examples dozens of times; LoraHub uses five."""

PROBLEMS_SHOWN: Final = 20
_ROLES: Final = ("system", "user", "assistant")
_ANSWERS: Final = ("completion", "answer")
"""Names of the wanted answer: that of TRL, and the plain one."""
_FORMS: Final = '{"prompt": …, "completion": …}, {"messages": [{"role": …, "content": …}, …]} or {"text": …}'


class Turn(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt and its wanted completion; the loss is that of the completion.

    `prompt` is plain text, or the turns before the answer of an assistant, or None if the whole text is the
    completion, which is empty for a prompt alone. `line` is its line in the file, 0 if there is no file.
    """

    prompt: str | tuple[Turn, ...] | None
    completion: str
    line: int = 0


def read_examples(
    path: Path, *, limit_bytes: int = MAX_FILE_BYTES, most: int = MAX_EXAMPLES, takes_prompts: bool = False
) -> tuple[Example, ...]:
    """The examples in a file of JSON Lines; skips empty lines. `answer` is another name of `completion`.

    With `takes_prompts`, a line may be a `prompt` alone, or `messages` that end with the user's.

    Raises:
        NotFound: there is no such file.
        Malformed: it is too large, has no examples, or has invalid lines; names each line.
    """
    where = shown(str(path), 200)
    raw = read_typed(path, limit_bytes, hint=f"examples are one JSON object a line: {_FORMS}")
    if len(raw) > limit_bytes:
        raise Malformed(f"{where}: more than {limit_bytes >> 20} MB of examples; a few dozen examples are enough")
    examples, problems = [], []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = strict_json(line, limit_bytes=MAX_LINE_BYTES)
            examples.append(_example(value, number, takes_prompts=takes_prompts))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        text = problem_list(f"{where}: some lines are not examples", problems, PROBLEMS_SHOWN)
        raise Malformed(text, hint=f"one JSON object a line: {_FORMS}")
    if not examples:
        raise Malformed(f"{where}: contains no examples", hint=f"one JSON object a line: {_FORMS}")
    if len(examples) > most:
        problem = f"{len(examples)} examples, expected at most {most}; a few dozen are enough"
        raise Malformed(f"{where}: {problem}")
    return tuple(examples)


def _example(value: object, line: int, *, takes_prompts: bool) -> Example:
    """The example on one line.

    Raises:
        ValueError: it is not an example.
    """
    if not isinstance(value, dict):
        raise ValueError(f"contains {shown(value, 40)}, expected an object")  # noqa: TRY004 - as every other reason
    keys = frozenset(value)
    for answer in _ANSWERS:
        if keys == {"prompt", answer}:
            return Example(prompt=_text(value, "prompt"), completion=_filled(value, answer), line=line)
    if takes_prompts and keys == {"prompt"}:
        return Example(prompt=_text(value, "prompt"), completion="", line=line)
    if keys == {"text"}:
        return Example(prompt=None, completion=_filled(value, "text"), line=line)
    if keys == {"messages"}:
        turns = _turns(value["messages"], fewest=2 - takes_prompts)
        if takes_prompts and turns[-1].role == "user":
            return Example(prompt=turns, completion="", line=line)
        if len(turns) < 2 or turns[-1].role != "assistant" or not turns[-1].content:  # noqa: PLR2004 - as below
            raise ValueError("`messages` does not end with the assistant's answer")
        return Example(prompt=turns[:-1], completion=turns[-1].content, line=line)
    named = ", ".join(f"`{shown(key, 40)}`" for key in value) or "nothing"
    raise ValueError(f"has {shown(named, 200)}, expected `prompt` and `completion`, or `messages`, or `text`")


def _turns(value: object, *, fewest: int) -> tuple[Turn, ...]:
    if not isinstance(value, list) or len(value) < fewest:  # a question and its answer
        raise ValueError(f"`messages` is not a list of at least {'two turns' if fewest > 1 else 'one turn'}")
    turns = []
    for position, turn in enumerate(value):
        if not isinstance(turn, dict) or frozenset(turn) != {"role", "content"} or turn["role"] not in _ROLES:
            raise ValueError(
                f"`messages[{position}]` is {shown(turn, 60)}, expected a `role` of {', '.join(_ROLES)} and a `content`"
            )
        turns.append(Turn(turn["role"], _text(turn, "content")))
    return tuple(turns)


def _text(value: dict[str, Any], key: str) -> str:
    text = value[key]
    if not isinstance(text, str):
        raise ValueError(f"`{key}` is {shown(text, 40)}, expected text")  # noqa: TRY004 - as every other reason
    return text


def _filled(value: dict[str, Any], key: str) -> str:
    text = _text(value, key)
    if not text:
        raise ValueError(f"`{key}` is empty")
    return text

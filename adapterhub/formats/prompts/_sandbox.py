"""The child process of `chat.py`: renders chat templates and answers with JSON. Run by its path; imports only Jinja.

Its limits hold before the template is parsed, because Jinja computes constants such as `'a' * 10**9` while it compiles.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

_Value = Any
"""Whatever a template or Jinja holds."""
_KEPT_GLOBALS = ("range", "namespace", "dict")
_LARGEST_POWER = 64


class _Refusal(TemplateError):
    """The template refuses the conversation."""


class _TooMuch(Exception):
    """The template passes a limit."""


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for trainers; here it is the text."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: _Value) -> nodes.Node:
        """Return a block that is its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: _Value) -> _Value:
        return caller()


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: _Value, operator: str, left: _Value, right: _Value) -> _Value:
        """Refuse quick ways to a large value; the process's limits bound the slow ones."""
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= _LARGEST_POWER):
            raise _TooMuch
        sides = (left, right)
        if operator == "*" and any(isinstance(side, str | list | tuple) for side in sides):
            size = next(len(side) for side in sides if isinstance(side, str | list | tuple))
            times = next((side for side in sides if isinstance(side, int)), 0)
            if size * times > _Sandbox.longest:
                raise _TooMuch
        return super().call_binop(context, operator, left, right)

    longest = 0


def _environment() -> _Sandbox:
    made = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    for name in set(made.globals) - set(_KEPT_GLOBALS):
        del made.globals[name]
    del made.filters["random"]

    def raise_exception(message: object) -> None:
        raise _Refusal(str(message))

    def tojson(
        value: _Value,
        ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates may pass it by place
        indent: _Value = None,
        separators: _Value = None,
        sort_keys: bool = False,  # noqa: FBT001, FBT002 - as above
    ) -> str:  # as transformers has it: Jinja's own escapes HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made.globals["raise_exception"] = raise_exception
    made.filters["tojson"] = tojson
    return made


def _warm_up(environment: _Sandbox) -> None:
    """Let Jinja import what it imports late: no file can be opened afterwards."""
    text = "{% set n = namespace(a=1) %}{{ 'a b' | wordwrap(1) }}{% for m in [1] %}{% continue %}{% endfor %}{{ b.c }}"
    with contextlib.suppress(TemplateError):  # the last expression fails, as its traceback needs a module, too
        environment.from_string(text).render()


def _limit(kind: str, most: int) -> None:
    number = getattr(resource, kind, None)
    if number is not None:
        with contextlib.suppress(ValueError, OSError):  # macOS knows no limit of memory
            resource.setrlimit(number, (most, most))


def _bound(task: dict[str, Any]) -> None:
    """Take away what the process will not need: memory, files, other processes, and CPU time."""
    _limit("RLIMIT_AS", task["memory_bytes"])
    _limit("RLIMIT_FSIZE", task["total_bytes"])
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_NOFILE", 3)
    _limit("RLIMIT_NPROC", 0)
    _limit("RLIMIT_CPU", int(task["cpu_seconds"]) + 2)
    signal.setitimer(signal.ITIMER_PROF, task["cpu_seconds"])  # its signal ends the process


def _texts(environment: _Sandbox, task: dict[str, Any]) -> list[str]:
    template = environment.from_string(task["template"])
    texts, total = [], 0
    for chat in task["chats"]:
        pieces, size = [], 0
        for piece in template.generate(
            messages=chat,
            tools=None,
            documents=None,
            add_generation_prompt=task["generation_prompt"],
            **task["variables"],
        ):
            pieces.append(piece)
            size += len(piece.encode("utf-8", "surrogatepass"))
            if size > task["output_bytes"]:
                raise _TooMuch
        texts.append("".join(pieces))
        total += size
        if total > task["total_bytes"] // 6:  # JSON writes at most six bytes for one
            raise _TooMuch
    return texts


def _answer(task: dict[str, Any]) -> dict[str, Any]:
    try:
        environment = _environment()
        _warm_up(environment)
        _bound(task)
        return {"texts": _texts(environment, task)}
    except _Refusal as error:
        return {"problem": "refuses", "text": str(error)[:400]}
    except (_TooMuch, MemoryError, RecursionError, OverflowError):
        return {"problem": "limits", "text": "it makes more than the limits allow"}
    except SecurityError as error:
        return {"problem": "forbidden", "text": str(error)[:400]}
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        return {"problem": "broken", "text": (f"line {line}: " if line else "") + str(error)[:400]}
    except Exception as error:  # noqa: BLE001 - whatever a template's expressions raise
        return {"problem": "broken", "text": f"{type(error).__name__}: {str(error)[:400]}"}


def main() -> None:
    """Read a task from stdin, write the answer to stdout."""
    task = json.loads(sys.stdin.buffer.read())
    _Sandbox.longest = task["output_bytes"]
    sys.stdout.buffer.write(json.dumps(_answer(task)).encode())


if __name__ == "__main__":
    main()

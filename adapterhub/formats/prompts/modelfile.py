"""The part of an Ollama Modelfile that defines the prompt form: SYSTEM, TEMPLATE and PARAMETER, written and read.

Ollama's templates are Go templates. Read here is only literal text around one `{{ .Prompt }}`; any other action is
named, not translated.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from adapterhub.core.errors import Malformed, shown
from adapterhub.formats.prompts.form import MAX_NEW_TOKENS, PromptForm, template_of

LIMIT_BYTES: Final = 256 << 10
_QUOTE: Final = '"""'
_PROMPT: Final = "{{ .Prompt }}"
_BRACES: Final = '{{ "{{" }}'
_LINE: Final = re.compile(r"\s*(?P<word>[A-Za-z]+)[ \t]+(?P<rest>.*)", re.DOTALL)
_ACTION: Final = re.compile(r"\{\{ ?(\.Prompt|\"\{\{\") ?\}\}")


def modelfile_lines(form: PromptForm) -> tuple[list[str], list[str]]:
    """Return the lines of a form, and a note for each part that a Modelfile cannot hold."""
    lines: list[str] = []
    notes: list[str] = []

    def put(what: str, text: str) -> None:
        if _QUOTE in text:
            notes.append(f"the Modelfile has no `{what}`: its text holds three quotes, which end a text there")
        else:
            lines.append(f"{what} {_QUOTE}{text}{_QUOTE}")

    if form.chat_template is not None:
        notes.append(
            "the Modelfile has no TEMPLATE: the adapter's chat template is Jinja, and Ollama's are Go templates"
        )
    elif form.form in ("raw", "template"):
        before, after = (part.replace("{{", _BRACES) for part in form.parts)
        put("TEMPLATE", f"{before}{_PROMPT}{after}")
    if form.system is not None:
        put("SYSTEM", form.system)
    for text in form.stop:
        put("PARAMETER stop", text)
    if form.max_new_tokens is not None:
        lines.append(f"PARAMETER num_predict {form.max_new_tokens}")
    return lines, notes


def form_in_modelfile(text: str) -> PromptForm | None:
    """Return the form that a Modelfile states; None if it defines none.

    A TEMPLATE of one `{{ .Prompt }}` gives `template`, or `raw` without text around it; a SYSTEM without a TEMPLATE
    gives `chat`.

    Raises:
        Malformed: its TEMPLATE does more, or the form breaks a limit; the message names it.
    """
    said: dict[str, str] = {}
    value: dict[str, Any] = {}
    for word, rest in _instructions(text):
        if word in ("TEMPLATE", "SYSTEM"):
            said[word] = rest
        elif word == "PARAMETER":
            name, _, argument = rest.partition(" ")
            argument = _unquoted(argument.strip()) or ""
            if name == "stop" and argument:
                value.setdefault("stop", []).append(argument)
            elif name == "num_predict" and argument.isascii() and argument.isdigit() and len(argument) < 6:
                value["max_new_tokens"] = min(max(int(argument), 1), MAX_NEW_TOKENS)
    if "TEMPLATE" in said:
        if "SYSTEM" in said:
            raise Malformed("its Modelfile has a SYSTEM text and a TEMPLATE without a place for it; give `--template`")
        form = _template(said["TEMPLATE"])
        value = form.to_json() | value
    elif "SYSTEM" in said:
        value |= {"form": "chat", "system": said["SYSTEM"]}
    else:
        return None
    return PromptForm.from_json(value, "Modelfile")


def _template(text: str) -> PromptForm:
    sides = [""]
    at = 0
    for match in _ACTION.finditer(text):
        sides[-1] += text[at : match.start()]
        at = match.end()
        if match[1] == ".Prompt":
            sides.append("")
        else:
            sides[-1] += "{{"
    sides[-1] += text[at:]
    left = next((side for side in re.split(_ACTION, text)[::2] if "{{" in side), None)
    if left is not None or len(sides) != 2:
        what = shown(left[left.index("{{") :], 40) if left is not None else f"{len(sides) - 1} places for the prompt"
        raise Malformed(
            f"its Modelfile's TEMPLATE is a Go template with `{what}`, which is not translated; give `--template`"
        )
    raw = PromptForm(form="raw")
    return raw if sides == ["", ""] else replace(raw, form="template", template=template_of(*sides))


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions with their arguments, which may go over several lines within quotes."""
    lines = iter(text.replace("\r\n", "\n").split("\n"))
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None or line.lstrip().startswith("#"):
            continue
        word, rest = match["word"].upper(), match["rest"].strip()
        head, _, value = rest.partition(" ") if word == "PARAMETER" else ("", "", rest)
        value = value.lstrip()
        while _unquoted(value) is None:
            more = next(lines, None)
            if more is None:
                return
            value = f"{value}\n{more}"
            if _unquoted(value.rstrip()) is not None:
                value = value.rstrip()
        yield word, f"{head} {value}" if head else _unquoted(value) or ""


def _unquoted(text: str) -> str | None:
    """`text` without its quotes; None while they are open."""
    for quote in (_QUOTE, '"'):
        if text.startswith(quote):
            is_closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if is_closed else None
    return text


PROMPT_PREFIX: Final = "adapter.lora.prompt_prefix"
LOOKED_AT_BYTES: Final = 1 << 20
"""An adapter's header is a few hundred bytes before the tensors' names."""
_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MAX_PAIRS: Final = 4096
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING: Final = 8
_ARRAY: Final = 9


def prompt_prefix(head: bytes) -> str | None:
    """Return the prefix that a GGUF file states, given its first `LOOKED_AT_BYTES`; None without one or for damage."""
    if head[:4] != _MAGIC or len(head) < 24:
        return None
    version, _tensors, pairs = struct.unpack_from("<IQQ", head, 4)
    if version not in _VERSIONS or pairs > _MAX_PAIRS:
        return None
    at = 24
    try:
        for _ in range(pairs):
            key, at = _text(head, at)
            (kind,) = struct.unpack_from("<I", head, at)
            if key == PROMPT_PREFIX.encode() and kind == _STRING:
                return _text(head, at + 4)[0].decode()
            at = _after(head, at + 4, kind)
    except (struct.error, UnicodeDecodeError, ValueError):
        return None
    return None


def _text(head: bytes, at: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from("<Q", head, at)
    end = at + 8 + size
    if end > len(head):
        raise ValueError("goes beyond what is read")
    return head[at + 8 : end], end


def _after(head: bytes, at: int, kind: int) -> int:
    """Return the place after a value of `kind`; arrays of arrays, which no writer makes, are damage."""
    if kind == _STRING:
        return _text(head, at)[1]
    if kind != _ARRAY:
        return at + _size(kind)
    inner, count = struct.unpack_from("<IQ", head, at)
    at += 12
    if inner != _STRING:
        return at + _size(inner) * int(count)
    for _ in range(count):
        at = _text(head, at)[1]
    return at


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise ValueError(f"has values of kind {kind}")
    return _SIZES[kind]

"""Reads typed fields from one untrusted JSON object and collects every problem."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from adapterhub.core.digests import Json
from adapterhub.core.errors import shown
from adapterhub.core.limits import limits
from adapterhub.core.specs import is_hub_id

MAX_NAME_CHARACTERS = 4096
MAX_LIST_ITEMS = 65_536
_MAX_ALPHA = 1e30

Note = tuple[str, str]
"""A code and a sentence: worth knowing, but no reason to refuse the config."""


class Fields:
    """One JSON object being read. `problems` and `notes` grow; reading goes on after a problem."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        self.value = value
        self.taken: set[str] = set()
        self.problems: list[str] = []
        self.notes: list[Note] = []

    def take(self, key: str) -> Json:
        """Return the raw value, None when the key is missing. The key then counts as known."""
        self.taken.add(key)
        return self.value.get(key)

    def has(self, key: str) -> bool:
        """Return whether the key has a value other than null."""
        return self.value.get(key) is not None

    def wrong(self, key: str, expected: str) -> None:
        """Record that a field has a wrong value."""
        self.problems.append(f"`{key}` is {shown(as_json(self.value.get(key)))}, expected {expected}")

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return a boolean. Some writers use 0 or 1."""
        value = self.take(key)
        if value is None:
            return default
        if type(value) is int and value in (0, 1):
            self.notes.append(("W_CONFIG_TYPE", f"`{key}` is {value}, read as {str(bool(value)).lower()}"))
            return bool(value)
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
            return default
        return value

    def text(self, key: str, limit: int = MAX_NAME_CHARACTERS) -> str | None:
        """Text of one printable line, or None."""
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > limit or not value.isprintable():
            self.wrong(key, f"printable text of at most {limit} characters")
            return None
        return value

    def rank(self, key: str) -> int | None:
        """Return a rank from 1 to the limit, or None."""
        value = self.take(key)
        if value is None:
            return None
        if not is_rank(value):
            self.wrong(key, f"a whole number from 1 to {limits().rank}")
            return None
        assert isinstance(value, int)
        return value

    def number(self, key: str) -> int | float | None:
        """Return a finite number, or None."""
        value = self.take(key)
        if value is None:
            return None
        if not is_number(value):
            self.wrong(key, "a finite number")
            return None
        assert isinstance(value, int | float)
        return value

    def names(self, key: str, most: int = MAX_LIST_ITEMS) -> tuple[str, ...]:
        """Return a list of at most `most` names in its order, each once; empty for null."""
        value = self.take(key)
        if value is None:
            return ()
        if not _is_list(value) or not all(isinstance(item, str) and item and item.isprintable() for item in value):
            self.wrong(key, "a list of names")
            return ()
        if len(value) > most:
            self.problems.append(f"`{key}` holds {len(value)} names, expected at most {most}")
            return ()
        return tuple(dict.fromkeys(value))

    def names_or_pattern(self, key: str) -> tuple[str, ...] | str | None:
        """Return a list of names, or one pattern, or None."""
        value = self.take(key)
        if isinstance(value, list):
            return self.names(key)
        if value is None or (isinstance(value, str) and value and value.isprintable()):
            return value
        self.wrong(key, "a list of names or one pattern")
        return None

    def integers(self, key: str) -> tuple[int, ...] | None:
        """Return a list of natural numbers (a single number counts as a list), or None."""
        value = self.take(key)
        if value is None:
            return None
        items = [value] if type(value) is int else value
        if not _is_list(items) or not all(type(item) is int and item >= 0 for item in items):
            self.wrong(key, "a list of natural numbers")
            return None
        return tuple(items)

    def numbers_by_pattern(self, key: str, check: Callable[[object], bool], expected: str) -> dict[str, Any]:
        """Return an object from patterns to numbers that `check` accepts; empty for null."""
        value = self.take(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > MAX_LIST_ITEMS:
            self.wrong(key, f"an object from module names to {expected}")
            return {}
        for name, number in value.items():
            if not check(number):
                where = f"`{key}` for `{shown(name, 40)}`"
                self.problems.append(f"{where} is {shown(as_json(number), 40)}, expected {expected}")
        return dict(value)


def is_rank(value: object) -> bool:
    """Return whether `value` is a usable rank; a boolean is not a number here."""
    return type(value) is int and 1 <= value <= limits().rank


def is_number(value: object) -> bool:
    """Return whether `value` is a finite number of sane size; a boolean is not a number here."""
    return type(value) in (int, float) and abs(value) <= _MAX_ALPHA  # type: ignore[arg-type]  # false for NaN too


def _is_list(value: object) -> bool:
    return isinstance(value, list) and len(value) <= MAX_LIST_ITEMS


def as_json(value: object) -> str:
    """Return a value as the file has it: `true` and not `True`, and the text "8" with its quotes."""
    import json

    return json.dumps(value, ensure_ascii=False)


_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:")
_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/]")
_SYSTEM_FOLDERS: Final = (
    "/etc",
    "/proc",
    "/sys",
    "/boot",
    "/dev",
    "/bin",
    "/sbin",
    "/var/log",
    "/var/run",
    "/run/secrets",
)


def base_is_path(text: str) -> bool:
    """Return whether `text` is a path on the author's machine rather than a hub id (`org/model` or `model`)."""
    return not is_hub_id(text)


def base_problem(text: str) -> str:
    """Return why `text` must not name a base, as the end of a sentence; empty when it may."""
    parts = re.split(r"[\\/]", text)
    rules = (
        (text.startswith("-"), "which begins with a dash, as an option does"),
        (".." in parts, "which climbs out of its folder"),
        (text.startswith(("//", "\\\\")), "which is another machine's folder"),
        (_SCHEME.match(text) is not None and _DRIVE.match(text) is None, "which is a URL"),
        (text.startswith("/") and _is_system_place(parts), "which is a place of the operating system"),
    )
    return next((reason for is_so, reason in rules if is_so), "")


def _is_system_place(parts: list[str]) -> bool:
    folder = "/" + "/".join(part for part in parts if part not in ("", ".")) + "/"
    if folder.startswith("/dev/shm/"):  # noqa: S108 - memory, where large models are copied to; nothing is written
        return False
    return any(folder.startswith(f"{place}/") for place in _SYSTEM_FOLDERS)


_MODEL_LIBRARIES: Final = frozenset(
    {
        "transformers",
        "transformers_modules",
        "peft",
        "diffusers",
        "sentence_transformers",
        "timm",
        "lerobot",
        "__main__",
    }
)
"""Packages with model classes of adapters: PEFT's list of allowed imports, and packages that it wrote before."""

_CODE_KEYS: Final = ("auto_map", "_attn_implementation_internal", "custom_pipelines")


def code_problem(value: Mapping[str, Any]) -> str:
    """Return the field of a config that would make a loader import or run code, as a sentence.

    Empty when there is none.

    This package never imports what a file names. But an adapter's files reach other loaders unchanged, and some of them
    do import: PEFT before 0.20 took any module from `auto_mapping`.
    """
    for key in _CODE_KEYS:
        if value.get(key) is not None:
            return f"`{key}` is {shown(as_json(value[key]))}, which names code to run; an adapter has no such field"
    if value.get("trust_remote_code"):
        return "`trust_remote_code` is set; an adapter brings no code and needs no such trust"
    core = value.get("megatron_core")
    if core is not None and not (isinstance(core, str) and core.split(".")[0] == "megatron"):
        return f"`megatron_core` is {shown(as_json(core))}, which names a module to import, expected megatron.core"
    return _auto_mapping_problem(value.get("auto_mapping"))


def _auto_mapping_problem(mapping: object) -> str:
    """PEFT writes the class of the author's model here whenever no task type was given.

    Any package may define that class, even the author's own script. Python's own modules hold no model.
    """
    if mapping is None:
        return ""
    known = {"base_model_class", "parent_library", "unsloth_fixed"}
    if not isinstance(mapping, dict) or not set(mapping) <= known:
        return f"`auto_mapping` is {shown(as_json(mapping))}, expected base_model_class and parent_library"
    library = mapping.get("parent_library")
    if library is None:
        return ""
    if not isinstance(library, str) or not all(part.isidentifier() for part in library.replace("-", "_").split(".")):
        return f"`auto_mapping.parent_library` is {shown(as_json(library))}, expected the name of a module"
    if library.split(".")[0] in sys.stdlib_module_names:
        return f"`auto_mapping.parent_library` is {shown(library)}, a module of Python itself, which holds no model"
    return ""


def auto_mapping_note(value: Mapping[str, Any]) -> str:
    """Return a sentence about a model class that is not from a model library; empty when there is none."""
    mapping = value.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if not isinstance(library, str) or library.split(".")[0] in _MODEL_LIBRARIES:
        return ""
    return f"made for a model class of `{shown(library, 60)}`, no library known here; nothing imports it"


_TASKS_IN_FULL: Final = {
    "SEQUENCE_CLASSIFICATION": "SEQ_CLS",
    "TEXT_CLASSIFICATION": "SEQ_CLS",
    "TOKEN_CLASSIFICATION": "TOKEN_CLS",
    "QUESTION_ANSWERING": "QUESTION_ANS",
    "TEXT_GENERATION": "CAUSAL_LM",
    "SEQUENCE_TO_SEQUENCE_LM": "SEQ_2_SEQ_LM",
}


def nearest(text: str, known: Sequence[str]) -> str:
    """Return the known word nearest to a mistyped one, as ` (did you mean X?)`; empty when none is near."""
    import difflib  # only a wrong config needs it

    word = text[:64].upper().replace("-", "_")
    close = [_TASKS_IN_FULL[word]] if word in _TASKS_IN_FULL else difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close and close[0] in known else ""

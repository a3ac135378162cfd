"""Rules for names in an adapter config: a base that can be looked up, and no code to import."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from adapterhub.core.errors import shown
from adapterhub.core.hub_ids import is_hub_id
from adapterhub.formats.peft.fields import as_json

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
    """Whether `text` is a path on the author's machine rather than a hub id (`org/model` or `model`)."""
    return not is_hub_id(text)


def base_problem(text: str) -> str:
    """Why `text` must not name a base, as the end of a sentence; empty when it may."""
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
    """The field of a config that would make a loader import or run code, as a sentence; empty when there is none.

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

    Any package may hold that class, the author's own script, too. Python's own modules hold no model.
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
    """A sentence about a model class that is not from a model library; empty when there is none."""
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
    """The known word nearest to a mistyped one, as ` (did you mean X?)`; empty when none is near."""
    import difflib  # only a wrong config needs it

    word = text[:64].upper().replace("-", "_")
    close = [_TASKS_IN_FULL[word]] if word in _TASKS_IN_FULL else difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close and close[0] in known else ""

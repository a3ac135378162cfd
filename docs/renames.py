"""Write the copy of transformers' table of renames that `verify` and `fuse` read without torch.

python docs/renames.py            write it; builds each class of models without numbers: takes six minutes
python docs/renames.py --check    exit code 1 if the installed transformers has more
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers.conversion_mapping import _build_checkpoint_conversion_mapping
from transformers.models.auto import modeling_auto

from adapterhub.formats.naming import table
from adapterhub.inference.loader.file_names import KINDS, read_transform

FILE: Final = Path(table.__file__).parent / table.DATA
HEADS: Final = (
    "IMAGE_TEXT_TO_TEXT", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "MASKED_LM", "IMAGE_CLASSIFICATION",
    "SEQUENCE_CLASSIFICATION", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION", "PRETRAINING",
)  # fmt: skip


def renames() -> tuple[list[list[dict[str, Any]]], dict[str, int]]:
    """Return the distinct lists of transforms, and the number of the list by class or model type."""
    lists: list[list[dict[str, Any]]] = []
    numbers = {}
    for key, transforms in sorted(_build_checkpoint_conversion_mapping().items()):
        own = [_written(transform) for transform in transforms if type(transform).__name__ in KINDS]
        if own not in lists:
            lists.append(own)
        numbers[key] = lists.index(own)
    return lists, numbers


def _written(transform: Any) -> dict[str, Any]:
    one = read_transform(transform)
    value: dict[str, Any] = {"from": one.sources, "to": one.targets}
    if one.operations:
        value["operations"] = [tuple(operation) for operation in one.operations]
    else:
        back = read_transform(transform.reverse_transform())
        value["back"] = (back.sources, back.targets)
    value |= {key: getattr(one, key) for key in ("has_guard", "is_prefix", "offset") if getattr(one, key)}
    return json.loads(json.dumps(value))  # type: ignore[no-any-return] # as it is read again


def types() -> dict[str, list[str]]:
    """Return the classes of each model type, those with a head before the one without."""
    found: dict[str, list[str]] = {}
    names = {name: value for name, value in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")}
    order = [f"MODEL_FOR_{head}_MAPPING_NAMES" for head in HEADS]
    last = "MODEL_MAPPING_NAMES"
    for name in (*(n for n in order if n in names), *(n for n in names if n not in order and n != last), last):
        for kind, classes in names[name].items():
            for each in [classes] if isinstance(classes, str) else classes:
                listed = found.setdefault(kind, [])
                if each not in listed and "Config" not in each:
                    listed.append(each)
    return {kind: listed for kind, listed in sorted(found.items()) if listed}


def main_and_bare() -> tuple[dict[str, str], dict[str, str]]:
    """Return the class of each model type that checkpoints most often have, and the one without head."""
    bare = {}
    for kind, name in modeling_auto.MODEL_MAPPING_NAMES.items():
        bare[kind] = name if isinstance(name, str) else name[0]
    return {kind: listed[0] for kind, listed in types().items()}, bare


def parts_of(name: str, kind: str, bare: Mapping[str, str]) -> tuple[str, list[table.Part]] | None:
    """Return the name of the model without head in a class, and the models inside it.

    None if there is no such class.
    """
    made = getattr(transformers, name, None)
    try:
        prefix = str(made.base_model_prefix)  # type: ignore[union-attr] # caught
    except (AttributeError, ImportError):  # no such class, or a program for it is missing
        return None
    try:
        config = made.config_class()
        with torch.device("meta"):
            model = made(config)
    except Exception:  # noqa: BLE001 - a program is missing, or the config has no defaults
        inner = bare.get(kind, "")
        return prefix, [table.Part(prefix, inner, kind)] if prefix and inner and inner != name else []
    keys = config.sub_configs or {}
    found = []
    for path, module in model.named_modules():
        if path and isinstance(module, transformers.PreTrainedModel):
            key = next((key for key in keys if getattr(config, key, None) is module.config), "")
            found.append(table.Part(path, type(module).__name__, module.config.model_type, key))
    return prefix, found


def classes(known: Mapping[str, int]) -> Iterator[tuple[str, tuple[str, list[table.Part]]]]:
    """Yield the classes that have parts with renames, or parts that may be of other types."""
    bare = main_and_bare()[1]
    for kind, listed in types().items():
        for name in listed:
            found = parts_of(name, kind, bare)
            if found is None:
                continue
            own = [part for part in found[1] if part.key or part.class_name in known or part.model_type in known]
            if own or name in known or kind in known:
                yield name, (found[0], own)


def text() -> str:
    """Return the table as the package has it."""
    lists, numbers = renames()
    main, bare = main_and_bare()
    value = {
        "transformers": transformers.__version__,
        "lists": lists,
        "renames": numbers,
        "classes": dict(sorted(classes(numbers))),
        "main": main,
        "bare": bare,
    }
    rows = [f'"{key}": {_rows(item)}' for key, item in value.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _rows(value: Any) -> str:
    """JSON with a line for each entry, so that a change shows as such."""
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}"
    if isinstance(value, list):
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    return json.dumps(value)


def lacking() -> list[str]:
    """Return the entries of the installed transformers that the copy lacks or has in another form."""
    value = json.loads(FILE.read_text("utf-8"))
    lists, numbers = renames()
    there = {key: value["lists"][number] for key, number in value["renames"].items()}
    changed = [f"renames of {key}" for key, number in numbers.items() if there.get(key) != lists[number]]
    main, bare = main_and_bare()
    changed += [f"class of {kind}" for kind, name in main.items() if value["main"].get(kind) != name]
    return changed + [f"model of {kind}" for kind, name in bare.items() if value["bare"].get(kind) != name]


def main() -> int:
    """Write the table, or check it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail when transformers has more")
    if not parser.parse_args().check:
        FILE.write_text(text(), encoding="utf-8")
        return 0
    found = lacking()
    for each in found:
        sys.stderr.write(f"{each}: not as in {FILE.name}; `python docs/renames.py` writes it\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

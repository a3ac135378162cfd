"""Write the copy of gguf's table of names that bases and adapters in GGUF are read with, without that package.

python docs/gguf_names.py            add what the installed `gguf` has, or one that is first on PYTHONPATH
python docs/gguf_names.py --check    exit code 1 if the installed `gguf` has more
python docs/gguf_names.py --sources FOLDER
    add how transformers names the tensors of each architecture: `models/NAME` as it saved them, `gguf/NAME/*.gguf` as
    `convert_hf_to_gguf.py` made them
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES
from gguf.tensor_mapping import TensorNameMap

from adapterhub.formats.base.quantised.gguf import gguf_weights
from adapterhub.formats.gguf.file import read_gguf_model
from adapterhub.formats.gguf.names import FILE, READ
from adapterhub.formats.safetensors.file import read_header
from adapterhub.formats.safetensors.header import BASE_LIMITS

_LAYER: Final = re.compile(r"((?<![^.])(?:layers?|h|blocks?)\.)\d+(?![^.])")
_EXPERT: Final = re.compile(r"((?<![^.])experts\.)\d+(?![^.])")
_Table = dict[str, dict[str, Any]]


def found() -> _Table:
    """Return the table: the names of each tensor, GGUF's first; the tensors of each architecture; names of one alone.

    Tensors stand in gguf's order, in which the later ones win a name that several have.
    """
    listed = {**TensorNameMap.mappings_cfg, **TensorNameMap.block_mappings_cfg}
    order = list(dict.fromkeys([*listed, *TENSOR_NAMES]))
    own = getattr(TensorNameMap, "arch_block_mappings_cfg", {})
    return {
        "tensors": {tensor.name: [TENSOR_NAMES[tensor], *sorted(set(listed.get(tensor, ())))] for tensor in order},
        "architectures": {
            name: " ".join(tensor.name for tensor in order if tensor in MODEL_TENSORS[architecture])
            for architecture, name in sorted(MODEL_ARCH_NAMES.items(), key=lambda item: item[1])
            if architecture in MODEL_TENSORS
        },
        "own": {
            MODEL_ARCH_NAMES[architecture]: {tensor.name: sorted(names) for tensor, names in tensors.items()}
            for architecture, tensors in own.items()
        },
    }


def merged(copy: _Table, here: _Table) -> _Table:
    """Return the copy with what the installed gguf has more: a release drops names that files still need."""
    tensors = copy["tensors"] | {
        name: [listed[0], *sorted({*listed[1:], *copy["tensors"].get(name, ())} - {listed[0]})]
        for name, listed in here["tensors"].items()
    }
    every = here["architectures"] | copy["architectures"]
    kinds = {name: {*every[name].split(), *here["architectures"].get(name, "").split()} for name in sorted(every)}
    own = copy["own"] | {name: copy["own"].get(name, {}) | listed for name, listed in here["own"].items()}
    ordered = {name: " ".join(tensor for tensor in tensors if tensor in kind) for name, kind in kinds.items()}
    return {"tensors": tensors, "architectures": ordered, "own": own}


def sources(folder: Path) -> dict[str, list[list[str]]]:
    """By architecture the names in each family of its models, the plainest family first.

    `{bid}` stands for the number of a layer, `{eid}` for that of an expert. Left out are names that no GGUF file has.
    """
    families: dict[str, list[list[str]]] = {}
    for path in sorted(folder.glob("gguf/*/f32.gguf")):
        model = read_gguf_model(path)
        names: set[str] = set()
        for file in sorted((folder / "models" / path.parent.name).glob("*.safetensors")):
            names |= {spec.name for spec in read_header(file, limits=BASE_LIMITS).tensors}
        if model.architecture in READ:
            family = sorted(
                {
                    _EXPERT.sub(r"\1{eid}", _LAYER.sub(r"\1{bid}", name, count=1))
                    for name in gguf_weights(model, names).weights
                }
            )
            listed = families.setdefault(model.architecture, [])
            if family not in listed:
                listed.append(family)
    return {name: sorted(listed, key=_plainness) for name, listed in sorted(families.items())}


def _plainness(family: list[str]) -> tuple[bool, bool, int, list[str]]:
    is_part = any("language_model" in name for name in family)
    return is_part, any(name.startswith(("bert.", "layers.", "h.")) for name in family), len(family), family


def text(table: _Table) -> str:
    """Return the table as the package has it: a line for each entry, so that a change shows as such."""
    rows = []
    for key, value in table.items():
        entries = ",\n".join(f"{json.dumps(name)}: {json.dumps(item)}" for name, item in value.items())
        rows.append(f'"{key}": {{\n{entries}\n}}')
    return "{\n" + ",\n".join(rows) + "\n}\n"


def lacking() -> list[str]:
    """Return the names of the installed gguf that the copy lacks."""
    copy, here = json.loads(FILE.read_text("utf-8")), found()
    missing = [f"architecture {name}" for name in here["architectures"] if name not in copy["architectures"]]
    for tensor, names in here["tensors"].items():
        missing += [f"{name} of {tensor}" for name in names if name not in copy["tensors"].get(tensor, ())]
    return missing


def main() -> int:
    """Write the table, or check it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sources", type=Path, help="a folder of models that the converter has converted")
    parser.add_argument("--check", action="store_true", help="write nothing, fail when gguf has more")
    asked = parser.parse_args()
    if not asked.check:
        copy = json.loads(FILE.read_text("utf-8"))
        families = copy.get("sources", {}) | (sources(asked.sources) if asked.sources else {})
        FILE.write_text(text(merged(copy, found()) | {"sources": families}), encoding="utf-8")
        return 0
    missing = lacking()
    for each in missing:
        sys.stderr.write(f"{each}: not in {FILE.name}; `python docs/gguf_names.py` writes it\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

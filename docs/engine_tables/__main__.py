"""Write what the engines' source says about LoRA as the tables that `adapt verify --engine` reads.

python docs/engine_tables WHEEL...    wheels of vLLM (each minor version that the table shall have), of SGLang, or the
                                      sdist of llama-cpp-python; the other tables stay
python docs/engine_tables --check     exit code 1 if the package index has a newer minor version of an engine

`pip download --no-deps vllm==0.33.0` fetches a wheel. Nothing of it is imported.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import llama_cpp
import sglang
import vllm
from source import Source

FOLDER: Final = Path(__file__).parent.parent.parent / "adapterhub" / "formats" / "engines"
_FILE: Final = re.compile(
    r"(?P<name>[A-Za-z0-9_]+)-(?P<version>[0-9]+([.][0-9]+)*([.]post[0-9]+)?)(-.*\.whl|\.tar\.gz)?"
)


def text_of(releases: Mapping[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]]) -> str:
    """Return the table in the package's form: each distinct fact once, a line for each, so that a change shows."""
    facts: list[dict[str, Any]] = []
    versions = {}
    for version, (limits, classes) in sorted(releases.items(), key=lambda item: _ordered(item[0]), reverse=True):
        numbers = {}
        for name, value in classes.items():
            if value not in facts:
                facts.append(value)
            numbers[name] = facts.index(value)
        versions[version] = {**limits, "classes": numbers}
    rows = ",\n".join(json.dumps(each, separators=(",", ":")) for each in facts)
    said = ",\n".join(f"{json.dumps(v)}: {json.dumps(value, separators=(',', ':'))}" for v, value in versions.items())
    return f'{{\n"releases": {{\n{said}\n}},\n"facts": [\n{rows}\n]\n}}\n'


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def newer() -> list[str]:
    """Return the engines of which the package index has a newer minor version than their table."""
    found = []
    for package, file in (("vllm", "vllm.json"), ("sglang", "sglang.json"), ("llama-cpp-python", "llama_cpp.json")):
        path = FOLDER / file
        known = max(map(_ordered, json.loads(path.read_text("utf-8"))["releases"])) if path.exists() else (0,)
        command = [sys.executable, "-m", "pip", "index", "versions", package, "--disable-pip-version-check"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - words of ours
        newest = _ordered(told.split("(")[1].split(")")[0])
        if newest[: 2 if package == "vllm" else 3] > known[: 2 if package == "vllm" else 3]:
            found.append(f"{package} {'.'.join(map(str, newest))} is newer than {file}, which has {known}")
    return found


def main() -> int:
    """Write the tables, or check them; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("wheels", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when an engine has a newer version")
    asked = parser.parse_args()
    if asked.check:
        found = newer()
        sys.stderr.writelines(f"{each}; `python docs/engine_tables` writes it\n" for each in found)
        return 1 if found else 0
    readers = {"vllm": vllm.Reader, "sglang": sglang.Reader, "llama_cpp_python": llama_cpp.Reader}
    files = {"vllm": "vllm.json", "sglang": "sglang.json", "llama_cpp_python": "llama_cpp.json"}
    read: dict[str, dict[str, Any]] = {}
    for path in asked.wheels:
        match = _FILE.fullmatch(path.name)
        if match is None or match["name"] not in readers:
            parser.error(f"`{path.name}` is no wheel or sdist of {', '.join(readers)}")
        read.setdefault(match["name"], {})[match["version"]] = readers[match["name"]](Source(path)).table()
    for name, releases in read.items():
        (FOLDER / files[name]).write_text(text_of(releases), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

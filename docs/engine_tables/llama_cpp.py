"""The classes of models that llama.cpp's converter knows, by the sdist of llama-cpp-python, which has its source."""

from __future__ import annotations

import ast
import re
import tarfile
from typing import Any, Final

from source import Source, literal

_FILES: Final = re.compile(r".*/vendor/llama\.cpp/(conversion/[a-z0-9_]+|convert_hf_to_gguf)\.py")


class Reader:
    """Reads one release."""

    def __init__(self, source: Source) -> None:
        self.path = source.path

    def table(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """No limits, and the architecture in GGUF by the name in `architectures`."""
        found: dict[str, dict[str, Any]] = {}
        with tarfile.open(self.path) as sdist:
            files = (sdist.extractfile(member) for member in sdist if _FILES.fullmatch(member.name))
            trees = [ast.parse(file.read()) for file in files if file is not None]
        classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
        for node in classes.values():
            architecture = self._architecture(node, classes)
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "register" and architecture:
                    for name in map(literal, call.args):
                        if isinstance(name, str) and architecture != "MMPROJ":
                            found.setdefault(name, {"architecture": architecture})
        return {}, dict(sorted(found.items()))

    def _architecture(self, node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> str:
        for statement in node.body:
            if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "model_arch":
                return str(getattr(statement.value, "attr", ""))
        for base in node.bases:
            if (
                isinstance(base, ast.Name)
                and base.id in classes
                and (found := self._architecture(classes[base.id], classes))
            ):
                return found
        return ""
